"""Failing cases of differential tests made small: a case and a test in, the smallest case that still fails out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from random_graphs import LOC
from random_programs import Case

from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, Node, make
from pullback.graph.types import TensorType
from pullback.ops import leaf


def shrink(case: Case, fails: Callable[[Case], bool], seconds: float = 60.0) -> Case:
    """A smaller case that still fails: fewer outputs and states, nodes cut off at a value that becomes an input."""
    end = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for smaller in _smaller(case):
            if time.monotonic() > end:
                break
            if fails(smaller):
                case, progress = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    g = case.graph
    count = len(g.outputs) - len(case.writes)
    for k in range(len(case.writes)):
        outputs = (*g.outputs[: count + k], *g.outputs[count + k + 1 :])
        if outputs:
            yield _trimmed(case, outputs, (*case.writes[:k], *case.writes[k + 1 :]))
    if count + len(case.writes) > 1:
        for k in range(count):
            yield _trimmed(case, (*g.outputs[:k], *g.outputs[k + 1 :]), case.writes)
    inner = [n for n in g.nodes if n not in g.inputs and isinstance(n.type, TensorType)]
    if not case.writes and len(g.outputs) == 1:
        for n in inner:
            if n is not g.outputs[0]:
                yield _trimmed(case, (n,), ())
    for n in reversed(inner):
        if n.inputs and n not in g.outputs:
            yield _cut(case, n)


def _trimmed(case: Case, outputs: Sequence[Node], writes: Sequence[str]) -> Case:
    """With other outputs, and without inputs that nothing reads."""
    reached = set(Graph("g", (), tuple(outputs)).nodes)
    split = len(case.arguments)
    kept = [k for k, x in enumerate(case.graph.inputs) if x in reached]
    inputs = tuple(case.graph.inputs[k] for k in kept)
    reads = tuple(case.reads[k - split] for k in kept if k >= split)
    graph = Graph(case.graph.name, inputs, tuple(outputs))
    kind = "f64" if case.kind == "gradient" else case.kind
    return replace(case, graph=graph, kind=kind, reads=reads, writes=tuple(writes),
                   arrays=tuple(case.arrays[k] for k in kept))  # fmt: skip


def _cut(case: Case, node: Node) -> Case:
    """With a node's value as one more argument."""
    g, split = case.graph, len(case.arguments)
    (value,) = evaluate(Graph("value", g.inputs, (node,)), case.arrays)
    new = make(leaf.Input(f"{node.op.name}{len(g.inputs)}.{len(g.nodes)}", node.dtype, node.shape), loc=LOC)
    replaced: dict[Node, Node] = {node: new} | {x: x for x in g.inputs}
    for n in g.nodes:
        if n not in replaced:
            xs = tuple(replaced[x] for x in n.inputs)
            replaced[n] = n if xs == n.inputs else n.replace(xs)
    inputs = (*g.inputs[:split], new, *g.inputs[split:])
    cut = replace(
        case,
        graph=Graph(g.name, inputs, tuple(replaced[n] for n in g.outputs)),
        arrays=(*case.arrays[:split], value, *case.arrays[split:]),
    )
    return _trimmed(cut, cut.graph.outputs, cut.writes)
