"""Gradient clipping, as in optax: `optim.Adam(model, clip=optim.clip_by_global_norm(1.0))`."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import ShapeError
from ..array import broadcast_to, sqrt, sum, where
from ..tensor import Tensor

Clip = Callable[[list[Tensor]], list[Tensor]]


def clip_by_value(limit: float) -> Clip:
    """Each element in [-limit, limit]."""
    if not limit >= 0:
        raise ShapeError(f"clip_by_value: the limit is {limit}, expected at least 0")

    def clip(grads: list[Tensor]) -> list[Tensor]:
        return [where(g > limit, limit, where(g < -limit, -limit, g)) for g in grads]

    return clip


def clip_by_global_norm(max_norm: float | Tensor) -> Clip:
    """All gradients times max_norm / norm where the norm of all together exceeds max_norm."""

    def clip(grads: list[Tensor]) -> list[Tensor]:
        norm = global_norm(grads)
        scale = where(norm < max_norm, 1.0, max_norm / norm)
        return [g * broadcast_to(scale.astype(g.dtype), g.shape) for g in grads]

    return clip


def global_norm(grads: list[Tensor]) -> Tensor:
    """The square root of the sum of all squares."""
    total = sum(grads[0] * grads[0])
    for g in grads[1:]:
        total = total + sum(g * g)
    return sqrt(total)
