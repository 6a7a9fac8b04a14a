"""Every op sample, its value and its first derivatives, in every way: evaluators, scheduled kernels, compiled code.

All samples are one program, so that one artifact holds them; what fails is looked for one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from differential import Failure, Setting, check, isolated
from op_samples import Sample, samples
from random_programs import Case
from test_ops import derivative_graph, differentiated

from pullback.codegen.target import host_level
from pullback.graph.graph import Graph
from pullback.graph.types import TensorType
from pullback.schedule import Limits

SUMS = ("sum", "prod", "contract", "cumsum", "scatter_add", "scan")


def kind(graph: Graph) -> str:
    """How exactly the ways must agree: see `random_programs.py`."""
    floats = {n.dtype.bits for n in graph.nodes if isinstance(n.type, TensorType) and n.dtype.is_float}
    if not floats or not any(n.op.name in SUMS for n in graph.nodes):
        return "exact"
    return "half" if 16 in floats else "f32" if 32 in floats else "f64"


def cases() -> Iterator[tuple[str, Case]]:
    for s in samples():
        yield s.name, as_case(s.graph(), list(s.arrays))
    rng = np.random.default_rng(1)
    for s in differentiated():
        for graph in derivative_graph(s):
            more = [rng.normal(size=n.shape) for n in graph.inputs[len(s.arrays) :]]
            yield f"{s.name} {graph.name}", as_case(graph, [*s.arrays, *more])


def as_case(graph: Graph, arrays: list[np.ndarray]) -> Case:
    given = tuple(n.dtype.round(a) for n, a in zip(graph.inputs, arrays, strict=True))
    return Case(0, kind(graph), graph, (), (), given)


@pytest.fixture(scope="module")
def failures() -> dict[str, list[Failure]]:
    named = list(cases())
    numbered = [Case(k, c.kind, c.graph, (), (), c.arrays) for k, (_, c) in enumerate(named)]
    setting = Setting(host_level(), Limits(block=64, block_flops=64), {}, 1, True)
    result = defaultdict(list)
    found = isolated(lambda: check(numbered, setting, unfused=False))
    assert isinstance(found, list), found
    for f in found:
        result[named[f.seed][0]].append(f)
    return result


@pytest.mark.parametrize("sample", samples(), ids=lambda s: s.name)
def test_all_ways_agree(sample: Sample, failures):
    names = (sample.name, f"{sample.name} jvp", f"{sample.name} vjp")
    assert not [f for name in names for f in failures[name]]
