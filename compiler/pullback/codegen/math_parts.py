"""What the elementary functions share: the two formats, polynomials, range reduction.  Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .builder import Builder, Value
from .math_coefficients import COEFFICIENTS

H = float.fromhex
LN2, LN2_LOW = H("0x1.62e42fefa39efp-1"), H("0x1.abc9e3b39803fp-56")
PI_2, PI_2_LOW, PI_2_LAST = H("0x1.921fb54442d18p+0"), H("0x1.1a62633145c07p-54"), H("-0x1.f1976b7ed8fbcp-110")
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True, slots=True)
class Format:
    """What differs between float and double."""

    elem: str
    bits: str
    mantissa: int
    bias: int
    ln2: tuple[float, float]
    pi_2: tuple[float, float]
    exp_low: float
    """Below, e^x is 0 ..."""
    exp_high: float
    """... and above infinite."""
    sqrt_half: int
    """The bits of sqrt(1/2)."""

    @property
    def sign(self) -> int:
        """The place of the sign bit."""
        return 31 if self.elem == "float" else 63

    @property
    def magic(self) -> float:
        """Adding it rounds to an integer, which then stands in the low bits."""
        return 1.5 * 2.0**self.mantissa

    @property
    def tiny(self) -> float:
        """Below, x + x^3 is x."""
        return 2.0 ** -(self.mantissa // 2 + 2)

    @property
    def smallest(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)

    def polynomial(self, b: Builder, name: str, x: Value) -> Value:
        return horner(b, x, COEFFICIENTS[name][self.elem])


F32 = Format("float", "i32", 23, 127, (H("0x1.62e43p-1"), H("-0x1.05c61p-29")),
             (H("0x1.921fb6p+0"), H("-0x1.777a5cp-25")), -104.5, 89.0, 0x3F3504F3)  # fmt: skip
F64 = Format("double", "i64", 52, 1023, (LN2, LN2_LOW), (PI_2, PI_2_LOW), -746.0, 710.0, 0x3FE6A09E667F3BCD)
FORMATS = {"float": F32, "double": F64}


def horner(b: Builder, x: Value, coefficients: Sequence[float]) -> Value:
    p = b.like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = b.fma(p, x, c)
    return p


def clamp(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    """x between bounds; NaN stays NaN."""
    if low is not None:
        x = b.select(b.fcmp("olt", x, low), low, x)
    return x if high is None else b.select(b.fcmp("ogt", x, high), high, x)


def near_zero(b: Builder, x: Value, bound: float, otherwise: Value) -> Value:
    """x itself below the bound: keeps the sign of zero and the bits of denormals."""
    return b.select(b.fcmp("olt", b.fabs(x), bound), x, otherwise)


def two_to_the(b: Builder, f: Format, n: Value, offset: int = 0) -> Value:
    """2^(n - offset) of an integer in the low bits; the exponent must be that of a normal number."""
    return b.bitcast(b.add(b.shl(n, f.mantissa), (f.bias - offset) << f.mantissa), f.elem)


def reduce(b: Builder, f: Format, x: Value, low: Value | None = None) -> tuple[Value, Value, Value]:
    """x (+ low) = n ln 2 + r, |r| <= ln(2) / 2: n, an integer whose low bits are n, and r."""
    t = b.fma(x, 1 / LN2, f.magic)
    n = b.fsub(t, f.magic)
    r = b.fma(n, -f.ln2[0], x)  # exact
    if low is None:
        r = b.fma(n, -f.ln2[1], r)
    else:
        r = b.fadd(r, b.fma(n, -f.ln2[1], low))
    return n, b.bitcast(t, f.bits), r


def exp_reduced(b: Builder, f: Format, r: Value) -> Value:
    return b.fma(b.fma(f.polynomial(b, "exp", r), r, 1.0), r, 1.0)


def exp_small(b: Builder, f: Format, x: Value) -> Value:
    """e^x where the result is a normal number."""
    _, n, r = reduce(b, f, x)
    return b.fmul(exp_reduced(b, f, r), two_to_the(b, f, n))


def exp_any(b: Builder, f: Format, x: Value, low: Value | None = None) -> Value:
    """e^(x + low), down to denormals and up to infinity."""
    n, _, r = reduce(b, f, x, low)
    return b.scale(exp_reduced(b, f, r), n)


def expm1_part(b: Builder, f: Format, x: Value, shift: int) -> Value:
    """(e^x - 1) / 2^shift, so that what overflows only at the end does so there."""
    _, n, r = reduce(b, f, x)
    p = b.fma(b.fmul(r, r), f.polynomial(b, "expm1", r), r)
    s = two_to_the(b, f, n, shift)
    return b.fma(p, s, b.fsub(s, 2.0**-shift))


def split(b: Builder, f: Format, x: Value, denormal: bool) -> tuple[Value, Value]:
    """x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for positive x: e (as a number) and f."""
    shift: Value | float = 2.0**f.mantissa + f.bias
    if denormal:
        small = b.fcmp("olt", x, f.smallest)
        x = b.select(small, b.fmul(x, 2.0**f.mantissa), x)
        shift = b.select(small, b.like(x, shift + f.mantissa), b.like(x, shift))
    one = f.bias << f.mantissa
    u = b.add(b.bitcast(x, f.bits), one - f.sqrt_half)
    e = b.or_(b.lshr(u, f.mantissa), (f.bias + f.mantissa) << f.mantissa)  # 2^mantissa + e + bias
    m = b.add(b.and_(u, (1 << f.mantissa) - 1), f.sqrt_half)
    return b.fsub(b.bitcast(e, f.elem), shift), b.fsub(b.bitcast(m, f.elem), 1.0)


def log_of(b: Builder, f: Format, e: Value, x: Value, correction: Value | None = None) -> Value:
    """e ln 2 + log(1 + x) + correction."""
    high, low = f.ln2
    z = b.fmul(x, x)
    small = b.fmul(e, low) if correction is None else b.fma(e, low, correction)
    if f is F32:
        y = b.fma(z, b.fmul(x, f.polynomial(b, "log", x)), small)
        return b.fma(e, high, b.fadd(x, b.fma(z, -0.5, y)))
    half, s, tail = log_tail(b, f, x)
    t = b.fsub(b.fsub(half, b.fma(s, tail, small)), x)
    return b.fma(e, high, b.fneg(t))


def log_tail(b: Builder, f: Format, x: Value) -> tuple[Value, Value, Value]:
    """log(1 + x) = x - (h - s t), h = x^2 / 2, s = x / (2 + x): the h, s, t of fdlibm."""
    half = b.fmul(b.fmul(x, x), 0.5)
    s = b.fdiv(x, b.fadd(x, 2.0))
    z = b.fmul(s, s)
    return half, s, b.fma(z, f.polynomial(b, "log", z), half)


def log_edges(b: Builder, x: Value, zero: float, r: Value) -> Value:
    """At `zero` the logarithm is -inf, below NaN, at inf itself."""
    r = b.select(b.fcmp("olt", x, INF), r, x)
    r = b.select(b.fcmp("ult", x, zero), NAN, r)
    return b.select(b.fcmp("oeq", x, zero), -INF, r)
