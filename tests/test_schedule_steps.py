"""Schedule steps one by one: what they make, that meaning stays, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import schedule_nests as nests

from pullback.kernel.kernel import A, Buffer, Const, Kernel, Loop, Tile, apply, load, loop, store, stores, walk
from pullback.schedule import ScheduleError
from pullback.schedule.contraction import accumulation
from pullback.schedule.masks import drop_masks, peel, peel_masked, tighten
from pullback.schedule.sinking import expand, sink
from pullback.schedule.staging import carry, fuse, pack, place, spill, tensorise
from pullback.schedule.steps import bind, rename_loops, split, tidy


def extents(kernel: Kernel, axis: str) -> list[int]:
    return [s.extent for s in walk(kernel.body) if isinstance(s, Loop) and s.axis == axis]


def factor(n: int):
    """The n-th factor of what a contraction adds."""
    return lambda s: f[n] if s.buffer.startswith("acc") and (f := accumulation(s)) else None


# ---- split
@pytest.mark.parametrize("tail", ["peel", "mask", "even"])
@pytest.mark.parametrize("n", [1, 4, 8, 13])
def test_split(tail, n):
    kernel = nests.pointwise((n, 3))
    if n > 1:
        nests.same_meaning(kernel, split(kernel, "i0", 4, "io", "i0", tail))


def test_split_evenly_leaves_no_small_rest():
    kernel = split(nests.pointwise((97, 3)), "i0", 8, "io", "i0", "even")
    assert extents(kernel, "i0") == [8, 7] and extents(kernel, "io") == [6, 7]


def test_split_of_a_reduction_keeps_its_order():
    kernel = nests.linear(5, 7, 13)
    for tail in ("peel", "mask", "even"):
        after = split(kernel, "k0", 4, "ko", "k0", tail)
        nests.same_meaning(kernel, after)
        assert all(s.role == "reduce" for s in walk(after.body) if isinstance(s, Loop) and s.axis in ("ko", "k0"))


def test_split_refuses_taken_names():
    with pytest.raises(ScheduleError, match="there is an axis 'i1' already"):
        split(nests.pointwise((8, 8)), "i0", 4, "i1", "i0")
    with pytest.raises(ScheduleError, match="no loop over 'z'"):
        split(nests.pointwise((8, 8)), "z", 4, "zo", "zi")


# ---- sink
def test_sink_gives_an_accumulator_a_place_per_iteration():
    kernel = nests.linear(5, 7, 3)
    after = sink(kernel, "i1")
    assert after.buffers["acc0"].shape == (7,)
    nests.same_meaning(kernel, after)
    both = sink(after, "i0", stop=("i1",))
    assert both.buffers["acc0"].shape == (5, 7)
    nests.same_meaning(kernel, both)


def test_sink_does_not_grow_what_stays_in_one_copy():
    kernel = nests.linear(5, 7, 3, epilogue="gelu")
    assert sink(kernel, "i1").buffers["t0"].shape == ()


def test_only_parallel_loops_sink():
    with pytest.raises(ScheduleError, match="'k' is a ordered loop"):
        sink(nests.cumulative(9, 20, 0), "k")


def test_sink_refuses_a_triangle():
    x, y = Buffer("x0", (5, 5)), Buffer("y0", (5, 5))
    inner = loop("j", 5, "parallel", store(y, ("i", "j"), load(x, "i", "j")))
    kernel = Kernel("triangle", (x, y), (), (loop("i", 5, "parallel", replace(inner, extent=A("i") + 1)),))
    with pytest.raises(ScheduleError, match="the extent of 'j' moves with 'i'"):
        sink(kernel, "i")


def test_a_cut_begins_a_new_loop():
    kernel = spill(nests.linear(5, 7, 3, epilogue="bias"), "acc0", "k0", "out")
    after = sink(kernel, "i1", cut=lambda s: any(t.buffer == "out" for t in stores((s,))))
    assert after.buffers["out"].shape == (7,)
    assert len(extents(after, "i1")) == 4
    nests.same_meaning(nests.linear(5, 7, 3, epilogue="bias"), after)


# ---- bind and expand
def test_lanes_may_not_share_a_place():
    kernel = nests.linear(5, 7, 3, epilogue="gelu")
    with pytest.raises(ScheduleError, match="all lanes of 'i1' store to the same"):
        bind(kernel, i1="vector")


def test_reductions_are_not_bound_to_lanes():
    with pytest.raises(ScheduleError, match="reduce loop and cannot be vector"):
        bind(nests.linear(5, 7, 3), k0="vector")


def test_expand_makes_a_vector_of_a_scalar():
    kernel = nests.linear(5, 7, 3, epilogue="gelu")
    after = bind(expand(kernel, "i1"), i1="vector")
    assert after.buffers["t0"].shape == after.buffers["acc0"].shape == (7,)
    nests.same_meaning(kernel, after)


def test_expand_refuses_what_goes_from_one_iteration_to_the_next():
    x, y, s = Buffer("x0", (5,)), Buffer("y0", ()), Buffer("s0", (), space="register")
    step = loop("i", 5, "parallel", store(s, (), apply("add", load(s), load(x, "i"))))
    kernel = Kernel("sum", (x, y), (s,), (store(s, (), Const(0.0)), step, store(y, (), load(s))))
    with pytest.raises(ScheduleError, match="goes from one iteration of 'i' to the next"):
        expand(kernel, "i")


# ---- pack, carry, spill
@pytest.mark.parametrize("axes", [("k0", "i1"), ("i1", "k0")])
def test_pack(axes):
    kernel = sink(nests.linear(5, 7, 3, "NT", prologue="b"), "i0", past=("i1",))
    kernel = split(kernel, "i1", 4, "jp", "i1")
    kernel = sink(kernel, "i1")
    after = pack(kernel, factor(1), axes, "jp", "panel", pad=(axes[0], 3))
    assert after.buffers["panel"].shape == tuple({"k0": 3, "i1": 4}[a] for a in axes)
    assert after.buffers["panel"].strides[0] == after.buffers["panel"].shape[1] + 3
    nests.same_meaning(nests.linear(5, 7, 3, "NT", prologue="b"), after)


def test_pack_refuses_an_operand_that_moves_otherwise():
    kernel = nests.linear(5, 7, 3)
    with pytest.raises(ScheduleError, match="also moves with 'k0'"):
        pack(kernel, factor(1), ("i1",), "i0", "panel")


def test_pack_refuses_what_changes():
    x, y = Buffer("x0", (6, 4)), Buffer("y0", (6, 4))
    steps = store(y, (A("k") + 1, "j"), apply("add", load(y, "k", "j"), load(x, "k", "j")))
    kernel = Kernel(
        "recurrence", (x, y), (), (loop("z", 1, "parallel", loop("k", 5, "ordered", loop("j", 4, "parallel", steps))),)
    )
    with pytest.raises(ScheduleError, match="'y0' changes inside of 'z'"):
        pack(kernel, lambda s: s.value.args[0], ("k", "j"), "z", "copy")


def test_carry_keeps_the_order_of_summation():
    kernel = nests.linear(6, 8, 13)
    after = split(kernel, "k0", 5, "kc", "k0")
    for axis in ("i1", "i0"):
        after = sink(after, axis, past=("kc",))
    after = place(after, "acc0", "local")
    after = sink(after, "i1", stop=())
    after = carry(after, "acc0", ("i1",), "i0", "tile")
    assert after.buffers["tile"].space == "register"
    nests.same_meaning(kernel, after)


def test_only_local_buffers_are_carried():
    with pytest.raises(ScheduleError, match="'y0' is a parameter"):
        carry(nests.linear(6, 8, 13), "y0", ("i1",), "i0", "tile")


# ---- fuse
def test_fuse_merges_dimensions():
    kernel = nests.pointwise((6, 5))
    after = fuse(kernel, "i0", "i1", "i")
    assert [b.shape for b in after.params] == [(30,), (30,)]
    nests.same_meaning(kernel, after)


def test_fuse_refuses_two_stretches():
    with pytest.raises(ScheduleError, match="one stretch"):
        fuse(nests.pointwise((6, 5), bias=True), "i0", "i1", "i")
    with pytest.raises(ScheduleError, match="one stretch"):
        fuse(nests.padded(6, 5), "i0", "i1", "i")


# ---- masks
def test_peeled_masks_disappear():
    kernel = nests.softmax(4, 130)
    after = peel_masked(kernel, "k")
    nests.same_meaning(kernel, after)
    first = next(s for s in walk(after.body) if isinstance(s, Loop) and s.axis == "k")
    assert first.extent == 2 and not any(s.masks for s in stores((first,)))


def test_tighten_shortens_a_chunk():
    kernel = peel(nests.columns(50, 9, 8), "c", 6)
    after = tighten(kernel)
    assert extents(after, "r") == [8, 2]
    assert not any(s.masks for s in stores(after.body))
    nests.same_meaning(nests.columns(50, 9, 8), after)


def test_drop_masks_keeps_those_that_can_fail():
    kernel = nests.padded(6, 5)
    assert drop_masks(kernel) == kernel


# ---- the rest
def test_tensorise_wants_the_whole_nest():
    kernel = nests.pointwise((20, 37), transposed=True, copy=True)
    assert isinstance(tensorise(kernel, ("i0", "i1"), "transpose").body[0], Tile)
    with pytest.raises(ScheduleError, match="'i1' is not a nest of i1, i0"):
        tensorise(kernel, ("i1", "i0"), "transpose")


def test_renamed_loops_bind_apart():
    kernel = sink(nests.linear(5, 7, 3), "i1")
    after = rename_loops(kernel, {"i1": "last"}, lambda s: any(t.buffer == "y0" for t in stores((s,))))
    assert len(extents(after, "last")) == 1 and len(extents(after, "i1")) == 2
    nests.same_meaning(kernel, after)


def test_tidy_keeps_a_block_in_every_chain():
    kernel = bind(split(nests.pointwise((9, 3)), "i0", 8, "b", "i0"), b="block")
    after = tidy(kernel)
    assert after.blocks == kernel.blocks == 2
    assert all(isinstance(s, Loop) and s.binding == "block" for s in after.body)
    nests.same_meaning(nests.pointwise((9, 3)), after)
