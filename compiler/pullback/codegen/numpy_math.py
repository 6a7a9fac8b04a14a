"""The elementary functions of `math.py` in numpy, bit for bit: arrays in, arrays out.

`NumpyBuilder` runs what `Builder` writes, so the kernel evaluator can predict compiled code exactly, and a test
that compares the two needs no tolerance: `evaluate(kernel, arrays, functions=numpy_functions())`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..kernel.scalars import fma
from .builder import Type, ty
from .math import FUNCTIONS, emit

_TYPES = {"float": np.float32, "double": np.float64, "i1": np.bool_, "i32": np.int32, "i64": np.int64}
_ELEMS = {np.dtype(t): e for e, t in _TYPES.items()}
_COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
_COMPARE["ge"] = np.greater_equal


class Lanes:
    """An array in the place of a builder's `Value`."""

    __slots__ = ("array",)

    def __init__(self, array):
        self.array = np.asarray(array)

    @property
    def ty(self) -> Type:
        return ty(_ELEMS[self.array.dtype])


class NumpyBuilder:
    """The operations of `Builder` that `math.py` uses, done at once."""

    def like(self, x: Lanes, number: float | int) -> Lanes:
        t = x.array.dtype
        if t.kind == "i":  # wraps
            number = np.array(number & ((1 << 8 * t.itemsize) - 1), f"u{t.itemsize}").view(t)
        return Lanes(np.asarray(number).astype(t))

    def together(self, *args: Lanes | float | int) -> list[Lanes]:
        first = next(a for a in args if isinstance(a, Lanes))
        return [a if isinstance(a, Lanes) else self.like(first, a) for a in args]

    def _do(self, f: Callable, *args: Lanes | float | int) -> Lanes:
        return Lanes(f(*(a.array for a in self.together(*args))))

    def __getattr__(self, name: str) -> Callable[..., Lanes]:
        if name not in _DIRECT:
            raise AttributeError(name)
        return partial(self._do, _DIRECT[name])

    def fcmp(self, predicate: str, a, b) -> Lanes:
        a, b = self.together(a, b)
        unordered = np.isnan(a.array) | np.isnan(b.array)
        if predicate in ("uno", "ord"):
            return Lanes(unordered if predicate == "uno" else ~unordered)
        result = _COMPARE[predicate[1:]](a.array, b.array)
        return Lanes(result | unordered if predicate[0] == "u" else result & ~unordered)

    def icmp(self, predicate: str, a, b) -> Lanes:
        return self._do(_COMPARE[predicate if predicate in _COMPARE else predicate[1:]], a, b)

    def select(self, c: Lanes, a, b) -> Lanes:
        a, b = self.together(a, b)
        return Lanes(np.where(c.array, a.array, b.array))

    def bitcast(self, a: Lanes, elem: str) -> Lanes:
        return Lanes(a.array.view(_TYPES[elem]))

    def convert(self, a: Lanes, elem: str) -> Lanes:
        return Lanes(a.array.astype(_TYPES[elem]))

    fpext = fptrunc = itrunc = convert


def _fmaximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(a), a, np.where(a > b, a, b))


def _lshr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unsigned = f"u{a.dtype.itemsize}"
    return (a.view(unsigned) >> b.astype(unsigned)).view(a.dtype)


def _scale(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.ldexp(a, n.astype(np.int32))


_DIRECT: dict[str, Callable] = {
    "fadd": np.add, "fsub": np.subtract, "fmul": np.multiply, "fdiv": np.divide, "fneg": np.negative, "fma": fma,
    "fabs": np.abs, "copysign": np.copysign, "sqrt": np.sqrt, "trunc": np.trunc, "fmaximum": _fmaximum,
    "scale": _scale,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and_": np.bitwise_and, "or_": np.bitwise_or,
    "xor": np.bitwise_xor, "not_": np.invert, "shl": np.left_shift, "ashr": np.right_shift, "lshr": _lshr,
}  # fmt: skip


def numpy_functions() -> dict[str, Callable[..., np.ndarray]]:
    """name -> the function on float32 or float64 arrays, with the bits that compiled code gives."""

    def call(fn: str, *arrays: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return emit(NumpyBuilder(), fn, [Lanes(a) for a in arrays]).array[()]

    return {fn: partial(call, fn) for fn in FUNCTIONS}
