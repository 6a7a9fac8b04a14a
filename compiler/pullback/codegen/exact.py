"""Arithmetic that some processors lack, in operations that all have: rounded once, as if they had it.

On x86-64-v2 there is no fma; below AVX-512 no scaling by a power of two, nor anywhere a conversion from f64
to f16.  The roundings are made from a rounded result and its exact error: rounding *to odd* first makes a
second rounding safe (Boldo and Melquiond,
Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd, IEEE Trans. Comp. 2008).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .values import Value

if TYPE_CHECKING:
    from .builder import Builder


def two_sum(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """x + y, rounded, and the rounding error (Knuth)."""
    s = b.fadd(x, y)
    t = b.fsub(s, x)
    return s, b.fadd(b.fsub(x, b.fsub(s, t)), b.fsub(y, t))


def two_product(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """x * y in f64, rounded, and the rounding error (Dekker)."""
    split = []
    for v in (x, y):
        big = b.fmul(v, 134217729.0)
        high = b.fsub(big, b.fsub(big, v))
        split += [high, b.fsub(v, high)]
    xh, xl, yh, yl = split
    p = b.fmul(x, y)
    e = b.fsub(b.fmul(xh, yh), p)
    return p, b.fadd(b.fmul(xl, yl), b.fadd(b.fmul(xl, yh), b.fadd(b.fmul(xh, yl), e)))


def round_odd(b: Builder, x: Value, error: Value) -> Value:
    """x + error, where x is its rounding to nearest, rounded to odd instead."""
    bits = f"i{x.ty.bits}"
    n = b.bitcast(x, bits)
    away = b.icmp("eq", b.fcmp("ogt", error, 0.0), b.fcmp("ogt", x, 0.0))
    odd = b.add(n, b.select(away, b.like(n, 1), b.like(n, -1)))
    even = b.icmp("eq", b.and_(n, 1), 0)
    return b.bitcast(b.select(b.and_(b.fcmp("one", error, 0.0), even), odd, n), x.ty.elem)


def fma_f32(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """Through f64, where the product is exact."""
    x, y, z = (b.fpext(v, "double") for v in (x, y, z))
    return b.fptrunc(round_odd(b, *two_sum(b, b.fmul(x, y), z)), "float")


def fma_f64(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """Exact unless a partial product over- or underflows; there, and for the sign of 0, it is the plain x * y + z."""
    p, e = two_product(b, x, y)
    th, tl = two_sum(b, z, e)
    vh, vl = two_sum(b, p, th)
    r = b.fadd(vh, round_odd(b, *two_sum(b, tl, vl)))
    return b.select(b.fcmp("one", r, 0.0), r, b.fadd(p, z))


def scale(b: Builder, x: Value, n: Value) -> Value:
    """x * 2^n in two steps, so that the exponent of each is in range; only the second can round."""
    mantissa, bias = (23, 127) if x.ty.bits == 32 else (52, 1023)
    k = b.bitcast(b.fadd(n, 1.5 * 2.0**mantissa), f"i{x.ty.bits}")  # n stands in the low bits
    half = b.lshr(k, 1)
    for part in (half, b.sub(k, half)):
        x = b.fmul(x, b.bitcast(b.add(b.shl(part, mantissa), bias << mantissa), x.ty.elem))
    return x


def double_to_half(b: Builder, x: Value) -> Value:
    """The f32 that rounds to the f16 nearest to an f64."""
    s = b.fptrunc(x, "float")
    return round_odd(b, s, b.fptrunc(b.fsub(x, b.fpext(s, "double")), "float"))
