"""Reductions: combine all elements along some axes, which the result no longer has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.graph import make
from ..graph.types import TensorType, i32
from . import rules as F
from .op import Linear, Reduction, register


def remaining(name: str, x: TensorType, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without `axes`, which must be distinct, ascending axes of x."""
    if not all(0 <= a < x.ndim for a in axes) or any(a >= b for a, b in pairwise(axes)):
        raise ShapeError(f"{name}: expected ascending axes of {list(x.shape)}, got {list(axes)}")
    return tuple(n for d, n in enumerate(x.shape) if d not in axes)


def expand(x, axes: tuple[int, ...], like):
    """Undo a reduction's loss of axes: repeat `x` along them, to the shape of `like`."""
    return F.broadcast_axes(x, like.shape, tuple(d for d in range(like.ndim) if d not in axes))


@dataclass(frozen=True)
class Over(Reduction):
    """A reduction over `axes`, of the dtypes in `kinds`."""

    axes: tuple[int, ...]
    kinds = "fiu"
    empty = True

    def infer(self, x):
        if x.dtype.kind not in self.kinds:
            raise DTypeError(f"{self.name}: expected a number type, got {x.dtype}")
        shape = remaining(self.name, x, self.axes)
        if not self.empty and not all(x.shape[a] for a in self.axes):
            raise ShapeError(f"{self.name}: expected at least one element along axes {list(self.axes)}, got {x}")
        return TensorType(x.dtype, shape)


def _accumulator(x: np.ndarray) -> np.dtype:
    """The oracle sums wider than the compiled code does; integers wrap in their own width."""
    return np.dtype(np.float64) if x.dtype.kind == "f" else x.dtype


@register
@dataclass(frozen=True)
class Sum(Linear, Over):
    """The sum; 0 of nothing."""

    name = "sum"
    combine = "add"
    identity = 0.0

    def evaluate(self, x):
        with np.errstate(all="ignore"):
            return np.sum(x, self.axes, dtype=_accumulator(x))

    def apply(self, x):
        return F.Tensor(make(self, x.node))

    def transpose(self, out, inputs, ct):
        return (expand(ct, self.axes, inputs[0]),)


@register
@dataclass(frozen=True)
class Prod(Over):
    """The product; 1 of nothing."""

    name = "prod"
    combine = "mul"
    identity = 1.0

    def evaluate(self, x):
        with np.errstate(all="ignore"):
            return np.prod(x, self.axes, dtype=_accumulator(x))

    def others(self, x):
        """For every element the product of all others; never divides, so zeros are no special case."""
        kept = tuple(d for d in range(x.ndim) if d not in self.axes)
        order = kept + self.axes
        moved = F.permute_dims(x, order)
        flat = F.reshape(moved, (*(x.shape[d] for d in kept), prod(x.shape[d] for d in self.axes)))
        n = flat.shape[-1]

        def shifted(t, by: int, forwards: bool):
            """t moved by `by` along the last axis, ones moving in."""
            cut = t[..., : n - by] if forwards else t[..., by:]
            return F.pad(cut, [(0, 0)] * len(kept) + [(by, 0) if forwards else (0, by)], value=1.0)

        def exclusive(forwards: bool):
            total, by = shifted(flat, min(1, n), forwards), 1
            while by < n:
                total, by = total * shifted(total, by, forwards), by * 2
            return total

        product = F.reshape(exclusive(True) * exclusive(False), moved.shape)
        return F.permute_dims(product, tuple(order.index(d) for d in range(x.ndim)))

    def jvp(self, out, inputs, tangents):
        t, x = tangents[0], inputs[0]
        return None if t is None else F.sum(t * self.others(x), axis=self.axes)

    def vjp(self, out, inputs, ct):
        x = inputs[0]
        return (expand(ct, self.axes, x) * self.others(x),)


class Extremum(Over):
    """Max or min.  Equal extremes share the cotangent.  Of bools: any or all."""

    kinds = "fiub"
    empty = False

    def weights(self, out, x):
        """1 / (number of equal extremes) where x is the extreme, else 0."""
        hit = (x == expand(out, self.axes, x)).astype(x.dtype)
        return hit / expand(F.sum(hit, axis=self.axes), self.axes, x)

    def jvp(self, out, inputs, tangents):
        t, x = tangents[0], inputs[0]
        return None if t is None else F.sum(t * self.weights(out, x), axis=self.axes)

    def vjp(self, out, inputs, ct):
        x = inputs[0]
        return (expand(ct, self.axes, x) * self.weights(out, x),)


@register
@dataclass(frozen=True)
class Max(Extremum):
    """The greatest element; NaN if there is one.  Of bools: any."""

    name = "max"
    combine = "maximum"
    identity = -np.inf

    def evaluate(self, x):
        return np.max(x, self.axes)


@register
@dataclass(frozen=True)
class Min(Extremum):
    """The smallest element; NaN if there is one.  Of bools: all."""

    name = "min"
    combine = "minimum"
    identity = np.inf

    def evaluate(self, x):
        return np.min(x, self.axes)


@dataclass(frozen=True)
class Arg(Reduction):
    """The position (i32) of an extreme along `axis`: the first of equals, the first NaN if there is one."""

    axis: int

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.axis,)

    def infer(self, x):
        shape = remaining(self.name, x, self.axes)
        if not x.shape[self.axis]:
            raise ShapeError(f"{self.name}: expected at least one element along axis {self.axis}, got {x}")
        return TensorType(i32, shape)

    def jvp(self, out, inputs, tangents):
        return None

    def vjp(self, out, inputs, ct):
        return (None,)


@register
@dataclass(frozen=True)
class ArgMax(Arg):
    """The position (i32) of the greatest element along `axis`: the first of equals, NaN above all."""

    name = "argmax"
    combine = "maximum"
    identity = -np.inf

    def evaluate(self, x):
        return np.argmax(x, self.axis)


@register
@dataclass(frozen=True)
class ArgMin(Arg):
    """The position (i32) of the smallest element along `axis`: the first of equals, NaN below all."""

    name = "argmin"
    combine = "minimum"
    identity = np.inf

    def evaluate(self, x):
        return np.argmin(x, self.axis)
