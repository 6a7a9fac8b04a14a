"""Prints the coefficients of `codegen/math_coefficients.py`: python tests/math_fit.py [exp-24 log-53 ...]

Needs mpmath.  Each polynomial is the best in the weighted maximum norm (Remez exchange with 50 digits); its
coefficients are then rounded to 24 or 53 bits one after the other, lowest power first, and the rest is fitted
anew after each, so that later coefficients make up for the rounding of earlier ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count, takewhile

import mpmath as m

m.mp.dps = 50
F = Callable[[m.mpf], m.mpf]


def remez(g: F, w: F, low, high, powers: list[int], rounds: int = 12, grid: int = 300) -> list[m.mpf]:
    """Coefficients c of `powers` that minimise the maximum of w |g - sum c x^p| on [low, high]."""
    n = len(powers)

    def nodes(k: int) -> list[m.mpf]:
        return [low + (high - low) * (1 - m.cos(m.pi * i / k)) / 2 for i in range(k + 1)]

    fine = [x for x in nodes(grid) if w(x) > m.mpf("1e-12")]
    points = [x if w(x) > m.mpf("1e-12") else x + (high - low) / 200 for x in nodes(n)]
    best, coefficients = m.inf, []
    for _ in range(rounds):
        a, b = m.matrix(n + 1, n + 1), m.matrix(n + 1, 1)
        for i, x in enumerate(points):
            for j, p in enumerate(powers):
                a[i, j] = x**p
            a[i, n], b[i] = (-1) ** i / w(x), g(x)
        c = m.lu_solve(a, b)
        errors = [w(x) * (g(x) - sum(c[j] * x**p for j, p in enumerate(powers))) for x in fine]
        worst = max(map(abs, errors))
        if worst < best:
            best, coefficients = worst, [c[j] for j in range(n)]
        extrema: list[int] = []
        for i, e in enumerate(errors):  # the largest error between two changes of sign
            if extrema and (errors[extrema[-1]] > 0) == (e > 0):
                if abs(e) > abs(errors[extrema[-1]]):
                    extrema[-1] = i
            else:
                extrema.append(i)
        while len(extrema) > n + 1:
            extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
        if len(extrema) < n + 1 or worst < abs(c[n]) * m.mpf("1.01"):
            break
        points = [fine[i] for i in extrema]
    return coefficients


def rounded(x: m.mpf, bits: int) -> m.mpf:
    mantissa, exponent = m.frexp(x)
    return m.ldexp(m.nint(m.ldexp(mantissa, bits)), exponent - bits)


def fit(g: F, w: F, low, high, terms: int, bits: int, refits: int) -> list[float]:
    """Coefficients of 1, x, x^2 ... rounded to `bits`; the first `refits` roundings are followed by a new fit."""
    low, high, left, fixed = m.mpf(low), m.mpf(high), list(range(terms)), {}
    c = remez(g, w, low, high, left)
    while left:
        fixed[left.pop(0)] = rounded(c[0], bits)
        known = dict(fixed)
        if len(fixed) <= refits and left:
            c = remez(lambda x, k=known: g(x) - sum(v * x**p for p, v in k.items()), w, low, high, left, 6, 160)
        else:
            c = c[1:]
    return [float(fixed[p]) for p in range(terms)]


def series(term: Callable[[int], m.mpf]) -> m.mpf:
    return sum(takewhile(lambda t: abs(t) > m.mpf("1e-60"), (term(j) for j in count()))) + term(0) * 0


def root(f: F) -> F:
    """A function of x^2 from one of x."""
    return lambda z: f(m.sqrt(z))


def ratio(f: F) -> F:
    """x / f(x) in x^2: what makes an error of f(x) / x relative to f."""
    return root(lambda x: x / f(x) if x else m.mpf(1))


def log3(f):
    return series(lambda j: (-f) ** j / (j + 3)) if abs(f) < 0.01 else (m.log1p(f) - f + f * f / 2) / f**3


def near(limit: list[int | m.mpf], f: F) -> F:
    """f of x^2, by its series near 0, where the formula cancels."""
    return lambda z: sum(c * z**j for j, c in enumerate(limit)) if z < m.mpf("1e-8") else f(m.sqrt(z))


def exp2(r):
    return sum(r**j / m.factorial(j + 2) for j in range(40))


def from_t(t):
    return 3 * (1 + t) / (1 - t)


half_ln2, quarter_pi = m.log(2) / 2 * m.mpf("1.0005"), m.pi / 4 * m.mpf("1.001")
tan_8, log_s = (m.sqrt(2) - 1) ** 2 * m.mpf("1.0001"), m.mpf("0.02945")
erf_1 = 2 / m.sqrt(m.pi)
sin3 = near([-m.mpf(1) / 6, m.mpf(1) / 120], lambda x: (m.sin(x) - x) / x**3)
cos4 = near([m.mpf(1) / 24, -m.mpf(1) / 720], lambda x: (m.cos(x) - 1 + x * x / 2) / x**4)
asin3 = near([m.mpf(1) / 6, m.mpf(3) / 40, m.mpf(15) / 336], lambda x: (m.asin(x) - x) / x**3)
tanh3 = near([-m.mpf(1) / 3, m.mpf(2) / 15], lambda x: (m.tanh(x) - x) / x**3)
erf1 = near([erf_1 - 1, -erf_1 / 3, erf_1 / 10], lambda x: m.erf(x) / x - 1)


def erfcx(t):
    return m.erfc(from_t(t)) * m.exp(from_t(t) ** 2)


JOBS: dict[str, tuple] = {
    "exp-24": (exp2, lambda r: r * r / m.exp(r), -half_ln2, half_ln2, 5, 24, 5),
    "exp-53": (exp2, lambda r: r * r / m.exp(r), -half_ln2, half_ln2, 10, 53, 3),
    "expm1-24": (exp2, lambda r: r * r / abs(m.expm1(r)) if r else m.mpf(0), -half_ln2, half_ln2, 6, 24, 6),
    "expm1-53": (exp2, lambda r: r * r / abs(m.expm1(r)) if r else m.mpf(0), -half_ln2, half_ln2, 11, 53, 3),
    "log-24": (log3, lambda f: abs(f**3 / m.log1p(f)) if f else f, m.sqrt(0.5) - 1, m.sqrt(2) - 1, 9, 24, 9),
    "log-53": (lambda z: series(lambda j: 2 * z**j / (2 * j + 3)), lambda z: z, 0, log_s, 7, 53, 3),
    "tanh-24": (tanh3, lambda z: z * ratio(m.tanh)(z), 0, "0.391", 5, 24, 5),
    "erf-24": (erf1, lambda z: 1 / (1 + erf1(z)), 0, "0.85", 7, 24, 7),
    "erf-53": (erf1, lambda z: 1 / (1 + erf1(z)), 0, "1.0001", 14, 53, 0),
    "erfc-24": (lambda x: m.log(m.erfc(x)), lambda x: m.erfc(x) / m.erf(x), "0.915", 4, 9, 24, 9),
    "erfcx-53": (erfcx, lambda t: m.exp(-(from_t(t) ** 2)) / m.erf(from_t(t)), -0.5, "0.3303", 17, 53, 0),
    "sin-24": (sin3, lambda z: z * ratio(m.sin)(z), 0, quarter_pi**2, 3, 24, 3),
    "sin-53": (sin3, lambda z: z * ratio(m.sin)(z), 0, quarter_pi**2, 6, 53, 3),
    "cos-24": (cos4, lambda z: z * z / m.cos(m.sqrt(z)), 0, quarter_pi**2, 3, 24, 3),
    "cos-53": (cos4, lambda z: z * z / m.cos(m.sqrt(z)), 0, quarter_pi**2, 6, 53, 3),
    "asin-24": (asin3, lambda z: z * ratio(m.asin)(z), 0, "0.25", 5, 24, 5),
    "asin-53": (asin3, lambda z: z * ratio(m.asin)(z), 0, "0.25", 13, 53, 3),
    "atan-24": (lambda z: series(lambda j: -((-z) ** j) / (2 * j + 3)), lambda z: z, 0, tan_8, 5, 24, 5),
    "atan-53": (lambda z: series(lambda j: -((-z) ** j) / (2 * j + 3)), lambda z: z, 0, tan_8, 11, 53, 3),
    "powlog-53": (lambda z: series(lambda j: 2 * z**j / (2 * j + 5)), lambda z: z * z, 0, log_s, 8, 53, 3),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or JOBS:
        print(name, " ".join(x.hex() for x in fit(*JOBS[name])))
