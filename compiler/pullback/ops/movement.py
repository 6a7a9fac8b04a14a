"""Movement ops: they rearrange, repeat or drop elements.  Lowered to index expressions, never to copies."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.graph import make
from ..graph.types import TensorType, i64
from ..kernel.kernel import Affine, AxisValue, Const, Index, Mask, apply
from . import rules as F
from .leaf import checked_scalar, scalar_key
from .op import Linear, NotAffine, Pointwise, register


class Movement(Linear, Pointwise):
    """Every output element is one input element (or, for pad, a constant)."""

    cost = 0

    def apply(self, *inputs):
        return F.Tensor(make(self, *(x.node for x in inputs)))


def affine(index: Index) -> Affine:
    """An index component that arithmetic can be done on; an index read from a tensor is not."""
    if isinstance(index, Affine):
        return index
    raise NotAffine


def permutation(name: str, axes: tuple[int, ...], ndim: int) -> None:
    if sorted(axes) != list(range(ndim)):
        raise ShapeError(f"{name}: expected a permutation of {ndim} axes, got {list(axes)}")


def reshape_groups(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[range, range]]:
    """Match the dims of two shapes of equal (non-zero) size: minimal runs of dims with equal products."""
    groups, i, j = [], 0, 0
    while i < len(a) or j < len(b):
        i0, j0 = i, j
        p = q = 1
        if i < len(a):
            p, i = a[i], i + 1
        if j < len(b) and not (p == 1 and i > i0 and b[j] != 1):
            q, j = b[j], j + 1
        while p != q:
            if p < q:
                p, i = p * a[i], i + 1
            else:
                q, j = q * b[j], j + 1
        groups.append((range(i0, i), range(j0, j)))
    return groups


@register
@dataclass(frozen=True)
class Reshape(Movement):
    """The same elements in C order under another shape."""

    name = "reshape"
    shape: tuple[int, ...]

    def infer(self, x):
        if prod(self.shape) != x.size:
            raise ShapeError(f"reshape: expected {x.size} elements as in {list(x.shape)}, got {list(self.shape)}")
        return TensorType(x.dtype, self.shape)

    def evaluate(self, x):
        return np.reshape(x, self.shape)

    def transpose(self, out, inputs, ct):
        return (F.reshape(ct, inputs[0].shape),)

    def lower(self, node, index, read):
        """Affine where input dims are only split (or are 1); raises `NotAffine` where dims are merged."""
        shape = node.inputs[0].shape
        result: list[Index] = [Affine()] * len(shape)
        for ins, outs in reshape_groups(shape, self.shape) if prod(shape) else ():
            dims = [i for i in ins if shape[i] != 1]
            parts = [j for j in outs if self.shape[j] != 1]
            if len(dims) > 1:
                raise NotAffine
            if len(parts) == 1:
                result[dims[0]] = index[parts[0]]
            elif parts:
                flat, step = Affine(), 1
                for j in reversed(parts):
                    flat, step = flat + affine(index[j]) * step, step * self.shape[j]
                result[dims[0]] = flat
        return read(0, tuple(result))


@register
@dataclass(frozen=True)
class Permute(Movement):
    """Axis d of the result is axis `axes[d]` of the input."""

    name = "permute"
    axes: tuple[int, ...]

    def infer(self, x):
        permutation("permute", self.axes, x.ndim)
        return TensorType(x.dtype, tuple(x.shape[a] for a in self.axes))

    def evaluate(self, x):
        return np.transpose(x, self.axes)

    def transpose(self, out, inputs, ct):
        return (F.permute_dims(ct, self.inverse),)

    @property
    def inverse(self) -> tuple[int, ...]:
        inverse = [0] * len(self.axes)
        for d, a in enumerate(self.axes):
            inverse[a] = d
        return tuple(inverse)

    def lower(self, node, index, read):
        return read(0, tuple(index[d] for d in self.inverse))


@register
@dataclass(frozen=True)
class Broadcast(Movement):
    """Input axis d becomes axis `axes[d]` of `shape` (ascending); the input repeats along all others.

    An input axis of size 1 may meet a larger one.
    """

    name = "broadcast"
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def infer(self, x):
        ok = len(self.axes) == x.ndim and all(a < b for a, b in zip(self.axes, self.axes[1:]))
        ok = ok and all(
            0 <= a < len(self.shape) and n in (1, self.shape[a]) for n, a in zip(x.shape, self.axes, strict=True)
        )
        if not ok:
            raise ShapeError(f"broadcast: expected axes {list(self.axes)} of {list(self.shape)}, got {list(x.shape)}")
        return TensorType(x.dtype, self.shape)

    def evaluate(self, x):
        aligned = [1] * len(self.shape)
        for n, a in zip(np.shape(x), self.axes, strict=True):
            aligned[a] = n
        return np.broadcast_to(np.reshape(x, aligned), self.shape)

    def transpose(self, out, inputs, ct):
        x = inputs[0]
        kept = [a for a, n in zip(self.axes, x.shape, strict=True) if n == self.shape[a]]
        repeated = tuple(d for d in range(len(self.shape)) if d not in kept)
        return (F.reshape(F.sum(ct, axis=repeated), x.shape) if repeated else ct,)

    def lower(self, node, index, read):
        dims = zip(node.inputs[0].shape, self.axes, strict=True)
        return read(0, tuple(index[a] if n == self.shape[a] else Affine() for n, a in dims))


@register
@dataclass(frozen=True)
class Slice(Movement):
    """start[d], start[d] + step[d], ... below stop[d]; 0 <= start <= stop <= size, step > 0."""

    name = "slice"
    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]

    def infer(self, x):
        if not len(self.start) == len(self.stop) == len(self.step) == x.ndim:
            raise ShapeError(f"slice: expected bounds for {x.ndim} axes, got {len(self.start)}")
        shape = []
        for d, (lo, hi, step, n) in enumerate(zip(self.start, self.stop, self.step, x.shape, strict=True)):
            if not 0 <= lo <= hi <= n or step < 1:
                raise ShapeError(f"slice: expected bounds within 0..{n} on axis {d}, got {lo}:{hi}:{step}")
            shape.append(-((lo - hi) // step))
        return TensorType(x.dtype, tuple(shape))

    def evaluate(self, x):
        return x[tuple(map(slice, self.start, self.stop, self.step))]

    def transpose(self, out, inputs, ct):
        shape = inputs[0].shape
        if any(s != 1 for s in self.step):
            # Spread with zeros between: [n] -> [n, 1] -> [n, step] -> [n * step], then cut to fit.
            padded = F.reshape(ct, tuple(m for n in ct.shape for m in (n, 1)))
            padded = F.pad(padded, [w for s in self.step for w in ((0, 0), (0, s - 1))])
            spread = F.reshape(padded, tuple(n * s for n, s in zip(ct.shape, self.step, strict=True)))
            room = [n - lo for n, lo in zip(shape, self.start, strict=True)]
            ct = spread[tuple(slice(min(n, r)) for n, r in zip(spread.shape, room, strict=True))]
        return (F.pad(ct, [(lo, n - lo - m) for lo, n, m in zip(self.start, shape, ct.shape, strict=True)]),)

    def lower(self, node, index, read):
        parts = zip(index, self.start, self.step, strict=True)
        return read(0, tuple(i if (lo, s) == (0, 1) else affine(i) * s + lo for i, lo, s in parts))


@register
@dataclass(frozen=True)
class Flip(Movement):
    """Reverse along `axes`."""

    name = "flip"
    axes: tuple[int, ...]

    def infer(self, x):
        if not all(0 <= a < x.ndim for a in self.axes) or len(set(self.axes)) != len(self.axes):
            raise ShapeError(f"flip: expected distinct axes of {list(x.shape)}, got {list(self.axes)}")
        return x

    def evaluate(self, x):
        return np.flip(x, self.axes)

    def transpose(self, out, inputs, ct):
        return (F.flip(ct, axis=self.axes),)

    def lower(self, node, index, read):
        flipped = (affine(i) * -1 + (n - 1) if d in self.axes else i for d, (i, n) in enumerate(zip(index, node.shape)))
        return read(0, tuple(flipped))


@register
@dataclass(frozen=True, eq=False)
class Pad(Movement):
    """`low[d]` elements of `value` before and `high[d]` after the input, along each axis."""

    name = "pad"
    low: tuple[int, ...]
    high: tuple[int, ...]
    value: float | int | bool

    def __eq__(self, other):
        return isinstance(other, Pad) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    @property
    def _key(self):
        return self.low, self.high, scalar_key(self.value)

    def infer(self, x):
        if not len(self.low) == len(self.high) == x.ndim or any(w < 0 for w in self.low + self.high):
            raise ShapeError(f"pad: expected widths >= 0 for {x.ndim} axes, got {list(self.low)} and {list(self.high)}")
        checked_scalar(self.value, x.dtype)
        return TensorType(x.dtype, tuple(lo + n + hi for lo, n, hi in zip(self.low, x.shape, self.high, strict=True)))

    def evaluate(self, x):
        return np.pad(x, list(zip(self.low, self.high, strict=True)), constant_values=self.value)

    def jvp(self, out, inputs, tangents):
        # Affine rather than linear: the padding is constant.
        widths = list(zip(self.low, self.high, strict=True))
        return None if tangents[0] is None else F.pad(tangents[0], widths)

    def transpose(self, out, inputs, ct):
        bounds = zip(self.low, inputs[0].shape, strict=True)
        return (ct[tuple(slice(lo, lo + n) for lo, n in bounds)],)

    def lower(self, node, index, read):
        masks: list[Mask] = []
        inner = list(index)
        for d, (lo, hi, n) in enumerate(zip(self.low, self.high, node.inputs[0].shape, strict=True)):
            if lo or hi:
                inner[d] = i = affine(index[d]) + -lo
                masks += [(i * -1, 1)] if lo else []
                masks += [(i, n)] if hi else []
        return read(0, tuple(inner), tuple(masks), self.value)


@register
@dataclass(frozen=True)
class Concat(Movement):
    """The inputs one after the other along `axis`."""

    name = "concat"
    axis: int

    def infer(self, *types):
        if not types or not 0 <= self.axis < types[0].ndim:
            raise ShapeError(f"concat: expected tensors with an axis {self.axis}, got {[str(t) for t in types]}")
        first = types[0]
        for t in types[1:]:
            if t.dtype != first.dtype:
                raise DTypeError(f"concat: expected tensors of one type, got {first.dtype} and {t.dtype}")
            if t.ndim != first.ndim or any(
                n != m for d, (n, m) in enumerate(zip(t.shape, first.shape)) if d != self.axis
            ):
                raise ShapeError(
                    f"concat: expected shapes that differ on axis {self.axis} only, "
                    f"got {list(first.shape)} and {list(t.shape)}"
                )
        total = sum(t.shape[self.axis] for t in types)
        return TensorType(first.dtype, (*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))

    def evaluate(self, *xs):
        return np.concatenate(xs, self.axis)

    def transpose(self, out, inputs, ct):
        parts, at, before = [], 0, (slice(None),) * self.axis
        for x in inputs:
            n = x.shape[self.axis]
            parts.append(ct[(*before, slice(at, at + n))])
            at += n
        return tuple(parts)

    def lower(self, node, index, read):
        along = affine(index[self.axis])
        at = node.shape[self.axis]
        result = None
        # From the last to the first: `position < end ? this input : the ones after it`.
        for k in reversed(range(len(node.inputs))):
            n, end = node.inputs[k].shape[self.axis], at
            at -= n
            if not n:
                continue
            local = along + -at
            masks = ([(local * -1, 1)] if at else []) + ([(local, n)] if end < node.shape[self.axis] else [])
            element = read(k, (*index[: self.axis], local, *index[self.axis + 1 :]), tuple(masks))
            if result is None:
                result = element
            else:
                before = apply("lt", AxisValue(along), Const(end, i64))
                result = apply("select", before, element, result)
        return Const(checked_scalar(0, node.dtype), node.dtype) if result is None else result
