"""Ops without inputs (graph inputs, constants, index numbers), and `Item`, which takes tuples apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.types import DType, TensorType, TupleType
from ..kernel.kernel import Affine, AxisValue, Const, Expr, Index, apply
from .op import Op, Pointwise, register


class Leaf(Op):
    """No inputs, so nothing to differentiate."""

    def jvp(self, out, inputs, tangents):
        return None

    def vjp(self, out, inputs, ct):
        return ()


@register
@dataclass(frozen=True)
class Input(Leaf):
    """An argument of a graph.  Its identity is the node's: two inputs are never the same value."""

    name = "input"
    label: str
    dtype: DType
    shape: tuple[int, ...]

    def infer(self):
        return TensorType(self.dtype, self.shape)

    def evaluate(self):
        raise LookupError(f"input {self.label!r} has no value")


def scalar_key(value: float | int | bool) -> str:
    """Tells 0.0 from -0.0 and makes NaN equal to itself, as equality of ops needs."""
    return value.hex() if isinstance(value, float) else repr(value)


def checked_scalar(value: float | int | bool, dtype: DType) -> float | int | bool:
    """`value` as the Python type of `dtype`; raises `DTypeError` where it cannot be held."""
    if dtype.is_float:
        return float(value)
    if dtype.kind == "b":
        if value not in (0, 1):
            raise DTypeError(f"expected a bool, got {value}")
        return bool(value)
    if isinstance(value, float) and not value.is_integer():
        raise DTypeError(f"expected an integer for {dtype}, got {value}")
    value, info = int(value), np.iinfo(dtype.numpy)
    if not info.min <= value <= info.max:
        raise DTypeError(f"{value} is out of range for {dtype} ({info.min} to {info.max})")
    return value


@register
@dataclass(frozen=True, eq=False)
class Fill(Leaf, Pointwise):
    """One scalar everywhere."""

    name = "fill"
    value: float | int | bool
    dtype: DType
    shape: tuple[int, ...]

    def __eq__(self, other):
        return isinstance(other, Fill) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    @property
    def _key(self):
        return self.dtype.name, self.shape, scalar_key(self.value)

    def infer(self):
        if checked_scalar(self.value, self.dtype).__class__ is not self.value.__class__:
            raise DTypeError(f"expected a Python {'float' if self.dtype.is_float else 'integer'}, got {self.value!r}")
        return TensorType(self.dtype, self.shape)

    def evaluate(self):
        return self.dtype.round(np.full(self.shape, self.value, self.dtype.numpy))

    def lower(self, node, index, read):
        return Const(self.value, self.dtype)


@register
@dataclass(frozen=True)
class Constant(Leaf):
    """An array known when the program is built: `data` is C-ordered, little-endian, as in memory."""

    name = "constant"
    data: bytes
    dtype: DType
    shape: tuple[int, ...]

    @staticmethod
    def of(array: np.ndarray, dtype: DType) -> Constant:
        """The constant that holds `array` (a bf16 one may come as float32: it is rounded)."""
        values = np.ascontiguousarray(dtype.round(array))
        if dtype.name == "bf16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        return Constant(values.tobytes(), dtype, tuple(np.shape(array)))

    def infer(self):
        expected = math.prod(self.shape) * self.dtype.size
        if len(self.data) != expected:
            raise ShapeError(
                f"constant {self.dtype}{list(self.shape)}: expected {expected} bytes, got {len(self.data)}"
            )
        return TensorType(self.dtype, self.shape)

    def evaluate(self):
        if self.dtype.name == "bf16":
            bits = np.frombuffer(self.data, np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32).reshape(self.shape)
        return np.frombuffer(self.data, self.dtype.numpy).reshape(self.shape)


def index_value(index: Index, dtype: DType) -> Expr:
    """An index component as a number of type `dtype`."""
    if isinstance(index, Affine):
        return AxisValue(index, dtype)
    return index if index.dtype == dtype else apply("cast", index, dtype=dtype)


@register
@dataclass(frozen=True)
class Iota(Leaf, Pointwise):
    """0, 1, 2, ... along `axis`, the same along all others."""

    name = "iota"
    dtype: DType
    shape: tuple[int, ...]
    axis: int

    def infer(self):
        if self.dtype.kind == "b":
            raise DTypeError("iota: expected a number type, got bool")
        if not 0 <= self.axis < len(self.shape):
            raise ShapeError(f"iota: expected an axis of {list(self.shape)}, got {self.axis}")
        return TensorType(self.dtype, self.shape)

    def evaluate(self):
        n = self.shape[self.axis]
        column = np.arange(n).astype(self.dtype.numpy)
        return np.broadcast_to(column.reshape([n] + [1] * (len(self.shape) - self.axis - 1)), self.shape)

    def lower(self, node, index, read):
        return index_value(index[self.axis], self.dtype)


@register
@dataclass(frozen=True)
class Item(Op):
    """Result number `index` of an op with several results."""

    name = "item"
    index: int

    def infer(self, t):
        if not isinstance(t, TupleType) or not 0 <= self.index < len(t.items):
            raise ShapeError(f"item: expected a tuple with more than {self.index} items, got {t}")
        return t.items[self.index]

    def evaluate(self, items):
        return items[self.index]

    def jvp(self, out, inputs, tangents):
        # The (co)tangent of a tuple is a dict: item number -> tensor, a missing item is zero.
        return None if tangents[0] is None else tangents[0].get(self.index)

    def vjp(self, out, inputs, ct):
        return ({self.index: ct},)
