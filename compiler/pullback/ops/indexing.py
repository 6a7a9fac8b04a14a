"""Reading and adding at positions that a tensor holds.  An index must lie in 0 <= i < size, or the step fails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.types import TensorType
from ..kernel.kernel import Checked
from . import rules as F
from .op import Op, Pointwise, register


def check_indices(name: str, indices: np.ndarray, size: int) -> None:
    bad = (indices < 0) | (indices >= size)
    if np.any(bad):
        raise IndexError(f"{name}: index {indices[bad].flat[0]} is out of range for an axis of size {size}")


def _integer(name: str, t: TensorType) -> None:
    if not t.dtype.is_integer:
        raise DTypeError(f"{name}: expected integer indices, got {t.dtype}")


@register
@dataclass(frozen=True)
class Gather(Pointwise):
    """take: out[..., i..., ...] = x[..., indices[i...], ...]; the indices' axes replace `axis`."""

    name = "gather"
    axis: int

    def infer(self, x, indices):
        _integer("take", indices)
        if not 0 <= self.axis < x.ndim:
            raise ShapeError(f"take: expected an axis of {list(x.shape)}, got {self.axis}")
        return TensorType(x.dtype, x.shape[: self.axis] + indices.shape + x.shape[self.axis + 1 :])

    def evaluate(self, x, indices):
        check_indices("take", indices, x.shape[self.axis])
        return np.take(x, indices.astype(np.int64), self.axis)

    def lower(self, node, index, read):
        x, indices = (i.type for i in node.inputs)
        end = self.axis + indices.ndim
        at = Checked(read(1, index[self.axis : end]), x.shape[self.axis])
        return read(0, (*index[: self.axis], at, *index[end:]))

    def jvp(self, out, inputs, tangents):
        return None if tangents[0] is None else F.gather(tangents[0], inputs[1], self.axis)

    def vjp(self, out, inputs, ct):
        x, indices = inputs
        if indices.node.type.size != 1:
            return F.scatter_add(indices, ct, self.axis, x.shape[self.axis]), None
        # One position: a choice, which fuses, instead of a scatter.
        hit = F.iota(x.shape, self.axis, indices.dtype) == F.broadcast_axes(F.reshape(indices, ()), x.shape, ())
        kept = tuple(d for d in range(x.ndim) if d != self.axis)
        return F.where(hit, F.broadcast_axes(F.reshape(ct, [x.shape[d] for d in kept]), x.shape, kept), 0.0), None


@register
@dataclass(frozen=True)
class GatherAlong(Pointwise):
    """take_along_axis: out[..., i, ...] = x[..., indices[..., i, ...], ...]; other axes agree."""

    name = "gather_along"
    axis: int

    def infer(self, x, indices):
        _integer("take_along_axis", indices)
        if not 0 <= self.axis < x.ndim:
            raise ShapeError(f"take_along_axis: expected an axis of {list(x.shape)}, got {self.axis}")
        if x.ndim != indices.ndim or any(
            n != m for d, (n, m) in enumerate(zip(x.shape, indices.shape)) if d != self.axis
        ):
            raise ShapeError(
                f"take_along_axis: expected shapes that differ on axis {self.axis} only, "
                f"got {list(x.shape)} and {list(indices.shape)}"
            )
        return TensorType(x.dtype, indices.shape)

    def evaluate(self, x, indices):
        check_indices("take_along_axis", indices, x.shape[self.axis])
        return np.take_along_axis(x, indices.astype(np.int64), self.axis)

    def lower(self, node, index, read):
        at = Checked(read(1, index), node.inputs[0].shape[self.axis])
        return read(0, (*index[: self.axis], at, *index[self.axis + 1 :]))

    def jvp(self, out, inputs, tangents):
        return None if tangents[0] is None else F.take_along_axis(tangents[0], inputs[1], axis=self.axis)

    def vjp(self, out, inputs, ct):
        x, indices = inputs
        if indices.shape[self.axis] == 1:
            # One position per row (a label picked): a choice, which fuses, instead of a scatter.
            hit = F.iota(x.shape, self.axis, indices.dtype) == F.broadcast_to(indices, x.shape)
            return F.where(hit, F.broadcast_to(ct, x.shape), 0.0), None
        # Positions in the flattened x, then one scatter.
        step = int(np.prod(x.shape[self.axis + 1 :], dtype=np.int64))
        flat = indices.astype("i64") * step
        for d in range(x.ndim):
            if d != self.axis:
                flat = flat + F.iota(indices.shape, d, "i64") * int(np.prod(x.shape[d + 1 :], dtype=np.int64))
        total = F.scatter_add(F.reshape(flat, (-1,)), F.reshape(ct, (-1,)), 0, x.node.type.size)
        return F.reshape(total, x.shape), None


@register
@dataclass(frozen=True)
class ScatterAdd(Op):
    """The transpose of `Gather`: zeros of `size` along `axis`, then updates added in the order of the indices."""

    name = "scatter_add"
    axis: int
    size: int

    def infer(self, indices, updates):
        _integer("scatter_add", indices)
        end = self.axis + indices.ndim
        if updates.dtype.kind == "b":
            raise DTypeError("scatter_add: expected updates of a number type, got bool")
        if self.axis < 0 or updates.shape[self.axis : end] != indices.shape:
            raise ShapeError(
                f"scatter_add: expected updates with {list(indices.shape)} at axis {self.axis}, "
                f"got {list(updates.shape)}"
            )
        return TensorType(updates.dtype, (*updates.shape[: self.axis], self.size, *updates.shape[end:]))

    def evaluate(self, indices, updates):
        check_indices("scatter_add", indices, self.size)
        end = self.axis + indices.ndim
        before, after = updates.shape[: self.axis], updates.shape[end:]
        wide = np.float64 if updates.dtype.kind == "f" else updates.dtype
        total = np.zeros((self.size, *before, *after), wide)
        rows = np.moveaxis(updates.reshape(*before, indices.size, *after), self.axis, 0)
        with np.errstate(all="ignore"):
            np.add.at(total, indices.reshape(-1).astype(np.int64), rows)
        return np.moveaxis(total, 0, self.axis)

    def jvp(self, out, inputs, tangents):
        return None if tangents[1] is None else F.scatter_add(inputs[0], tangents[1], self.axis, self.size)

    def vjp(self, out, inputs, ct):
        return None, F.gather(ct, inputs[0], self.axis)
