"""Kernels for GPUs give the bits that the kernel evaluator predicts, whatever the order of threads: on the emulator.

Every op sample, groups of rows, whole training steps.  `ptxas` (where it is found) assembles all of it.
"""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import schedule_nests as nests
from emulated import ORDERS, bits, gpu_build, load, run_kernel, started
from op_samples import samples
from simt.emulator import EmulationError
from simt.native import needs_emulator
from simt.ptx import assemble, needs_ptxas
from test_ops import derivative_graph, differentiated

import pullback as pb
from pullback import nn, optim, passes
from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.ptx import emit_kernel, gpu_target, launch_shape, module, translate
from pullback.codegen.threads import Spread, distribution, threads_of
from pullback.config import Options
from pullback.dsl.trace import trace_functions
from pullback.errors import BuildError, VerifyError
from pullback.kernel.content import content_key
from pullback.kernel.evaluate import evaluate
from pullback.kernel.interpret import CheckFailed
from pullback.kernel.kernel import Kernel, walk
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify
from pullback.lower.groups import Piece, Region
from pullback.lower.regions import lower
from pullback.schedule import family, schedule
from pullback.schedule.gpu import schedule_gpu
from pullback.schedule.gpu_limits import GpuLimits

SM90 = gpu_target("sm_90")
PARTS = 4
"""Tests that share the kernels of all ops."""
EXAMPLES = Path(__file__).parents[1] / "examples"


def check(kernels: dict[str, tuple[Kernel, Kernel]], target=SM90) -> None:
    """key -> (kernel, scheduled): the same bits in every order of threads."""
    loaded = load({key: after for key, (_, after) in kernels.items()}, target)
    for key, (before, after) in kernels.items():
        arrays = nests.arrays_for(before)
        try:
            wanted = evaluate(before, arrays, functions=numpy_functions())
        except CheckFailed:  # integers that are indices of an axis of one element
            arrays = {n: x if x.dtype.kind == "f" else np.zeros_like(x) for n, x in arrays.items()}
            wanted = evaluate(before, arrays, functions=numpy_functions())
        for order in ORDERS:
            got, status = run_kernel(loaded, key, after, target, arrays, order)
            assert not any(status), print_kernel(after)
            for name, x in wanted.items():
                assert bits(got[name].reshape(x.shape)) == bits(x), f"{name}, {order}: {print_kernel(after)}"


def scheduled(kernel: Kernel, limits: GpuLimits | None = None) -> Kernel:
    after = schedule_gpu(kernel, SM90, family(kernel), (), limits) if limits else schedule(kernel, SM90)
    verify(after, SM90)
    return after


@cache
def op_kernels() -> dict[str, Kernel]:
    """Every kernel that the op samples and their derivatives become, fused or not."""
    found: dict[str, Kernel] = {}

    def visit(region: Region) -> None:
        for p in region.pieces:
            if isinstance(p, Piece):
                found.setdefault(content_key(p.kernel), p.kernel)
            else:
                visit(p.body)

    graphs = [s.graph() for s in samples()]
    graphs += [g for s in differentiated() for g in derivative_graph(s)]
    for g in graphs:
        for fusion in (True, False):
            visit(lower(passes.run(g, [passes.settle]), Options(fusion=fusion)))
    return found


# ---- kernels ------------------------------------------------------------------------------------------------
@needs_emulator
@pytest.mark.parametrize("part", range(PARTS))
def test_ops(part):
    """All of them, forward and derivatives."""
    kernels = op_kernels()
    check({key: (kernels[key], scheduled(kernels[key])) for key in sorted(kernels)[part::PARTS]})


OUTER = """
kernel outer(x: f32[16], w: f32[16,16]) -> y: f32[130,16]
  acc: f32[] register
  parallel i < 130
    parallel j < 16
      acc = 0.0
      reduce k < 16
        acc = fma(x[k], w[j, k], acc)
      y[i, j] = acc * 0.1
"""
ROWS = """
kernel rows(x: f32[3,5,40]) -> y: f32[3,5,40]
  s: f32[] register
  parallel a < 3
    parallel b < 5
      s = x[a, b, 39]
      parallel c < 40
        y[a, b, c] = x[a, b, c] * s
"""
NESTS = {
    "outer": lambda: parse_kernel(OUTER),
    "rows": lambda: parse_kernel(ROWS),
    "linear": lambda: nests.linear(5, 7, 6),
    "convolution": lambda: nests.convolution(1, 4, 5, 3, 2),
    "pointwise": lambda: nests.pointwise((3, 100), bias=True),
    "vectors": lambda: nests.pointwise((6, 64), bias=True),
    "transposed": lambda: nests.pointwise((9, 40), transposed=True),
    "padded": lambda: nests.padded(5, 37),
    "take": lambda: nests.take(4, 33, 5),
    "scatter": lambda: nests.scatter(3, 40, 6),
    "columns": lambda: nests.columns(70, 45, 16),
    "cumulative rows": lambda: nests.cumulative(7, 33, 1),
    "cumulative columns": lambda: nests.cumulative(7, 33, 0),
    "total": lambda: nests.total(3, 70),
    "norm gradient": lambda: nests.norm_gradient(10, 70, 4),
    **{f"softmax {n}": lambda n=n: nests.softmax(6, n) for n in (1, 10, 31, 32, 33, 34, 64, 65, 130, 192, 1100)},
}


