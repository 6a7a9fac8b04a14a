"""Products of matrix and vector become sums along rows; what they compute stays."""

import numpy as np
import pytest

from pullback import passes
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, make
from pullback.graph.types import DType, bf16, f16, f32, f64, i32
from pullback.graph.verify import verify
from pullback.ops.contract import Contract
from pullback.ops.leaf import Input
from pullback.ops.reduction import Sum


def product(labels: str, dtype: DType = f32, wide: bool = False, tf32: bool = False, **sizes: int) -> Graph:
    """A contraction of two inputs; `labels` as in einsum, sizes 64 but for those given."""
    factors, out = labels.split("->")
    lhs, rhs = factors.split(",")
    a, b = (make(Input(n, dtype, tuple(sizes.get(c, 64) for c in s))) for n, s in (("a", lhs), ("b", rhs)))
    return Graph("g", (a, b), (make(Contract(lhs, rhs, out, wide=wide, tf32=tf32), a, b),))


def kinds(g: Graph) -> set[type]:
    return {type(n.op) for n in g.nodes}


@pytest.mark.parametrize(
    "labels, sizes",
    [
        ("mk,nk->mn", {"m": 1}),
        ("mk,nk->mn", {"n": 1, "k": 67}),
        ("mk,kn->mn", {"n": 1}),
        ("mk,k->m", {}),
        ("k,mk->m", {"m": 5}),
        ("k,k->", {"k": 100}),
        ("bhmk,bhnk->bhmn", {"b": 2, "h": 3, "m": 1, "n": 5}),
        ("bhnk,hbmk->hnbm", {"b": 2, "h": 3, "m": 1, "n": 5}),
        ("mak,nka->nm", {"n": 1, "m": 3, "a": 4}),
    ],
)
def test_what_becomes_a_sum(labels, sizes):
    rng = np.random.default_rng(0)
    for dtype, wide in ((f32, False), (f64, False), (bf16, True), (f16, False)):
        before = product(labels, dtype, wide, **sizes)
        after = passes.run(before, [passes.matvec])
        verify(after)
        assert Contract not in kinds(after) and Sum in kinds(after)
        inputs = [rng.standard_normal(x.shape).astype(dtype.numpy) for x in before.inputs]
        (x,), (y,) = evaluate(before, inputs), evaluate(after, inputs)
        assert x.dtype == y.dtype and x.shape == y.shape
        tolerance = {f64: 1e-12, f16: 2e-3}.get(dtype, 2e-5)
        assert np.allclose(x.astype(float), y.astype(float), rtol=tolerance, atol=tolerance * 20)


@pytest.mark.parametrize(
    "graph",
    [
        product("mk,nk->mn", m=2),  # columns to reuse the rows for
        product("mk,kn->mn", m=1),  # k is not the last axis: columns are vectors
        product("km,k->m"),
        product("mk,nk->mn", m=1, k=31),  # short
        product("mk,nk->mn", tf32=True, m=1),  # operands are rounded first
        product("mk,nk->mn", i32, m=1),
        product("m,n->mn", m=1),  # no sum
    ],
)
def test_what_stays(graph):
    assert passes.run(graph, [passes.matvec]).outputs == graph.outputs
