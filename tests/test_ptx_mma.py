"""Contractions on tensor cores: tiles of `mma.sync` from stages of shared memory; the emulator and the assembler.

The machine adds the products of one instruction in its own order.  The emulator adds them in the order of k, as the
evaluator does; nevertheless what is asked here is what holds on a GPU: TOLERANCE of the sum of their magnitudes.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import schedule_nests as nests
from emulated import ORDERS, SEED_BYTES, EmulatedPlan, load, run_kernel, started
from simt.emulator import EmulationError
from simt.native import needs_emulator
from simt.ptx import assemble, needs_ptxas
from test_ptx import EXAMPLES

import pullback as pb
from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.ptx import emit_kernel, gpu_target, launch_shape, module, shared_bytes, symbol, translate
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import parse_dims, trace_functions, trace_script
from pullback.errors import ScheduleError, VerifyError
from pullback.graph.graph import Graph, make
from pullback.graph.types import DType, bf16, f16, f32, f64
from pullback.kernel.evaluate import evaluate, evaluate_plan
from pullback.kernel.kernel import Barrier, Kernel, Store, Wait, apply, map_stmts, stores, walk
from pullback.kernel.scalars import tf32
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify
from pullback.ops.contract import Contract
from pullback.ops.leaf import Input
from pullback.ops.reduction import Sum
from pullback.passes.split_sums import split_sums
from pullback.schedule import gpu_mma, schedule
from pullback.schedule.gpu_mma import TILES, WarpTile, schedule_mma

SM80 = gpu_target("sm_80")
TOLERANCE = 2.0**-17
"""Of the sum of |a b|: a sum of n terms in f32 with a few bits less is off by some 2^-22 for each power of two in n."""
SMALL = WarpTile(32, 32, 2, 2, 3)


def rounded(kernel: Kernel) -> Kernel:
    """The nest that asks for tf32."""

    def one(s):
        if not isinstance(s, Store) or getattr(s.value, "fn", "") != "fma":
            return (s,)
        a, b, c = s.value.args
        return (replace(s, value=apply("fma", apply("tf32", a), apply("tf32", b), c)),)

    return replace(kernel, body=map_stmts(kernel.body, one))


def linear(m: int, n: int, k: int, form: str, epilogue: str, prologue: str, dtype: DType) -> Kernel:
    kernel = nests.linear(m, n, k, form, epilogue, prologue, dtype)
    return rounded(kernel) if dtype == f32 else kernel


STAGED_CAST = """
kernel layer(x: f32[50,40], w: f32[36,40], b: f32[36]) -> y: bf16[50,36]
  acc: f32[] register
  parallel i < 50
    parallel j < 36
      acc = 0.0
      reduce k < 40
        acc = fma_ftz(cast:f32(cast:bf16(x[i, k])), cast:f32(cast:bf16(w[j, k])), acc)
      y[i, j] = cast:bf16(maximum(acc + b[j], 0.0))
"""
GATHERED = """
kernel gathered(x: bf16[50,40], n: i32[37], w: bf16[40,36], r: f32[37,36]) -> y: f32[37,36]
  acc: f32[] register
  parallel i < 37
    parallel j < 36
      acc = 0.0
      reduce k < 40
        acc = fma_ftz(cast:f32(x[check(n[i], 50, 3), k]), cast:f32(w[k, j]), acc)
      y[i, j] = acc + r[i, j] * 2.0
"""
OUTPUTS = """
kernel outputs(x: bf16[37,24], w: bf16[24,44]) -> y: bool[37,44], z: f16[37,44], u: i32[37,44], v: f64[37,44]
  acc: f32[] register
  parallel i < 37
    parallel j < 44
      acc = 0.0
      reduce k < 24
        acc = fma_ftz(cast:f32(x[i, k]), cast:f32(w[k, j]), acc)
      y[i, j] = acc <= 0.0
      z[i, j] = cast:f16(acc)
      u[i, j] = cast:i32(acc * 0.25)
      v[i, j] = cast:f64(acc)
