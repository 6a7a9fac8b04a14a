"""The elementary functions as LLVM IR: polynomials on any vector, f32 and f64.  Values in, a value out.

Written through the builder, so `emit(b, "exp", (x,))` serves scalars and vectors with the same bits on every
target that has fma (and, slowly, on those that have not): no call to a library, no table, no branch.  The
results are right for NaN, infinities, signed zeros and denormals; `ULP` states the largest error.

Methods: range reduction in two or three exact steps (Cody and Waite, with fma), then minimax polynomials
(`math_coefficients.py`); logarithms, sinh and cosh follow fdlibm (Sun Microsystems, 1993).  Some f32 functions
are rare enough to be computed in f64 and rounded.

sin, cos and tan are as exact up to 2^45 (3.5e13) as elsewhere; beyond, where f32 numbers lie a million periods
apart and the reduction would need more bits, they return NaN rather than noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .builder import Builder, Value
from .math_parts import (
    F64,
    FORMATS,
    INF,
    LN2,
    NAN,
    Format,
    H,
    clamp,
    exp_any,
    exp_small,
    expm1_part,
    log_edges,
    log_of,
    log_tail,
    near_zero,
    split,
)
from .math_trigonometry import acos, asin, atan, atan2, cos, sin, tan


# ---- exponentials and logarithms ------------------------------------------------------------------------
def exp(b: Builder, f: Format, x: Value) -> Value:
    return exp_any(b, f, clamp(b, x, f.exp_low, f.exp_high))


def expm1(b: Builder, f: Format, x: Value) -> Value:
    y = clamp(b, x, -40.0, f.exp_high)
    return near_zero(b, x, f.tiny**2, b.fmul(expm1_part(b, f, y, 1), 2.0))


def log(b: Builder, f: Format, x: Value) -> Value:
    return log_edges(b, x, 0.0, log_of(b, f, *split(b, f, x, True)))


def log1p(b: Builder, f: Format, x: Value) -> Value:
    u = b.fadd(x, 1.0)
    t = b.fsub(u, x)
    lost = b.fadd(b.fsub(x, b.fsub(u, t)), b.fsub(b.like(x, 1.0), t))
    r = log_of(b, f, *split(b, f, u, False), b.fdiv(lost, u))
    return near_zero(b, x, f.tiny**2, log_edges(b, x, -1.0, r))


def _log_base(b: Builder, f: Format, x: Value, scale: tuple[float, float], ln2: tuple[float, float]) -> Value:
    """log(x) / log(base): the two parts of log(1 + f) times `scale`, plus e times log(2) / log(base)."""
    e, y = split(b, f, x, True)
    half, s, tail = log_tail(b, f, y)
    high = b.fsub(y, half)
    low = b.fma(s, tail, b.fsub(b.fsub(y, high), half))
    t = b.fmul(high, scale[0])
    rest = b.fma(low, scale[0], b.fma(high, scale[1], b.fma(high, scale[0], b.fneg(t))))
    whole = b.fmul(e, ln2[0])  # exact
    total = b.fadd(whole, t)
    rest = b.fadd(rest, b.fsub(t, b.fsub(total, whole)))
    return log_edges(b, x, 0.0, b.fadd(total, b.fma(e, ln2[1], rest)))


def log2(b: Builder, f: Format, x: Value) -> Value:
    return _log_base(b, f, x, (H("0x1.71547652b82fep+0"), H("0x1.777d0ffda0d24p-56")), (1.0, 0.0))


def log10(b: Builder, f: Format, x: Value) -> Value:
    ln2 = (H("0x1.3441350ap-2"), H("-0x1.0c0219dc1da99p-39"))  # 32 bits, and the rest
    return _log_base(b, f, x, (H("0x1.bcb7b1526e50ep-2"), H("0x1.95355baaafad3p-57")), ln2)


def pow_(b: Builder, f: Format, x: Value, y: Value) -> Value:
    a = b.fabs(x)
    high, low = _log_double(b, f, a)
    p = b.fmul(y, high)
    q = b.fma(y, low, b.fma(y, high, b.fneg(p)))
    p, q = clamp(b, p, -800.0, 800.0), b.select(b.fcmp("olt", b.fabs(p), 800.0), q, 0.0)
    r = exp_any(b, f, p, q)
    # where log and exp cannot follow
    r = b.select(b.fcmp("oeq", a, 0.0), b.select(b.fcmp("olt", y, 0.0), b.like(x, INF), b.like(x, 0.0)), r)
    r = b.select(b.fcmp("oeq", a, INF), b.select(b.fcmp("olt", y, 0.0), b.like(x, 0.0), b.like(x, INF)), r)
    above = b.fcmp("ogt", a, 1.0)
    far = b.select(above, b.fmaximum(y, 0.0), b.fmaximum(b.fneg(y), 0.0))  # y = +-inf: 0 or inf
    r = b.select(b.and_(b.fcmp("oeq", b.fabs(y), INF), b.fcmp("ord", x, x)), far, r)
    # signs
    whole = b.fcmp("oeq", b.trunc(y), y)
    half = b.fmul(y, 0.5)
    odd = b.and_(whole, b.fcmp("une", b.trunc(half), half))
    r = b.select(odd, b.copysign(r, x), r)
    broken = b.and_(b.fcmp("olt", x, 0.0), b.and_(b.fcmp("olt", a, INF), b.not_(whole)))
    r = b.select(broken, NAN, r)
    r = b.select(b.fcmp("uno", x, y), NAN, r)
    one = b.or_(b.fcmp("oeq", y, 0.0), b.fcmp("oeq", x, 1.0))
    one = b.or_(one, b.and_(b.fcmp("oeq", x, -1.0), b.fcmp("oeq", b.fabs(y), INF)))
    return b.select(one, 1.0, r)


def _log_double(b: Builder, f: Format, x: Value) -> tuple[Value, Value]:
    """log(x) of a positive f64 as a sum of two, to about 2^-65: s and s^3 in pairs, the rest as it is."""
    e, y = split(b, f, x, True)
    d = b.fadd(y, 2.0)
    d_low = b.fsub(y, b.fsub(d, 2.0))
    inverse = b.fdiv(b.like(x, 1.0), d)
    s = b.fmul(y, inverse)
    s_low = b.fmul(b.fma(b.fneg(s), d_low, b.fma(b.fneg(s), d, y)), inverse)
    z = b.fmul(s, s)
    z_low = b.fma(b.fmul(s, 2.0), s_low, b.fma(s, s, b.fneg(z)))
    v = b.fmul(s, z)
    v_low = b.fma(s, z_low, b.fma(s_low, z, b.fma(s, z, b.fneg(v))))
    two_thirds, third_low = H("0x1.5555555555555p-1"), H("0x1.5555555555555p-55")
    w = b.fmul(v, two_thirds)
    w_low = b.fma(v, third_low, b.fma(v_low, two_thirds, b.fma(v, two_thirds, b.fneg(w))))
    tail = b.fma(b.fmul(v, z), f.polynomial(b, "powlog", z), w_low)
    twice = b.fmul(s, 2.0)
    h = b.fadd(twice, w)
    rest = b.fadd(b.fsub(w, b.fsub(h, twice)), b.fma(s_low, 2.0, tail))
    whole = b.fmul(e, H("0x1.62e42ffp-1"))  # exact: 32 bits of ln 2
    total = b.fadd(whole, h)
    rest = b.fadd(b.fsub(h, b.fsub(total, whole)), b.fma(e, H("-0x1.718432a1b0e26p-35"), rest))
    high = b.fadd(total, rest)
    return high, b.fsub(rest, b.fsub(high, total))


# ---- hyperbolic functions and erf -----------------------------------------------------------------------
def tanh(b: Builder, f: Format, x: Value) -> Value:
    a = clamp(b, b.fabs(x), None, 22.0 if f is F64 else 10.0)
    if f is F64:
        half = expm1_part(b, f, b.fmul(a, 2.0), 1)
        return near_zero(b, x, f.tiny, b.copysign(b.fdiv(half, b.fadd(half, 1.0)), x))
    z = b.fmul(a, a)
    near = b.fma(b.fmul(a, z), f.polynomial(b, "tanh", z), a)
    e = exp_small(b, f, b.fmul(a, 2.0))
    far = b.fsub(b.like(x, 1.0), b.fdiv(b.like(x, 2.0), b.fadd(e, 1.0)))
    return b.copysign(b.select(b.fcmp("olt", a, 0.625), near, far), x)


def sinh(b: Builder, f: Format, x: Value) -> Value:
    g = expm1_part(b, f, clamp(b, b.fabs(x), None, 711.0), 3)
    r = b.fma(g, 4.0, b.fmul(b.fdiv(g, b.fadd(g, 0.125)), 0.5))
    return near_zero(b, x, f.tiny, b.copysign(r, x))


def cosh(b: Builder, f: Format, x: Value) -> Value:
    u = b.fadd(expm1_part(b, f, clamp(b, b.fabs(x), None, 711.0), 3), 0.125)
    return b.fma(u, 4.0, b.fdiv(b.like(x, 0.0625), u))


def asinh(b: Builder, f: Format, x: Value) -> Value:
    a = b.fabs(x)
    z = b.fmul(a, a)
    y = b.fadd(a, b.fdiv(z, b.fadd(b.sqrt(b.fadd(z, 1.0)), 1.0)))
    far = b.fcmp("ogt", a, 2.0**60)
    r = log1p(b, f, b.select(far, a, y))
    r = b.fadd(r, b.select(far, b.like(x, LN2), b.like(x, 0.0)))
    return near_zero(b, x, f.tiny, b.copysign(r, x))


def acosh(b: Builder, f: Format, x: Value) -> Value:
    t = b.fsub(x, 1.0)
    y = b.fadd(t, b.sqrt(b.fma(t, t, b.fmul(t, 2.0))))
    far = b.fcmp("ogt", x, 2.0**60)
    r = log1p(b, f, b.select(far, x, y))
    r = b.fadd(r, b.select(far, b.like(x, LN2), b.like(x, 0.0)))
    return b.select(b.fcmp("ult", x, 1.0), NAN, r)


def atanh(b: Builder, f: Format, x: Value) -> Value:
    a = b.fabs(x)
    r = b.fmul(log1p(b, f, b.fdiv(b.fmul(a, 2.0), b.fsub(b.like(x, 1.0), a))), 0.5)
    return near_zero(b, x, f.tiny, b.copysign(r, x))


def erf(b: Builder, f: Format, x: Value) -> Value:
    a = clamp(b, b.fabs(x), None, 6.0 if f is F64 else 4.0)
    near = b.fma(x, f.polynomial(b, "erf", b.fmul(x, x)), x)
    if f is F64:
        t = b.fdiv(b.fsub(a, 3.0), b.fadd(a, 3.0))
        rest = b.fmul(exp_small(b, f, b.fneg(b.fmul(a, a))), f.polynomial(b, "erfcx", t))
    else:
        rest = exp_small(b, f, f.polynomial(b, "erfc", a))
    far = b.copysign(b.fsub(b.like(x, 1.0), rest), x)
    return b.select(b.fcmp("olt", a, 1.0 if f is F64 else 0.92), near, far)


# ---- the table ----------------------------------------------------------------------------------------
FUNCTIONS: dict[str, Callable[..., Value]] = {
    f.__name__.strip("_"): f
    for f in (
        exp,
        expm1,
        log,
        log1p,
        log2,
        log10,
        pow_,
        tanh,
        sinh,
        cosh,
        asinh,
        acosh,
        atanh,
        erf,
        sin,
        cos,
        tan,
        asin,
        acos,
        atan,
        atan2,
    )
}
"""What `emit` knows: names of `kernel/scalars.py`."""

WIDE = frozenset(("log2", "log10", "sinh", "cosh", "asinh", "acosh", "atanh", "pow"))
"""Computed in f64 for f32 too."""

ULP: dict[str, dict[str, float]] = {
    "exp": {"f32": 0.95, "f64": 1.0},
    "expm1": {"f32": 1.5, "f64": 2.0},
    "log": {"f32": 0.85, "f64": 0.9},
    "log1p": {"f32": 0.9, "f64": 1.0},
    "log2": {"f32": 0.51, "f64": 0.9},
    "log10": {"f32": 0.51, "f64": 0.8},
    "pow": {"f32": 0.51, "f64": 1.0},
    "tanh": {"f32": 1.4, "f64": 3.0},
    "erf": {"f32": 1.1, "f64": 1.0},
    "sin": {"f32": 1.4, "f64": 1.0},
    "cos": {"f32": 1.4, "f64": 0.9},
    "tan": {"f32": 2.5, "f64": 2.5},
    "asin": {"f32": 2.4, "f64": 2.4},
    "acos": {"f32": 1.2, "f64": 1.2},
    "atan": {"f32": 2.0, "f64": 2.1},
    "atan2": {"f32": 2.2, "f64": 2.2},
    "sinh": {"f32": 0.51, "f64": 2.8},
    "cosh": {"f32": 0.51, "f64": 1.8},
    "asinh": {"f32": 0.51, "f64": 2.2},
    "acosh": {"f32": 0.51, "f64": 2.2},
    "atanh": {"f32": 0.51, "f64": 2.2},
}
"""The largest error in units in the last place of the result, as `tests/test_math.py` measures it, with a margin."""


def emit(b: Builder, fn: str, args: Sequence[Value]) -> Value:
    """The value of a function of `FUNCTIONS`; all arguments of one type, float or double."""
    args = b.together(*args)
    elem = args[0].ty.elem
    if elem == "float" and fn in WIDE:
        wide = FUNCTIONS[fn](b, F64, *(b.fpext(a, "double") for a in args))
        return b.fptrunc(wide, "float")
    return FUNCTIONS[fn](b, FORMATS[elem], *args)
