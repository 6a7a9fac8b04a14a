"""Rewrite rules of `simplify` for movement, reductions and contractions: node in, simpler node or None out.

Movement rules keep every bit.  Rules on sums and contractions may change their rounding (a sum of n equal
terms becomes one product), never their meaning; sums of 16-bit floats are not taken apart, because an
intermediate result would be rounded once more.

Normal forms: a broadcast's input has no axes of size 1; a broadcast or permutation that only places axes of
size 1 is a reshape; contractions read their operands unpermuted.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.graph import Node
from ..graph.types import DType
from ..ops.elementwise import Mul, Neg
from ..ops.leaf import Iota, checked_scalar, scalar_key
from ..ops.movement import Broadcast, Flip, Pad, Permute, Reshape, Slice
from .rules import Builder, Rule, Shape, fill_value, same_but_ones


def reshaped(b: Builder, x: Node, shape: Shape) -> Node:
    return x if x.type.shape == shape else b.make(Reshape(shape), x)


# ---- movement --------------------------------------------------------------------------------------------
def reshape(b: Builder, n: Node) -> Node | None:
    """Nothing to do; a chain; of a constant; of a broadcast or iota that only gains or loses axes of size 1."""
    (x,), shape = n.inputs, n.type.shape
    if x.type.shape == shape:
        return x
    if x.op.name == "reshape":
        return b.make(n.op, x.inputs[0])
    if (value := fill_value(x)) is not None:
        return b.fill(value, n)
    if x.op.name in ("broadcast", "iota") and same_but_ones(x.type.shape, shape):
        place = _places(x.type.shape, shape)
        if x.op.name == "iota":
            return b.make(Iota(x.op.dtype, shape, place[x.op.axis])) if x.op.axis in place else None
        return b.make(Broadcast(shape, tuple([place[a] for a in x.op.axes])), x.inputs[0])
    return None


def _places(old: Shape, new: Shape) -> dict[int, int]:
    """Where the axes that are not 1 go, for shapes that differ by ones alone."""
    return dict(zip([d for d, n in enumerate(old) if n != 1], [d for d, n in enumerate(new) if n != 1], strict=True))


def permute(b: Builder, n: Node) -> Node | None:
    """The identity; a chain; of a constant; only ones move; into a broadcast; into a contraction's result."""
    (x,), axes = n.inputs, n.op.axes
    shape = x.type.shape
    if all([d == a for d, a in enumerate(axes)]):
        return x
    if x.op.name == "permute":
        return b.make(Permute(tuple([x.op.axes[a] for a in axes])), x.inputs[0])
    if (value := fill_value(x)) is not None:
        return b.fill(value, n)
    moved = [a for a in axes if shape[a] != 1]
    if moved == sorted(moved):
        return b.make(Reshape(n.type.shape), x)
    if x.op.name == "broadcast":  # the smaller tensor is permuted instead
        position = {a: d for d, a in enumerate(axes)}
        to = [position[a] for a in x.op.axes]
        order = tuple(sorted(range(len(to)), key=to.__getitem__))
        return b.make(Broadcast(n.type.shape, tuple(sorted(to))), b.make(Permute(order), x.inputs[0]))
    if x.op.name == "contract" and b.uses(x) == 1:
        return b.make(replace(x.op, out="".join([x.op.out[a] for a in axes])), *x.inputs)
    return None


def broadcast(b: Builder, n: Node) -> Node | None:
    """Nothing to do; a chain; of a constant or iota; axes of size 1 are dropped before, or all that it adds."""
    (x,), shape, axes = n.inputs, n.type.shape, n.op.axes
    inner = x.type.shape
    if inner == shape:
        return x
    if (value := fill_value(x)) is not None:
        return b.fill(value, n)
    if x.type.size == n.type.size:
        return b.make(Reshape(shape), x)
    if 1 in inner:
        kept = [(m, a) for m, a in zip(inner, axes, strict=True) if m != 1]
        return b.make(Broadcast(shape, tuple([a for _, a in kept])), reshaped(b, x, tuple([m for m, _ in kept])))
    if x.op.name == "broadcast":
        return b.make(Broadcast(shape, tuple([axes[a] for a in x.op.axes])), x.inputs[0])
    if x.op.name == "iota":
        return b.make(Iota(x.op.dtype, shape, axes[x.op.axis]))
    return None


