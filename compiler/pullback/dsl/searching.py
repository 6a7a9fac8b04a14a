"""The array API standard's searching, sorting, set and indexing functions."""

from __future__ import annotations

from ..errors import ShapeError
from ..graph.graph import make
from ..graph.types import bool_
from ..ops import indexing as ix
from ..ops.elementwise import Select
from ..ops.op import Op
from ..ops.ordered import ArgSort, Sort
from ..ops.reduction import ArgMax, ArgMin
from .creation import asarray, takes_arrays
from .indexing import index_tensor
from .manipulation import axis_of, broadcast_axes, expand_dims, reshape
from .promotion import ArrayLike, DTypeLike, broadcast, broadcast_shapes, cast, promoted
from .reductions import sum
from .tensor import Tensor, emit


def where(condition: ArrayLike, x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 where the condition (bool, or not 0) holds, else x2; x1 and x2 are promoted, all three broadcast.

    The derivative goes to the chosen one only, even where the other is infinite or NaN.
    """
    (test,) = promoted(condition)
    test = cast(test, bool_)
    a, b = promoted(x1, x2)
    if test.type.shape != a.type.shape:
        shape = broadcast_shapes(test.type.shape, a.type.shape)
        test, a, b = (broadcast(n, shape) for n in (test, a, b))
    return Tensor(make(Select(), test, a, b))


def argmax(x: ArrayLike, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The position (i32) of the greatest element, the first of equals; NaN counts as the greatest.

    axis None: the position in the flattened x.
    """
    return _position(ArgMax, x, axis, keepdims)


def argmin(x: ArrayLike, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The position (i32) of the smallest element, the first of equals; NaN counts as the smallest."""
    return _position(ArgMin, x, axis, keepdims)


def _position(op: type[Op], x, axis: int | None, keepdims: bool) -> Tensor:
    x = asarray(x)
    if axis is None:
        result = emit(op(0), reshape(x, (-1,)).node)
        return reshape(result, (1,) * x.ndim) if keepdims else result
    axis = axis_of(axis, x.ndim)
    result = emit(op(axis), x.node)
    return expand_dims(result, axis=axis) if keepdims else result


def sort(x: ArrayLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """Sorted along `axis` (always stably); NaN counts as the greatest."""
    x = asarray(x)
    return emit(Sort(axis_of(axis, x.ndim), descending), x.node)


def argsort(x: ArrayLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The positions (i32) that sort x along `axis` (always stably); NaN counts as the greatest."""
    x = asarray(x)
    return emit(ArgSort(axis_of(axis, x.ndim), descending), x.node)


def searchsorted(x1: ArrayLike, x2: ArrayLike, /, *, side: str = "left", sorter: ArrayLike | None = None) -> Tensor:
    """Where (i32) each element of x2 would go into the sorted 1-d x1: before ("left") or after its equals.

    Counts the smaller elements of x1, so the work is the product of both sizes: meant for small x1.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    a, b = (Tensor(n) for n in promoted(x1, x2, broadcasts=False))
    if a.ndim != 1:
        raise ShapeError(f"searchsorted: expected a 1-d x1, got {list(a.shape)}")
    if sorter is not None:
        a = take(a, sorter)
    shape = (*b.shape, a.shape[0])
    row, value = broadcast_axes(a, shape, (b.ndim,)), broadcast_axes(b, shape, range(b.ndim))
    return sum(row < value if side == "left" else row <= value, axis=-1)


def take(x: ArrayLike, indices: ArrayLike, /, *, axis: int | None = None) -> Tensor:
    """The slices of x at `indices` along `axis` (may be None for a 1-d x); the indices' axes replace it.

    indices: integers of any shape with 0 <= i < size.  One out of range fails the step when the program runs, with
    the value, and changes no state; for indices known now (numpy, lists) it is a `ShapeError`, and negative ones
    count from the end.
    """
    x = asarray(x)
    if axis is None and x.ndim != 1:
        raise ShapeError(f"take: say which axis of {list(x.shape)}")
    axis = axis_of(0 if axis is None else axis, x.ndim)
    return gather(x, index_tensor(indices, x.shape[axis]), axis)


def take_along_axis(x: ArrayLike, indices: ArrayLike, /, *, axis: int = -1) -> Tensor:
    """out[..., i, ...] = x[..., indices[..., i, ...], ...] along `axis`; the other axes broadcast.

    Indices out of range fail the step, as for `take`.
    """
    x = asarray(x)
    axis = axis_of(axis, x.ndim)
    index = index_tensor(indices, x.shape[axis])
    if index.ndim != x.ndim:
        raise ShapeError(f"take_along_axis: expected indices with {x.ndim} axes, got {list(index.shape)}")
    others = [(*t.shape[:axis], 1, *t.shape[axis + 1 :]) for t in (x, index)]
    shape = broadcast_shapes(*others)
    nodes = [broadcast(t.node, (*shape[:axis], t.shape[axis], *shape[axis + 1 :])) for t in (x, index)]
    return emit(ix.GatherAlong(axis), *nodes)


@takes_arrays("x", "indices")
def gather(x: ArrayLike, indices: ArrayLike, axis: int) -> Tensor:
    """The op behind `take` (not in the standard)."""
    return emit(ix.Gather(axis), x.node, indices.node)


@takes_arrays("indices", "updates")
def scatter_add(indices: ArrayLike, updates: ArrayLike, axis: int, size: int) -> Tensor:
    """The transpose of `take`: zeros with `size` along `axis`, then updates added at `indices` in order."""
    return emit(ix.ScatterAdd(axis, size), indices.node, updates.node)


def one_hot(indices: ArrayLike, depth: int, /, *, dtype: DTypeLike | None = None) -> Tensor:
    """A last axis of size `depth`: 1 at the index, 0 elsewhere (all 0 for an index out of range); f32 unless said."""
    from ..graph.types import f32
    from .creation import iota

    index = asarray(indices)
    shape = (*index.shape, depth)
    hit = iota(shape, index.ndim, index.dtype) == broadcast_axes(index, shape, range(index.ndim))
    return hit.astype(f32 if dtype is None else dtype)
