"""Function -> function: the forward part of a traced function, for readers (`--stage graph`)."""

from __future__ import annotations

from dataclasses import replace

from ..graph.graph import Graph, Node
from ..graph.program import Function


def forward(function: Function) -> Function:
    """Without gradients and what is computed from them; also without results and updates that are such values.

    Where nothing would be left (the function returns a gradient), the values that gradients are made from are shown.
    """
    graph = function.graph
    behind: set[Node] = set()
    for n in graph.nodes:
        if n.loc.gradient or not behind.isdisjoint(n.inputs):
            behind.add(n)
    if not behind:
        return function
    results = len(graph.outputs) - len(function.writes)
    kept = [n for n in graph.outputs[:results] if n not in behind]
    if not kept:
        kept = list(_last(graph, behind))
    written = [(name, n) for name, n in zip(function.writes, graph.outputs[results:], strict=True) if n not in behind]
    reached = set(Graph(graph.name, (), (*kept, *(n for _, n in written))).nodes)
    arguments = graph.inputs[: len(function.arguments)]
    states = zip(function.reads, graph.inputs[len(function.arguments) :], strict=True)
    read = [(name, n) for name, n in states if n in reached]
    return replace(
        function,
        graph=Graph(graph.name, (*arguments, *(n for _, n in read)), (*kept, *(n for _, n in written))),
        reads=tuple(name for name, _ in read),
        writes=tuple(name for name, _ in written),
    )


def _last(graph: Graph, behind: set[Node]) -> dict[Node, None]:
    """Forward nodes that only gradients read, in order."""
    inner = {x for n in graph.nodes if n not in behind for x in n.inputs}
    return {n: None for n in graph.nodes if n not in behind and n not in inner and n not in graph.inputs}
