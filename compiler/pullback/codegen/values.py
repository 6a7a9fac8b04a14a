"""Typed operands of LLVM IR text: types, values, constants."""

from __future__ import annotations

import struct
from functools import cache

_MANGLED = {"half": "f16", "float": "f32", "double": "f64", "ptr": "p0"}
_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}


class Type:
    """An LLVM type: an element (`i1` .. `i64`, `half`, `bfloat`, `float`, `double`, `ptr`), `lanes` > 1 for a vector.

    Made by `ty` only, which interns, so types compare by identity.
    """

    __slots__ = ("bits", "elem", "lanes", "mangled", "text")

    def __init__(self, elem: str, lanes: int):
        self.elem, self.lanes = elem, lanes
        self.text = elem if lanes == 1 else f"<{lanes} x {elem}>"
        self.mangled = ("" if lanes == 1 else f"v{lanes}") + _MANGLED.get(elem, elem)
        self.bits = _BITS.get(elem) or int(elem[1:])

    def __repr__(self) -> str:
        return self.text

    @property
    def is_float(self) -> bool:
        return self.elem in ("float", "double", "half")


_type = cache(Type)


def ty(elem: str, lanes: int = 1) -> Type:
    """The type of `lanes` elements (1: a scalar)."""
    return _type(elem, lanes)


I1, I8, I16, I32, I64 = ty("i1"), ty("i8"), ty("i16"), ty("i32"), ty("i64")
HALF, FLOAT, DOUBLE, PTR = ty("half"), ty("float"), ty("double"), ty("ptr")


class Value:
    """An operand: its text, its type, the scope where it exists, and its number if it is a constant splat."""

    __slots__ = ("const", "depth", "ref", "ty")

    def __init__(self, ref: str, type: Type, depth: int = 0, const: float | int | bool | None = None):
        self.ref, self.ty, self.depth, self.const = ref, type, depth, const

    def __repr__(self) -> str:
        return f"{self.ty.text} {self.ref}"


@cache
def literal(elem: str, number: float | int | bool) -> str:
    """A scalar constant as LLVM writes it, rounded to the type."""
    if elem == "i1":
        return "true" if number else "false"
    if elem[0] == "i":
        bits = int(elem[1:])
        number = int(number) & ((1 << bits) - 1)
        return str(number - (1 << bits) if number >> (bits - 1) else number)
    if elem == "half":
        return f"0xH{struct.unpack('<H', struct.pack('<e', number))[0]:04X}"
    if elem == "float":
        number = _to_f32(float(number))
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


def _to_f32(x: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:  # rounds to infinity
        return float("inf") if x > 0 else float("-inf")
