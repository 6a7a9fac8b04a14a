"""Whether a graph maps rows to rows: row i of each result depends on row i of the arguments only.

Such a function may be called with fewer rows than it was compiled for: they are padded and the results cut.
The analysis follows the row axis from node to node and gives up (`_Mixed`) where rows meet.
"""

from __future__ import annotations

from math import prod

from ..graph.graph import Graph, Node
from ..ops.op import Elementwise


class _Mixed(Exception):
    """Rows meet in this node, or nothing is known about its op."""


def row_wise(graph: Graph, arguments: int) -> bool:
    """Whether axis 0 of the first `arguments` inputs goes, row by row, to axis 0 of every output."""
    rows = {x: 0 for x in graph.inputs[:arguments]}
    if any(x.shape[0] < 2 for x in rows):
        return False
    axes: dict[Node, int | None] = {x: rows.get(x) for x in graph.inputs}
    try:
        for node in graph.nodes:
            if node not in axes:
                inputs = [axes[x] for x in node.inputs]
                moved = any(a is not None for a in inputs)
                axes[node] = _follow(node, inputs) if moved else None
    except _Mixed:
        return False
    return bool(graph.outputs) and all(axes[x] == 0 for x in graph.outputs)


def _follow(node: Node, axes: list[int | None]) -> int:
    """The row axis of a node, given those of its inputs (None: does not depend on the rows)."""
    op = node.op
    if isinstance(op, Elementwise):
        return _one(axes)
    rule = _RULES.get(op.name)
    if rule is None:
        raise _Mixed
    return rule(node, axes)


def _one(axes: list[int | None]) -> int:
    known = {a for a in axes if a is not None}
    if len(known) != 1:
        raise _Mixed
    return known.pop()


def _require(condition: bool) -> None:
    if not condition:
        raise _Mixed


def _reshape(node: Node, axes) -> int:
    shape, (axis,) = node.inputs[0].shape, axes
    inner = prod(shape[axis + 1 :])
    for d, n in enumerate(node.shape):
        if n == shape[axis] and prod(node.shape[d + 1 :]) == inner:
            return d
    raise _Mixed


def _slice(node: Node, axes) -> int:
    op, (axis,) = node.op, axes
    _require(op.start[axis] == 0 and op.stop[axis] == node.inputs[0].shape[axis] and op.step[axis] == 1)
    return axis


def _flip(node: Node, axes) -> int:
    _require(axes[0] not in node.op.axes)
    return axes[0]


def _pad(node: Node, axes) -> int:
    _require(node.op.low[axes[0]] == node.op.high[axes[0]] == 0)
    return axes[0]


def _other_axis(node: Node, axes) -> int:
    """Ops that work along one axis and keep it."""
    axis = _one(axes)
    _require(axis != node.op.axis)
    return axis


def _reduce(node: Node, axes) -> int:
    (axis,) = axes
    reduced = node.op.axes if hasattr(node.op, "axes") else (node.op.axis,)
    _require(axis not in reduced)
    return axis - sum(r < axis for r in reduced)


def _contract(node: Node, axes) -> int:
    op = node.op
    labels = {side[a] for side, a in zip((op.lhs, op.rhs), axes, strict=True) if a is not None}
    _require(len(labels) == 1)
    (label,) = labels
    sides = [side for side, a in zip((op.lhs, op.rhs), axes, strict=True) if a is None]
    _require(label in op.out and not any(label in side for side in sides))
    return op.out.index(label)


def _gather(node: Node, axes) -> int:
    x, indices = axes
    _require(x is None or indices is None)
    at, ndim = node.op.axis, len(node.inputs[1].shape)
    if x is None:
        return at + indices
    _require(x != at)
    return x if x < at else x - 1 + ndim


_RULES = {
    "reshape": _reshape,
    "permute": lambda node, axes: node.op.axes.index(axes[0]),
    "broadcast": lambda node, axes: node.op.axes[axes[0]],
    "slice": _slice,
    "flip": _flip,
    "pad": _pad,
    **dict.fromkeys(("concat", "gather_along", "cumsum", "sort", "argsort"), _other_axis),
    **dict.fromkeys(("sum", "prod", "max", "min", "argmax", "argmin"), _reduce),
    "contract": _contract,
    "gather": _gather,
}
