"""The scalar functions of the kernel IR: name -> arity and meaning (numpy, on arrays of the argument type).

This table is what `Apply.fn` may name; the emitter and `codegen/math.py` implement it, the verifier
enforces it.  Integer arithmetic wraps; division and remainder floor, as in Python, and give 0 for a zero
divisor of integers.  maximum and minimum propagate NaN.  `fma` rounds once.  `cast` and `bitcast` take their
target from `Apply.dtype`.  `fma_ftz` and `tf32` are what matrix units do with products of 16-bit floats and
with f32 operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf as _erf

import numpy as np


@dataclass(frozen=True, slots=True)
class Scalar:
    """`kinds`: which dtype kinds the arguments may have; `result`: 'same' | 'bool' | 'cast'."""

    name: str
    arity: int
    evaluate: Callable[..., np.ndarray]
    kinds: str = "fiub"
    result: str = "same"
    cost: int = 1
    bits: int = 0
    """Only for arguments of so many bits (0: any)."""


def _two_sum(a, b):
    """a + b rounded, and what rounding lost."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _round_to_odd(s, error):
    """The sum s + error, truncated with a sticky last bit: rounding it again to fewer bits is then right."""
    even = (np.ascontiguousarray(s).view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even & np.isfinite(s), np.nextafter(s, toward), s)


def fma(a, b, c):
    """a * b + c with one rounding, f32 or f64 (Boldo and Melquiond, 2008)."""
    a, b, c = np.asarray(a), np.asarray(b), np.asarray(c)
    if c.dtype != np.float64:
        wide = a.astype(np.float64) * b  # exact
        out = wide + c
        ties = (np.ascontiguousarray(out).view(np.int64) & 0x1FFFFFFF) == 0x10000000
        if np.any(ties | (np.abs(out) < 2.0**-125)):
            out = _round_to_odd(*_two_sum(wide, c.astype(np.float64))).reshape(np.shape(out))
            out = np.where(np.isfinite(out), out, wide + c)
        return out.astype(c.dtype)[()]
    high = a * b
    plain = high + c
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    low = al * bl - (((high - ah * bh) - al * bh) - ah * bl)
    th, tl = _two_sum(c, low)
    vh, vl = _two_sum(high, th)
    exact = vh + _round_to_odd(*_two_sum(tl, vl)).reshape(np.shape(plain))
    exact = np.where(exact == 0, plain, exact)  # for the sign
    # Dekker's product needs room at both ends of the exponents; beyond them, extended precision is close enough
    size = np.abs(high)
    tame = np.isfinite(exact) & ((size > 1e-250) | (a == 0) | (b == 0)) & (np.maximum(np.abs(a), np.abs(b)) < 1e290)
    wide = np.longdouble
    return np.where(tame, exact, (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float64))[()]


def _halves(x):
    """x in two halves of 26 bits."""
    t = x * 134217729.0
    high = t - (t - x)
    return high, x - high


LEAST = np.float32(2.0**-126)
"""The least normal f32."""


def _flush(x):
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(x) < LEAST, np.copysign(type(LEAST)(0), x), x)


def fma_ftz(a, b, c):
    """fma in f32 without subnormal numbers: those among a, b and c count as zeros, and a result that rounds (to 24
    bits, whatever its exponent) to less than the least normal number is a zero.  This is each half of VDPBF16PS, and
    PTX's fma.rn.ftz."""
    a, b, c = (_flush(np.asarray(x, np.float32)) for x in (a, b, c))
    wide = a.astype(np.float64) * b  # exact
    out = wide + c
    finite = np.isfinite(out)
    out = np.where(finite, _round_to_odd(*_two_sum(wide, c.astype(np.float64))).reshape(out.shape), out)
    bits = np.ascontiguousarray(out).view(np.int64)
    bits = (bits + 0xFFFFFFF + (bits >> 29 & 1)) & ~0x1FFFFFFF
    return _flush(np.where(finite, bits.view(np.float64), out).reshape(out.shape)).astype(np.float32)[()]


def tf32(x):
    """f32 rounded to 10 bits of mantissa, halves away from zero, as PTX's cvt.rna.tf32."""
    x = np.asarray(x, np.float32)
    bits = (np.ascontiguousarray(x).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(x), x, bits.view(np.float32).reshape(x.shape))[()]


def _floordiv(a, b):
    if np.asarray(a).dtype.kind == "f":
        return np.floor(np.divide(a, b))
    return np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)


