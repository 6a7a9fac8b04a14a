"""Dead code: graph IR in, graph IR out.

On one level a graph has no dead nodes (it is what its outputs reach), but a scan may carry, stack or receive
what nobody reads.  Such carries, ys, xs and constants go.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.graph import Graph, Node, rewrite, same_or_replaced, topological
from ..graph.types import TupleType
from ..ops.leaf import Item
from ..ops.scan import Scan


def dce(graph: Graph) -> Graph:
    """Drop what scans compute for nobody."""
    live = _live_results_of_scans(graph)
    if not live:
        return graph
    results: dict[Node, dict[int, int]] = {}  # scan -> old result number -> new one

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = same_or_replaced(node, inputs)
        if node in live:
            results[node] = {k: i for i, k in enumerate(live[node])}
            return _shrink(new, live[node])
        if type(node.op) is Item and node.inputs[0] in results:
            index = results[node.inputs[0]].get(node.op.index)
            if index is None:  # read by dead nodes only
                return node
            if index != node.op.index:
                return Node(Item(index), inputs, node.type, node.loc, node.tag)
        return new

    return rewrite(graph, rule)


def _live_results_of_scans(graph: Graph) -> dict[Node, list[int]]:
    """scan -> the numbers of the results that something live reads, or that carry what such a result needs."""
    if not any([type(n.op) is Scan for n in graph.nodes]):
        return {}
    live_nodes, used, results = set(graph.outputs), {}, {}
    for n in reversed(graph.nodes):
        if n not in live_nodes:
            continue
        if type(n.op) is Item:
            used.setdefault(n.inputs[0], set()).add(n.op.index)
        if type(n.op) is Scan:
            results[n] = _live_results(n.op, used.get(n, set()))
            live_nodes.update([n.inputs[i] for i in _live_inputs(n.op, results[n])])
        else:
            live_nodes.update(n.inputs)
    return results


def _live_results(op: Scan, used: set[int]) -> list[int]:
    """Results read outside, and the carries that they need, in order."""
    body = op.body
    carry_of = {x: i for i, x in enumerate(body.inputs[op.constants : op.constants + op.carries])}
    live, work = set(used), list(used)
    while work:
        for n in topological((), (body.outputs[work.pop()],)):
            i = carry_of.get(n)
            if i is not None and i not in live:
                live.add(i)
                work.append(i)
    return sorted(live)


def _live_inputs(op: Scan, results: list[int]) -> list[int]:
    """The inputs that some results need: what they reach, and where live carries start."""
    reached = set(topological((), tuple([op.body.outputs[k] for k in results])))
    carried = {op.constants + k for k in results if k < op.carries}
    fixed = range(op.constants, op.constants + op.carries)
    return [i for i, x in enumerate(op.body.inputs) if (i in carried if i in fixed else x in reached)]


def _shrink(node: Node, results: list[int]) -> Node:
    """The scan with these results only."""
    op: Scan = node.op
    outputs = tuple([op.body.outputs[k] for k in results])
    kept = _live_inputs(op, results)
    if len(kept) == len(op.body.inputs) and len(results) == len(op.body.outputs):
        return node
    body = Graph(op.body.name, tuple([op.body.inputs[i] for i in kept]), outputs)
    constants, carries = len([i for i in kept if i < op.constants]), len([k for k in results if k < op.carries])
    type_ = TupleType(tuple([node.type.items[k] for k in results]))
    new = replace(op, body=body, constants=constants, carries=carries)
    return Node(new, tuple([node.inputs[i] for i in kept]), type_, node.loc, node.tag)
