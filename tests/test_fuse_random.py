"""Random graphs: fused kernels give the bits of unfused ones, which mean what the graph means."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fusion_graphs import fusion_graph, fusion_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import graphs, random_inputs, same_values

from pullback import passes
from pullback.config import Options
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph
from pullback.graph.text import to_text
from pullback.kernel.scalars import SCALARS
from pullback.kernel.verify import verify
from pullback.lower.evaluate import evaluate_region
from pullback.lower.groups import LoopPiece, Region
from pullback.lower.regions import lower

ROUNDED = frozenset(f.name for f in SCALARS.values() if f.cost >= 12)
"""The last bit of numpy's results depends on how an array lies in memory: these are compared among kernels only."""


def checked(graph: Graph, fusion: bool, writes: int = 0) -> Region:
    region = lower(graph, Options(fusion=fusion), writes)
    _verify(region)
    return region


def _verify(region: Region) -> None:
    written = set()
    for p in region.pieces:
        if isinstance(p, LoopPiece):
            _verify(p.body)
            continue
        verify(p.kernel)
        for v, b in zip(p.arguments, p.kernel.params, strict=True):
            assert v.type.size == b.size and v.type.dtype == b.dtype
            if b.name in p.kernel.outputs:
                assert v not in written and v.view_of is None
                written.add(v)


@pytest.mark.parametrize("exact", [True, False])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_all_ops(exact, data):
    graph = data.draw(graphs(exact))
    inputs = random_inputs(graph, data.draw(st.integers(0, 1000)), special=exact)
    expected = evaluate(graph, inputs)
    plain = evaluate_region(checked(graph, False), inputs)
    fused = evaluate_region(checked(graph, True, data.draw(st.integers(0, len(graph.outputs)))), inputs)
    assert same_values(plain, fused), to_text(graph)
    if not exact or not ROUNDED & {n.op.name for n in graph.nodes}:
        assert same_values(expected, plain, 0.0 if exact else 1e-10), to_text(graph)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 14), st.booleans(), st.booleans())
def test_rows_and_columns(seed, steps, optimise, late):
    graph = fusion_graph(random.Random(seed), steps)
    if optimise:
        graph = passes.run(graph)
    inputs = fusion_inputs(graph, seed)
    plain = evaluate_region(checked(graph, False), inputs)
    region = checked(graph, True, len(graph.outputs) // 2 if late else 0)
    assert same_values(plain, evaluate_region(region, inputs)), to_text(graph)
    for want, got in zip(evaluate(graph, inputs), plain, strict=True):
        scale = max(1.0, np.abs(want).max()) if want.size else 1.0
        np.testing.assert_allclose(got / scale, want / scale, atol=2e-2, err_msg=to_text(graph))


def test_fusion_happens():
    """Over many graphs, less than a third of the kernels are left."""
    fused = plain = 0
    for seed in range(40):
        graph = fusion_graph(random.Random(seed), 10)
        fused += len(lower(graph).pieces)
        plain += len(lower(graph, Options(fusion=False)).pieces)
    assert 3 * fused < plain
