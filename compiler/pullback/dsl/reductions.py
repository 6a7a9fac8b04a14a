"""The array API standard's statistical and utility reductions, and cumulative functions.

axis: an int, a sequence of ints, or None for all axes; keepdims keeps reduced axes with size 1.
"""

from __future__ import annotations

from math import prod as product

from ..errors import DTypeError, ShapeError
from ..graph.types import DType, bool_, f32, i32, u32
from ..ops import reduction as ops
from ..ops.op import Op
from ..ops.ordered import CumSum
from . import elementwise as ew
from .creation import asarray, zeros
from .manipulation import axes_of, axis_of, broadcast_axes, concat, reshape, slice_axis
from .promotion import ArrayLike, Axes, DTypeLike, dtype_of
from .tensor import Tensor, emit


def _reduce(op: type[Op], x: Tensor, axis, keepdims: bool) -> Tensor:
    axes = axes_of(axis, x.ndim)
    result = emit(op(axes), x.node) if axes else x
    return _keep(result, x, axes) if keepdims else result


def _keep(result: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The reduced axes again, with size 1."""
    return reshape(result, tuple(1 if d in axes else n for d, n in enumerate(x.shape)))


def _total(x, dtype) -> Tensor:
    """What sums and products add up: small integers and bools as i32 or u32, unless said."""
    x = asarray(x)
    if dtype is not None:
        return x.astype(dtype_of(dtype))
    small: dict[str, DType] = {"bool": i32, "i8": i32, "u8": u32}
    return x.astype(small.get(x.dtype.name, x.dtype))


def _real(x) -> Tensor:
    x = asarray(x)
    return x if x.dtype.is_float else x.astype(f32)


def sum(x: ArrayLike, /, *, axis: Axes = None, dtype: DTypeLike | None = None, keepdims: bool = False) -> Tensor:
    """The sum; 0 of nothing.  dtype: that of x; i32 (u32) for bools and small integers, unless said."""
    return _reduce(ops.Sum, _total(x, dtype), axis, keepdims)


def prod(x: ArrayLike, /, *, axis: Axes = None, dtype: DTypeLike | None = None, keepdims: bool = False) -> Tensor:
    """The product; 1 of nothing.  dtype as for `sum`."""
    return _reduce(ops.Prod, _total(x, dtype), axis, keepdims)


def max(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The greatest element; NaN if there is one.  Equal extremes share the derivative."""
    return _reduce(ops.Max, asarray(x), axis, keepdims)


def min(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The smallest element; NaN if there is one.  Equal extremes share the derivative."""
    return _reduce(ops.Min, asarray(x), axis, keepdims)


def mean(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean; NaN of nothing.  Integers count as f32."""
    x = _real(x)
    n = product(x.shape[a] for a in axes_of(axis, x.ndim))
    return _reduce(ops.Sum, x, axis, keepdims) * (1.0 / n if n else float("nan"))


def var(x: ArrayLike, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The variance: squared distances from the mean over (number of elements - correction)."""
    x = _real(x)
    axes = axes_of(axis, x.ndim)
    n = product(x.shape[a] for a in axes)
    centre = mean(x, axis=axes)
    distance = x - broadcast_axes(centre, x.shape, tuple(d for d in range(x.ndim) if d not in axes))
    left = n - correction
    return sum(distance * distance, axis=axes, keepdims=keepdims) * (1.0 / left if left > 0 else float("nan"))


def std(x: ArrayLike, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The standard deviation: the square root of `var`."""
    return ew.sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def any(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether some element is true (not 0), as bool; false of nothing."""
    return _truth(ops.Max, x, axis, keepdims, False)


def all(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether every element is true (not 0), as bool; true of nothing."""
    return _truth(ops.Min, x, axis, keepdims, True)


def _truth(op: type[Op], x, axis, keepdims: bool, of_nothing: bool) -> Tensor:
    x = asarray(x).astype(bool_)
    axes = axes_of(axis, x.ndim)
    if not product(x.shape[a] for a in axes):
        kept = zeros([n for d, n in enumerate(x.shape) if d not in axes], dtype=bool_)
        kept = ew.logical_not(kept) if of_nothing else kept
        return _keep(kept, x, axes) if keepdims else kept
    return _reduce(op, x, axes, keepdims)


def count_nonzero(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """How many elements are not 0, as i32."""
    return sum(asarray(x).astype(bool_), axis=axis, keepdims=keepdims)


def logsumexp(x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) without overflow on the way (not in the standard)."""
    from .searching import where
    from .transforms import stop_gradient

    x = _real(x)
    axes = axes_of(axis, x.ndim)
    kept = tuple(d for d in range(x.ndim) if d not in axes)
    # Any shift is right, so its derivative is none; an infinite maximum must not make inf - inf.
    high = stop_gradient(max(x, axis=axes))
    high = where(ew.isfinite(high), high, 0.0)
    total = sum(ew.exp(x - broadcast_axes(high, x.shape, kept)), axis=axes)
    result = ew.log(total) + high
    return _keep(result, x, axes) if keepdims else result


def cumulative_sum(
    x: ArrayLike, /, *, axis: int | None = None, dtype: DTypeLike | None = None, include_initial: bool = False
) -> Tensor:
    """Sums of everything up to and including each element along `axis` (may be None for a 1-d tensor)."""
    x = _total(x, dtype)
    axis = _one_axis("cumulative_sum", x, axis)
    result = emit(CumSum(axis, False), x.node)
    if not include_initial:
        return result
    start = zeros([1 if d == axis else n for d, n in enumerate(x.shape)], dtype=x.dtype)
    return concat([start, result], axis=axis)


def cumulative_prod(
    x: ArrayLike, /, *, axis: int | None = None, dtype: DTypeLike | None = None, include_initial: bool = False
) -> Tensor:
    """Products of everything up to and including each element along `axis`."""
    from .manipulation import pad

    x = _total(x, dtype)
    axis = _one_axis("cumulative_prod", x, axis)
    n, by = x.shape[axis], 1
    widths = [(0, 0)] * x.ndim
    while by < n:  # log2(n) rounds: after each, an element holds the product of `by` ones
        widths[axis] = (by, 0)
        x, by = x * pad(slice_axis(x, axis, 0, n - by), widths, value=1), 2 * by
    widths[axis] = (1, 0)
    return pad(x, widths, value=1) if include_initial else x


def _one_axis(name: str, x: Tensor, axis: int | None) -> int:
    if axis is None and x.ndim != 1:
        raise ShapeError(f"{name}: say which axis of {list(x.shape)}")
    return axis_of(0 if axis is None else axis, x.ndim)


def diff(
    x: ArrayLike, /, *, axis: int = -1, n: int = 1, prepend: ArrayLike | None = None, append: ArrayLike | None = None
) -> Tensor:
    """Differences of neighbours along `axis`, `n` times over."""
    x = asarray(x)
    if x.dtype.kind == "b":
        raise DTypeError("diff: expected a number type, got bool")
    axis = axis_of(axis, x.ndim)
    ends = [asarray(e) if e is not None else None for e in (prepend, append)]
    parts = [ends[0], x, ends[1]]
    if ends[0] is not None or ends[1] is not None:
        x = concat([p for p in parts if p is not None], axis=axis)
    for _ in range(n):
        size = x.shape[axis]
        x = slice_axis(x, axis, min_(1, size), size) - slice_axis(x, axis, 0, size - 1 if size else 0)
    return x


def min_(a: int, b: int) -> int:
    """Python's min, whose name this module gives to the reduction."""
    return a if a < b else b
