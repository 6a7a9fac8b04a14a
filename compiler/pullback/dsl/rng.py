"""Random numbers inside of functions: `pb.random.uniform((3, 4))`.

They are keyed by the program's seed, a counter of steps and the draw's place in the function, so a mask is the same
wherever and whenever it is computed, and another one at the next step.
"""

from __future__ import annotations

import numpy as np

from ..graph.types import DType, f32
from . import random as keyed
from .creation import asarray
from .tensor import Tensor
from .trace import require


def _key() -> tuple[Tensor, Tensor, int]:
    """The place goes into the key, as data: so all draws of one shape can share a kernel."""
    trace = require("random numbers are drawn")
    scope = trace.scope
    place = asarray(np.array([trace.next_stream(), 0], "<u4"))
    return Tensor(trace.read(scope.seed)) ^ place, Tensor(trace.read(scope.rng_step)), 0


def uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: DType = f32) -> Tensor:
    """Uniform in [low, high)."""
    return keyed.uniform(*_key(), shape, low, high, dtype=dtype)


def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, dtype: DType = f32) -> Tensor:
    return keyed.normal(*_key(), shape, mean, std, dtype=dtype)


def bernoulli(p: float, shape: tuple[int, ...]) -> Tensor:
    """True with probability p."""
    return keyed.bernoulli(*_key(), shape, p)