@needs_emulator
@pytest.mark.parametrize("limits", [None, GpuLimits(threads=64, vector_from=1, warps=3, row=2, private=2)])
def test_nests(limits):
    kernels = {name: make() for name, make in NESTS.items()}
    check({f"n{i}": (k, scheduled(k, limits)) for i, k in enumerate(kernels.values())})


def bindings(kernel: Kernel) -> set[str]:
    return {s.binding for s in walk(kernel.body) if hasattr(s, "binding")}


def test_schedules_use_the_machine():
    small = GpuLimits(vector_from=1)
    assert bindings(scheduled(nests.pointwise((64, 64), bias=True), small)) == {"block", "thread", "vector"}
    assert bindings(scheduled(nests.columns(700, 300, 128))) == {"block", "thread", "serial", "unroll"}
    rows = scheduled(nests.softmax(100, 256))
    assert bindings(rows) >= {"block", "warp", "lane"}
    assert launch_shape(rows) == (25, 128)
    assert threads_of(scheduled(nests.pointwise((3,)))) == 32
    text = emit_kernel("rows", rows, SM90)
    assert text.count("@llvm.nvvm.shfl.sync.down.f32(") == 20 and text.count("@llvm.nvvm.shfl.sync.idx.f32(") == 2
    assert len(re.findall(r"load <2 x float>, ptr %v\d+, align 8", text)) == 4  # each element of a row is read once
    assert len(re.findall(r"store <2 x float> %v\d+, ptr %v\d+, align 8", text)) == 4
    odd = emit_kernel("rows", scheduled(nests.softmax(100, 255)), SM90)
    assert odd.count("@llvm.nvvm.shfl.sync.down.f32(") == 10 and "<2 x float>, ptr" not in odd
    assert "<4 x float>, ptr" in emit_kernel("map", scheduled(nests.pointwise((64, 64), bias=True), small), SM90)


@needs_emulator
def test_the_example_of_the_documentation():
    text = (EXAMPLES.parent / "docs" / "gpu.md").read_text()
    kernel = parse_kernel(re.search(r"```kernel\n(.*?)```", text, re.S)[1])
    verify(kernel, SM90)
    assert distribution(kernel) == dict.fromkeys("mse", Spread(0, 1))
    check({"documented": (kernel, kernel)})
    x = nests.arrays_for(kernel)["x"]
    assert np.allclose(evaluate(kernel, {"x": x})["y"], np.exp(x) / np.exp(x).sum(1, keepdims=True), atol=1e-6)


# ---- checks, failures ---------------------------------------------------------------------------------------
TAKE = """
kernel take(x: f32[8,3], n: i32[40]) -> y: f32[40,3]
  parallel i < 40
    parallel j < 3
      y[i, j] = x[check(n[i], 8, 5), j]
"""


SIGNS = """
kernel signs(x: f32[64]) -> y: bool[64], z: bool[64], c: f32[64]
  parallel i < 64
    y[i] = signbit(cast:f32(axis:bf16(i*-1 + 31)))
    z[i] = signbit(cast:f32(cast:bf16(x[i])))
    c[i] = copysign(1.0, cast:f32(cast:bf16(x[i])))
"""


@needs_emulator
def test_signs_of_bf16_numbers():
    """Of which nothing else is used: LLVM's shortcut for that aborts on x86, where the emulator runs."""
    kernel = parse_kernel(SIGNS)
    check({"signs": (kernel, scheduled(kernel)), "vectors": (kernel, scheduled(kernel, GpuLimits(vector_from=1)))})


@needs_emulator
def test_failed_checks_are_recorded_and_stop_what_follows():
    kernel = parse_kernel(TAKE)
    after = scheduled(kernel)
    loaded = load({"take": after}, SM90)
    arrays = {"x": np.arange(24, dtype=np.float32).reshape(8, 3), "n": np.arange(40, dtype=np.int32) % 8}
    arrays["n"][17] = 99
    for order in ORDERS:
        got, status = run_kernel(loaded, "take", after, SM90, arrays, order)
        assert status == [1, 5, 99, 0]
        assert np.array_equal(got["y"][17], arrays["x"][0]) and np.array_equal(got["y"][18], arrays["x"][2])


class Table(nn.Module):
    def __init__(self):
        self.rows = nn.Embedding(6, 4)


table = Table()
sgd = optim.SGD(table, lr=0.1)


@pb.function(pb.i32[5], training=True)
def learn(tokens):
    loss = pb.sum(table.rows(tokens) ** 2.0)
    sgd.minimize(loss)
    return loss