def _remainder(a, b):
    if np.asarray(a).dtype.kind == "f":
        return np.remainder(a, b)
    return np.where(b == 0, 0, np.remainder(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)


def _pow(a, b):
    """Integers wrap; a negative exponent gives the integer part of the inverse, and 0 for 0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind == "f":
        return np.power(a, b)
    one = a.dtype.type(1)
    result = np.power(a, np.maximum(b, 0).astype(b.dtype))
    if a.dtype.kind == "u":
        return result
    sign = np.where(b % 2 == 0, one, -one)
    inverse = np.where(a == 1, one, np.where(a == -1, sign, 0))
    return np.where(b < 0, inverse, result).astype(a.dtype)[()]


def _shift(direction):
    def shift(a, b):
        a = np.asarray(a)
        bits = a.dtype.itemsize * 8
        safe = np.where((b < 0) | (b >= bits), 0, b).astype(a.dtype)
        over = np.where(a < 0, -1, 0) if direction is np.right_shift else 0
        return np.where((b < 0) | (b >= bits), over, direction(a, safe)).astype(a.dtype)

    return shift


def _mulhi(a, b):
    return ((np.asarray(a, np.uint64) * np.asarray(b, np.uint64)) >> np.uint64(32)).astype(np.uint32)


def erf(x):
    """The error function; numpy has none."""
    return np.vectorize(_erf, otypes=[np.float64])(np.asarray(x, np.float64)).astype(np.asarray(x).dtype)


_ALL: list[Scalar] = [
    Scalar("add", 2, np.add, "fiu"),
    Scalar("sub", 2, np.subtract, "fiu"),
    Scalar("mul", 2, np.multiply, "fiu"),
    Scalar("div", 2, np.divide, "f", cost=8),
    Scalar("fma", 3, fma, "f"),
    Scalar("fma_ftz", 3, fma_ftz, "f", bits=32),
    Scalar("tf32", 1, tf32, "f", cost=3, bits=32),
    Scalar("neg", 1, np.negative, "fiu"),
    Scalar("abs", 1, np.abs, "fiu"),
    Scalar("sign", 1, np.sign, "fiu", cost=2),
    Scalar("maximum", 2, np.maximum, "fiub"),
    Scalar("minimum", 2, np.minimum, "fiub"),
    Scalar("floordiv", 2, _floordiv, "fiu", cost=8),
    Scalar("remainder", 2, _remainder, "fiu", cost=10),
    Scalar("pow", 2, _pow, "fiu", cost=40),
    Scalar("atan2", 2, np.arctan2, "f", cost=30),
    Scalar("copysign", 2, np.copysign, "f"),
    Scalar("nextafter", 2, np.nextafter, "f", cost=4),
    Scalar("sqrt", 1, np.sqrt, "f", cost=8),
    Scalar("exp", 1, np.exp, "f", cost=12),
    Scalar("expm1", 1, np.expm1, "f", cost=16),
    Scalar("log", 1, np.log, "f", cost=16),
    Scalar("log1p", 1, np.log1p, "f", cost=20),
    Scalar("log2", 1, np.log2, "f", cost=16),
    Scalar("log10", 1, np.log10, "f", cost=16),
    Scalar("sin", 1, np.sin, "f", cost=20),
    Scalar("cos", 1, np.cos, "f", cost=20),
    Scalar("tan", 1, np.tan, "f", cost=30),
    Scalar("asin", 1, np.arcsin, "f", cost=20),
    Scalar("acos", 1, np.arccos, "f", cost=20),
    Scalar("atan", 1, np.arctan, "f", cost=20),
    Scalar("sinh", 1, np.sinh, "f", cost=20),
    Scalar("cosh", 1, np.cosh, "f", cost=20),
    Scalar("tanh", 1, np.tanh, "f", cost=20),
    Scalar("asinh", 1, np.arcsinh, "f", cost=30),
    Scalar("acosh", 1, np.arccosh, "f", cost=30),
    Scalar("atanh", 1, np.arctanh, "f", cost=30),
    Scalar("erf", 1, erf, "f", cost=25),
    Scalar("floor", 1, np.floor, "f"),
    Scalar("ceil", 1, np.ceil, "f"),
    Scalar("trunc", 1, np.trunc, "f"),
    Scalar("round", 1, np.rint, "f"),
    Scalar("signbit", 1, np.signbit, "f", "bool"),
    Scalar("isnan", 1, np.isnan, "f", "bool"),
    Scalar("isinf", 1, np.isinf, "f", "bool"),
    Scalar("isfinite", 1, np.isfinite, "f", "bool"),
    Scalar("lt", 2, np.less, "fiub", "bool"),
    Scalar("le", 2, np.less_equal, "fiub", "bool"),
    Scalar("gt", 2, np.greater, "fiub", "bool"),
    Scalar("ge", 2, np.greater_equal, "fiub", "bool"),
    Scalar("eq", 2, np.equal, "fiub", "bool"),
    Scalar("ne", 2, np.not_equal, "fiub", "bool"),
    Scalar("and", 2, np.bitwise_and, "iub"),
    Scalar("or", 2, np.bitwise_or, "iub"),
    Scalar("xor", 2, np.bitwise_xor, "iub"),
    Scalar("not", 1, np.invert, "iub"),
    Scalar("shl", 2, _shift(np.left_shift), "iu"),
    Scalar("shr", 2, _shift(np.right_shift), "iu"),
    Scalar("mulhi", 2, _mulhi, "u", cost=2, bits=32),
    Scalar("select", 3, np.where, "fiub"),
    Scalar("cast", 1, lambda x: x, "fiub", "cast"),
    Scalar("bitcast", 1, lambda x: x, "fiub", "cast"),
]

SCALARS: dict[str, Scalar] = {s.name: s for s in _ALL}
