"""Learning rates as functions of the step (0 at the first), as in optax: `optim.cosine(1e-3, steps=2000, warmup=100)`.

A schedule takes the step as a float scalar and gives a scalar; rates may be floats or run-time scalars (`pb.hyper`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..array import cos, exp, floor, where
from ..tensor import Tensor

Rate = float | Tensor
Schedule = Callable[[Tensor], Rate]


def constant(lr: Rate) -> Schedule:
    return lambda step: lr


def step(lr: Rate, step_size: int, gamma: float = 0.1) -> Schedule:
    """lr * gamma ** (step // step_size), as torch's StepLR."""
    _positive("step_size", step_size)
    return lambda step: exp(floor(step * (1 / step_size) + 0.5 / step_size) * math.log(gamma)) * lr


def exponential(lr: Rate, gamma: float, steps: int = 1) -> Schedule:
    """lr * gamma ** (step / steps); torch's ExponentialLR for steps=1."""
    _positive("steps", steps)
    return lambda step: exp(step * (math.log(gamma) / steps)) * lr


def linear(start: Rate, end: Rate, steps: int) -> Schedule:
    """From start to end in `steps` steps, then end."""
    _positive("steps", steps)
    return lambda step: _fraction(step, steps) * (end - start) + start


def warmup(lr: Rate, steps: int) -> Schedule:
    """Linear from lr / steps at the first step to lr, then lr."""
    _positive("steps", steps)
    return lambda step: _fraction(step + 1, steps) * lr


def cosine(lr: Rate, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Linear warm-up (lr / warmup at the first step), then half a cosine from lr to lr * final at step `steps`.

    Loshchilov and Hutter, SGDR (2017), one period.
    """
    _positive("steps - warmup", steps - warmup)

    def decay(step: Tensor) -> Tensor:
        return (cos(_fraction(step, steps - warmup) * math.pi) * (0.5 - 0.5 * final) + (0.5 + 0.5 * final)) * lr

    return decay if warmup == 0 else join([_warmup(lr, warmup), decay], [warmup])


_warmup = warmup


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """schedules[i + 1] from step boundaries[i] on, each counting its own steps from 0."""
    if len(boundaries) != len(schedules) - 1 or list(boundaries) != sorted(boundaries):
        raise ValueError(f"join: {len(schedules)} schedules need {len(schedules) - 1} ascending boundaries")

    def joined(step: Tensor) -> Rate:
        value = schedules[0](step)
        for schedule, start in zip(schedules[1:], boundaries, strict=True):
            value = where(step < start, value, schedule(step - start))
        return value

    return joined


def _fraction(step: Tensor, steps: int) -> Tensor:
    """step / steps, at most 1."""
    return where(step < steps, step, steps) * (1 / steps)


def _positive(name: str, value: int) -> None:
    if value <= 0:
        raise ValueError(f"{name} is {value}: expected at least 1")
