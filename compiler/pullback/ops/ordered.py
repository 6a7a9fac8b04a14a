"""Ops along one axis whose order matters: cumulative sum and stable sorting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.graph import make
from ..graph.types import TensorType, i32
from . import rules as F
from .op import Linear, Op, register


def _check_axis(name: str, x: TensorType, axis: int) -> None:
    if not 0 <= axis < x.ndim:
        raise ShapeError(f"{name}: expected an axis of {list(x.shape)}, got {axis}")


@register
@dataclass(frozen=True)
class CumSum(Linear):
    """Sums of all elements up to and including each one (`reverse`: from each one on), in order."""

    name = "cumsum"
    axis: int
    reverse: bool

    def infer(self, x):
        _check_axis("cumsum", x, self.axis)
        if x.dtype.kind == "b":
            raise DTypeError("cumsum: expected a number type, got bool")
        return x

    def evaluate(self, x):
        wide = np.float64 if x.dtype.kind == "f" else x.dtype
        with np.errstate(all="ignore"):
            if self.reverse:
                return np.flip(np.cumsum(np.flip(x, self.axis), self.axis, dtype=wide), self.axis)
            return np.cumsum(x, self.axis, dtype=wide)

    def apply(self, x):
        return F.Tensor(make(self, x.node))

    def transpose(self, out, inputs, ct):
        return (CumSum(self.axis, not self.reverse).apply(ct),)


def stable_argsort(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Equal elements keep their order in both directions; NaN counts as the greatest, -0.0 equals 0.0."""
    if not descending:
        return np.argsort(x, axis, kind="stable")
    # Ascending from the far end, read backwards: equals are in their first order again.
    backwards = np.argsort(np.flip(x, axis), axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)


@register
@dataclass(frozen=True)
class Sort(Op):
    """Sorted along `axis`, stably; NaN counts as the greatest."""

    name = "sort"
    axis: int
    descending: bool

    def infer(self, x):
        _check_axis("sort", x, self.axis)
        return x

    def evaluate(self, x):
        return np.take_along_axis(x, stable_argsort(x, self.axis, self.descending), self.axis)

    def order(self, x):
        """Where in x each sorted element stands."""
        return F.Tensor(make(ArgSort(self.axis, self.descending), x.node))

    def jvp(self, out, inputs, tangents):
        if tangents[0] is None:
            return None
        return F.take_along_axis(tangents[0], self.order(inputs[0]), axis=self.axis)

    def vjp(self, out, inputs, ct):
        inverse = F.Tensor(make(ArgSort(self.axis, False), self.order(inputs[0]).node))
        return (F.take_along_axis(ct, inverse, axis=self.axis),)


@register
@dataclass(frozen=True)
class ArgSort(Op):
    """The positions (i32) that sort along `axis`, stably; NaN counts as the greatest."""

    name = "argsort"
    axis: int
    descending: bool

    def infer(self, x):
        _check_axis("argsort", x, self.axis)
        return TensorType(i32, x.shape)

    def evaluate(self, x):
        return stable_argsort(x, self.axis, self.descending)

    def jvp(self, out, inputs, tangents):
        return None

    def vjp(self, out, inputs, ct):
        return (None,)
