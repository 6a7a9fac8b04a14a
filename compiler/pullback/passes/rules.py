"""The builder with which rewrite rules make nodes: each is simplified at once, so one bottom-up walk is enough.

A rule is `rule(builder, node) -> Node | None`: the node in a simpler form, or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from ..graph.graph import NOWHERE, Graph, Node, rewrite, same_or_replaced
from ..graph.types import DType, TensorType
from ..ops.leaf import Constant, Fill
from ..ops.op import Op
from .cse import Values
from .fold import folded

CONSTANT = frozenset((Fill, Constant))

Rule = Callable[["Builder", Node], Node | None]
Shape = tuple[int, ...]


def fill_value(node: Node) -> float | int | bool | None:
    """The value that stands everywhere in `node`, if it is a `Fill`."""
    op = node.op
    return op.value if type(op) is Fill else None


def same_but_ones(a: Shape, b: Shape) -> bool:
    """Whether two shapes differ by axes of size 1 alone."""
    return a == b or [n for n in a if n != 1] == [n for n in b if n != 1]


def simplified(graph: Graph, rules: Mapping[str, tuple[Rule, ...]]) -> Graph:
    """The graph with the rules applied bottom-up."""
    b = Builder(graph, rules)

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        return b.replace(node, same_or_replaced(node, inputs))

    return rewrite(graph, rule)


class Builder:
    """Makes simplified nodes; counts who reads what, for rules that must not duplicate work."""

    def __init__(self, graph: Graph, rules: Mapping[str, tuple[Rule, ...]]):
        self.rules = rules
        self.old_uses = Counter([x for n in graph.nodes for x in n.inputs])
        self.old_uses.update(graph.outputs)
        self.new_uses: dict[Node, int] = {}
        self.values = Values()
        self.loc, self.tag = NOWHERE, 0

    def uses(self, node: Node) -> int:
        """How many readers a rebuilt node has (at least; one, if a rule has just made it)."""
        return self.new_uses.get(node, 1)

    def replace(self, old: Node, node: Node) -> Node:
        """`node` is `old` with rebuilt inputs: its simplest form, which inherits old's readers."""
        self.loc, self.tag = old.loc, old.tag
        new = self.simplest(node)
        self.new_uses[new] = self.new_uses.get(new, 0) + self.old_uses[old]
        return new

    def simplest(self, node: Node) -> Node:
        """The simplest form of a node, which equal nodes share."""
        key = self.values.key(node, node.inputs)
        found = self.values.first.get(key)
        if found is None:
            simple = self._simplest(node)
            found = self.values.first[key] = simple if simple is node else self.values.of(simple, simple.inputs)
        return found

    def _simplest(self, node: Node) -> Node:
        if not node.inputs or type(node.inputs[0].op) in CONSTANT:
            constant = folded(node)
            if constant is not None:
                return constant
        if isinstance(node.type, TensorType) and 0 in node.type.shape and node.inputs and node.op.name != "item":
            return self.fill(False if node.type.dtype.kind == "b" else 0.0 if node.type.dtype.is_float else 0, node)
        for r in self.rules[node.op.name]:
            new = r(self, node)
            if new is not None:
                return new
        return node

    def make(self, op: Op, *inputs: Node) -> Node:
        """A node at the place of the one being rewritten, in its simplest form."""
        return self.simplest(Node(op, inputs, op.infer(*[x.type for x in inputs]), self.loc, self.tag))

    def fill(self, value: float | int | bool, like: Node) -> Node:
        """`value` everywhere, with the type of `like`."""
        return self.fill_node(value, like.type.dtype, like.type.shape)

    def fill_node(self, value: float | int | bool, dtype: DType, shape: tuple[int, ...]) -> Node:
        return self.values.of(Node(Fill(value, dtype, shape), (), TensorType(dtype, shape), self.loc, self.tag), ())