@needs_emulator
def test_a_failed_step_leaves_state_as_it_was():
    build = gpu_build(trace_functions([learn], {"table": table, "sgd": sgd}))
    device = started(build)
    device.call("learn", [np.array([0, 1, 2, 1, 0], np.int32)])
    before = device.state.copy()
    device.call("learn", [np.array([0, 1, 6, 1, 0], np.int32)])
    number, _, value, _ = device.status
    assert (number > 0, value) == (True, 6)
    assert np.array_equal(device.state, before)
    device.call("learn", [np.array([0, 1, 5, 1, 0], np.int32)])
    assert not device.status.any() and not np.array_equal(device.state, before)


# ---- what is refused, what is noticed -----------------------------------------------------------------------
SHARED = """
kernel shared(x: f32[64]) -> y: f32[64]
  s: f32[64] shared
  block b < 1
    thread i < 64
      s[i] = x[i]
    barrier
    thread j < 64
      y[j] = s[j*-1 + 63]
"""


@needs_emulator
def test_a_missing_barrier_is_noticed():
    kernel = parse_kernel(SHARED)
    check({"good": (kernel, kernel)})
    torn = parse_kernel(SHARED.replace("    barrier\n", ""))
    loaded = load({"torn": torn}, SM90)
    for order in ORDERS:
        with pytest.raises(EmulationError) as e:
            run_kernel(loaded, "torn", torn, SM90, {"x": np.ones(64, np.float32)}, order)
        assert e.value.kind in ("race", "uninitialised")


IN_PLACE = """
kernel rows(n: i32[6]) -> y: f32[6,40]
  s: f32[] register
  parallel i < 6
    s = y[i, check(n[i], 40, 0)]
    parallel j < 40
      y[i, j] = y[i, j] - s
"""


@needs_emulator
def test_warps_wait_where_a_row_is_changed_in_place():
    after = scheduled(parse_kernel(IN_PLACE))
    assert "barrier" in print_kernel(after) and "lane" in print_kernel(after)
    arrays = {"n": np.array([0, 39, 5, 31, 32, 33], np.int32), "y": np.random.default_rng(1).standard_normal((6, 40))}
    loaded = load({"rows": after}, SM90)
    wanted = evaluate(parse_kernel(IN_PLACE), arrays)["y"]
    for order in ORDERS:
        got, _ = run_kernel(loaded, "rows", after, SM90, arrays, order)
        assert np.array_equal(got["y"], wanted)
    torn = parse_kernel(re.sub(" *barrier\n", "", print_kernel(after)))
    with pytest.raises(EmulationError, match="race"):
        run_kernel(load({"rows": torn}, SM90), "rows", torn, SM90, arrays)


REFUSED = {
    "index does not move by whole warps": "      y[i, j] = e[j]\n    parallel k < 40\n      y[i, k] = e[k]",
    "another lane's element is read under a mask": "      s = e[3 | i < 2 else 0.0]\n    y[i, 0] = s",
}


def test_what_lanes_cannot_share_is_refused():
    for reason, rest in REFUSED.items():
        text = f"""
kernel k(x: f32[4,40]) -> y: f32[4,40]
  e: f32[64] local
  s: f32[] register
  block i < 4
    lane j < 32
      e[j] = x[i, j]
    reduce k < 2
{rest.replace("    parallel k < 40", "    reduce k < 2")}
"""
        with pytest.raises((VerifyError, BuildError), match=reason):
            distribution(parse_kernel(text))


PAIRS = """
kernel pairs(x: f32[4,64]) -> y: f32[4,64]
  e: f32[64] register
  block i < 4
    lane j < 32
      vector v < 2
        e[j*2 + v] = x[i, j*2 + v]
    lane k < 16
      vector u < 2
        y[i, k*2 + u] = e[k*2 + u]
        y[i, k*2 + u + 32] = e[k*2 + u + 32]
"""


@needs_emulator
def test_lanes_hold_pairs_of_neighbours():
    kernel = parse_kernel(PAIRS)
    assert distribution(kernel) == {"e": Spread(0, 2)}
    check({"pairs": (kernel, kernel)})
    with pytest.raises(VerifyError, match="does not move by whole warps"):
        distribution(parse_kernel(PAIRS.replace("e[k*2 + u]", "e[k*2 + u + 1]")))
    with pytest.raises(VerifyError, match="read each other's elements"):
        distribution(parse_kernel(PAIRS.replace("e[k*2 + u]", "e[k + u*16]")))


# ---- the assembler ------------------------------------------------------------------------------------------
@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_90a", "sm_120"])
def test_everything_assembles(gpu):
    target = gpu_target(gpu)
    kernels = op_kernels()
    some = random.Random(gpu).sample(sorted(kernels), 60)
    texts = [emit_kernel(key, schedule(kernels[key], target), target) for key in some]
    texts += [emit_kernel(key, schedule(kernels[key], target), target, looped=True) for key in some[:10]]
    texts += [emit_kernel(f"n{i}", schedule(make(), target), target) for i, make in enumerate(NESTS.values())]
    assert len(assemble(translate(module(texts, target), target), gpu)) == len(texts)
