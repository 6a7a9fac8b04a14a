"""sin, cos, tan and their inverses: part of `math.py`."""

from __future__ import annotations

from .builder import Builder, Value
from .math_parts import F32, F64, INF, NAN, PI_2, PI_2_LAST, PI_2_LOW, Format


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


def sin(b: Builder, f: Format, x: Value) -> Value:
    sine, cosine, q = _circle(b, f, x)
    r = b.select(b.icmp("ne", b.and_(q, 1), 0), cosine, sine)
    return _signed(b, f, r, b.xor(b.lshr(q, 1), b.lshr(b.bitcast(x, f.bits), f.sign)))


def cos(b: Builder, f: Format, x: Value) -> Value:
    sine, cosine, q = _circle(b, f, x)
    r = b.select(b.icmp("ne", b.and_(q, 1), 0), sine, cosine)
    return _signed(b, f, r, b.lshr(b.add(q, 1), 1))


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


def asin(b: Builder, f: Format, x: Value) -> Value:
    s, more, near = _arcsine(b, f, x)
    high, low = f.pi_2
    far = b.fsub(b.like(x, high), b.fsub(b.fmul(b.fadd(s, more), 2.0), low))
    return b.select(near, b.fadd(s, more), b.copysign(far, x))


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


def atan(b: Builder, f: Format, x: Value) -> Value:
    return b.copysign(_angle(b, f, b.fabs(x), b.like(x, 1.0)), x)


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
