"""Random draws as expressions of a seed (u32[2]), a step (u32[]) and a stream number.

Equal arguments give equal draws, on every machine and in every schedule; inside `scan` the iteration counts too.
"""

from __future__ import annotations

import math

from ..errors import DTypeError
from ..graph.types import DType, f32, f64, u32
from ..ops.random import Random
from .control import iteration
from .creation import asarray, shape_of
from .elementwise import cos, log, sqrt
from .promotion import ArrayLike, DTypeLike, ShapeLike, dtype_of
from .tensor import Tensor, emit


def bits(seed: Tensor, step: ArrayLike, stream: int, shape: ShapeLike) -> Tensor:
    """Uniform u32 numbers.  step: a u32 scalar; stream: tells draws of one step apart."""
    counters = [asarray(step, dtype=u32).node]
    if (inner := iteration()) is not None:
        counters.append(inner.node)
    return emit(Random(stream, shape_of(shape)), seed.node, *counters)


def _unit(words: Tensor, dtype: DType) -> Tensor:
    """[0, 1): the upper 24 bits as f32, all 32 as f64; smaller floats are rounded down into their range."""
    if dtype is f64:
        return words.astype(f64) * 2.0**-32
    kept = 24 if dtype is f32 else 8
    # Via i32: such small numbers convert exactly and, unlike u32, in one instruction.
    return (words >> (32 - kept)).astype("i32").astype(f32) * 2.0**-kept


def _float(dtype) -> DType:
    result = f32 if dtype is None else dtype_of(dtype)
    if not result.is_float:
        raise DTypeError(f"expected a float dtype, got {result}")
    return result


def uniform(
    seed: Tensor,
    step: ArrayLike,
    stream: int,
    shape: ShapeLike,
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    *,
    dtype: DTypeLike | None = None,
) -> Tensor:
    """Uniform in [low, high) (high itself may come out of rounding); f32 unless said."""
    target = _float(dtype)
    return (_unit(bits(seed, step, stream, shape), target) * (high - low) + low).astype(target)


def normal(
    seed: Tensor,
    step: ArrayLike,
    stream: int,
    shape: ShapeLike,
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
    *,
    dtype: DTypeLike | None = None,
) -> Tensor:
    """Normal with the given mean and standard deviation; f32 unless said.

    Box and Muller: A Note on the Generation of Random Normal Deviates (1958).
    """
    target = _float(dtype)
    wide = f64 if target is f64 else f32
    words = bits(seed, step, stream, (2, *shape_of(shape)))
    # 1 - u is never 0, so the logarithm is finite.
    radius = sqrt(-2.0 * log(1.0 - _unit(words[0], wide)))
    return (radius * cos(2.0 * math.pi * _unit(words[1], wide)) * std + mean).astype(target)


def bernoulli(seed: Tensor, step: ArrayLike, stream: int, shape: ShapeLike, p: ArrayLike) -> Tensor:
    """True with probability p, as bool."""
    return _unit(bits(seed, step, stream, shape), f32) < p


def randint(
    seed: Tensor, step: ArrayLike, stream: int, shape: ShapeLike, low: int, high: int, *, dtype: DTypeLike | None = None
) -> Tensor:
    """Integers in low <= i < high (i32 unless said), of less than 2**32 values; by multiplying, so nearly uniform."""
    from ..ops.elementwise import MulHi
    from .creation import full

    target = dtype_of("i32" if dtype is None else dtype)
    words = bits(seed, step, stream, shape)
    span = full(words.shape, high - low, dtype=u32)
    return emit(MulHi(), words.node, span.node).astype(target) + low
