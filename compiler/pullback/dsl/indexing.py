"""`x[...]`: integers, slices, ellipsis, None, and integer tensors -> slice, flip, reshape and gather nodes."""

from __future__ import annotations

from operator import index as as_index

import numpy as np

from ..errors import DTypeError, ShapeError, TraceError
from ..graph.graph import Node, make
from ..graph.types import i32, i64
from ..ops.indexing import Gather
from ..ops.movement import Flip, Reshape, Slice
from .promotion import ArrayLike, broadcast, broadcast_shapes, cast, constant
from .tensor import Tensor


def getitem(x: Tensor, key: object) -> Tensor:
    """numpy's meaning of `x[key]`, but: tensors as indices must be integers, next to each other, and within
    0 <= i < size when the program runs; boolean masks have no static shape (use `where`)."""
    items = _expand(x.shape, key if isinstance(key, tuple) else (key,))
    node, shape, tensors, d = x.node, [], [], 0
    start, stop, step, flips = [], [], [], []
    for item in items:
        if item is None:
            shape.append(1)
            continue
        n = x.shape[d]
        if isinstance(item, Tensor | np.ndarray):
            tensors.append((len(shape), index_tensor(item, n).node))
            shape.append(n)
            lo, hi, by = 0, n, 1
        elif isinstance(item, slice):
            lo, hi, by, count = _bounds(item, n)
            if by < 0:
                flips.append(d)
                lo, hi, by = (lo + by * (count - 1), lo + 1, -by) if count else (0, 0, 1)
            shape.append(count)
        else:
            if not -n <= item < n:
                raise ShapeError(f"index {item} is out of range for axis {d} of {list(x.shape)}")
            lo = item % n
            hi, by = lo + 1, 1
        start, stop, step, d = [*start, lo], [*stop, hi], [*step, by], d + 1
    if any(lo or hi != n or by != 1 for lo, hi, by, n in zip(start, stop, step, x.shape, strict=True)):
        node = make(Slice(tuple(start), tuple(stop), tuple(step)), node)
    if flips:
        node = make(Flip(tuple(flips)), node)
    if node.shape != tuple(shape):
        node = make(Reshape(tuple(shape)), node)
    return Tensor(_gather(node, tensors) if tensors else node)


def _expand(shape: tuple[int, ...], key: tuple) -> list:
    """The key with the ellipsis spelled out and every index as int, slice, None or integer tensor or array."""
    items = [_item(k) for k in key]
    given = sum(k is not None and k is not Ellipsis for k in items)
    if sum(k is Ellipsis for k in items) > 1:
        raise ShapeError("an index may have one ellipsis (...) only")
    if given > len(shape):
        raise ShapeError(f"{given} indices for {list(shape)}, which has {len(shape)} axes")
    at = next((i for i, k in enumerate(items) if k is Ellipsis), len(items))
    return [*items[:at], *[slice(None)] * (len(shape) - given), *items[at + 1 :]]


def _item(k):
    if k is None or k is Ellipsis or isinstance(k, slice):
        return k
    if isinstance(k, bool | np.bool_):
        raise DTypeError("a bool is no index")
    if isinstance(k, int | np.integer):
        return int(k)
    if isinstance(k, Tensor):
        array, kind = k, k.dtype.kind
    else:
        try:
            array = np.asarray(k)
        except ValueError:
            raise DTypeError(f"expected integer indices, got {k!r}") from None
        kind = array.dtype.kind
    if kind == "b":
        raise TraceError("x[mask]: the result's shape would depend on values; use where(mask, x, other) instead")
    if kind not in "iu" and array.size:
        raise DTypeError(f"expected integer indices, got {array.dtype}")
    return array


def index_tensor(indices: ArrayLike, size: int) -> Tensor:
    """Integer indices for an axis; those known now are checked and counted from 0."""
    if isinstance(indices, Tensor):
        if not indices.dtype.is_integer:
            raise DTypeError(f"expected integer indices, got {indices.dtype}")
        return indices
    array = np.asarray(indices)
    if array.size and array.dtype.kind not in "iu":
        raise DTypeError(f"expected integer indices, got {array.dtype}")
    bad = (array < -size) | (array >= size)
    if bad.any():
        raise ShapeError(f"index {array[bad].flat[0]} is out of range for an axis of size {size}")
    return Tensor(constant(np.where(array < 0, array + size, array), i32))


def _bounds(s: slice, n: int) -> tuple[int, int, int, int]:
    if any(isinstance(v, Tensor) for v in (s.start, s.stop, s.step)):
        raise TraceError(
            "slice bounds must be Python integers: for a start that is a tensor, use take(x, start + arange(n))"
        )
    try:
        s = slice(*(None if v is None else as_index(v) for v in (s.start, s.stop, s.step)))
    except TypeError:
        raise DTypeError(f"slice bounds must be integers, got {s}") from None
    if s.step == 0:
        raise ShapeError("a slice's step cannot be 0")
    lo, hi, by = s.indices(n)
    count = len(range(lo, hi, by))
    return (lo, max(lo, hi), by, count) if by > 0 else (lo, hi, by, count)


def _gather(node: Node, tensors: list[tuple[int, Node]]) -> Node:
    axis = tensors[0][0]
    if [a for a, _ in tensors] != list(range(axis, axis + len(tensors))):
        raise ShapeError("index tensors must stand next to each other: use permute_dims or reshape before")
    if len(tensors) == 1:
        return make(Gather(axis), node, tensors[0][1])
    # Several: one flat position.  An index out of range makes it -1, so that the check still finds it.
    sizes = node.shape[axis : axis + len(tensors)]
    shape = broadcast_shapes(*(t.shape for _, t in tensors))
    flat, valid = None, None
    for n, (_, t) in zip(sizes, tensors, strict=True):
        i = Tensor(broadcast(cast(t, i64), shape))
        flat = i if flat is None else flat * n + i
        inside = (i >= 0) & (i < n)
        valid = inside if valid is None else valid & inside
    from .searching import where

    merged = (*node.shape[:axis], int(np.prod(sizes)), *node.shape[axis + len(sizes) :])
    return make(Gather(axis), make(Reshape(merged), node), where(valid, flat, -1).node)
