"""Planted bugs: the emulator of GPU kernels notices each, in every order of threads, and says what and where."""

from __future__ import annotations

import numpy as np
import pytest
from simt import hopper, kernels
from simt.emulator import EmulationError, Emulator, TensorMap
from simt.kernels import Text
from simt.native import needs_emulator

pytestmark = needs_emulator
ORDERS = ("forward", "reverse", "random:1", "random:2")


def caught(text: str, *args, kinds: str, grid=1, block=256, **options) -> list[EmulationError]:
    """Run in every order; each must be caught, as one of `kinds`."""
    module, errors = Emulator().load(text), []
    for order in ORDERS:
        module.emulator = Emulator(order)
        with pytest.raises(EmulationError) as e:
            module.launch(
                "kernel", grid, block, [a.copy() if isinstance(a, np.ndarray) else a for a in args], **options
            )
        assert e.value.kind in kinds.split(), str(e.value)
        errors.append(e.value)
    return errors


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def halves(*shape: int) -> np.ndarray:
    return np.full(shape, 0x3F80, np.uint16)


# ---- barriers and races ---------------------------------------------------------------------------------------
def test_missing_barrier():
    errors = caught(kernels.block_sum(barrier=False), floats(256), floats(1), kinds="race uninitialised")
    assert any(
        "reads what thread 32 wrote: nothing orders the two: 4 bytes at @s (32 bytes) + 4" in str(e) for e in errors
    )
    assert any("\n  there: store float" in str(e) for e in errors)


def test_missing_barriers_around_a_tile():
    """Before the tile is read; and after, before it is overwritten, where one order alone would give right numbers."""
    matrices = floats(128, 128), floats(128, 128), floats(128, 128)
    caught(kernels.sgemm(first_barrier=False), *matrices, kinds="race uninitialised")
    caught(kernels.sgemm(second_barrier=False), *matrices, kinds="race")


def test_missing_warp_barrier():
    """Lanes of a warp are not in step: shared memory between them needs bar.warp.sync."""
    for sync, kinds in ((True, ""), (False, "race uninitialised")):
        t = Text("ptr addrspace(1) %y")
        t.head.append("@s = internal addrspace(3) global [32 x i32] poison, align 4")
        tid = t.sreg("tid.x")
        t.do(f"store i32 {tid}, ptr addrspace(3) {t.at('@s', tid, 'i32')}")
        if sync:
            t.call("void", "bar.warp.sync", "i32 -1")
        v = t.op(f"load i32, ptr addrspace(3) {t.at('@s', t.i32('xor', tid, 1), 'i32')}")
        t.do(f"store i32 {v}, ptr addrspace(1) {t.at('%y', tid, 'i32', 1)}")
        if kinds:
            caught(t.module(), floats(32), kinds=kinds, block=32)
        else:
            y = np.zeros(32, np.int32)
            Emulator("reverse").load(t.module()).launch("kernel", 1, 32, [y])
            np.testing.assert_array_equal(y, np.arange(32) ^ 1)


def test_blocks_that_write_the_same_element():
    t = Text("ptr addrspace(1) %y")
    t.do(f"store i32 {t.sreg('tid.x')}, ptr addrspace(1) {t.at('%y', t.sreg('tid.x'), 'i32', 1)}")
    errors = caught(t.module(), floats(32), grid=2, block=32, kinds="race")
    assert "overwrites what another block wrote" in str(errors[0])


def test_neighbouring_halves_are_no_race():
    """Two threads write the halves of a word; that is not reported."""
    t = Text("ptr addrspace(1) %y")
    tid = t.sreg("tid.x")
    t.do(f"store i16 {t.op(f'trunc i32 {tid} to i16')}, ptr addrspace(1) {t.at('%y', tid, 'i16', 1)}")
    for y in (np.zeros(64, np.uint16), np.zeros(32, np.uint32)):
        Emulator("reverse").load(t.module()).launch("kernel", 1, 64, [y])
        np.testing.assert_array_equal(y.view(np.uint16), np.arange(64))