def iota(b: Builder, n: Node) -> Node | None:
    """Along an axis of size 1 there is only the number 0."""
    return b.fill(0.0 if n.op.dtype.is_float else 0, n) if n.op.shape[n.op.axis] == 1 else None


def slice_(b: Builder, n: Node) -> Node | None:
    """Everything; a chain; of a constant; of a pad, concat or broadcast that the slice takes apart."""
    (x,), op = n.inputs, n.op
    if x.type.shape == n.type.shape:
        return x
    if (value := fill_value(x)) is not None:
        return b.fill(value, n)
    bounds = list(zip(op.start, op.stop, op.step, strict=True))
    if x.op.name == "slice":
        outer = zip(x.op.start, x.op.step, bounds, n.type.shape, strict=True)
        merged = [(s + t * lo, s + t * (lo + (m - 1) * step) + 1, t * step) for s, t, (lo, _, step), m in outer]
        return b.make(_slice(merged), x.inputs[0])
    if x.op.name == "pad":
        inner = x.inputs[0].type.shape
        last = [lo + (m - 1) * step for (lo, _, step), m in zip(bounds, n.type.shape, strict=True)]
        around = list(zip(bounds, last, x.op.low, inner, strict=True))
        if any([end < low or lo >= low + m for (lo, _, _), end, low, m in around]):
            return b.fill(checked_scalar(x.op.value, n.type.dtype), n)
        if all([lo >= low and end < low + m for (lo, _, _), end, low, m in around]):
            return b.make(_slice([(lo - low, end + 1 - low, s) for (lo, _, s), end, low, _ in around]), x.inputs[0])
        return None
    if x.op.name == "concat":
        at, (lo, _, step) = 0, bounds[x.op.axis]
        end = lo + (n.type.shape[x.op.axis] - 1) * step + 1
        for part in x.inputs:
            size = part.type.shape[x.op.axis]
            if at <= lo and end <= at + size:
                bounds[x.op.axis] = (lo - at, end - at, step)
                return b.make(_slice(bounds), part)
            at += size
    if x.op.name == "broadcast":  # its input has no axes of size 1
        return b.make(Broadcast(n.type.shape, x.op.axes), b.make(_slice([bounds[a] for a in x.op.axes]), x.inputs[0]))
    return None


def _slice(bounds: list[tuple[int, int, int]]) -> Slice:
    return Slice(*zip(*bounds, strict=True)) if bounds else Slice((), (), ())


def flip(b: Builder, n: Node) -> Node | None:
    """Nothing to reverse; a chain; of a constant."""
    (x,) = n.inputs
    if (value := fill_value(x)) is not None:
        return b.fill(value, n)
    axes = set(n.op.axes)
    if x.op.name == "flip":
        axes ^= set(x.op.axes)
        x = x.inputs[0]
    kept = tuple(sorted([a for a in axes if n.type.shape[a] > 1]))
    return None if kept == n.op.axes else b.make(Flip(kept), x) if kept else x


def pad(b: Builder, n: Node) -> Node | None:
    """No padding; a chain with one value; of a constant of that value."""
    (x,), op = n.inputs, n.op
    if x.type.shape == n.type.shape:
        return x
    padding = scalar_key(checked_scalar(op.value, n.type.dtype))
    if (value := fill_value(x)) is not None and scalar_key(value) == padding:
        return b.fill(value, n)
    if x.op.name == "pad" and scalar_key(checked_scalar(x.op.value, n.type.dtype)) == padding:
        low, high = (tuple(map(sum, zip(*p, strict=True))) for p in ((op.low, x.op.low), (op.high, x.op.high)))
        return b.make(Pad(low, high, op.value), x.inputs[0])
    return None


