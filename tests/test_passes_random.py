"""Every pass keeps the meaning of random graphs: bit for bit, but for the rounding of sums."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import graphs, random_inputs, same_values

from pullback import passes
from pullback.graph.content import equal
from pullback.graph.evaluate import evaluate
from pullback.graph.text import to_text

ALONE = [passes.settle, passes.cse, passes.simplify, passes.fold, passes.dce]


@pytest.mark.parametrize("exact", [True, False])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_same_meaning(exact, data):
    graph = data.draw(graphs(exact))
    inputs = random_inputs(graph, data.draw(st.integers(0, 1000)), special=exact)
    expected = evaluate(graph, inputs)
    for p in [*ALONE, None]:
        result = passes.run(graph, [p] if p else passes.PASSES)
        got = evaluate(result, inputs)
        assert same_values(expected, got, 0.0 if exact else 1e-9), f"{p}\n{to_text(graph)}\n{to_text(result)}"


@pytest.mark.parametrize("p", [passes.settle, passes.cse, passes.fold, passes.dce])
@settings(max_examples=40, deadline=None)
@given(graph=graphs())
def test_idempotent(p, graph):
    once = passes.run(graph, [p])
    assert equal(passes.run(once, [p]), once)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.booleans())
def test_settles(graph, exact):
    """Rules count readers, and cse and dce take readers away: the list settles in a few rounds, not always in one."""
    for _ in range(4):
        before, graph = graph, passes.run(graph)
    assert equal(before, graph)


@settings(max_examples=60, deadline=None)
@given(graphs(exact=False))
def test_nothing_grows(graph):
    """No pass adds contractions or reductions."""

    def heavy(g):
        return sum(n.op.name in ("contract", "sum", "prod", "max", "min", "sort") for n in g.nodes)

    merged = passes.run(graph, [passes.cse])
    assert heavy(passes.run(graph)) <= heavy(merged)