# ---- divergence -----------------------------------------------------------------------------------------------
def test_divergent_shuffle():
    errors = caught(kernels.block_sum(divergent=True), floats(256), floats(1), kinds="divergence")
    text = str(errors[0])
    assert "threads 0-19" in text and "wait in shfl.sync.bfly" in text and "lanes 000fffff of ffffffff arrived" in text
    assert "wait in bar.sync" in text and "for barrier 0, 96 of 256 arrived" in text
    errors = caught(kernels.block_sum(mask="65535"), floats(256), floats(1), kinds="divergence")
    assert "is not in its own mask 0000ffff" in str(errors[0])


def branch(both: bool, threads: int = 16, wait=Text.barrier) -> str:
    """Some threads come to a barrier, and the rest to none or (both) to another of the same number."""
    t = Text("ptr addrspace(1) %y")
    t.do(f"%some = icmp ult i32 {t.sreg('tid.x')}, {threads}")
    t.do("br i1 %some, label %yes, label %no")
    t.label("yes")
    wait(t)
    t.go("out")
    t.label("no")
    if both:
        wait(t)
    t.go("out")
    t.label("out")
    return t.module()


def test_divergent_barriers():
    errors = caught(branch(False), floats(1), block=64, kinds="divergence")
    assert "16 of 64 arrived" in str(errors[0])
    errors = caught(branch(False, 32), floats(1), block=64, kinds="deadlock")
    assert "threads 0-31: wait in bar.sync" in str(errors[0]) and "threads 32-63: exited" in str(errors[0])
    errors = caught(branch(True), floats(1), block=64, kinds="divergence")
    assert "wait at another place in the program" in str(errors[0])
    Emulator().load(branch(True, 32)).launch("kernel", 1, 64, [floats(1)])


def test_barrier_of_half_warps():
    """Half of each of two warps make 32 threads, and the barrier would open; hardware counts warps."""
    t = Text("ptr addrspace(1) %y")
    end = t.if_(t.op(f"icmp ult i32 {t.i32('and', t.sreg('tid.x'), 31)}, 16"))
    t.call("void", "barrier.cta.sync.aligned.count", "i32 1", "i32 32")
    t.fi(end)
    assert "lanes 0000ffff" in str(caught(t.module(), floats(1), block=64, kinds="divergence")[0])


def test_barriers_that_disagree_in_number():
    t = Text("ptr addrspace(1) %y")
    first = t.op(f"icmp ult i32 {t.sreg('tid.x')}, 32")
    warps = t.op(f"select i1 {first}, i32 64, i32 96")
    t.call("void", "barrier.cta.sync.aligned.count", "i32 1", f"i32 {warps}")
    assert "while" in str(caught(t.module(), floats(1), block=96, kinds="divergence")[0])


# ---- memory ---------------------------------------------------------------------------------------------------
def test_out_of_bounds():
    add = kernels.vector_add("1024")
    errors = caught(add, floats(1000), floats(1000), floats(1000), 0, grid=4, kinds="bounds")
    assert any("4 bytes at" in str(e) for e in errors)
    errors = caught(kernels.block_sum(words=7), floats(256), floats(1), kinds="bounds")
    assert any("at @s (28 bytes) + 28" in str(e) for e in errors)
    gemm = kernels.bf16_gemm()
    caught(gemm, halves(128, 128), halves(128, 128), floats(128, 128), shared_bytes=3 * 16384 - 16, kinds="bounds")
    y = floats(1000)
    y.flags.writeable = False
    with pytest.raises(EmulationError, match="writes to an array that is read-only"):
        Emulator().load(kernels.vector_add()).launch("kernel", 1, 32, [floats(32), floats(32), y, 32])


