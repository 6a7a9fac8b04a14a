"""Common subexpressions: graph IR in, graph IR out, with equal nodes merged into the first of them.

Equal means the same op and attributes, the same inputs (in either order where the op commutes) and the same
tag, so recomputed copies stay apart.  The merged node keeps the first one's location.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..graph.content import identity
from ..graph.graph import Graph, Node, rewrite, same_or_replaced

COMMUTATIVE = frozenset({"add", "mul", "and", "or", "xor", "eq", "ne", "mulhi"})
"""Ops that give the same bits for either order of their inputs (maximum does not: zeros of either sign)."""


def cse(graph: Graph) -> Graph:
    """Merge equal nodes."""
    first: dict[Hashable, Node] = {}

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        op = node.op
        k = (identity(op), node.tag, *map(id, inputs))
        if len(inputs) == 2 and k[2] > k[3] and op.name in COMMUTATIVE:
            k = (k[0], k[1], k[3], k[2])
        found = first.get(k)
        if found is None:
            found = first[k] = same_or_replaced(node, inputs)
        return found

    return rewrite(graph, rule, merges=True)
