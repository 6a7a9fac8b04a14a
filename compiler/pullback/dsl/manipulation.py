"""The array API standard's manipulation functions: shapes change, elements move.

Axes may be negative (from the end).  Errors: `ShapeError` with the shapes involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import index

import numpy as np

from ..errors import ShapeError
from ..ops.indexing import Gather
from ..ops.leaf import checked_scalar
from ..ops.movement import Broadcast, Concat, Flip, Pad, Permute, Reshape, Slice
from .creation import asarray, shape_of
from .promotion import ArrayLike, ShapeLike, broadcast, broadcast_shapes, promoted
from .promotion import broadcast_to as _check_broadcast
from .tensor import Tensor, emit


def axis_of(axis: int, ndim: int, what: str = "axis") -> int:
    """An axis counted from 0; raises `ShapeError` where there is no such axis."""
    a = index(axis)
    if not -ndim <= a < ndim:
        raise ShapeError(f"{what} {axis} is out of range for a tensor with {ndim} axes")
    return a % ndim


def axes_of(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Distinct axes counted from 0, ascending; None: all."""
    if axis is None:
        return tuple(range(ndim))
    axes = [axis_of(a, ndim) for a in (axis if isinstance(axis, Sequence) else (axis,))]
    if len(set(axes)) != len(axes):
        raise ShapeError(f"axes {axis} name an axis twice")
    return tuple(sorted(axes))


def reshape(x: ArrayLike, /, shape: ShapeLike, *, copy: bool | None = None) -> Tensor:
    """The elements in C order under another shape; one size may be -1."""
    x = asarray(x)
    sizes = [index(n) for n in (shape if isinstance(shape, Sequence) else (shape,))]
    if sizes.count(-1) > 1:
        raise ShapeError(f"reshape: one size may be -1, got {sizes}")
    if -1 in sizes:
        known = prod(n for n in sizes if n != -1)
        if not known or x.size % known:
            raise ShapeError(f"reshape: {list(x.shape)} ({x.size} elements) does not divide into {sizes}")
        sizes[sizes.index(-1)] = x.size // known
    target = tuple(sizes)
    return x if target == x.shape else emit(Reshape(target), x.node)


def permute_dims(x: ArrayLike, /, axes: int | Sequence[int]) -> Tensor:
    """Axis d of the result is axis `axes[d]` of x."""
    x = asarray(x)
    if len(axes) != x.ndim:
        raise ShapeError(f"permute_dims: expected {x.ndim} axes for {list(x.shape)}, got {list(axes)}")
    order = tuple(axis_of(a, x.ndim) for a in axes)
    return x if order == tuple(range(x.ndim)) else emit(Permute(order), x.node)


