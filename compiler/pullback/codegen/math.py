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

Function = Callable[..., Value]
_TABLE: dict[str, Function] = {}
_WIDE = frozenset(("log2", "log10", "sinh", "cosh", "asinh", "acosh", "atanh", "pow"))
"""Computed in f64 for f32 too."""


def emit(b: Builder, fn: str, args: Sequence[Value]) -> Value:
    """The value of a function of `FUNCTIONS`; all arguments of one type, float or double."""
    args = b.together(*args)
    elem = args[0].ty.elem
    if elem == "float" and fn in _WIDE:
        wide = _TABLE[fn](b, F64, *(b.fpext(a, "double") for a in args))
        return b.fptrunc(wide, "float")
    return _TABLE[fn](b, FORMATS[elem], *args)


def _function(f: Function) -> Function:
    _TABLE[f.__name__.strip("_")] = f
    return f


# ---- pieces ---------------------------------------------------------------------------------------------
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


def _near_zero(b: Builder, x: Value, bound: float, otherwise: Value) -> Value:
    """x itself below the bound: keeps the sign of zero and the bits of denormals."""
    return b.select(b.fcmp("olt", b.fabs(x), bound), x, otherwise)


def _power(b: Builder, f: Format, n: Value, offset: int = 0) -> Value:
    """2^(n - offset) of an integer in the low bits; the exponent must be that of a normal number."""
    return b.bitcast(b.add(b.shl(n, f.mantissa), (f.bias - offset) << f.mantissa), f.elem)


def _reduce(b: Builder, f: Format, x: Value, low: Value | None = None) -> tuple[Value, Value, Value]:
    """x (+ low) = n ln 2 + r, |r| <= ln(2) / 2: n, an integer whose low bits are n, and r."""
    t = b.fma(x, 1 / LN2, f.magic)
    n = b.fsub(t, f.magic)
    r = b.fma(n, -f.ln2[0], x)  # exact
    if low is None:
        r = b.fma(n, -f.ln2[1], r)
    else:
        r = b.fadd(r, b.fma(n, -f.ln2[1], low))
    return n, b.bitcast(t, f.bits), r


def _exp_reduced(b: Builder, f: Format, r: Value) -> Value:
    return b.fma(b.fma(f.polynomial(b, "exp", r), r, 1.0), r, 1.0)


def _exp_small(b: Builder, f: Format, x: Value) -> Value:
    """e^x where the result is a normal number."""
    _, n, r = _reduce(b, f, x)
    return b.fmul(_exp_reduced(b, f, r), _power(b, f, n))


def _exp_any(b: Builder, f: Format, x: Value, low: Value | None = None) -> Value:
    """e^(x + low), down to denormals and up to infinity."""
    n, _, r = _reduce(b, f, x, low)
    return b.scale(_exp_reduced(b, f, r), n)


def _expm1_part(b: Builder, f: Format, x: Value, shift: int) -> Value:
    """(e^x - 1) / 2^shift, so that what overflows only at the end does so there."""
    _, n, r = _reduce(b, f, x)
    p = b.fma(b.fmul(r, r), f.polynomial(b, "expm1", r), r)
    s = _power(b, f, n, shift)
    return b.fma(p, s, b.fsub(s, 2.0**-shift))


def _split(b: Builder, f: Format, x: Value, denormal: bool) -> tuple[Value, Value]:
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


def _log_of(b: Builder, f: Format, e: Value, x: Value, correction: Value | None = None) -> Value:
    """e ln 2 + log(1 + x) + correction."""
    high, low = f.ln2
    z = b.fmul(x, x)
    small = b.fmul(e, low) if correction is None else b.fma(e, low, correction)
    if f is F32:
        y = b.fma(z, b.fmul(x, f.polynomial(b, "log", x)), small)
        return b.fma(e, high, b.fadd(x, b.fma(z, -0.5, y)))
    half, s, tail = _log_tail(b, f, x)
    t = b.fsub(b.fsub(half, b.fma(s, tail, small)), x)
    return b.fma(e, high, b.fneg(t))


