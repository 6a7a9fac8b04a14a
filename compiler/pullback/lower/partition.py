"""What fusion hands on, and lowering without fusion: every node a group.  Graph in, groups out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx

from ..errors import VerifyError
from ..graph.graph import Graph, Node
from ..ops.contract import Contract
from ..ops.leaf import Constant, Input, Item
from ..ops.movement import Reshape
from ..ops.scan import Scan
from .families import REDUCTIONS
from .groups import Cone, Group
from .nests import NESTS
from .summation import form, reduced_extents


@dataclass(eq=False)
class Fusion:
    """Groups in an order of execution; what lies in memory between them; reshapes that are views."""

    groups: list[Group] = field(default_factory=list)
    memory: set[Node] = field(default_factory=set)
    views: dict[Node, Node] = field(default_factory=dict)
    cones: dict[Group, Cone] = field(default_factory=dict)


def separate(graph: Graph) -> Fusion:
    """Every node its own kernel (a chunked reduction: two)."""
    result = Fusion()
    loops: dict[Node, Group] = {}
    for node in graph.nodes:
        result.memory.add(node)
        op = node.op
        if type(op) in (Input, Constant):
            continue
        if type(op) is Item:
            loops[node.inputs[0]].outputs.append(node)
        elif type(op) is Scan:
            loops[node] = Group("loop", outputs=[node])
            result.groups.append(loops[node])
        elif type(op) is Reshape:
            result.views[node] = node.inputs[0]
        else:
            result.groups += single(node)
    return result


def single(node: Node) -> list[Group]:
    """The groups of one node by itself."""
    shape, op = node.shape, node.op
    out = {"outputs": [node], "dims": {node: tuple(range(len(shape)))}}
    if type(op) is Contract:
        return [Group("contract", shape, staged=[node], **out)]
    if type(op) in NESTS:
        return [Group("ordered", **out)]
    kind = form(node) if type(op) in REDUCTIONS else "none"
    if kind == "none":
        return [Group("map", shape, **out)]
    if kind == "row":
        return [Group("rows", shape, staged=[node], **out)]
    if kind == "element":
        return [Group("map", shape, finished=[node], **out)]
    if kind == "long":
        return [Group("rows", shape, sinks=[node]), Group("rows", shape, staged=[node], **out)]
    return [Group("rows", reduced_extents(node), sinks=[node]), Group("map", shape, finished=[node], **out)]


def ordered(fusion: Fusion) -> Fusion:
    """Sort groups so that values come before their readers, as early as they were formed."""
    g = nx.DiGraph()
    made: dict[Node, Group] = {}
    chunks: dict[Node, Group] = {}
    for k, group in enumerate(fusion.groups):
        g.add_node(group, at=k)
        made.update(dict.fromkeys(group.outputs, group))
        chunks.update(dict.fromkeys(group.sinks, group))
    for group in fusion.groups:
        if group.kind == "loop":
            needed: Iterable[Node] = group.outputs[0].inputs
        else:
            cone = fusion.cones[group] = group.cone(fusion.memory)
            needed = cone.external
            g.add_edges_from((chunks[n], group) for n in cone.chunked)
        for n in needed:
            while n in fusion.views:
                n = fusion.views[n]
            if n in made:
                g.add_edge(made[n], group)
    try:
        fusion.groups = list(nx.lexicographical_topological_sort(g, key=lambda group: g.nodes[group]["at"]))
    except nx.NetworkXUnfeasible:
        raise VerifyError("fusion: groups depend on each other in a circle") from None
    return fusion