"""
CASES = {
    f"{form} {dtype} {m}x{n}x{k} {epilogue} {prologue}": (
        lambda form=form, dtype=dtype, m=m, n=n, k=k, e=epilogue, p=prologue: linear(m, n, k, form, e, p, dtype)
    )
    for form in ("NN", "NT", "TN", "TT")
    for dtype in (bf16, f16, f32)
    for m, n, k, epilogue, prologue in (
        (32, 64, 96, "bias", "plain"),
        (37, 45, 50, "gelu", "b" if form == "NT" else "a"),
    )
}
CASES |= {
    "cast when staged": lambda: parse_kernel(STAGED_CAST),
    "rows by index": lambda: parse_kernel(GATHERED),
    "outputs of all sizes": lambda: parse_kernel(OUTPUTS),
    "batched": lambda: rounded(nests.batched(2, 2, 35, 40, 20)),
    "convolution": lambda: rounded(nests.convolution(2, 4, 5, 24, 40)),
    "one stretch": lambda: linear(8, 8, 8, "NN", "plain", "plain", bf16),
}


def tiled(kernel: Kernel, tile: WarpTile | None = None) -> Kernel:
    after = schedule_mma(kernel, SM80, tile=tile)
    verify(after, SM80)
    return after


def near(kernel: Kernel, got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], arrays) -> None:
    """Outputs within the tolerance: of what the sums would be if all products were positive."""
    sums = evaluate(kernel, {n: np.abs(x) for n, x in arrays.items()})
    for name, x in wanted.items():
        y = got[name].reshape(x.shape)
        if x.dtype.kind != "f":  # what lies at a threshold may fall to either side
            assert np.mean(x != y) < 0.01
            continue
        last = {"bf16": 2.0**-8, "f16": 2.0**-10}.get(kernel.buffers[name].dtype.name, 0.0)
        room = TOLERANCE * np.abs(sums[name]).max() + last * np.abs(x)
        assert (np.abs(y - x) <= room).all(), (name, np.abs(y - x).max())


@needs_emulator
def test_every_layout_type_edge_and_fusion():
    kernels = {f"k{i}": (k := make(), tiled(k, SMALL)) for i, make in enumerate(CASES.values())}
    loaded = load({key: after for key, (_, after) in kernels.items()}, SM80)
    for (key, (before, after)), name in zip(kernels.items(), CASES, strict=True):
        arrays = nests.arrays_for(before)
        wanted = evaluate(before, arrays, functions=numpy_functions())
        for order in ORDERS:
            got, status = run_kernel(loaded, key, after, SM80, arrays, order)
            assert not any(status), name
            near(before, got, wanted, arrays)
        text = emit_kernel(key, after, SM80)
        dtype = next(b.dtype for b in after.locals if b.name == "xs")
        assert f"mma.m16n8{'k8.row.col.tf32' if dtype == f32 else 'k16'}" in text, name
        assert ("ldmatrix" in text) == (not name.startswith("TN f32")), (
            name
        )  # else k is what lies contiguous, or 16 bits


@needs_emulator
@pytest.mark.parametrize("name", ["NT bf16 37x45x50 gelu b", "TN f32 32x64x96 bias plain"])
def test_the_body_of_a_tile_is_its_meaning(name):
    """The evaluator runs the loops over lanes: the very sums of the nest as it was."""
    before = CASES[name]()
    after, arrays = tiled(before, SMALL), nests.arrays_for(before)
    wanted = evaluate(before, arrays)
    for key, x in evaluate(after, arrays).items():
        assert np.array_equal(x, wanted[key])
    assert parse_kernel(print_kernel(after)) == after


@needs_emulator
def test_a_wide_result(monkeypatch):
    """Blocks in groups of rows."""
    monkeypatch.setattr(gpu_mma, "WIDE", 1)
    before = linear(16 * 32, 2 * 32, 40, "NN", "plain", "plain", bf16)
    after, arrays = tiled(before, SMALL), nests.arrays_for(before)
    assert len(after.ranges[0][0]) == 3
    got, _ = run_kernel(load({"w": after}, SM80), "w", after, SM80, arrays)
    near(before, got, evaluate(before, arrays), arrays)


@needs_emulator
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles(tile):
    before = linear(tile.rows + 8, tile.columns, 80, "NT", "plain", "plain", bf16)
    after, arrays = tiled(before, tile), nests.arrays_for(before)
    loaded = load({"t": after}, SM80)
    got, _ = run_kernel(loaded, "t", after, SM80, arrays, "random:5")
    near(before, got, evaluate(before, arrays), arrays)


def test_what_is_chosen():
    big = tiled(linear(4096, 4096, 4096, "NN", "plain", "plain", bf16))
    assert launch_shape(big) == (1024, 256) and shared_bytes(big) > 48 << 10
    assert big.buffers["xs"].shape == (4, 128, 32) and big.buffers["ws"].shape == (4, 32, 128)
    assert {s.buffer for s in stores(big.body) if s.asynchronous} == {"xs", "ws"}
    wide = tiled(linear(8192, 8192, 64, "NN", "plain", "plain", bf16))
    assert [s.axis for s in wide.ranges[0][0]] == ["ig", "jb", "ib"] and wide.ranges[0][0][2].extent == 8
    assert launch_shape(tiled(linear(256, 256, 256, "NN", "plain", "plain", bf16)))[0] >= 32
    for kernel, reason in (
        (nests.linear(64, 64, 64), "no exact products in f32"),
        (nests.linear(64, 64, 64, dtype=f64), "no product for tensor cores"),
        (linear(64, 4, 64, "NN", "plain", "plain", bf16), "too small"),
    ):
        with pytest.raises(ScheduleError, match=reason):
            tiled(kernel)
    assert "tile mma" not in print_kernel(schedule(nests.linear(64, 64, 64), SM80))
    assert "tile mma" in print_kernel(schedule(linear(64, 64, 64, "NT", "gelu", "plain", f32), SM80))


def test_the_example_of_the_documentation():
    page = (EXAMPLES.parent / "docs" / "tensor-cores.md").read_text()
    documented = parse_kernel(re.search(r"```kernel\n(.*?)```", page, re.S)[1])
    verify(documented, SM80)
    kernel = nests.linear(40, 32, 128, "NN", "bias", dtype=bf16)
    assert tiled(kernel, WarpTile(32, 32, 2, 2, 2)) == documented
    arrays = nests.arrays_for(kernel)
    assert np.allclose(evaluate(documented, arrays)["y0"], evaluate(kernel, arrays)["y0"], atol=1e-4)


# ---- planted bugs -------------------------------------------------------------------------------------------
@needs_emulator
@pytest.mark.parametrize("bug", ["no wait", "one group too few", "no barrier"])
def test_planted_bugs(bug):
    before = linear(32, 32, 192, "NN", "plain", "plain", bf16)

    def plant(s):
        if bug == "no barrier":
            return () if isinstance(s, Barrier) else (s,)
        if not isinstance(s, Wait):
            return (s,)
        return () if bug == "no wait" else (Wait(s.pending + 1),)

    after = tiled(before, SMALL)
    torn = replace(after, body=map_stmts(after.body, plant))
    loaded = load({"torn": torn}, SM80)
    for order in ORDERS:
        with pytest.raises(EmulationError) as e:
            run_kernel(loaded, "torn", torn, SM80, nests.arrays_for(before), order)
        assert e.value.kind in (("race", "uninitialised") if bug == "no barrier" else ("async",))


REFUSED = {
    "expected loops over lanes": ("lane g < 8", "unroll g < 8"),
    r"expected sums at": ("n*8", "n*4"),
    "expected factors that move": ("kk*16 + q]", "kk*16]"),
    "k goes over 16": ("reduce q < 16", "reduce q < 8"),
    "lie in shared memory": ("xs: bf16[3,32,32] strides(1280,40,1) shared", "xs: bf16[3,32,32] local"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_tile(reason):
    good, bad = REFUSED[reason]
    text = print_kernel(tiled(linear(32, 32, 32, "NN", "plain", "plain", bf16), SMALL))
    assert good in text
    torn = text.replace(good, bad)
    if "local" in bad:
        torn = torn.replace("async xs", "xs")
    with pytest.raises(VerifyError, match=reason):
        verify(parse_kernel(torn), SM80)


# ---- the assembler ------------------------------------------------------------------------------------------
NAMED = {
    "square": (lambda: linear(4096, 4096, 4096, "NN", "plain", "plain", bf16), TILES[0], 128),
    "square_nt": (lambda: linear(4096, 4096, 4096, "NT", "plain", "plain", bf16), TILES[0], 128),
    "square_tn": (lambda: linear(4096, 4096, 4096, "TN", "plain", "plain", bf16), TILES[0], 128),
    "square_f16": (lambda: linear(4096, 4096, 4096, "NT", "plain", "plain", f16), TILES[0], 128),
    "square_tf32": (lambda: linear(4096, 4096, 4096, "NN", "plain", "plain", f32), TILES[0], 128),
    "square_tf32_tn": (lambda: linear(4096, 4096, 4096, "TN", "plain", "plain", f32), TILES[0], 128),
    "odd_gelu": (lambda: linear(1003, 517, 333, "NT", "gelu", "plain", bf16), TILES[0], 255),
    "staged": (lambda: linear(1024, 1024, 512, "NT", "bias", "both", bf16), TILES[0], 255),
    "outputs": (lambda: parse_kernel(OUTPUTS), None, 128),
    "layer": (lambda: linear(512, 1024, 768, "NT", "gelu", "plain", bf16), None, 128),
}
"""name -> (kernel, tile, the most registers that a thread may take); none may spill."""


@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_90a", "sm_120"])
def test_registers_and_spills(gpu):
    target = gpu_target(gpu)
    names = NAMED if gpu == "sm_90" else ("square", "square_tf32", "layer")
    kernels = {key: schedule_mma(NAMED[key][0](), target, tile=NAMED[key][1]) for key in names}
    text = translate(module([emit_kernel(key, k, target) for key, k in kernels.items()], target), target)
    for name, found in assemble(text, gpu).items():
        key = next(key for key in names if name == symbol(key, target))
        print(
            f"{name}: {found.registers} registers, {shared_bytes(kernels[key]) or found.shared} bytes of shared memory"
        )
        assert found.spill_stores == found.spill_loads == found.stack == 0 and found.registers <= NAMED[key][2], name


def test_instructions_of_a_stretch():
    """128 x 128 x 32 by eight warps: 32 products and 12 reads of fragments each, 4 copies of 16 bytes a thread."""
    text = emit_kernel("square", tiled(NAMED["square"][0](), TILES[0]), SM80)
    steps = sum(isinstance(s, Wait) for s in walk(tiled(NAMED["square"][0](), TILES[0]).body)) - 1
    assert steps == 4
    assert text.count("@llvm.nvvm.mma.m16n8k16.row.col.bf16(") == 32 * steps
    assert text.count("@llvm.nvvm.ldmatrix.") == 12 * steps
    assert text.count("@llvm.nvvm.cp.async.cg.shared.global.16(") == 4 * (steps + 3)


# ---- programs -----------------------------------------------------------------------------------------------
@pb.function(pb.f32[48, 2048], pb.f32[2048, 40], pb.f32[40])
def long_sums(x, w, b):
    return pb.relu(pb.matmul(x, w) + b)


@needs_emulator
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_long_sums_of_few_tiles_go_in_parts(precision):
    """Two launches: the parts as a batch, then their sum with what was fused behind."""
    build = Build(trace_functions([long_sums], {}), Options(target="cpu,cuda", gpu="sm_80", precision=precision))
    plan = build.plans["sm_80"]
    (product,) = (k for k in plan.kernels.values() if "tile mma" in print_kernel(k))
    assert product.params[-1].shape == (4, 48, 40)
    g = np.random.default_rng(0)
    x, w, b = (g.standard_normal(s).astype(np.float32) for s in ((48, 2048), (2048, 40), (40,)))
    results = [EmulatedPlan(plan, SM80, order).call("long_sums", [x, w, b])[0] for order in ORDERS]
    assert all(np.array_equal(r, results[0]) for r in results)
    a, c = (bf16.round(v) if precision == "bf16" else tf32(v) for v in (x, w))
    exact = np.maximum(a.astype(float) @ c.astype(float) + b, 0)
    assert np.abs(results[0] - exact).max() <= TOLERANCE * (np.abs(a).astype(float) @ np.abs(c) + np.abs(b)).max()


@pb.function(pb.f32[3, 16, 24], pb.f32[24, 24])
def recurrent(xs, w):
    def step(h, x):
        h = pb.tanh(pb.matmul(h, w) + x)
        return h, h

    last, _ = pb.scan(step, pb.zeros((16, 24)), xs)
    return last, pb.grad(pb.sum(last * last), w)


@needs_emulator
def test_loops_of_the_plan():
    """What a loop moves may lie anywhere: copies that are not aligned are made at once."""
    build = Build(trace_functions([recurrent], {}), Options(target="cpu,cuda", gpu="sm_80", precision="bf16"))
    plan, cpu = build.plans["sm_80"], build.plans[build.targets[0].isa]
    assert sum("tile mma" in print_kernel(k) for k in plan.kernels.values()) == 3
    g = np.random.default_rng(0)
    arrays = [g.standard_normal(s).astype(np.float32) * 0.3 for s in ((3, 16, 24), (24, 24))]
    state = np.zeros(cpu.state_bytes, np.uint8)
    wanted = evaluate_plan(cpu, "recurrent", state, arrays, functions=numpy_functions())
    for got, x in zip(EmulatedPlan(plan, SM80, "reverse").call("recurrent", arrays), wanted, strict=True):
        assert np.allclose(got, x, rtol=1e-3, atol=1e-4)


def test_what_goes_in_parts():
    def parts(m: int, n: int, k: int, dtype: DType = bf16, **fields) -> int:
        x, w = make(Input("x", dtype, (m, k))), make(Input("w", dtype, (k, n)))
        (y,) = split_sums(Graph("g", (x, w), (make(Contract("ik", "kj", "ij", **fields), x, w),))).outputs
        return y.inputs[0].shape[0] if type(y.op) is Sum else 1

    assert parts(512, 512, 8192, wide=True) == 16  # 16 tiles; 9 to 15 do not divide k
    assert parts(512, 512, 8192, f32, tf32=True) == 16
    assert parts(512, 512, 8192, f32) == parts(512, 512, 8192) == 1  # exact, or rounded at the end
    assert parts(4096, 4096, 8192, wide=True) == parts(512, 512, 768, wide=True) == 1  # enough tiles; short sums
    assert parts(128, 128, 1040, wide=True) == 2 and parts(4, 512, 8192, wide=True) == 1


@needs_emulator
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_steps_of_digits(precision):
    """Training on the device stays near the CPU's evaluation of the same program."""
    program = trace_script(EXAMPLES / "digits.py", [], parse_dims(["batch=16"]))
    build = Build(program, Options(target="cpu,cuda", gpu="sm_80", precision=precision))
    assert sum("tile mma" in print_kernel(k) for k in build.plans["sm_80"].kernels.values()) >= 5
    device, cpu = started(build, gpu="sm_80"), build.plans[build.targets[0].isa]
    state = np.full(cpu.state_bytes, 0xFF, np.uint8)
    state[:SEED_BYTES] = 0
    evaluate_plan(cpu, "init", state, [], functions=numpy_functions())
    g = np.random.default_rng(0)
    for _ in range(3):
        arrays = [g.standard_normal((16, 64)).astype(np.float32), g.integers(0, 10, 16).astype(np.int32)]
        wanted = evaluate_plan(cpu, "train", state, arrays, functions=numpy_functions())
        for got, x in zip(device.call("train", arrays), wanted, strict=True):
            assert np.allclose(got, x, rtol=1e-3, atol=1e-4)