def _log_tail(b: Builder, f: Format, x: Value) -> tuple[Value, Value, Value]:
    """log(1 + x) = x - (h - s t), h = x^2 / 2, s = x / (2 + x): the h, s, t of fdlibm."""
    half = b.fmul(b.fmul(x, x), 0.5)
    s = b.fdiv(x, b.fadd(x, 2.0))
    z = b.fmul(s, s)
    return half, s, b.fma(z, f.polynomial(b, "log", z), half)


def _log_edges(b: Builder, x: Value, zero: float, r: Value) -> Value:
    """At `zero` the logarithm is -inf, below NaN, at inf itself."""
    r = b.select(b.fcmp("olt", x, INF), r, x)
    r = b.select(b.fcmp("ult", x, zero), NAN, r)
    return b.select(b.fcmp("oeq", x, zero), -INF, r)


# ---- exponentials and logarithms ------------------------------------------------------------------------
@_function
def exp(b: Builder, f: Format, x: Value) -> Value:
    return _exp_any(b, f, clamp(b, x, f.exp_low, f.exp_high))


@_function
def expm1(b: Builder, f: Format, x: Value) -> Value:
    y = clamp(b, x, -40.0, f.exp_high)
    return _near_zero(b, x, f.tiny**2, b.fmul(_expm1_part(b, f, y, 1), 2.0))


@_function
def log(b: Builder, f: Format, x: Value) -> Value:
    return _log_edges(b, x, 0.0, _log_of(b, f, *_split(b, f, x, True)))


@_function
def log1p(b: Builder, f: Format, x: Value) -> Value:
    u = b.fadd(x, 1.0)
    t = b.fsub(u, x)
    lost = b.fadd(b.fsub(x, b.fsub(u, t)), b.fsub(b.like(x, 1.0), t))
    r = _log_of(b, f, *_split(b, f, u, False), b.fdiv(lost, u))
    return _near_zero(b, x, f.tiny**2, _log_edges(b, x, -1.0, r))


def _log_base(b: Builder, f: Format, x: Value, scale: tuple[float, float], ln2: tuple[float, float]) -> Value:
    """log(x) / log(base): the two parts of log(1 + f) times `scale`, plus e times log(2) / log(base)."""
    e, y = _split(b, f, x, True)
    half, s, tail = _log_tail(b, f, y)
    high = b.fsub(y, half)
    low = b.fma(s, tail, b.fsub(b.fsub(y, high), half))
    t = b.fmul(high, scale[0])
    rest = b.fma(low, scale[0], b.fma(high, scale[1], b.fma(high, scale[0], b.fneg(t))))
    whole = b.fmul(e, ln2[0])  # exact
    total = b.fadd(whole, t)
    rest = b.fadd(rest, b.fsub(t, b.fsub(total, whole)))
    return _log_edges(b, x, 0.0, b.fadd(total, b.fma(e, ln2[1], rest)))


@_function
def log2(b: Builder, f: Format, x: Value) -> Value:
    return _log_base(b, f, x, (H("0x1.71547652b82fep+0"), H("0x1.777d0ffda0d24p-56")), (1.0, 0.0))


@_function
def log10(b: Builder, f: Format, x: Value) -> Value:
    ln2 = (H("0x1.3441350ap-2"), H("-0x1.0c0219dc1da99p-39"))  # 32 bits, and the rest
    return _log_base(b, f, x, (H("0x1.bcb7b1526e50ep-2"), H("0x1.95355baaafad3p-57")), ln2)


@_function
def pow_(b: Builder, f: Format, x: Value, y: Value) -> Value:
    a = b.fabs(x)
    high, low = _log_double(b, f, a)
    p = b.fmul(y, high)
    q = b.fma(y, low, b.fma(y, high, b.fneg(p)))
    p, q = clamp(b, p, -800.0, 800.0), b.select(b.fcmp("olt", b.fabs(p), 800.0), q, 0.0)
    r = _exp_any(b, f, p, q)
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
    e, y = _split(b, f, x, True)
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


