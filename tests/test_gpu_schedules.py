"""GPU schedules other than contractions: that they use the machine, and what they need for it.

What they compute is compared elsewhere (`test_ptx.py`, `test_gpu_models.py`, `test_gpu_differential.py`).
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import schedule_nests as nests
from emulated import load, run_kernel
from simt.emulator import EmulationError
from simt.native import needs_emulator
from test_ptx import SM90, check, scheduled

import pullback as pb
from pullback import nn
from pullback.codegen.ptx import emit_kernel, launch_shape, shared_bytes
from pullback.codegen.threads import Spread, distribution
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.kernel.kernel import Barrier, Kernel, Loop, exprs, loads, map_stmts, stores, walk
from pullback.kernel.text import parse_kernel
from pullback.kernel.verify import verify
from pullback.schedule import schedule
from pullback.schedule.gpu_limits import GpuLimits
from pullback.schedule.gpu_long import schedule_long


def barriers(kernel: Kernel) -> int:
    return sum(isinstance(s, Barrier) for s in walk(kernel.body))


def without(kernel: Kernel, which: int) -> Kernel:
    """The kernel but for one barrier."""
    seen = -1

    def drop(s):
        nonlocal seen
        seen += isinstance(s, Barrier)
        return () if isinstance(s, Barrier) and seen == which else (s,)

    return Kernel(kernel.name, kernel.params, kernel.locals, map_stmts(kernel.body, drop))


def lowered(function) -> list[Kernel]:
    """The kernels of a function, not scheduled."""
    region = Build(trace_functions([function]), Options()).regions[0]
    return [p.kernel for p in region.pieces]


# ---- rows that are summed over columns ----------------------------------------------------------------------
def norm(rows: int, columns: int) -> Kernel:
    @pb.function(pb.f32[rows, columns], pb.f32[columns], pb.f32[columns])
    def forward(x, w, b):
        return nn.layer_norm(x, (columns,), w, b)

    return lowered(forward)[0]


def norm_gradient(rows: int, columns: int) -> Kernel:
    """The gradients of a layer norm by its input, weight and bias."""

    @pb.function(pb.f32[rows, columns], pb.f32[columns], pb.f32[columns], pb.f32[rows, columns])
    def backward(x, w, b, ct):
        return pb.grad(pb.sum(nn.layer_norm(x, (columns,), w, b) * ct), (x, w, b))

    return lowered(backward)[0]


def test_chunks_go_to_blocks_and_rows_to_warps():
    kernel = scheduled(norm_gradient(6144, 256))
    assert launch_shape(kernel) == (128, 512)
    assert {b.shape for b in kernel.locals if b.space == "shared"} == {(16, 256)}
    assert all(b.space != "local" for b in kernel.locals)
    wide = scheduled(norm_gradient(8192, 1024))
    assert launch_shape(wide) == (128, 256)  # less room for terms: fewer rows at a time
    odd = scheduled(norm_gradient(8192, 640))
    assert launch_shape(odd) == (128, 256) and shared_bytes(odd) <= GpuLimits().shared


def test_rows_are_read_ahead():
    """In a step the next rows are fetched before anything is computed."""
    kernel = scheduled(norm_gradient(6144, 256))
    assert {b.name: b.shape for b in kernel.locals if b.name.endswith("_next")} == dict.fromkeys(
        ("x0_0_next", "x1_1_next"), (16, 256)
    )
    assert {n: s for n, s in distribution(kernel).items() if n.endswith("_now")} == dict.fromkeys(
        ("x0_0_now", "x1_1_now"), Spread(1, 2, (0,))
    )
    (step,) = (s for s in walk(kernel.body) if isinstance(s, Loop) and s.role == "reduce" and s.binding == "serial")
    read = [{x.buffer for e in exprs(s) for x in loads(e)} for s in stores(step.body)]
    fetches = [n for n, names in enumerate(read) if not names.isdisjoint(("x0", "x1"))]
    assert fetches == [1, 3]  # after taking those that were fetched before
    few = scheduled(norm_gradient(4096, 2048))  # too long for that
    assert not any(b.name.endswith("_next") for b in few.locals)


@needs_emulator
@pytest.mark.parametrize(("rows", "columns"), [(40, 70), (21, 33), (16, 300), (67, 40), (600, 9), (96, 128)])
def test_sums_over_rows(rows, columns):
    kernel = norm_gradient(rows, columns)
    few = schedule(kernel, SM90, gpu=GpuLimits(sum_warps=2))
    verify(few, SM90)
    assert barriers(few) >= 2 and any(b.space == "shared" for b in few.locals)
    check({"few": (kernel, few), "many": (kernel, scheduled(kernel))})


@needs_emulator
@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_barriers_of_sums_are_noticed(which):
    kernel = norm_gradient(64, 40)
    torn = without(schedule(kernel, SM90, gpu=GpuLimits(sum_warps=4)), which)
    with pytest.raises(EmulationError, match=r"race|uninitialised"):
        run_kernel(load({"torn": torn}, SM90), "torn", torn, SM90, nests.arrays_for(kernel))


# ---- long rows ----------------------------------------------------------------------------------------------
def several(rows: int, columns: int) -> Kernel:
    """Sums of several kinds over the same rows, one after another and side by side."""

    @pb.function(pb.f32[rows, columns], pb.f32[columns])
    def f(x, w):
        return pb.sum(x * x, axis=-1), pb.max(x * w, axis=-1), pb.argmin(x, axis=-1), nn.layer_norm(x, (columns,), w, w)

    return max(lowered(f), key=lambda k: len(k.params))


def loss(rows: int, columns: int) -> Kernel:
    @pb.function(pb.f32[rows, columns], pb.i32[rows])
    def f(x, y):
        value = nn.cross_entropy(x, y)
        return value, pb.grad(value, x)

    return max(lowered(f), key=lambda k: sum(p.size for p in k.params))


def test_long_rows_have_a_block():
    kernel = scheduled(nests.softmax(100, 4096))
    assert launch_shape(kernel) == (100, 256)
    assert {b.name: b.shape for b in kernel.locals if b.space == "shared"} == {"s0": (), "s1": (), "terms0": (4096,)}
    assert not any(b.space == "local" for b in kernel.locals)
    assert distribution(kernel)["e0"] == Spread(0, 4, (), 256)
    text = emit_kernel("rows", kernel, SM90)
    assert len(re.findall(r"load <4 x float>, ptr %v\d+, align 16", text)) == 4  # each element is read once
    assert launch_shape(scheduled(nests.softmax(100, 1024))) == (25, 128)
    assert launch_shape(scheduled(nests.softmax(100, 30000)))[1] == 128  # no room for the terms


SHORT_AND_LONG = """
kernel rows(x: f32[3,33], z: f32[3,600]) -> y: f32[3,600]
  p: f32[16] register
  s: f32[] register
  parallel i < 3
    parallel l < 16
      p[l] = 0.0
    reduce k < 3
      parallel l < 16
        p[l | k*16 + l < 33] = p[l] + x[i, k*16 + l | k*16 + l < 33 else 0.0]
    tile fold
      parallel h8 < 8
        p[h8] = p[h8] + p[h8 + 8]
      parallel h4 < 4
        p[h4] = p[h4] + p[h4 + 4]
      parallel h2 < 2
        p[h2] = p[h2] + p[h2 + 2]
      parallel h1 < 1
        p[h1] = p[h1] + p[h1 + 1]
    s = p[0]
    parallel j < 600
      y[i, j] = z[i, j] * s