def concat(b: Builder, n: Node) -> Node | None:
    """One part; parts that are empty, concatenations themselves, or neighbouring slices of one tensor."""
    axis, parts = n.op.axis, []
    for x in n.inputs:
        for part in x.inputs if x.op == n.op else (x,):
            joined = _joined(b, parts[-1], part, axis) if parts else None
            if joined is not None:
                parts[-1] = joined
            elif part.type.shape[axis]:
                parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return None if tuple(parts) == n.inputs else b.make(n.op, *parts)


def _joined(b: Builder, x: Node, y: Node, axis: int) -> Node | None:
    """One slice, or one constant, for two neighbours, where they are one."""
    if x.op.name == "slice" and y.op.name == "slice" and x.inputs[0] is y.inputs[0]:
        p, q = (list(zip(s.op.start, s.op.stop, s.op.step, strict=True)) for s in (x, y))
        (lo, middle, step), (start, hi, step2) = p.pop(axis), q.pop(axis)
        if p == q and middle == start and step == step2 == 1:
            p.insert(axis, (lo, hi, 1))
            return b.make(_slice(p), x.inputs[0])
    value = fill_value(x)
    if value is not None and fill_value(y) is not None and scalar_key(value) == scalar_key(fill_value(y)):
        shape = list(x.type.shape)
        shape[axis] += y.type.shape[axis]
        return b.fill_node(value, x.type.dtype, tuple(shape))
    return None


