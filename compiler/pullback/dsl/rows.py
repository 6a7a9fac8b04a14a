"""Whether a graph maps rows to rows: row i of each result depends on row i of the arguments only.

Such a function may be called with fewer rows than it was compiled for: they are padded and the results cut.
The analysis follows the row axis from node to node and gives up (`_Mixed`, which says where) if rows meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ..graph.graph import Graph, Node
from ..ops.op import Elementwise


class _Mixed(Exception):
    """Rows meet, or nothing is known about an op.  The text says where; rules leave it to `_outputs`."""


Axis = int | None | tuple[int | None, ...]
"""The row axis of a node's value, None where it does not depend on the rows; of a scan, those of its items."""


def mixed(graph: Graph, arguments: int) -> str | None:
    """Why axis 0 of the first `arguments` inputs does not go, row by row, to axis 0 of all outputs; None if it does."""
    given = [0 if i < arguments else None for i in range(len(graph.inputs))]
    if any(x.shape[0] < 2 for x in graph.inputs[:arguments]):
        return "there is one row"
    try:
        axes = _outputs(graph, given)
    except _Mixed as e:
        return str(e)
    if not axes or any(a != 0 for a in axes):
        return "not every result has the rows first"
    return None


def _outputs(graph: Graph, given: Iterable[int | None]) -> list[int | None]:
    """The row axes of a graph's outputs, from those of its inputs."""
    axes: dict[Node, Axis] = dict(zip(graph.inputs, given, strict=True))
    for node in graph.nodes:
        if node not in axes:
            inputs = [axes[x] for x in node.inputs]
            moved = any(a is not None for a in inputs)
            try:
                axes[node] = _follow(node, inputs) if moved else None
            except _Mixed as e:
                raise e if e.args else _Mixed(f"rows meet in {node.op.name} at {node.loc}") from None
    return [axes[x] for x in graph.outputs]


def _follow(node: Node, axes: list[Axis]) -> Axis:
    """The row axis of a node, given those of its inputs, at least one of which has rows."""
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


def _scan(node: Node, axes) -> tuple[int | None, ...]:
    """Every carry keeps its rows on one axis.  One that starts without any (zeros) has those of the first iteration."""
    op = node.op
    fixed = op.constants + op.carries
    constants, carries = axes[: op.constants], axes[op.constants : fixed]
    _require(0 not in axes[fixed:])  # a loop from row to row
    xs = [None if a is None else a - 1 for a in axes[fixed:]]
    while True:
        out = _outputs(op.body, (*constants, *carries, *xs))
        after = [b if a is None else a for a, b in zip(carries, out[: op.carries], strict=True)]
        if after == carries:
            break
        carries = after
    _require(all(b is None or a == b for a, b in zip(carries, out[: op.carries], strict=True)))
    return *carries, *(None if a is None else a + 1 for a in out[op.carries :])


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
    "scan": _scan,
    "item": lambda node, axes: axes[0][node.op.index],
}
