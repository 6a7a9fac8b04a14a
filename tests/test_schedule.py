"""Every schedule keeps the meaning of its nest, bit for bit, on every branch (limits lowered, tilings forced)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import schedule_nests as nests
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.codegen.target import cpu_target
from pullback.graph.types import bf16, f32, f64, u32
from pullback.kernel.content import content_key, with_blocks
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import A, AxisValue, Buffer, Kernel, Loop, Tile, apply, load, loop, store, walk
from pullback.kernel.text import parse_kernel
from pullback.schedule import Limits, family, schedule
from pullback.schedule.cpu_contract import schedule_contraction
from pullback.schedule.tiling import Tiling

TARGETS = [cpu_target(n) for n in ("v2", "v3", "v4")]
LOW = Limits(
    block=48, flat=32, block_flops=200, blocks=6, heavy=2, light=1, group=2, row_vectors=1, pack_bytes=64, pack_k=2,
    long_k=8, deep_k=32, far_bytes=512, page=16, far_rows=0, sharing_rows=0,
)  # fmt: skip
"""Small shapes reach every branch."""

SHAPES = [
    (2, 21, 19),
    (1, 1, 5),
    (1, 40, 9),
    (40, 1, 9),
    (5, 7, 3),
    (9, 33, 1),
    (13, 21, 17),
    (19, 67, 12),
    (3, 130, 40),
    (2, 21, 19),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contractions(shape, target):
    for form, limits in product(("NN", "NT", "TN", "TT"), (Limits(), LOW)):
        kernel = nests.linear(*shape, form)
        assert family(kernel) == "contraction"
        nests.same_meaning(kernel, schedule(kernel, target, limits))


@pytest.mark.parametrize("prologue", ["plain", "a", "b", "both"])
@pytest.mark.parametrize("epilogue", ["bias", "gelu"])
def test_contractions_with_neighbours(epilogue, prologue):
    for form, limits in (("NN", LOW), ("NT", Limits()), ("TN", LOW)):
        kernel = nests.linear(13, 37, 11, form, epilogue, prologue)
        nests.same_meaning(kernel, schedule(kernel, TARGETS[2], limits))


@pytest.mark.parametrize("dtype", [f64, bf16], ids=str)
def test_contractions_of_other_types(dtype):
    for target, form in product(TARGETS[1:], ("NN", "NT")):
        nests.same_meaning(k := nests.linear(7, 21, 9, form, "bias", dtype=dtype), schedule(k, target, LOW))


TILINGS = [
    Tiling(mr=3, nv=1, mc=6, nc=32, kc=7, pack_a=True, pack_b=True, carry_k=True),
    Tiling(mr=4, nv=2, mc=4, nc=64, kc=6, pack_b=True, carry_k=True),
    Tiling(mr=3, nv=2, mc=6, nc=64, kc=100, pack_a=True, pack_b=True),
    Tiling(mr=8, nv=2, mc=16, nc=64, kc=4, pack_b=True),
    Tiling(mr=5, nv=1, mc=100, nc=16, kc=100, pack_a=True),
]


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda t: f"{t.mr}x{t.nv},{t.mc},{t.nc},{t.kc}")
def test_every_tiling(tiling):
    rows = 11 if tiling.carry_k or tiling.kc > 19 else 5  # k in stretches without carrying: one tile of rows
    for form, epilogue in product(("NN", "NT", "TN"), ("plain", "gelu")):
        kernel = nests.linear(rows, 53, 19, form, epilogue, "b")
        nests.same_meaning(kernel, schedule_contraction(kernel, TARGETS[2], tiling=tiling))


def dots(first: str, second: str, n: int = 21, k: int = 37, turned: bool = False, dtype: str = "f32") -> Kernel:
    """n dot products of expressions; `@` is where an element lies."""
    at, shape = ("k0, i0", f"{k},{n}") if turned else ("i0, k0", f"{n},{k}")
    text = f"""
