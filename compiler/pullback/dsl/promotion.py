"""Type promotion and broadcasting: operands of any kind -> tensors of one dtype and shape.

The rules are the array API standard's.  Where it leaves the result open: kinds mix upwards (bool < integer <
float, the higher kind's dtype wins), f16 with bf16 gives f32, u8 with i8 gives i32 (there is no i16), Python
and numpy scalars are weak: they take the tensor's dtype unless their kind is higher (then i32 or f32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.graph import Loc, Node, current_loc, make
from ..graph.types import DTYPES, DType, bool_, f16, f32, f64, i8, i32, i64, u8, u32
from ..ops.elementwise import Cast
from ..ops.leaf import Constant, Fill, checked_scalar
from ..ops.movement import Broadcast

if TYPE_CHECKING:
    from .tensor import Tensor

_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}
_SIGNED = {8: i8, 32: i32, 64: i64}
_FROM_NUMPY = {d.numpy: d for d in (f64, f32, f16, i64, i32, i8, u8, u32, bool_)}

Shape = tuple[int, ...]

ArrayLike: TypeAlias = "Tensor | np.ndarray | np.generic | bool | int | float | Sequence"
"""What array functions take; sequences are nested lists of numbers or tensors."""
DTypeLike: TypeAlias = "DType | str | type | np.dtype"
ShapeLike: TypeAlias = "int | Sequence[int]"
Axes: TypeAlias = "int | Sequence[int] | None"
"""None: all."""


def promote_types(a: DType, b: DType) -> DType:
    """The dtype that both go to: same kind, the wider; see the module's rules for mixed kinds."""
    if a is b:
        return a
    if _RANK[a.kind] != _RANK[b.kind]:
        return a if _RANK[a.kind] > _RANK[b.kind] else b
    if a.kind == b.kind:
        return f32 if a.bits == b.bits else a if a.bits > b.bits else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    bits = max(signed.bits, 2 * unsigned.bits)
    return _SIGNED[32 if bits == 16 else bits]


def weak_type(value: bool | int | float, dtype: DType | None) -> DType:
    """The dtype of a scalar beside a tensor of `dtype` (None: beside no tensor)."""
    kind = "b" if isinstance(value, bool) else "i" if isinstance(value, int) else "f"
    if dtype is not None and _RANK[kind] <= _RANK[dtype.kind]:
        return dtype
    return {"b": bool_, "i": i32, "f": f32}[kind]


def result_type(*arrays_and_dtypes) -> DType:
    """The dtype that tensors, arrays, scalars and dtypes promote to."""
    strong, weak = None, []
    for x in arrays_and_dtypes:
        if is_scalar(x):
            weak.append(scalar_value(x))
            continue
        node = getattr(x, "node", None)
        dtype = node.type.dtype if node is not None else x if isinstance(x, DType) else constant(x).type.dtype
        strong = dtype if strong is None else promote_types(strong, dtype)
    for value in weak:
        strong = weak_type(value, strong)
    if strong is None:
        raise DTypeError("result_type: expected at least one argument")
    return strong


def can_cast(from_: DTypeLike | Tensor, to: DType) -> bool:
    """Whether a dtype (or a tensor's) goes to `to` by promotion, that is without losing its kind or width."""
    dtype = getattr(from_, "dtype", from_)
    return promote_types(dtype, to) is to


_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "numeric": "iuf",
}


