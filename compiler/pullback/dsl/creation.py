"""The array API standard's creation functions: tensors from numbers, shapes and arrays.

Defaults: f32 for floats, i32 for integers, as for Python scalars in expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from operator import index
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError, TraceError
from ..graph.graph import make
from ..graph.types import DType, bool_, f32, f64, i32, i64
from ..ops.leaf import Iota
from .promotion import (
    ArrayLike,
    DTypeLike,
    ShapeLike,
    cast,
    constant,
    dtype_of,
    fill,
    is_scalar,
    scalar_value,
    weak_type,
)
from .tensor import Tensor


def shape_of(shape: ShapeLike) -> tuple[int, ...]:
    """A shape from an int or a sequence of ints; raises `ShapeError` where a size is negative or no int."""
    sizes = (shape,) if not isinstance(shape, Sequence) else shape
    try:
        result = tuple(map(index, sizes))
    except TypeError:
        raise ShapeError(f"expected sizes that are integers, got {shape!r}") from None
    if any(n < 0 for n in result):
        raise ShapeError(f"expected sizes >= 0, got {list(result)}")
    return result


def asarray(obj: ArrayLike, *, dtype: DTypeLike | None = None, copy: bool | None = None) -> Tensor:
    """A tensor from a tensor, a numpy array (keeps its dtype), a scalar or nested lists (f32, i32 or bool)."""
    target = None if dtype is None else dtype_of(dtype)
    if isinstance(obj, Tensor):
        return obj if target is None else obj.astype(target)
    if is_scalar(obj):
        value = scalar_value(obj)
        return Tensor(fill(value, target or weak_type(value, None), ()))
    if isinstance(obj, list | tuple) and (nested := _tensors_in(obj)):
        from .manipulation import stack

        if nested == "deep":
            return stack([asarray(x, dtype=target) for x in obj])
        return stack([x if isinstance(x, Tensor) else asarray(x) for x in obj]).astype(target or _common(obj))
    return Tensor(constant(obj, target))


def takes_arrays(*names: str) -> Callable[[Callable], Callable]:
    """A decorator: the parameters `names` take what `asarray` takes (or None), the function gets tensors.

    Scalars are weak, as in expressions: a float takes the dtype of the float tensor beside it.
    """

    def decorate(fn: Callable) -> Callable:
        positions = {i: name for i, name in enumerate(signature(fn).parameters) if name in names}

        @wraps(fn)
        def on_tensors(*args, **kwargs):
            for i, name in positions.items():
                x = args[i] if i < len(args) else kwargs.get(name)
                if x is not None and not isinstance(x, Tensor):
                    break
            else:
                return fn(*args, **kwargs)
            given = [*(x for i, x in enumerate(args) if i in positions), *(kwargs[n] for n in names if n in kwargs)]
            floats = next((x.dtype for x in given if isinstance(x, Tensor) and x.dtype.is_float), None)
            args = [_beside(floats, x) if i in positions else x for i, x in enumerate(args)]
            return fn(*args, **{n: _beside(floats, x) if n in names else x for n, x in kwargs.items()})

        return on_tensors

    return decorate


def _beside(floats: DType | None, x: ArrayLike | None) -> Any:
    if x is None or isinstance(x, Tensor):
        return x
    return asarray(x, dtype=floats if isinstance(x, float | np.floating) else None)


def _tensors_in(items) -> str | None:
    """Whether a nested list holds tensors: directly ("flat"), further down ("deep"), or not."""
    if any(isinstance(x, Tensor) for x in items):
        return "flat"
    return "deep" if any(isinstance(x, list | tuple) and _tensors_in(x) for x in items) else None


def _common(items) -> DType:
    from .promotion import promoted

    return promoted(*items, broadcasts=False)[0].type.dtype


def full(shape: ShapeLike, fill_value: ArrayLike, *, dtype: DTypeLike | None = None) -> Tensor:
    """A tensor of one scalar (a Python number, or a 0-d tensor that is broadcast)."""
    sizes = shape_of(shape)
    if isinstance(fill_value, Tensor):
        from .promotion import broadcast

        value = fill_value if dtype is None else fill_value.astype(dtype)
        if value.ndim:
            raise ShapeError(f"full: expected a scalar, got {value}")
        return Tensor(broadcast(value.node, sizes))
    value = scalar_value(fill_value)
    return Tensor(fill(value, weak_type(value, None) if dtype is None else dtype_of(dtype), sizes))


def zeros(shape: ShapeLike, *, dtype: DTypeLike = f32) -> Tensor:
    """Zeros (f32 unless said)."""
    return full(shape, 0, dtype=f32 if dtype is None else dtype)


def ones(shape: ShapeLike, *, dtype: DTypeLike = f32) -> Tensor:
    """Ones (f32 unless said)."""
    return full(shape, 1, dtype=f32 if dtype is None else dtype)


def empty(shape: ShapeLike, *, dtype: DTypeLike = f32) -> Tensor:
    """Zeros: a pure program has no uninitialised memory."""
    return zeros(shape, dtype=dtype)


@takes_arrays("x")
def full_like(x: ArrayLike, fill_value: ArrayLike, *, dtype: DTypeLike | None = None) -> Tensor:
    """One scalar in the shape and dtype of x."""
    return full(x.shape, fill_value, dtype=dtype or x.dtype)


@takes_arrays("x")
def zeros_like(x: ArrayLike, *, dtype: DTypeLike | None = None) -> Tensor:
    """Zeros in the shape and dtype of x."""
    return Tensor(fill(0, dtype_of(dtype) if dtype else x.dtype, x.shape))


@takes_arrays("x")
def ones_like(x: ArrayLike, *, dtype: DTypeLike | None = None) -> Tensor:
    """Ones in the shape and dtype of x."""
    return Tensor(fill(1, dtype_of(dtype) if dtype else x.dtype, x.shape))


@takes_arrays("x")
def empty_like(x: ArrayLike, *, dtype: DTypeLike | None = None) -> Tensor:
    """Zeros in the shape and dtype of x."""
    return zeros_like(x, dtype=dtype)


def iota(shape: ShapeLike, axis: int, dtype: DTypeLike = i32) -> Tensor:
    """0, 1, 2, ... along `axis`, the same along all others (not in the standard)."""
    return Tensor(make(Iota(dtype_of(dtype), shape_of(shape), axis)))


def arange(start: float, /, stop: float | None = None, step: float = 1, *, dtype: DTypeLike | None = None) -> Tensor:
    """start, start + step, ... below stop (from 0 where only one bound is given).

    The bounds are Python numbers.  dtype: i32, or f32 if a bound is a float.  Errors: `ShapeError` for step 0.
    """
    if any(isinstance(v, Tensor) for v in (start, stop, step)):
        raise TraceError("arange: the bounds decide the shape, so they must be Python numbers, not tensors")
    if stop is None:
        start, stop = 0, start
    start, stop, step = map(scalar_value, (start, stop, step))
    if step == 0:
        raise ShapeError("arange: the step cannot be 0")
    floats = any(isinstance(v, float) for v in (start, stop, step))
    target = dtype_of(dtype) if dtype is not None else f32 if floats else i32
    n = max(0, -int(-(stop - start) // step) if floats else len(range(start, stop, step)))
    if target.kind == "b":
        raise DTypeError("arange: expected a number type, got bool")
    if target.is_float and floats:
        wide = Tensor(make(Iota(f64 if target is f64 else f32, (n,), 0)))
        return (wide * float(step) + float(start)).astype(target)
    counted = Tensor(make(Iota(target if target.is_integer else i64, (n,), 0)))
    if step != 1:
        counted = counted * int(step)
    return (counted + int(start) if start else counted).astype(target)


def linspace(
    start: float, stop: float, /, num: int, *, dtype: DTypeLike | None = None, endpoint: bool = True
) -> Tensor:
    """`num` numbers from start to stop (included if `endpoint`), evenly spaced; f32 unless said."""
    target = f32 if dtype is None else dtype_of(dtype)
    gaps = num - 1 if endpoint else num
    width = f64 if target is f64 else f32
    position = Tensor(make(Iota(width, (num,), 0)))
    if gaps < 1:
        return (position * 0.0 + start).astype(target)
    # From both ends, so that the last number is exactly `stop`.
    share = position / float(gaps)
    return ((1.0 - share) * start + share * stop).astype(target)


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: DTypeLike = f32) -> Tensor:
    """Ones on diagonal k (above the main one where k > 0), zeros elsewhere."""
    shape = shape_of((n_rows, n_rows if n_cols is None else n_cols))
    return Tensor(cast((iota(shape, 1) - iota(shape, 0) == k).node, dtype_of(dtype or f32)))


def _triangle(shape: tuple[int, ...]) -> Tensor:
    """Column minus row, of the last two axes."""
    if len(shape) < 2:
        raise ShapeError(f"expected at least 2 axes, got {list(shape)}")
    return iota(shape, len(shape) - 1) - iota(shape, len(shape) - 2)


@takes_arrays("x")
def tril(x: ArrayLike, /, *, k: int = 0) -> Tensor:
    """x on and below diagonal k of the last two axes, zeros above."""
    from .searching import where

    return where(_triangle(x.shape) <= k, x, False if x.dtype is bool_ else 0)


@takes_arrays("x")
def triu(x: ArrayLike, /, *, k: int = 0) -> Tensor:
    """x on and above diagonal k of the last two axes, zeros below."""
    from .searching import where

    return where(_triangle(x.shape) >= k, x, False if x.dtype is bool_ else 0)


def meshgrid(*arrays, indexing: str = "xy") -> list[Tensor]:
    """Coordinate tensors from 1-d ones; "xy" swaps the first two axes, as in numpy."""
    from .manipulation import broadcast_axes

    if indexing not in ("xy", "ij"):
        raise ValueError(f"indexing must be 'xy' or 'ij', got {indexing!r}")
    vectors = [asarray(a) for a in arrays]
    if any(v.ndim > 1 for v in vectors):
        raise ShapeError(f"meshgrid: expected 1-d tensors, got {[list(v.shape) for v in vectors]}")
    order = list(range(len(vectors)))
    if indexing == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    vectors = [v if v.ndim else v.reshape(1) for v in vectors]
    shape = [0] * len(vectors)
    for v, axis in zip(vectors, order, strict=True):
        shape[axis] = v.shape[0]
    return [broadcast_axes(v, tuple(shape), (axis,)) for v, axis in zip(vectors, order, strict=True)]
