"""`--precision`: the pass, the nests and what a step computes.

bf16 and tf32 are graphs whose casts are explicit, so the first tests say them before and after.
"""

from __future__ import annotations

import pytest
from random_graphs import traced

from pullback import passes
from pullback.dsl.tensor import emit
from pullback.errors import BuildError
from pullback.graph.content import equal
from pullback.graph.graph import Graph, make
from pullback.graph.text import parse, to_text
from pullback.graph.types import TensorType, bf16, f32, f64
from pullback.kernel.text import print_kernel
from pullback.lower import lower
from pullback.ops.contract import Contract
from pullback.ops.elementwise import Cast
from pullback.ops.leaf import Input
from pullback.ops.movement import Permute
from pullback.passes.precision import precision

X, W = TensorType(f32, (4, 6)), TensorType(f32, (5, 6))


def op(o, *xs):
    return emit(o, *(x.node for x in xs))


def half(x):
    return op(Cast(bf16), x)


def contract(lhs, rhs, out, **kw):
    return lambda x, w: op(Contract(lhs, rhs, out, **kw), x, w)


nt, tn = contract("ik", "jk", "ij"), contract("ki", "kj", "ij")
wide_nt, wide_tn = contract("ik", "jk", "ij", wide=True), contract("ki", "kj", "ij", wide=True)


def becomes(name, before, after, *types):
    got = passes.run(traced(before, *types), precision(name))
    want = traced(after, *types)
    assert equal(got, want), f"{to_text(got)}\nis not\n{to_text(want)}"


def test_bf16_casts_each_value_once():
    def before(x, w):
        return nt(x, w), tn(x, x)

    def after(x, w):
        h = half(x)
        return wide_nt(h, half(w)), wide_tn(h, h)

    becomes("bf16", before, after, X, W)


def test_bf16_casts_before_moving():
    def before(x, w):
        return nt(x, op(Permute((1, 0)), w)), nt(x, w[:, :4])

    def after(x, w):
        h, v = half(x), half(w)
        return wide_nt(h, op(Permute((1, 0)), v)), wide_nt(h, v[:, :4])

    square = TensorType(f32, (4, 4))
    becomes("bf16", lambda x, w: before(x, w)[0], lambda x, w: after(x, w)[0], square, square)
    becomes("bf16", before, after, square, TensorType(f32, (4, 4)))


def test_tf32_is_a_field():
    becomes("tf32", nt, contract("ik", "jk", "ij", tf32=True), X, W)


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_what_is_no_sum_of_f32_stays(name):
    wide, narrow = TensorType(f64, (4, 6)), TensorType(bf16, (4, 6))
    for t in (wide, narrow):
        becomes(name, contract("ik", "jk", "ij"), contract("ik", "jk", "ij"), t, t)


def test_twice_changes_nothing():
    for name in ("bf16", "tf32"):
        once = passes.run(traced(nt, X, W), precision(name))
        assert equal(passes.run(once, precision(name)), once)


def test_unknown():
    with pytest.raises(BuildError, match="--precision f16: expected f32, tf32, bf16"):
        precision("f16")


def test_fields_are_printed_where_they_are_set():
    graph = passes.run(traced(nt, X, W), precision("bf16"))
    text = to_text(graph)
    assert 'out="ij" wide=true: f32[4,5]' in text and "tf32" not in text
    assert equal(parse(text), graph)


def nest(**fields) -> str:
    dtype = bf16 if fields.get("wide") else f32
    x, w = (make(Input(n, dtype, s)) for n, s in (("x", (4, 6)), ("w", (5, 6))))
    (piece,) = lower(Graph("g", (x, w), (make(Contract("ik", "jk", "ij", **fields), x, w),))).pieces
    return print_kernel(piece.kernel)


def test_nests():
    assert "acc0 = fma(tf32(x0[i0, k0]), tf32(x1[i1, k0]), acc0)" in nest(tf32=True)
    assert "acc0 = fma_ftz(cast:f32(x0[i0, k0]), cast:f32(x1[i1, k0]), acc0)" in nest(wide=True)