"""
TWO_SUMS = """
kernel rows(x: f32[3,128]) -> y: f32[3,128]
  p: f32[2] register
  q: f32[2] register
  s: f32[] register
  t: f32[] register
  parallel i < 3
    parallel l < 2
      p[l] = 0.0
      q[l] = 0.0
    reduce k < 64
      parallel l < 2
        p[l] = p[l] + x[i, k*2 + l]
        q[l] = q[l] + x[i, k*2 + l] * x[i, k*2 + l]
    tile fold
      parallel h1 < 1
        p[h1] = p[h1] + p[h1 + 1]
        q[h1] = q[h1] + q[h1 + 1]
    s = p[0]
    t = q[0] * s
    parallel j < 128
      y[i, j] = x[i, j] * t
"""
LONG = {
    **{f"softmax {n}": lambda n=n: nests.softmax(3, n) for n in (130, 256, 1100, 1101)},
    "layer norm": lambda: norm(3, 300),
    "with short ones": lambda: parse_kernel(SHORT_AND_LONG),
    "one after the other": lambda: parse_kernel(TWO_SUMS),
    "several": lambda: several(3, 200),
    "several, odd": lambda: several(2, 333),
    "cross-entropy": lambda: loss(5, 200),
}


@needs_emulator
def test_blocks_of_rows():
    few = GpuLimits(private=2, row_threads=64)
    kernels = {name: make() for name, make in LONG.items()}
    check({f"n{i}": (k, schedule_long(k, SM90, (), few)) for i, k in enumerate(kernels.values())})
    check({"whole": (k := nests.softmax(2, 2080), scheduled(k))})


@needs_emulator
@pytest.mark.parametrize("which", range(4))
def test_missing_barriers_of_long_rows_are_noticed(which):
    kernel = nests.softmax(2, 520)
    after = schedule_long(kernel, SM90, (), GpuLimits(private=2, row_threads=128))
    torn = without(after, which)
    with pytest.raises(EmulationError, match=r"race|uninitialised"):
        run_kernel(load({"torn": torn}, SM90), "torn", torn, SM90, nests.arrays_for(kernel))


# ---- scatter-adds, sums in order ----------------------------------------------------------------------------
def test_destinations_go_in_ranges():
    kernel = scheduled(nests.scatter(50304, 768, 4096))
    assert kernel.buffers["y0"].shape == (64, 786, 768)
    blocks, threads = launch_shape(kernel)
    assert blocks * threads == 64 * 768


@needs_emulator
@pytest.mark.parametrize(("rows", "columns", "count"), [(12, 40, 21), (7, 5, 8), (64, 3, 40), (1, 6, 5), (30, 1, 17)])
def test_scatter_adds(rows, columns, count):
    kernel = nests.scatter(rows, columns, count)
    check({"many": (kernel, scheduled(kernel)), "few": (kernel, scheduled(kernel, GpuLimits(scatter=8)))})


@needs_emulator
def test_an_index_out_of_range_is_reported_once():
    kernel = nests.scatter(12, 40, 21)
    after = scheduled(kernel)
    arrays = nests.arrays_for(kernel)
    arrays["x0"] = np.arange(21, dtype=np.int32) % 12
    arrays["x0"][13] = -3
    _, status = run_kernel(load({"scatter": after}, SM90), "scatter", after, SM90, arrays)
    assert status[0] == 1 and status[2] == -3


@needs_emulator
def test_sums_in_order_are_unrolled():
    """By 64 steps where threads are few, which then go to many processors; by 16 otherwise."""
    kernel = nests.columns(700, 45, 100)
    few, many = scheduled(kernel), scheduled(kernel, GpuLimits(blocks=1))
    for after, steps, threads in ((few, 64, 32), (many, 16, 192)):
        unrolled = {s.extent for s in walk(after.body) if isinstance(s, Loop) and s.binding == "unroll"}
        assert steps in unrolled and launch_shape(after)[1] == threads
    check({"few": (kernel, few), "many": (kernel, many)})