def integer_power(b: Builder, x: Value, n: Value, signed: bool) -> Value:
    """x ** n by repeated squaring, wrapping; a negative n gives the integer part of 1 / x ** -n (0 for x = 0)."""
    bits = x.ty.bits
    result, square = b.like(x, 1), x
    for k in range(bits - 1 if signed else bits):
        bit = b.icmp("ne", b.and_(n, 1 << k), 0)
        result = b.select(bit, b.mul(result, square), result)
        square = b.mul(square, square)
    if not signed:
        return result
    odd = b.icmp("ne", b.and_(n, 1), 0)
    inverse = b.select(b.icmp("eq", x, 1), b.like(x, 1), b.like(x, 0))
    inverse = b.select(b.icmp("eq", x, -1), b.select(odd, b.like(x, -1), b.like(x, 1)), inverse)
    return b.select(b.icmp("slt", n, 0), inverse, result)


# ---- hyperbolic functions and erf -----------------------------------------------------------------------
@_function
def tanh(b: Builder, f: Format, x: Value) -> Value:
    a = clamp(b, b.fabs(x), None, 22.0 if f is F64 else 10.0)
    if f is F64:
        half = _expm1_part(b, f, b.fmul(a, 2.0), 1)
        return _near_zero(b, x, f.tiny, b.copysign(b.fdiv(half, b.fadd(half, 1.0)), x))
    z = b.fmul(a, a)
    near = b.fma(b.fmul(a, z), f.polynomial(b, "tanh", z), a)
    e = _exp_small(b, f, b.fmul(a, 2.0))
    far = b.fsub(b.like(x, 1.0), b.fdiv(b.like(x, 2.0), b.fadd(e, 1.0)))
    return b.copysign(b.select(b.fcmp("olt", a, 0.625), near, far), x)


@_function
def sinh(b: Builder, f: Format, x: Value) -> Value:
    g = _expm1_part(b, f, clamp(b, b.fabs(x), None, 711.0), 3)
    r = b.fma(g, 4.0, b.fmul(b.fdiv(g, b.fadd(g, 0.125)), 0.5))
    return _near_zero(b, x, f.tiny, b.copysign(r, x))


@_function
def cosh(b: Builder, f: Format, x: Value) -> Value:
    u = b.fadd(_expm1_part(b, f, clamp(b, b.fabs(x), None, 711.0), 3), 0.125)
    return b.fma(u, 4.0, b.fdiv(b.like(x, 0.0625), u))


@_function
def asinh(b: Builder, f: Format, x: Value) -> Value:
    a = b.fabs(x)
    z = b.fmul(a, a)
    y = b.fadd(a, b.fdiv(z, b.fadd(b.sqrt(b.fadd(z, 1.0)), 1.0)))
    far = b.fcmp("ogt", a, 2.0**60)
    r = log1p(b, f, b.select(far, a, y))
    r = b.fadd(r, b.select(far, b.like(x, LN2), b.like(x, 0.0)))
    return _near_zero(b, x, f.tiny, b.copysign(r, x))


@_function
def acosh(b: Builder, f: Format, x: Value) -> Value:
    t = b.fsub(x, 1.0)
    y = b.fadd(t, b.sqrt(b.fma(t, t, b.fmul(t, 2.0))))
    far = b.fcmp("ogt", x, 2.0**60)
    r = log1p(b, f, b.select(far, x, y))
    r = b.fadd(r, b.select(far, b.like(x, LN2), b.like(x, 0.0)))
    return b.select(b.fcmp("ult", x, 1.0), NAN, r)


@_function
def atanh(b: Builder, f: Format, x: Value) -> Value:
    a = b.fabs(x)
    r = b.fmul(log1p(b, f, b.fdiv(b.fmul(a, 2.0), b.fsub(b.like(x, 1.0), a))), 0.5)
    return _near_zero(b, x, f.tiny, b.copysign(r, x))