def test_uninitialised_shared_memory():
    t = Text("ptr addrspace(1) %y")
    t.head.append("@s = internal addrspace(3) global [64 x float] poison, align 4")
    tid = t.sreg("tid.x")
    end = t.if_(t.op(f"icmp ult i32 {tid}, 31"))
    t.do(f"store float 1.0, ptr addrspace(3) {t.at('@s', tid, 'float')}")
    t.fi(end)
    t.barrier()
    v = t.op(f"load float, ptr addrspace(3) {t.at('@s', tid, 'float')}")
    t.do(f"store float {v}, ptr addrspace(1) {t.at('%y', tid, 'float', 1)}")
    for e in caught(t.module(), floats(32), block=32, kinds="uninitialised"):
        assert e.thread == 31 and "@s (256 bytes) + 124" in str(e)
    y = floats(32)
    Emulator(check=False).load(t.module()).launch("kernel", 1, 32, [y])
    assert np.isnan(y[31]) and (y[:31] == 1).all()


def test_misaligned():
    t = Text("ptr addrspace(1) %y")
    t.do(f"store <4 x float> zeroinitializer, ptr addrspace(1) {t.at('%y', 4, 'i8', 1)}, align 16")
    caught(t.module(), floats(32), block=1, kinds="misaligned")


# ---- asynchronous copies --------------------------------------------------------------------------------------
def test_wrong_wait_of_cp_async():
    matrices = halves(128, 128), halves(128, 128), floats(128, 128)
    errors = caught(kernels.bf16_gemm(pending=2), *matrices, shared_bytes=3 * 16384, kinds="async")
    assert "an asynchronous copy has not been waited for" in str(errors[0])
    errors = caught(
        kernels.bf16_gemm(barrier=False), *matrices, shared_bytes=3 * 16384, kinds="race uninitialised async"
    )
    assert any("cp.async" in str(e) for e in errors)


SUMS = dict(block=96, shared_bytes=16384)


@pytest.mark.parametrize(
    ("bug", "kinds"),
    [
        (dict(init_barrier=False), "race invalid"),
        (dict(wait_full=False), "uninitialised async race"),
        (dict(wait_empty=False), "race async invalid"),
        (dict(size=8196), "deadlock"),
        (dict(fence=False), "async"),
    ],
)
def test_mbarriers_and_tensor_copies(bug, kinds):
    x = floats(128, 64)
    z = x.copy()
    caught(
        hopper.column_sums(128, **bug), TensorMap(x, (32, 64)), TensorMap(z, (32, 64)), floats(64), kinds=kinds, **SUMS
    )


@pytest.mark.parametrize(
    ("bug", "kinds"),
    [(dict(wait=False), "async"), (dict(fence=False), "async"), (dict(release_early=True), "race async")],
)
def test_warpgroup_products(bug, kinds):
    a, b = halves(128, 256), halves(128, 256)
    maps = TensorMap(a, (128, 64), 128), TensorMap(b, (128, 64), 128)
    caught(hopper.wgmma_gemm(256, **bug), *maps, floats(128, 128), block=384, shared_bytes=4 * 16384, kinds=kinds)


def test_results_before_their_wait():
    """Without a wait the accumulators of a wgmma hold nothing: the operation is still in flight at the end."""
    a, b = halves(128, 64), halves(128, 64)
    maps = TensorMap(a, (128, 64), 128), TensorMap(b, (128, 64), 128)
    text = hopper.wgmma_gemm(64, wait=False)
    caught(text, *maps, floats(128, 128), block=384, shared_bytes=4 * 16384, kinds="async")


def test_cluster_without_its_second_barrier():
    text = hopper.cluster_exchange(second=False)
    errors = caught(text, floats(128), floats(128), grid=4, block=32, cluster=2, kinds="race")
    assert "in another block of the cluster" in str(errors[0])


def test_a_copy_nobody_waits_for():
    t = Text("ptr addrspace(1) %x")
    t.head.append("@s = internal addrspace(3) global [4 x float] poison, align 16")
    t.call("void", "cp.async.cg.shared.global.16", "ptr addrspace(3) @s", "ptr addrspace(1) %x")
    assert "exits without waiting" in str(caught(t.module(), floats(4), block=1, kinds="async")[0])
