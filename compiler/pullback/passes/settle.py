"""Graph -> graph, once no more derivatives are taken: what only differentiation needed, goes.

`stop_gradient` and `custom_vjp` (identities) are taken out, and a scan and its copies that save values for the
backward pass become one loop.  Must come before any pass that rewrites bodies: copies are known by their nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..graph.graph import Graph, Node, rewrite, same_or_replaced
from ..ops.custom import CustomVjp
from ..ops.elementwise import StopGradient
from ..ops.leaf import Item
from ..ops.scan import Scan

SETTLED = frozenset((StopGradient, CustomVjp, Scan))
"""What there is to do for this pass."""


@dataclass
class _Loop:
    """Scans over the same inputs that carry the same values: one scan with the ys of all of them."""

    scan: Node
    items: dict[Node, int]
    """Body output (not a carry) -> item of the one scan."""
    built: Node | None = None

    def item(self, op: Scan, index: int) -> int:
        """The item of the one scan that is result `index` of `op`."""
        return index if index < op.carries else self.items[op.body.outputs[index]]

    def build(self, inputs: tuple[Node, ...]) -> Node:
        op: Scan = self.scan.op
        outputs = (*op.body.outputs[: op.carries], *self.items)
        body = op.body if outputs == op.body.outputs else Graph(op.body.name, op.body.inputs, outputs)
        op = replace(op, body=settle(body))
        self.built = Node(op, inputs, op.infer(*(x.type for x in inputs)), self.scan.loc, self.scan.tag)
        return self.built


def _loops(graph: Graph) -> dict[Node, _Loop]:
    """Scan node -> the loop that it becomes a part of."""
    by_meaning: dict[tuple, _Loop] = {}
    loops: dict[Node, _Loop] = {}
    for n in graph.nodes:
        op = n.op
        if isinstance(op, Scan):
            carried = op.body.outputs[: op.carries]
            key = (n.inputs, op.body.inputs, carried, op.length, op.constants, op.carries, op.reverse, n.tag)
            loop = loops[n] = by_meaning.setdefault(key, _Loop(n, {}))
            for y in op.body.outputs[op.carries :]:
                loop.items.setdefault(y, op.carries + len(loop.items))
    return loops


def _pass_through(node: Node, inputs: tuple[Node, ...]) -> Node:
    return inputs[0] if type(node.op) is StopGradient else same_or_replaced(node, inputs)


def settle(graph: Graph) -> Graph:
    """See the module; the graph itself where there is nothing to do."""
    there = {type(n.op) for n in graph.nodes} & SETTLED
    if not there:
        return graph
    if there == {StopGradient}:
        return rewrite(graph, _pass_through, merges=True)
    loops = _loops(graph)

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        op = node.op
        if isinstance(op, StopGradient):
            return inputs[0]
        if node in loops:
            return loops[node].built or loops[node].build(inputs)
        if isinstance(op, Item):
            if isinstance(inputs[0].op, CustomVjp):
                return inputs[0].inputs[op.index]
            scan = node.inputs[0]
            if scan in loops and (index := loops[scan].item(scan.op, op.index)) != op.index:
                return Node(Item(index), inputs, node.type, node.loc, node.tag)
        return same_or_replaced(node, inputs)

    return rewrite(graph, rule)