@_function
def erf(b: Builder, f: Format, x: Value) -> Value:
    a = clamp(b, b.fabs(x), None, 6.0 if f is F64 else 4.0)
    near = b.fma(x, f.polynomial(b, "erf", b.fmul(x, x)), x)
    if f is F64:
        t = b.fdiv(b.fsub(a, 3.0), b.fadd(a, 3.0))
        rest = b.fmul(_exp_small(b, f, b.fneg(b.fmul(a, a))), f.polynomial(b, "erfcx", t))
    else:
        rest = _exp_small(b, f, f.polynomial(b, "erfc", a))
    far = b.copysign(b.fsub(b.like(x, 1.0), rest), x)
    return b.select(b.fcmp("olt", a, 1.0 if f is F64 else 0.92), near, far)


# ---- trigonometry ---------------------------------------------------------------------------------------
def _circle(b: Builder, f: Format, x: Value) -> tuple[Value, Value, Value]:
    """sine and cosine of r, and an integer whose low bits are q, where |x| = q pi / 2 + r."""
    a = b.fabs(x)
    a = b.select(b.fcmp("olt", a, 2.0**45), a, NAN)
    if f is F32:
        a = b.fpext(a, "double")
    t = b.fma(a, 2 / 3.141592653589793, F64.magic)
    n = b.fsub(t, F64.magic)
    q = b.bitcast(t, "i64")
    r = b.fma(n, -PI_2, a)  # exact
    if f is F32:
        wide = b.fma(n, -PI_2_LOW, r)
        r = b.fptrunc(wide, "float")
        low = b.fptrunc(b.fsub(wide, b.fpext(r, "double")), "float")
        z = b.fmul(r, r)
        sine = b.fadd(b.fma(b.fmul(r, z), f.polynomial(b, "sin", z), low), r)
        cosine = b.fma(z, b.fma(z, f.polynomial(b, "cos", z), -0.5), 1.0)
        return sine, cosine, b.itrunc(q, "i32")
    p = b.fmul(n, PI_2_LOW)
    h = b.fsub(r, p)
    back = b.fsub(h, r)  # what h lost of r - p (Knuth)
    lost = b.fsub(b.fsub(r, b.fsub(h, back)), b.fadd(p, back))
    low = b.fma(n, -PI_2_LAST, b.fsub(lost, b.fma(n, PI_2_LOW, b.fneg(p))))
    z = b.fmul(h, h)
    sine = b.fma(b.fmul(h, z), f.polynomial(b, "sin", z), b.fma(low, b.fmul(z, -0.5), low))
    half = b.fmul(z, 0.5)
    w = b.fsub(b.like(z, 1.0), half)
    tail = b.fma(b.fmul(z, z), f.polynomial(b, "cos", z), b.fmul(b.fneg(h), low))
    return b.fadd(h, sine), b.fadd(w, b.fadd(b.fsub(b.fsub(b.like(z, 1.0), w), half), tail)), q


def _signed(b: Builder, f: Format, r: Value, sign: Value) -> Value:
    """r with its sign flipped where the lowest bit of `sign` is set."""
    return b.bitcast(b.xor(b.bitcast(r, f.bits), b.shl(sign, f.sign)), f.elem)


@_function
def sin(b: Builder, f: Format, x: Value) -> Value:
    sine, cosine, q = _circle(b, f, x)
    r = b.select(b.icmp("ne", b.and_(q, 1), 0), cosine, sine)
    return _signed(b, f, r, b.xor(b.lshr(q, 1), b.lshr(b.bitcast(x, f.bits), f.sign)))


@_function
def cos(b: Builder, f: Format, x: Value) -> Value:
    sine, cosine, q = _circle(b, f, x)
    r = b.select(b.icmp("ne", b.and_(q, 1), 0), sine, cosine)
    return _signed(b, f, r, b.lshr(b.add(q, 1), 1))


@_function
def tan(b: Builder, f: Format, x: Value) -> Value:
    sine, cosine, q = _circle(b, f, x)
    odd = b.icmp("ne", b.and_(q, 1), 0)
    r = b.fdiv(b.select(odd, cosine, sine), b.select(odd, sine, cosine))
    return _signed(b, f, r, b.xor(q, b.lshr(b.bitcast(x, f.bits), f.sign)))


