"""Which nodes become one kernel.  Graph in, groups in an order of execution out."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..graph.graph import Graph, Node
from ..ops.contract import Contract
from ..ops.leaf import Constant, Input, Item
from ..ops.movement import Reshape
from ..ops.op import Reduction
from ..ops.scan import Scan
from .groups import Group
from .nests import NESTS
from .rows import form, reduced_extents


@dataclass(eq=False)
class Fusion:
    """Groups in an order of execution; what lies in memory between them; reshapes that are views."""

    groups: list[Group] = field(default_factory=list)
    memory: set[Node] = field(default_factory=set)
    views: dict[Node, Node] = field(default_factory=dict)


def form_groups(graph: Graph, fusion: bool, writes: int = 0) -> Fusion:
    return separate(graph)


def separate(graph: Graph) -> Fusion:
    """Every node its own kernel (a chunked reduction: two)."""
    result = Fusion()
    loops: dict[Node, Group] = {}
    for node in graph.nodes:
        result.memory.add(node)
        op = node.op
        if isinstance(op, Input | Constant):
            continue
        if isinstance(op, Item):
            loops[node.inputs[0]].outputs.append(node)
        elif isinstance(op, Scan):
            loops[node] = Group("loop", outputs=[node])
            result.groups.append(loops[node])
        elif isinstance(op, Reshape):
            result.views[node] = node.inputs[0]
        else:
            result.groups += single(node)
    return result


def single(node: Node) -> list[Group]:
    """The groups of one node by itself."""
    shape, op = node.shape, node.op
    out = {"outputs": [node], "dims": {node: tuple(range(len(shape)))}}
    if isinstance(op, Contract):
        return [Group("contract", shape, staged=[node], **out)]
    if type(op) in NESTS:
        return [Group("ordered", **out)]
    kind = form(node) if isinstance(op, Reduction) else "none"
    if kind == "none":
        return [Group("map", shape, **out)]
    if kind == "row":
        return [Group("rows", shape, staged=[node], **out)]
    if kind == "element":
        return [Group("map", shape, finished=[node], **out)]
    if kind == "long":
        return [Group("rows", shape, sinks=[node]), Group("rows", shape, staged=[node], **out)]
    return [Group("rows", reduced_extents(node), sinks=[node]), Group("map", shape, finished=[node], **out)]
