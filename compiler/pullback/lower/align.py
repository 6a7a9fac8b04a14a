"""Which axis of an op's input is which axis of its result: what fusion follows to keep rows together.

`follow(dims, node, i)` carries the names of the shared axes (`dims[d]`: the axis' number, or -1) from input i to the
node.  An axis that is cut, padded, reversed, indexed or merged with another loses its name.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from ..graph.graph import Node
from ..ops.indexing import Gather, GatherAlong
from ..ops.movement import Broadcast, Concat, Flip, Pad, Permute, Reshape, Slice, reshape_groups
from .families import ELEMENTWISE, POINTWISE, REDUCTIONS
from .summation import form

Dims = tuple[int, ...]


def follow(dims: Dims, node: Node, i: int) -> Dims:
    op = node.op
    if type(op) in ELEMENTWISE:
        return dims
    rule = RULES.get(type(op))
    if rule is None:
        return (-1,) * len(node.shape)
    return tuple(-1 if d < 0 else dims[d] for d in rule(op, node, i))


def _permute(op: Permute, node: Node, i: int) -> list[int]:
    return list(op.axes)


def _broadcast(op: Broadcast, node: Node, i: int) -> list[int]:
    out = [-1] * len(op.shape)
    for d, (n, a) in enumerate(zip(node.inputs[0].shape, op.axes, strict=True)):
        if n == op.shape[a]:
            out[a] = d
    return out


def _reshape(op: Reshape, node: Node, i: int) -> list[int]:
    shape, out = node.inputs[0].shape, [-1] * len(op.shape)
    for ins, outs in reshape_groups(shape, op.shape) if prod(shape) else ():
        before = [d for d in ins if shape[d] != 1]
        after = [d for d in outs if op.shape[d] != 1]
        if len(before) == len(after) == 1:
            out[after[0]] = before[0]
    return out


def _slice(op: Slice, node: Node, i: int) -> list[int]:
    whole = zip(op.start, op.stop, op.step, node.inputs[0].shape, strict=True)
    return [d if (lo, hi, s) == (0, n, 1) else -1 for d, (lo, hi, s, n) in enumerate(whole)]


def _flip(op: Flip, node: Node, i: int) -> list[int]:
    return [-1 if d in op.axes else d for d in range(len(node.shape))]


def _pad(op: Pad, node: Node, i: int) -> list[int]:
    return [-1 if lo or hi else d for d, (lo, hi) in enumerate(zip(op.low, op.high, strict=True))]


def _concat(op: Concat, node: Node, i: int) -> list[int]:
    return [-1 if d == op.axis else d for d in range(len(node.shape))]


def _gather(op: Gather, node: Node, i: int) -> list[int]:
    k = node.inputs[1].type.ndim
    if i == 1:
        return [d - op.axis if op.axis <= d < op.axis + k else -1 for d in range(len(node.shape))]
    return [d if d < op.axis else d - k + 1 if d >= op.axis + k else -1 for d in range(len(node.shape))]


def _gather_along(op: GatherAlong, node: Node, i: int) -> list[int]:
    return [-1 if i == 0 and d == op.axis else d for d in range(len(node.shape))]


RULES = {
    Permute: _permute,
    Broadcast: _broadcast,
    Reshape: _reshape,
    Slice: _slice,
    Flip: _flip,
    Pad: _pad,
    Concat: _concat,
    Gather: _gather,
    GatherAlong: _gather_along,
}
"""op class -> for each axis of the result the axis of input i that it is, or -1."""


def factors(node: Node) -> bool:
    """Whether a reshape's index map is affine: dims are split or of extent 1, never merged."""
    shape, new = node.inputs[0].shape, node.op.shape
    if not prod(shape):
        return True
    return all(sum(shape[d] != 1 for d in ins) <= 1 for ins, _ in reshape_groups(shape, new))


def gatherable(node: Node, stop: Collection[Node]) -> bool:
    """Whether a node's element at an index that a tensor holds can be computed in place: no arithmetic on indices, down
    to the nodes of `stop` and to what a kernel stages or reads from memory."""
    seen, stack = {node}, [node]
    while stack:
        n = stack.pop()
        if type(n.op) in REDUCTIONS and form(n) == "none":
            return False
        if n in stop or type(n.op) not in POINTWISE or not n.inputs:
            continue
        if not (type(n.op) in ELEMENTWISE or type(n.op) in (Permute, Broadcast) or _moves_ones(n)):
            return False
        fresh = [x for x in n.inputs if x not in seen]
        seen.update(fresh)
        stack += fresh
    return True


def _moves_ones(node: Node) -> bool:
    """A reshape that only adds or drops axes of extent 1."""
    return type(node.op) is Reshape and [n for n in node.shape if n != 1] == [n for n in node.inputs[0].shape if n != 1]