def _arcsine(b: Builder, f: Format, x: Value) -> tuple[Value, Value, Value]:
    """(s, asin(s) - s) with s = x below 1/2 and sqrt((1 - |x|) / 2) above, and which of the two it is."""
    a = b.fabs(x)
    near = b.fcmp("olt", a, 0.5)
    z = b.select(near, b.fmul(x, x), b.fma(a, -0.5, 0.5))
    s = b.select(near, x, b.sqrt(z))
    return s, b.fmul(s, b.fmul(z, f.polynomial(b, "asin", z))), near


@_function
def asin(b: Builder, f: Format, x: Value) -> Value:
    s, more, near = _arcsine(b, f, x)
    high, low = f.pi_2
    far = b.fsub(b.like(x, high), b.fsub(b.fmul(b.fadd(s, more), 2.0), low))
    return b.select(near, b.fadd(s, more), b.copysign(far, x))


@_function
def acos(b: Builder, f: Format, x: Value) -> Value:
    s, more, near = _arcsine(b, f, x)
    high, low = f.pi_2
    middle = b.fsub(b.like(x, high), b.fsub(s, b.fsub(b.like(x, low), more)))
    below = b.fmul(b.fsub(b.like(x, high), b.fsub(s, b.fsub(b.like(x, low), more))), 2.0)
    far = b.select(b.fcmp("olt", x, 0.0), below, b.fmul(b.fadd(s, more), 2.0))
    return b.select(near, middle, far)


def _angle(b: Builder, f: Format, y: Value, x: Value) -> Value:
    """atan(y / x) of y, x >= 0, in three ranges of the quotient, by one division."""
    steep = b.fcmp("ogt", y, b.fmul(x, 2.414213562373095))
    middle = b.fcmp("ogt", y, b.fmul(x, 0.4142135623730951))
    top = b.select(steep, b.fneg(x), b.select(middle, b.fsub(y, x), y))
    bottom = b.select(steep, y, b.select(middle, b.fadd(x, y), x))
    t = b.fdiv(top, bottom)
    z = b.fmul(t, t)
    high, low = f.pi_2
    zero = b.like(t, 0.0)
    base = b.select(steep, b.like(t, high), b.select(middle, b.like(t, high / 2), zero))
    rest = b.select(steep, b.like(t, low), b.select(middle, b.like(t, low / 2), zero))
    return b.fadd(base, b.fadd(t, b.fma(b.fmul(t, z), f.polynomial(b, "atan", z), rest)))


@_function
def atan(b: Builder, f: Format, x: Value) -> Value:
    return b.copysign(_angle(b, f, b.fabs(x), b.like(x, 1.0)), x)


@_function
def atan2(b: Builder, f: Format, y: Value, x: Value) -> Value:
    v, u = b.fabs(y), b.fabs(x)
    # two infinities have the quotient 1, two zeros 0; large ones are scaled so that their sum stays finite
    both = b.and_(b.fcmp("oeq", v, INF), b.fcmp("oeq", u, INF))
    none = b.and_(b.fcmp("oeq", v, 0.0), b.fcmp("oeq", u, 0.0))
    scale = b.select(b.fcmp("ogt", b.fmaximum(v, u), 2.0 ** (f.bias - 3)), b.like(y, 0.125), b.like(y, 1.0))
    v = b.select(both, 1.0, b.fmul(v, scale))
    u = b.select(both, 1.0, b.select(none, b.like(u, 1.0), b.fmul(u, scale)))
    a = _angle(b, f, v, u)
    high, low = f.pi_2
    left = b.fsub(b.like(a, 2 * high), b.fsub(a, 2 * low))
    behind = b.icmp("slt", b.bitcast(x, f.bits), 0)
    return b.copysign(b.select(behind, left, a), y)


FUNCTIONS: frozenset[str] = frozenset(_TABLE)
"""What `emit` knows: names of `kernel/scalars.py`."""

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