kernel dots(x0: {dtype}[{shape}], x1: {dtype}[{shape}]) -> y0: f32[{n}]
  acc0: f32[] register
  parallel i0 < {n}
    acc0 = 0.0
    reduce k0 < {k}
      acc0 = fma({first}, {second}, acc0)
    y0[i0] = acc0 + 1.0
"""
    return parse_kernel(text.replace("@", f"[{at}]"))


DOTS = [("x0@", "x1@"), ("x0@", "x0@"), ("exp(x0@)", "exp(x0@)"), ("exp(x0@)", "x1@"), ("abs(x0@ - x1@)",) * 2]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
@pytest.mark.parametrize("factors", DOTS, ids=str)
def test_dot_products_go_in_lanes(factors, target):
    """Neither rows nor columns; of a factor with itself no panel could hold one alone."""
    for turned, limits in product((False, True), (Limits(), LOW)):
        kernel = dots(*factors, turned=turned)
        assert family(kernel) == "map"
        nests.same_meaning(kernel, after := schedule(kernel, target, limits))
        assert any(s.binding == "vector" for s in walk(after.body) if isinstance(s, Loop))


def test_dot_products_whose_lanes_share_cache_sets_go_one_by_one():
    for n in (1, 4):
        kernel = dots("x0@", "x1@", n, 1024)
        assert family(kernel) == "contraction" and family(dots("x0@", "x1@", n, 1024, turned=True)) == "map"
        nests.same_meaning(kernel, schedule(kernel, TARGETS[2]))
    half = ("cast:f32(x0@)", "cast:f32(x0@)")
    kernel = dots(*half, 3, 1024, dtype="f16")
    assert family(kernel) == "map"
    nests.same_meaning(kernel, schedule(kernel, TARGETS[1]))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_columns_turned_in_registers(target):
    """They lie along k; k ends in a rest, columns in a masked vector."""
    tiling = Tiling(mr=3, nv=2, mc=3, nc=4 * target.lanes(32), kc=4, pack_b=True, turn=True)
    for n, k in ((53, 19), (3, 16), (40, 5)):
        after = schedule_contraction(kernel := nests.linear(3, n, k, "NT", "gelu"), target, tiling=tiling)
        nests.same_meaning(kernel, after)
        assert all(b.space == "register" for b in after.locals if b.name.startswith("panel"))


@given(
    st.integers(1, 24), st.integers(1, 70), st.integers(1, 24), st.sampled_from(("NN", "NT", "TN", "TT")),
    st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_random_tilings(m, n, k, form, mr, nv, row_tiles, panels, pack_a, pack_b):
    lanes = 4
    carry = pack_b and k > 2
    tiling = Tiling(mr, nv, mr * row_tiles, nv * lanes * panels, (k + 1) // 2 if carry else k, pack_a, pack_b, carry)
    kernel = nests.linear(m, n, k, form, "bias")
    nests.same_meaning(kernel, schedule_contraction(kernel, TARGETS[0], tiling=tiling))


@pytest.mark.parametrize("part", range(4))
def test_random_contractions(part):
    """Axes in any place, factors of any kind: no schedule refuses."""
    targets = [*TARGETS, cpu_target("native")]
    for seed in range(part, 80, 4):
        kernel = nests.random_contraction(seed)
        nests.same_meaning(kernel, schedule(kernel, targets[part], LOW if seed % 3 else Limits()))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_batches_and_convolutions(target):
    for kernel in (nests.batched(2, 3, 9, 11, 5), nests.convolution(2, 4, 5, 3, 20)):
        assert family(kernel) == "contraction"
        for limits in (Limits(), LOW):
            nests.same_meaning(kernel, schedule(kernel, target, limits))


MAPS = {
    "flat": nests.pointwise((1000,)),
    "flat2": nests.pointwise((7, 33)),
    "bias": nests.pointwise((30, 40), bias=True),
    "narrow": nests.pointwise((100, 3), bias=True),
    "wide": nests.pointwise((2, 203), bias=True),
    "transposed": nests.pointwise((3, 20, 37), transposed=True),
    "transposed copy": nests.pointwise((40, 35), transposed=True, copy=True),
    "pad": nests.padded(9, 20),
    "take": nests.take(5, 33, 7),
    "scatter": nests.scatter(5, 21, 9),
    "columns": nests.columns(50, 37, 8),
    "one chunk": nests.columns(64, 300, 64),
    "cumulative down": nests.cumulative(9, 20, 0),
    "cumulative along": nests.cumulative(9, 20, 1),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name):
    kernel = MAPS[name]
    assert family(kernel) == "map"
    for target, limits in product(TARGETS, (Limits(), LOW)):
        nests.same_meaning(kernel, schedule(kernel, target, limits))


ROWS = {
    "softmax 10": nests.softmax(5, 10),
    "softmax 64": nests.softmax(4, 64),
    "softmax 130": nests.softmax(5, 130),
    "softmax 500": nests.softmax(3, 500),
    "total 70": nests.total(5, 70),
    "total 20": nests.total(3, 20),
    "gradient": nests.norm_gradient(19, 70, 8),
    "gradient, whole chunks": nests.norm_gradient(16, 64, 8),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name):
    kernel = ROWS[name]
    assert family(kernel) == "rows"
    for target, limits in product(TARGETS, (Limits(), LOW)):
        nests.same_meaning(kernel, schedule(kernel, target, limits))


def side_by_side() -> Kernel:
    """Two nests that share an input: a map and column sums, as a horizontally fused kernel has them."""
    a, b = nests.pointwise((12, 40)), nests.columns(12, 40, 4)
    other = Buffer("y1", b.params[1].shape)
    body = (loop("c", 3, "parallel", loop("j0", 40, "parallel", *_renamed(b, other))),)
    return Kernel("both", (*a.params, other), b.locals, (*a.body, *body))


def _renamed(kernel: Kernel, other: Buffer):
    inner = kernel.body[0].body[0].body
    return (*inner[:-1], store(other, inner[-1].index, inner[-1].value))


def test_independent_nests_have_blocks_of_their_own():
    kernel = side_by_side()
    for limits in (Limits(), LOW):
        after = schedule(kernel, TARGETS[2], limits)
        nests.same_meaning(kernel, after)
        assert all(isinstance(s, Loop) and s.binding == "block" for s in after.body)


def test_dependent_nests_run_in_order():
    x, t, y = Buffer("x0", (40,)), Buffer("y0", (40,)), Buffer("y1", (40,))
    first = loop("i0", 40, "parallel", store(t, ("i0",), apply("neg", load(x, "i0"))))
    second = loop("i1", 40, "parallel", store(y, ("i1",), apply("add", load(t, "i1"), load(x, "i1"))))
    kernel = Kernel("chain", (x, t, y), (), (first, second))
    after = schedule(kernel, TARGETS[2], LOW)
    nests.same_meaning(kernel, after)
    assert after.blocks == 1


def test_nothing_to_do():
    kernel = nests.linear(3, 4, 0)
    nests.same_meaning(kernel, schedule(kernel, TARGETS[2]))
    assert schedule(nests.pointwise((0, 4)), TARGETS[2]).blocks >= 0


# ---- what the schedules are for ------------------------------------------------------------------------------
def loops(kernel: Kernel, axis: str) -> list[Loop]:
    return [s for s in walk(kernel.body) if isinstance(s, Loop) and s.axis == axis]


def test_a_contraction_is_a_register_tile():
    after = schedule(nests.linear(64, 256, 256), TARGETS[2])
    (k,) = loops(after, "k0")
    (i,) = k.body
    (v,) = i.body
    (j,) = v.body
    assert [s.binding for s in (i, v, j)] == ["unroll", "unroll", "vector"]
    assert i.extent * v.extent >= 8 and j.extent == 16
    assert after.blocks >= 4


def test_columns_that_lie_along_k_are_transposed_into_panels():
    after = schedule(nests.linear(64, 256, 256, "NT"), TARGETS[2])
    assert any(isinstance(s, Tile) and s.name == "transpose" for s in walk(after.body))
    assert "panel" in after.buffers


def test_one_code_for_all_sizes_of_a_flat_map():
    """Also for random numbers, which count their elements, and where one block is all."""
    kernels = [schedule(nests.pointwise((n * 128,)), TARGETS[2]) for n in (1, 3, 50)]
    assert len({content_key(k) for k in kernels}) == 1
    assert [k.blocks for k in kernels] == [1, 3, 50]

    def numbered(n: int) -> Kernel:
        i = AxisValue(A("i"), u32)
        return Kernel("count", (y := Buffer("y", (n,), u32),), (), (loop("i", n, "parallel", store(y, ("i",), i)),))

    one, many = (schedule(numbered(n), TARGETS[2]) for n in (128, 1024))
    assert content_key(one) == content_key(many)
    np.testing.assert_array_equal(evaluate(with_blocks(one, 8), {})["y"], np.arange(1024))


def test_schedules_do_not_depend_on_anything_else():
    for kernel in (nests.linear(33, 50, 20, "NT", "gelu"), nests.softmax(5, 130)):
        assert schedule(kernel, TARGETS[1]) == schedule(kernel, TARGETS[1])


def test_compiled_contractions_are_right():
    """Through the emitter: the tile, packed panels and the tail, on this machine."""
    from pullback.codegen.compile import load_kernels
    from pullback.codegen.cpu import emit_kernel, module, scratch_layout, symbol

    target, rng = cpu_target(), np.random.default_rng(0)
    kernel = schedule(nests.linear(37, 83, 40, "NT", "gelu"), target, LOW)
    loaded = load_kernels(module([emit_kernel("c", kernel, target)], target), target)
    arrays = [rng.standard_normal(b.shape).astype(np.float32) for b in kernel.params]
    x, w, bias, h, g = arrays
    loaded.bind(symbol("c", target), arrays, kernel.blocks, scratch_layout(kernel)[1])()
    z = x.astype(np.float64) @ w.T + bias
    np.testing.assert_allclose(h, z, rtol=1e-5, atol=1e-5)
    inner = z * (0.7978846 + 0.0356774 * z * z)
    np.testing.assert_allclose(g, 0.5 * z * (1 + np.tanh(inner)), rtol=1e-4, atol=1e-5)


def test_lanes_follow_the_widest_type():
    x, y = Buffer("x0", (100,), f64), Buffer("y0", (100,), f32)
    value = apply("cast", load(x, "i0"), dtype=f32)
    after = schedule(Kernel("narrow", (x, y), (), (loop("i0", 100, "parallel", store(y, ("i0",), value)),)), TARGETS[2])
    assert {s.extent for s in walk(after.body) if isinstance(s, Loop) and s.binding == "vector"} == {8}


def test_masked_lanes_keep_what_others_read():
    """Only 33 of 64 partial results are added to, and all fold; the row is then read backwards."""
    kernel = parse_kernel("""
kernel rows(x0: f32[5,33]) -> y0: f32[5,33]
  p0: f32[64] register
  e0: f32[33] local
  parallel i0 < 5
    parallel l < 64
      p0[l] = 0.0
    parallel l < 33
      e0[l] = exp(x0[i0, l])
      p0[l] = p0[l] + e0[l]
    parallel h32 < 32
      p0[h32] = p0[h32] + p0[h32 + 32]
    parallel j0 < 33
      y0[i0, j0] = e0[j0*-1 + 32] + p0[j0]
""")
    for target, limits in product(TARGETS, (Limits(), LOW)):
        nests.same_meaning(kernel, schedule(kernel, target, limits))