# ---- reductions ------------------------------------------------------------------------------------------
def reduction(b: Builder, n: Node) -> Node | None:
    """Over axes of size 1; of a constant, a broadcast, a negation, or a reshape that only adds or drops ones."""
    (x,), axes, shape = n.inputs, n.op.axes, n.inputs[0].type.shape
    real = tuple([a for a in axes if shape[a] != 1])
    if not real:
        return reshaped(b, x, n.type.shape)
    name = n.op.name
    if 0 in shape:
        return b.fill(checked_scalar(n.op.identity, n.type.dtype), n)
    if (value := fill_value(x)) is not None:
        if name in ("max", "min"):
            return b.fill(value, n)
        if name == "sum":
            return b.fill(_times(value, x.type.size // n.type.size, n.type.dtype), n)
    if real != axes:
        kept = [d for d in range(len(shape)) if d in real or d not in axes]
        inner = reshaped(b, x, tuple([shape[d] for d in kept]))
        return b.make(type(n.op)(tuple([kept.index(a) for a in real])), inner)
    if x.op.name == "reshape" and same_but_ones(x.inputs[0].type.shape, shape):
        place = _places(shape, x.inputs[0].type.shape)
        inner = b.make(type(n.op)(tuple([place[a] for a in real])), x.inputs[0])
        return reshaped(b, inner, n.type.shape)
    if x.op.name == "broadcast" and name != "prod":
        return _of_broadcast(b, n, x)
    if name == "sum" and x.op.name == "neg" and b.uses(x) == 1:
        return b.make(Neg(), b.make(n.op, x.inputs[0]))
    if name == "sum" and x.op.name == "sum" and b.uses(x) == 1 and _wide(n.type.dtype):
        kept = [d for d in range(x.inputs[0].type.ndim) if d not in x.op.axes]
        return b.make(type(n.op)(tuple(sorted([*x.op.axes, *[kept[a] for a in axes]]))), x.inputs[0])
    return None


def _wide(dtype: DType) -> bool:
    return not (dtype.is_float and dtype.bits == 16)


def _times(value: float | int, count: int, dtype: DType) -> float | int:
    """value * count in a dtype; integers wrap."""
    if dtype.is_float:
        return float(dtype.round(float(dtype.round(value)) * count))
    wrapped = (int(value) * count) % 2**dtype.bits
    return wrapped - 2**dtype.bits if dtype.kind == "i" and wrapped >= 2 ** (dtype.bits - 1) else wrapped


def _of_broadcast(b: Builder, n: Node, x: Node) -> Node | None:
    """Reduce a broadcast's input instead; the axes along which it repeats only scale a sum."""
    op, inner, axes = n.op, x.inputs[0], set(n.op.axes)
    count = 1
    for a in axes.difference(x.op.axes):
        count *= x.type.shape[a]
    within = tuple([i for i, a in enumerate(x.op.axes) if a in axes])
    dtype = n.type.dtype
    if count == 1 or not all(x.type.shape):
        return None
    result = inner
    if within:
        if op.name == "sum" and not _wide(dtype):
            return None
        result = b.make(type(op)(within), inner)
    if op.name == "sum":
        factor = _times(1, count, dtype)
        if dtype.is_float and factor != count:
            return None
        result = b.make(Mul(), result, b.fill(factor, result))
    rest = [d for d in range(x.type.ndim) if d not in axes]
    kept = tuple([rest.index(a) for a in x.op.axes if a not in axes])
    return b.make(Broadcast(n.type.shape, kept), result)


def along_one(b: Builder, n: Node) -> Node | None:
    """A running sum or a sort along an axis of size 1; the position of an extreme there."""
    if n.inputs[0].type.shape[n.op.axis] != 1:
        return None
    return b.fill(0, n) if n.op.name in ("argmax", "argmin", "argsort") else n.inputs[0]


# ---- contractions ----------------------------------------------------------------------------------------
def contract(b: Builder, n: Node) -> Node | None:
    """Permuted operands are read as they are; broadcast ones lose the labels; nothing summed is a product."""
    op, operands, labels = n.op, list(n.inputs), [n.op.lhs, n.op.rhs]
    if 0 in (operands[0].type.size, operands[1].type.size):
        return b.fill(0.0 if n.type.dtype.is_float else 0, n)
    if not op.reduced:
        if op.tf32 or op.wide:
            return None
        placed = [_aligned(b, x, s, op.out, n.type.shape) for x, s in zip(operands, labels, strict=True)]
        return b.make(Mul(), *placed)
    out, changed = op.out, False
    for i, x in enumerate(operands):
        if x.op.name == "permute":
            labels[i] = "".join([labels[i][d] for d in x.op.inverse])
            operands[i], changed = x.inputs[0], True
        elif x.op.name == "broadcast":
            repeated = [c for d, c in enumerate(labels[i]) if d not in x.op.axes]
            other = labels[1 - i]
            if any([c in other and c not in out for c in repeated]):
                continue  # summed over: the other operand alone would be
            operands[i], changed = x.inputs[0], True
            labels[i] = "".join([labels[i][a] for a in x.op.axes])
            out = "".join([c for c in out if c in other or c not in repeated])
    if not changed:
        return None
    result = b.make(replace(op, lhs=labels[0], rhs=labels[1], out=out), *operands)
    return b.make(Broadcast(n.type.shape, tuple([d for d, c in enumerate(op.out) if c in out])), result)


def _aligned(b: Builder, x: Node, labels: str, out: str, shape: Shape) -> Node:
    """An operand with the axes of the result."""
    order = sorted(range(len(labels)), key=lambda d: out.index(labels[d]))
    x = b.make(Permute(tuple(order)), x)
    return b.make(Broadcast(shape, tuple([out.index(labels[d]) for d in order])), x)


RULES: dict[str, Rule] = {
    "reshape": reshape,
    "permute": permute,
    "broadcast": broadcast,
    "iota": iota,
    "slice": slice_,
    "flip": flip,
    "pad": pad,
    "concat": concat,
    "sum": reduction,
    "prod": reduction,
    "max": reduction,
    "min": reduction,
    "argmax": along_one,
    "argmin": along_one,
    "cumsum": along_one,
    "sort": along_one,
    "argsort": along_one,
    "contract": contract,
}
"""op name -> its rule."""
