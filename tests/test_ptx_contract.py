"""Contractions on GPUs: tiles staged in shared memory give the bits of the kernel evaluator; their registers.

Every operand layout, odd extents, prologues and epilogues, batches, in three orders of threads on the emulator.
"""

from __future__ import annotations

import pytest
import schedule_nests as nests
from emulated import load, run_kernel
from simt.emulator import EmulationError
from simt.native import needs_emulator
from simt.ptx import assemble, needs_ptxas
from test_ptx import check, op_kernels

from pullback.codegen.ptx import emit_kernel, gpu_target, launch_shape, module, symbol, translate
from pullback.errors import ScheduleError
from pullback.graph.types import bf16, f16, f64
from pullback.kernel.kernel import Barrier, Kernel, Loop, map_stmts, stores, walk
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify
from pullback.schedule import family, schedule
from pullback.schedule.gpu_contract import TILES, BlockTile, schedule_contraction
from pullback.schedule.gpu_limits import GpuLimits

SM90 = gpu_target("sm_90")
SMALL = BlockTile(16, 16, 4, 2, 4)

CASES = {
    "tails": (lambda: nests.linear(19, 21, 7), SMALL),
    "whole": (lambda: nests.linear(16, 32, 8), SMALL),
    "one stretch": (lambda: nests.linear(2, 3, 3), SMALL),
    "NT": (lambda: nests.linear(19, 20, 12, "NT", "bias"), SMALL),
    "TN": (lambda: nests.linear(20, 17, 9, "TN", "gelu"), SMALL),
    "TT": (lambda: nests.linear(20, 17, 9, "TT", "plain", "both"), SMALL),
    "bf16": (lambda: nests.linear(17, 24, 8, "NN", "bias", "a", bf16), SMALL),
    "f16": (lambda: nests.linear(17, 24, 8, "NT", "plain", "plain", f16), SMALL),
    "f64": (lambda: nests.linear(17, 18, 5, "NN", "plain", "plain", f64), SMALL),
    "batched": (lambda: nests.batched(2, 3, 9, 10, 8), SMALL),
    "convolution": (lambda: nests.convolution(2, 4, 5, 3, 9), SMALL),
    **{f"tile {t.rows}x{t.columns}": (lambda t=t: nests.linear(t.rows + 6, 34, 20, "NT", "gelu"), t) for t in TILES},
}


def tiled(kernel: Kernel, tile: BlockTile | None = None) -> Kernel:
    after = schedule_contraction(kernel, SM90, tile=tile)
    verify(after, SM90)
    return after


@needs_emulator
def test_tiles():
    check({f"k{i}": (k := make(), tiled(k, tile)) for i, (make, tile) in enumerate(CASES.values())})


BESIDE = """
kernel beside(x: f32[20,9], w: f32[9,12], z: f32[300]) -> y: f32[20,12], u: f32[300]
  acc: f32[] register
  parallel i < 20
    parallel j < 12
      acc = 0.0
      reduce k < 9
        acc = fma(x[i, k], w[k, j], acc)
      y[i, j] = acc
  parallel n < 300
    u[n] = z[n] * 2.0
"""


@needs_emulator
def test_blocks_of_another_shape_beside_a_contraction():
    """More threads than a tile has: the rest idles, and comes to the barriers."""
    kernel = parse_kernel(BESIDE)
    after = schedule(kernel, SM90, gpu=GpuLimits(blocks=1))
    verify(after, SM90)
    assert launch_shape(after)[1] > 32 and any(isinstance(s, Barrier) for s in walk(after.body))
    check({"beside": (kernel, after)})


def empty(kernel: Kernel) -> bool:
    return any(s.extent == 0 for s in walk(kernel.body) if isinstance(s, Loop))


@needs_emulator
def test_the_contractions_of_all_ops():
    """Of the ops and their derivatives, fused or not; one row or one column is no tile."""
    kernels = {key: k for key, k in op_kernels().items() if family(k) == "contraction" and not empty(k)}
    tiles = {}
    for key, k in kernels.items():
        try:
            tiles[key] = (k, tiled(k, BlockTile(8, 8, 4, 2, 4)))
        except ScheduleError as e:
            assert "no tile" in str(e)
    assert len(tiles) > 20
    check(tiles)


def test_what_is_chosen():
    square = tiled(nests.linear(4096, 4096, 64))
    assert launch_shape(square) == (1024, 256) and square.buffers["acc0"].shape == (128, 128)
    small = schedule(nests.linear(64, 128, 64), SM90)
    assert launch_shape(small)[0] == 32 and {b.space for b in small.locals} == {"register", "shared"}
    assert parse_kernel(print_kernel(square)) == square
    copies = [s for s in walk(square.body) if isinstance(s, Loop) and s.binding == "vector" and "_" in s.axis]
    assert all(s.extent == 4 for s in copies)
    assert {s.buffer for s in stores(square.body) if s.asynchronous} == {"ws"}  # the rows are transposed on the way
    assert square.buffers["xs"].shape == square.buffers["ws"].shape == (2, 8, 128)
    for thin in (nests.linear(1, 300, 50), nests.linear(300, 300, 2)):
        with pytest.raises(ScheduleError):
            tiled(thin)
        assert all(b.space != "shared" for b in schedule(thin, SM90).locals)


@needs_emulator
@pytest.mark.parametrize("which", [0, 1])
def test_missing_barriers_are_noticed(which):
    """Before what is staged is read, and before it is staged over."""
    kernel = nests.linear(16, 32, 8, "NT")
    seen = 0

    def drop(s):
        nonlocal seen
        seen += isinstance(s, Barrier)
        return () if isinstance(s, Barrier) and seen == which + 1 else (s,)

    good = tiled(kernel, BlockTile(16, 32, 4, 2, 4))
    torn = Kernel(good.name, good.params, good.locals, map_stmts(good.body, drop))
    with pytest.raises(EmulationError):
        run_kernel(load({"torn": torn}, SM90), "torn", torn, SM90, nests.arrays_for(kernel))


# ---- the assembler ------------------------------------------------------------------------------------------
NAMED = {
    "square": (lambda: nests.linear(4096, 4096, 4096), TILES[0], 128),
    "square_nt": (lambda: nests.linear(4096, 4096, 4096, "NT"), TILES[0], 130),
    "square_tn": (lambda: nests.linear(4096, 4096, 4096, "TN"), TILES[0], 128),
    "odd_gelu": (lambda: nests.linear(1003, 517, 333, "NT", "gelu"), TILES[0], 184),
    "layer": (lambda: nests.linear(512, 1024, 768, "NT", "gelu"), TILES[1], 96),
    "double": (lambda: nests.linear(512, 512, 512, dtype=f64), None, 128),
    "digits": (lambda: nests.linear(64, 128, 64, "NN", "bias"), None, 96),
}
"""name -> (kernel, tile, the most registers that a thread may take); none may spill."""


@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_registers_and_spills(gpu):
    target = gpu_target(gpu)
    kernels = {key: schedule_contraction(make(), target, tile=tile) for key, (make, tile, _) in NAMED.items()}
    text = translate(module([emit_kernel(key, k, target) for key, k in kernels.items()], target), target)
    for name, found in assemble(text, gpu).items():
        most = next(limit for key, (_, _, limit) in NAMED.items() if name == symbol(key, target))
        print(f"{name}: {found.registers} registers, {found.shared} bytes of shared memory")
        assert found.spill_stores == found.spill_loads == found.stack == 0 and found.registers <= most, (name, found)
