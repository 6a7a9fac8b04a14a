"""Common subexpressions: graph IR in, graph IR out, with equal nodes merged into the first of them.

Equal means the same op and attributes, the same inputs (in either order where the op commutes) and the same
tag, so recomputed copies stay apart.  The merged node keeps the first one's location.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..graph.content import identity
from ..graph.graph import Graph, Node, rewrite
from ..ops.op import Op

COMMUTATIVE = frozenset({"add", "mul", "and", "or", "xor", "eq", "ne", "mulhi"})
"""Ops that give the same bits for either order of their inputs (maximum does not: zeros of either sign)."""


def cse(graph: Graph) -> Graph:
    """Merge equal nodes."""
    return rewrite(graph, Values().of, merges=True)


class Values:
    """The first node of every value met so far."""

    def __init__(self):
        self.first: dict[tuple[int, ...], Node] = {}
        self._numbers: dict[Hashable, int] = {}  # by what an op is; negative: it commutes
        self._of_object: dict[int, tuple[int, Op]] = {}  # the same by the object, which is kept: many nodes share it

    def key(self, node: Node, inputs: tuple[Node, ...]) -> tuple[int, ...]:
        """Equal for equal nodes; the inputs are first nodes themselves."""
        known = self._of_object.get(id(node.op))
        number = known[0] if known is not None else self._number(node.op)
        if len(inputs) == 2:
            a, b = id(inputs[0]), id(inputs[1])
            return (number, node.tag, b, a) if number < 0 and a > b else (number, node.tag, a, b)
        return (number, node.tag, *map(id, inputs))

    def of(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        """The first node of the value of `node` on these inputs."""
        key = self.key(node, inputs)
        found = self.first.get(key)
        if found is None:
            found = self.first[key] = node if inputs == node.inputs else node.replace(inputs)
        return found

    def _number(self, op: Op) -> int:
        number = self._numbers.setdefault(identity(op), 1 + len(self._numbers))
        number = -number if op.name in COMMUTATIVE else number
        self._of_object[id(op)] = number, op
        return number