def moveaxis(x: ArrayLike, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """Axes `source` moved to `destination` (ints or sequences of them); the others keep their order."""
    x = asarray(x)
    sources = [axis_of(a, x.ndim) for a in (source if isinstance(source, Sequence) else (source,))]
    targets = [axis_of(a, x.ndim) for a in (destination if isinstance(destination, Sequence) else (destination,))]
    if len(sources) != len(targets) or len(set(sources)) != len(sources) or len(set(targets)) != len(targets):
        raise ShapeError(f"moveaxis: expected as many distinct destinations as sources, got {source}, {destination}")
    order = [d for d in range(x.ndim) if d not in sources]
    for target, source in sorted(zip(targets, sources, strict=True)):
        order.insert(target, source)
    return permute_dims(x, order)


def broadcast_to(x: ArrayLike, /, shape: ShapeLike) -> Tensor:
    """x repeated to `shape`, aligned at the end."""
    x, target = asarray(x), shape_of(shape)
    _check_broadcast(x.shape, target)
    return Tensor(broadcast(x.node, target))


def broadcast_arrays(*arrays) -> list[Tensor]:
    """All tensors repeated to their common shape."""
    tensors = [asarray(a) for a in arrays]
    shape = broadcast_shapes(*(t.shape for t in tensors))
    return [Tensor(broadcast(t.node, shape)) for t in tensors]


def broadcast_axes(x: ArrayLike, shape: ShapeLike, axes: int | Sequence[int]) -> Tensor:
    """x repeated to `shape`, its axis d at position `axes[d]`, ascending (not in the standard)."""
    x, shape, axes = asarray(x), tuple(shape), tuple(axes)
    return x if x.shape == shape else emit(Broadcast(shape, axes), x.node)


def expand_dims(x: ArrayLike, /, *, axis: int | Sequence[int] = 0) -> Tensor:
    """A new axis of size 1 at position `axis` of the result (or several)."""
    x = asarray(x)
    given = axis if isinstance(axis, Sequence) else (axis,)
    axes = {axis_of(a, x.ndim + len(given)) for a in given}
    if len(axes) != len(given):
        raise ShapeError(f"expand_dims: axes {axis} name a position twice")
    sizes = iter(x.shape)
    return reshape(x, tuple(1 if d in axes else next(sizes) for d in range(x.ndim + len(given))))


def squeeze(x: ArrayLike, /, axis: int | Sequence[int]) -> Tensor:
    """Without the given axes, which must have size 1."""
    x = asarray(x)
    axes = axes_of(axis, x.ndim)
    if any(x.shape[a] != 1 for a in axes):
        raise ShapeError(f"squeeze: expected size 1 on axes {list(axes)}, got {list(x.shape)}")
    return reshape(x, tuple(n for d, n in enumerate(x.shape) if d not in axes))


def flip(x: ArrayLike, /, *, axis: int | Sequence[int] | None = None) -> Tensor:
    """Reversed along `axis` (an int, several, or None: all)."""
    x = asarray(x)
    axes = tuple(a for a in axes_of(axis, x.ndim) if x.shape[a] > 1)
    return emit(Flip(axes), x.node) if axes else x


def concat(arrays: Sequence[ArrayLike], /, *, axis: int | None = 0) -> Tensor:
    """Tensors one after the other along `axis` (None: flattened before), in their promoted dtype."""
    tensors = [asarray(a) for a in arrays]
    if not tensors:
        raise ShapeError("concat: expected at least one tensor")
    if axis is None:
        tensors, axis = [reshape(t, (-1,)) for t in tensors], 0
    axis = axis_of(axis, tensors[0].ndim)
    nodes = promoted(*tensors, broadcasts=False)
    return Tensor(nodes[0]) if len(nodes) == 1 else emit(Concat(axis), *nodes)


def stack(arrays: Sequence[ArrayLike], /, *, axis: int = 0) -> Tensor:
    """Tensors of one shape, one after the other along a new axis."""
    tensors = [asarray(a) for a in arrays]
    if not tensors or any(t.shape != tensors[0].shape for t in tensors):
        raise ShapeError(f"stack: expected tensors of one shape, got {[list(t.shape) for t in tensors]}")
    return concat([expand_dims(t, axis=axis) for t in tensors], axis=axis_of(axis, tensors[0].ndim + 1))


def unstack(x: ArrayLike, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices along `axis`, which they no longer have."""
    x = asarray(x)
    before = (slice(None),) * axis_of(axis, x.ndim)
    return tuple(x[(*before, i)] for i in range(x.shape[len(before)]))


def pad(x: ArrayLike, widths: Sequence[tuple[int, int]], *, value: float = 0) -> Tensor:
    """`widths[d] = (before, after)` elements of `value` around axis d (not in the standard)."""
    x = asarray(x)
    low, high = (tuple(int(w[k]) for w in widths) for k in range(2))
    return emit(Pad(low, high, checked_scalar(value, x.dtype)), x.node) if any(low) or any(high) else x


def repeat(x: ArrayLike, repeats: int | Sequence[int] | np.ndarray, /, *, axis: int | None = None) -> Tensor:
    """Every element (`axis` None: of the flattened x; else every slice along it) `repeats` times in a row.

    `repeats`: one number, or one for each slice, known while the program is built.
    """
    x = asarray(x)
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    axis = axis_of(axis, x.ndim)
    if isinstance(repeats, Sequence | np.ndarray) and np.ndim(repeats):
        counts = shape_of(np.asarray(repeats).tolist())
        if len(counts) not in (1, x.shape[axis]):
            raise ShapeError(
                f"repeat: expected {x.shape[axis]} counts for axis {axis} of {list(x.shape)}, got {len(counts)}"
            )
        if len(counts) == x.shape[axis]:
            return emit(Gather(axis), x.node, asarray(np.repeat(np.arange(len(counts), dtype=np.int32), counts)).node)
        (repeats,) = counts
    n = shape_of(index(repeats))[0]
    shape = (*x.shape[: axis + 1], n, *x.shape[axis + 1 :])
    spread = broadcast_axes(x, shape, (d for d in range(len(shape)) if d != axis + 1))
    return reshape(spread, (*x.shape[:axis], x.shape[axis] * n, *x.shape[axis + 1 :]))


def tile(x: ArrayLike, repetitions: ShapeLike, /) -> Tensor:
    """The whole of x `repetitions[d]` times along axis d, aligned at the end."""
    x = asarray(x)
    counts = shape_of(repetitions)
    ndim = max(x.ndim, len(counts))
    counts = (1,) * (ndim - len(counts)) + counts
    sizes = (1,) * (ndim - x.ndim) + x.shape
    interleaved = tuple(n for pair in zip(counts, sizes, strict=True) for n in pair)
    spread = broadcast_axes(reshape(x, sizes), interleaved, tuple(range(1, 2 * ndim, 2)))
    return reshape(spread, tuple(c * n for c, n in zip(counts, sizes, strict=True)))


def roll(x: ArrayLike, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved by `shift` places, those that fall off coming in again (`axis` None: of the flattened x)."""
    x = asarray(x)
    if axis is None:
        return reshape(roll(reshape(x, (-1,)), shift, axis=0), x.shape)
    axes = axis if isinstance(axis, Sequence) else (axis,)
    shifts = shift if isinstance(shift, Sequence) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: expected as many shifts as axes, got {shift} and {axis}")
    for by, a in zip(shifts, axes, strict=True):
        a = axis_of(a, x.ndim)
        before, n = (slice(None),) * a, x.shape[a]
        by = by % n if n else 0
        if by:
            x = concat([x[(*before, slice(n - by, n))], x[(*before, slice(0, n - by))]], axis=a)
    return x


def slice_axis(x: ArrayLike, axis: int, start: int, stop: int) -> Tensor:
    """x[start:stop] along one axis (not in the standard)."""
    x = asarray(x)
    low, high = [0] * x.ndim, list(x.shape)
    low[axis], high[axis] = start, stop
    return emit(Slice(tuple(low), tuple(high), (1,) * x.ndim), x.node)