def isdtype(dtype: DType, kind: DType | str | tuple) -> bool:
    """Whether `dtype` is of a kind ("bool", "integral", "real floating", ...), is a dtype, or one of several."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, DType):
        return dtype is kind
    if kind not in _KINDS:
        raise ValueError(f"expected one of {', '.join(_KINDS)}, got {kind!r}")
    return dtype.kind in _KINDS[kind]


@dataclass(frozen=True)
class FloatInfo:
    """Limits of a float dtype: eps is the distance from 1 to the next number, smallest_normal > 0."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class IntegerInfo:
    """Limits of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: DTypeLike | Tensor) -> FloatInfo:
    """Limits of a float dtype (or of a tensor's)."""
    dtype = getattr(type, "dtype", None) or dtype_of(type)
    if not dtype.is_float:
        raise DTypeError(f"finfo: expected a float dtype, got {dtype}")
    if dtype.name == "bf16":
        high = float.fromhex("0x1.fep127")
        return FloatInfo(16, 2.0**-7, high, -high, 2.0**-126, dtype)
    info = np.finfo(dtype.numpy)
    numbers = (float(v) for v in (info.eps, info.max, info.min, info.smallest_normal))
    return FloatInfo(dtype.bits, *numbers, dtype)


def iinfo(type: DTypeLike | Tensor) -> IntegerInfo:
    """Limits of an integer dtype (or of a tensor's)."""
    dtype = getattr(type, "dtype", None) or dtype_of(type)
    if not dtype.is_integer:
        raise DTypeError(f"iinfo: expected an integer dtype, got {dtype}")
    info = np.iinfo(dtype.numpy)
    return IntegerInfo(dtype.bits, int(info.max), int(info.min), dtype)


def dtype_of(spec: DTypeLike) -> DType:
    """A dtype from what users write: `pb.f32`, "f32", float, numpy.float32."""
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in DTYPES:
        return DTYPES[spec]
    if spec is float or spec is int or spec is bool:
        return {float: f32, int: i32, bool: bool_}[spec]
    try:
        numpy = np.dtype(spec)
    except TypeError:
        numpy = None
    if numpy is not None and numpy.name == "bfloat16":
        return DTYPES["bf16"]
    if numpy not in _FROM_NUMPY:
        raise DTypeError(f"expected one of {', '.join(DTYPES)}, got {spec!r}")
    return _FROM_NUMPY[numpy]


def is_scalar(x: object) -> bool:
    return isinstance(x, bool | int | float | np.generic)


def scalar_value(x: bool | int | float | np.generic) -> bool | int | float:
    """A Python scalar from a Python or numpy one."""
    value = x.item() if isinstance(x, np.generic) else x
    if not isinstance(value, bool | int | float):
        raise DTypeError(f"expected a real number, got {x!r}")
    return value


def fill(value: ArrayLike, dtype: DType, shape: Shape, loc: Loc | None = None) -> Node:
    """A constant scalar everywhere; raises `DTypeError` where the dtype cannot hold it."""
    return make(Fill(checked_scalar(value, dtype), dtype, shape), loc=loc)


def constant(array: ArrayLike, dtype: DType | None = None) -> Node:
    """The node of an array known now.  Lists of Python numbers count as i32, f32 or bool."""
    given = isinstance(array, np.ndarray | np.generic)
    try:
        array = np.asarray(array)
    except ValueError:
        raise ShapeError("expected lists of equal lengths and tensors of equal shapes within them") from None
    if array.dtype.kind not in "biufV" or array.dtype.hasobject:
        raise DTypeError(f"expected an array of numbers, got one of {array.dtype}")
    if dtype is None:
        weak = not given and array.dtype.kind in "if"
        dtype = {"i": i32, "f": f32}[array.dtype.kind] if weak else dtype_of(array.dtype)
    if dtype.is_integer and array.size:
        info = np.iinfo(dtype.numpy)
        if array.dtype.kind in "iu" and (array.min() < info.min or array.max() > info.max):
            raise DTypeError(f"values {array.min()} to {array.max()} are out of range for {dtype}")
        if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            raise DTypeError(f"expected integers for {dtype}, got {array.dtype}: convert the array explicitly")
    if array.size and not array.dtype.hasobject and array.dtype.kind != "V":
        first = array.flat[0]
        if array.size == 1 or ((array == first).all() and not (first == 0 and np.signbit(array).any())):
            return fill(first.item(), dtype, array.shape)
    return make(Constant.of(array.astype(np.float32) if array.dtype.kind == "V" else array, dtype))


def cast(node: Node, dtype: DType, loc: Loc | None = None) -> Node:
    return node if node.type.dtype is dtype else make(Cast(dtype), node, loc=loc)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape, sizes aligned at the end, 1 going to anything; raises `ShapeError` if there is none."""
    result = list(max(shapes, key=len, default=()))
    for shape in shapes:
        for d in range(1, len(shape) + 1):
            if shape[-d] != result[-d]:
                if result[-d] == 1:
                    result[-d] = shape[-d]
                elif shape[-d] != 1:
                    raise ShapeError(f"shapes do not broadcast: {' and '.join(str(list(s)) for s in shapes)}")
    return tuple(result)


def broadcast(node: Node, shape: Shape, loc: Loc | None = None) -> Node:
    """The node repeated to `shape`, aligned at the end."""
    have = node.type.shape
    if have == shape:
        return node
    if len(have) > len(shape):
        raise ShapeError(f"cannot broadcast {list(have)} to {list(shape)}")
    if isinstance(node.op, Fill):
        broadcast_to(have, shape)
        return make(Fill(node.op.value, node.op.dtype, shape), loc=loc)
    return make(Broadcast(shape, tuple(range(len(shape) - len(have), len(shape)))), node, loc=loc)


def broadcast_to(have: Shape, shape: Shape) -> None:
    """Check that `have` broadcasts to exactly `shape`."""
    if broadcast_shapes(have, shape) != shape:
        raise ShapeError(f"cannot broadcast {list(have)} to {list(shape)}")


def promoted(*operands, dtype: DType | None = None, broadcasts: bool = True) -> list[Node]:
    """Nodes of one dtype (`dtype`, or the promoted one) and, if `broadcasts`, one shape.

    Operands: tensors, Python and numpy scalars (weak), numpy arrays and nested lists.
    """
    loc = current_loc()
    nodes: list[Node | None] = []
    for x in operands:
        node = getattr(x, "node", None)
        nodes.append(node if node is not None else None if is_scalar(x) else constant(x))
    if dtype is None:
        for n in nodes:
            if n is not None:
                dtype = n.type.dtype if dtype is None else promote_types(dtype, n.type.dtype)
        for n, x in zip(nodes, operands, strict=True):
            if n is None:
                dtype = weak_type(scalar_value(x), dtype)
    shape = broadcast_shapes(*(n.type.shape for n in nodes if n is not None)) if broadcasts else ()
    result = []
    for n, x in zip(nodes, operands, strict=True):
        if n is None:
            result.append(fill(scalar_value(x), dtype, shape, loc))
        else:
            n = cast(n, dtype, loc)
            result.append(broadcast(n, shape, loc) if broadcasts else n)
    return result
