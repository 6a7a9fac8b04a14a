"""Contractions in warpgroup products: what they serve, that they compute what the nest says, what ptxas makes of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import cuda_programs
import emulated
import numpy as np
import pytest
from emulated import ORDERS, EmulatedPlan, load, run_kernel
from simt.emulator import EmulationError, Emulator
from simt.native import needs_emulator
from simt.ptx import needs_ptxas, ptxas
from test_ptx import bits

import pullback as pb
import pullback_runtime as rt
from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.ptx import (
    emit_kernel,
    gpu_target,
    launch_shape,
    module,
    shared_bytes,
    tensor_maps,
    translate,
)
from pullback.codegen.sass import cuda_tool, sass
from pullback.codegen.wgmma import check
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.errors import ScheduleError, VerifyError
from pullback.kernel.concurrent import Roles, side_by_side
from pullback.kernel.evaluate import evaluate, evaluate_plan
from pullback.kernel.kernel import Kernel, walk
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify
from pullback.schedule import schedule
from pullback.schedule.gpu_limits import GPU
from pullback.schedule.gpu_wgmma import Shape, schedule_wgmma

SM90A = gpu_target("sm_90a")
GELU = "0.5 * (acc + b[j]) * (erf(0.7 * (acc + b[j])) + 1.0)"


def nest(m: int, n: int, k: int, layout: str = "NT", dtype: str = "bf16", batch: int = 0, value: str = "acc") -> Kernel:
    """y = a b + ...; `layout`: N if a row (column) of the operand is a row in memory ([m, k], [k, n]), T if not."""
    o, lead = ("o, ", f"{batch},") if batch else ("", "")
    a, ai = (f"{m},{k}", "i, k") if layout[0] == "N" else (f"{k},{m}", "k, i")
    b, bi = (f"{k},{n}", "k, j") if layout[1] == "N" else (f"{n},{k}", "j, k")
    fma, f = "fma_ftz" if dtype == "bf16" else "fma", "tf32" if dtype == "f32" else "cast:f32"
    head = f"kernel k(x: {dtype}[{lead}{a}], w: {dtype}[{lead}{b}], b: f32[{n}]) -> y: f32[{lead}{m},{n}]"
    lines = [
        "  acc: f32[] register",
        *[f"parallel o < {batch}"] * bool(batch),
        f"parallel i < {m}",
        f"parallel j < {n}",
    ]
    lines = [head, lines[0], *("  " * (d + 1) + s for d, s in enumerate(lines[1:]))]
    pad = "  " * (len(lines) - 1)
    lines += [f"{pad}acc = 0.0", f"{pad}reduce k < {k}", f"{pad}  acc = {fma}({f}(x[{o}{ai}]), {f}(w[{o}{bi}]), acc)"]
    return parse_kernel("\n".join([*lines, f"{pad}y[{o}i, j] = {value}"]))


def arrays_for(kernel: Kernel) -> dict[str, np.ndarray]:
    g = np.random.default_rng(0)
    inputs = [p for p in kernel.params if p.name not in kernel.outputs]
    return {p.name: p.dtype.round(g.standard_normal(p.shape).astype(np.float32)) for p in inputs}


CASES = {
    "rows by rows": nest(184, 72, 136),
    "rows by columns": nest(184, 72, 136, "NN"),
    "columns by columns": nest(184, 72, 136, "TN"),
    "columns by rows": nest(184, 72, 136, "TT"),
    "f16": nest(64, 80, 72, "TN", "f16"),
    "tf32": nest(184, 72, 100, "NT", "f32"),
    "a batch": nest(72, 136, 64, "NN", batch=2),
    "fused": nest(120, 72, 64, "NN", value=GELU),
    "many rounds": nest(64, 64, 64 * 13 + 8),
    "tile after tile": nest(192, 264, 256, "NN", value=GELU),
    "a batch, tile after tile": nest(64, 128, 128, batch=3),
    "pairs, tile after tile": nest(128, 136, 256, "NN", value=GELU),
}
SHAPES = {
    "f16": Shape(64, 128, 64, 1),
    "a batch": Shape(128, 128, 64, 2),
    "many rounds": Shape(64, 64, 64, 4),
    "tile after tile": Shape(64, 64, 64, 2, (3, 1)),
    "a batch, tile after tile": Shape(64, 64, 64, 1, (1, 2)),
    "rows by columns": Shape(64, 128, 64, 2),
    "pairs, tile after tile": Shape(64, 64, 64, 2, (2, 1)),
}


@needs_emulator
@pytest.mark.parametrize("case", CASES)
def test_the_emulator_computes_what_the_nest_says(case):
    kernel = CASES[case]
    after = schedule_wgmma(kernel, SM90A, shape=SHAPES.get(case))
    verify(after, SM90A)
    assert parse_kernel(print_kernel(after)) == after
    arrays, functions = arrays_for(kernel), numpy_functions()
    wanted = evaluate(kernel, arrays, functions=functions)["y"]
    assert bits(evaluate(after, arrays, functions=functions)["y"].reshape(wanted.shape)) == bits(wanted)
    loaded = load({"k": after}, SM90A)
    for order in ORDERS:
        got, status = run_kernel(loaded, "k", after, SM90A, arrays, order)
        y = got["y"].reshape(wanted.shape)
        assert not any(status)
        if case == "tf32":  # halves are rounded to even
            assert np.allclose(y, wanted, atol=2.0**-8)
        else:
            assert bits(y) == bits(wanted), order


TWO = """
kernel two(x: bf16[128,64], w: bf16[96,64], v: bf16[64,64], z: f32[9]) -> y: f32[128,96], u: f32[128,64], t: f32[9]
  a: f32[] register
  b: f32[] register
  parallel i < 128
    parallel j < 96
      a = 0.0
      reduce k < 64
        a = fma_ftz(cast:f32(x[i, k]), cast:f32(w[j, k]), a)
      y[i, j] = a
  parallel i < 128
    parallel j < 64
      b = 0.0
      reduce k < 64
        b = fma_ftz(cast:f32(x[i, k]), cast:f32(v[k, j]), b)
      u[i, j] = b
  parallel i < 9
    t[i] = z[i] + 1.0
"""


@needs_emulator
def test_ranges_of_blocks_with_roles_and_without():
    kernel = parse_kernel(TWO)
    after = schedule(kernel, SM90A)
    verify(after, SM90A)
    assert [len(list(filter(lambda s: isinstance(s, Roles), walk(r)))) for _, r in after.ranges] == [1, 1, 0]
    arrays = arrays_for(kernel)
    wanted, loaded = evaluate(kernel, arrays), load({"k": after}, SM90A)
    assert all(bits(x) == bits(wanted[n]) for n, x in evaluate(after, arrays).items())
    for order in ORDERS:
        got, _ = run_kernel(loaded, "k", after, SM90A, arrays, order)
        assert all(bits(got[n]) == bits(x) for n, x in wanted.items())


# ---- the choice ---------------------------------------------------------------------------------------------
def uses_roles(kernel: Kernel) -> bool:
    return any(isinstance(s, Roles) for s in walk(kernel.body))


REFUSED = {
    "no bare load": nest(128, 128, 64, "NT", "f32"),
    "need k contiguous": nest(128, 128, 64, "NN", "f32"),
    "does not lie as bulk copies": nest(128, 128, 100),
    "too small": nest(20, 200, 64),
}


def test_what_is_served():
    big = schedule(nest(4096, 4096, 4096), SM90A)
    assert uses_roles(big) and launch_shape(big) == (128, 384)  # of 512 tiles
    assert launch_shape(schedule(nest(4096, 11008, 4096), SM90A)) == (32 * 43, 384)
    tile = next(s for s in walk(big.body) if getattr(s, "name", "") == "wgmma")
    assert [s.extent for s in walk(tile.body) if hasattr(s, "extent")] == [128, 256, 64]
    assert not uses_roles(schedule(nest(4096, 4096, 4096), gpu_target("sm_90")))
    assert not uses_roles(schedule(nest(4096, 4096, 4096), SM90A, gpu=replace(GPU, moving=True)))
    for reason, kernel in REFUSED.items():
        if reason == "no bare load":
            kernel = parse_kernel(re.sub(r"tf32\((x[^)]*)\)", r"tf32(neg(\1))", print_kernel(kernel)))
        with pytest.raises(ScheduleError, match=reason):
            schedule_wgmma(kernel, SM90A)
        assert not uses_roles(schedule(kernel, SM90A))


def test_maps():
    after = schedule_wgmma(nest(200, 136, 200, "NN", batch=3), SM90A, shape=Shape(128, 128, 64, 4))
    assert tensor_maps(after) == (
        {
            "parameter": 0,
            "offset": 0,
            "dtype": "bf16",
            "shape": (3, 200, 200),
            "strides": (80000, 400, 2),
            "box": (1, 128, 64),
            "swizzle": 128,
        },
        {
            "parameter": 1,
            "offset": 0,
            "dtype": "bf16",
            "shape": (3, 200, 136),
            "strides": (54400, 272, 2),
            "box": (1, 32, 64),
            "swizzle": 128,
        },
    )  # each of two blocks brings a half
    assert [m["dtype"] for m in tensor_maps(schedule_wgmma(CASES["tf32"], SM90A))] == ["tf32", "tf32"]
    with pytest.raises(VerifyError, match="parameters that do not move"):
        emit_kernel("k", after, SM90A, looped=True)


def test_accumulators_are_each_threads_own():
    text = print_kernel(schedule_wgmma(CASES["many rounds"], SM90A, shape=SHAPES["many rounds"]))
    check(parse_kernel(text))
    old = "acc[w*16 + h*8 + g, t*8 + q*2 + e] = 0.0"
    assert old in text
    for new in ("w*16 + h + g*2, t*8 + q*2 + e", "w*16 + h*8 + g, t*8 + q + e*4", "w*16 + h*8 + g, q*16 + t*2 + e"):
        with pytest.raises(VerifyError, match="not what wgmma leaves"):
            check(parse_kernel(text.replace(old, f"acc[{new}] = 0.0")))
    names = {"lane g < 8": "lane q < 4", "lane q < 4": "lane g < 8"}
    with pytest.raises(VerifyError, match="not what wgmma leaves"):
        check(parse_kernel(re.sub("lane [gq] < .", lambda m: names[m[0]], text)))


# ---- programs -----------------------------------------------------------------------------------------------
@pb.function(pb.bf16[136, 72], pb.bf16[64, 72], pb.f32[64])
def linear(x, w, b):
    return pb.tanh(pb.matmul(x, w.T) + b)


@pb.function(pb.bf16[2, 72, 64], pb.bf16[64, 64])
def scanned(xs, w):
    def step(total, x):
        total = total + pb.matmul(x, w)
        return total, pb.sum(total)

    return pb.scan(step, pb.zeros((72, 64), dtype=pb.bf16), xs)


@pb.function(pb.f32[256, 128], pb.f32[128, 128])
def matmul(x, w):
    return pb.matmul(x, w)


@needs_emulator
def test_programs_and_loops():
    build = Build(trace_functions([linear, scanned], {}), Options(target="cpu,cuda", gpu="sm_90a"))
    plan, cpu = build.plans["sm_90a"], build.plans[build.targets[0].isa]
    assert [uses_roles(plan.kernels[c.kernel]) for c in plan.functions[0].steps[-1].calls] == [True]
    assert sum(map(uses_roles, plan.kernels.values())) == 1
    device, g = EmulatedPlan(plan, SM90A, "random:3"), np.random.default_rng(0)
    for f in plan.functions:
        arguments = [t.dtype.round(g.standard_normal(t.shape).astype(np.float32) / 8) for t in f.inputs]
        wanted = evaluate_plan(cpu, f.name, None, arguments, functions=numpy_functions())
        for a, b in zip(device.call(f.name, arguments), wanted, strict=True):
            assert bits(a) == bits(b)


@needs_emulator
def test_programs_run_on_the_double_of_the_driver(tmp_path):
    """Tensor maps, shared memory and pairs of blocks go through the artifact and the runtime."""
    program = cuda_programs.built(trace_functions([matmul], {}), tmp_path / "m.so", gpu="sm_90a", precision="bf16")
    g = np.random.default_rng(0)
    x, w = (g.standard_normal(s).astype(np.float32) for s in ((256, 128), (128, 128)))
    with program.on(capability=(9, 0)) as double:
        there = rt.load(program.path, device="cuda")
        assert bits(np.asarray(there.matmul(x, w))) == bits(np.asarray(rt.load(program.path).matmul(x, w)))
        assert [name for name, _ in double.calls].count("cuTensorMapEncodeTiled") == 2


# ---- mistakes -----------------------------------------------------------------------------------------------
@needs_emulator
def test_mistakes_in_the_machine_code_are_noticed(monkeypatch):
    kernel = CASES["rows by columns"]
    after = schedule_wgmma(kernel, SM90A, shape=Shape(64, 64, 64, 2))
    arrays, text = arrays_for(kernel), module([emit_kernel("k", after, SM90A)], SM90A)
    wanted = evaluate(kernel, arrays)["y"]

    def run(text: str) -> np.ndarray:
        got, _ = run_kernel(Emulator().load(text), "k", after, SM90A, arrays)
        return got["y"].reshape(wanted.shape)

    assert bits(run(text)) == bits(wanted)
    with monkeypatch.context() as m:
        m.setattr(emulated, "tensor_maps", lambda k: tuple({**t, "swizzle": 0} for t in tensor_maps(k)))
        assert not np.allclose(run(text), wanted, atol=1.0)
    fence, wait = "call void @llvm.nvvm.wgmma.fence.sync.aligned()", "call void @llvm.nvvm.bar.warp.sync(i32 -1)"
    for old, new, kinds in (
        (fence, "", ("async",)),
        (wait, "", ("race", "divergence", "uninitialised")),
        ("i32 8192)", "i32 4096)", ("deadlock", "async", "invalid", "race")),
    ):
        assert old in text
        with pytest.raises(EmulationError) as e:
            run(text.replace(old, new))
        assert e.value.kind in kinds, e.value


@needs_emulator
def test_mistakes_between_blocks_are_noticed():
    kernel = CASES["pairs, tile after tile"]
    after = schedule_wgmma(kernel, SM90A, shape=SHAPES["pairs, tile after tile"])
    assert side_by_side(after) == ("ib", 2) and "roles of 2 blocks" in print_kernel(after)
    arrays, text = arrays_for(kernel), module([emit_kernel("k", after, SM90A)], SM90A)
    meet = "  call void @llvm.nvvm.barrier.cluster.arrive()\n  call void @llvm.nvvm.barrier.cluster.wait()\n"
    apart = "  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)\n"
    arrives = next(line for line in text.splitlines() if "mapa" in line)
    rank = next(line for line in text.splitlines() if " = and i32 %" in line and line.endswith(", 1"))
    for old, new, kinds in (
        (meet, apart, "invalid race uninitialised"),
        (arrives, re.sub(r"i32 %v\d+\)", "i32 0)", arrives), "invalid deadlock race async"),  # all at the first
        (rank, rank.removesuffix("1") + "0", "invalid deadlock race async uninitialised"),  # both bring the same half
    ):
        assert text.count(old) == 1, old
        for order in ORDERS:
            loaded = Emulator().load(text.replace(old, new))
            with pytest.raises(EmulationError) as e:
                run_kernel(loaded, "k", after, SM90A, arrays, order)
            assert e.value.kind in kinds.split(), e.value


# ---- the assembler ------------------------------------------------------------------------------------------
FIGURES = {
    "bf16 4096": nest(4096, 4096, 4096),
    "bf16 4096 NN fused": nest(4096, 4096, 4096, "NN", value=GELU),
    "bf16 4096 TN": nest(4096, 4096, 4096, "TN"),
    "tf32 4096": nest(4096, 4096, 4096, "NT", "f32"),
    "bf16 odd": nest(1000, 1000, 1000, "NN", value=GELU),
}


@needs_ptxas
def test_ptxas(tmp_path):
    after = {name: schedule_wgmma(kernel, SM90A) for name, kernel in FIGURES.items()}
    assert shared_bytes(after["bf16 4096"]) == 217344
    texts = [emit_kernel(name.replace(" ", "_"), k, SM90A) for name, k in after.items()]
    (tmp_path / "k.ptx").write_text(translate(module(texts, SM90A), SM90A))
    command = [ptxas(), "-arch=sm_90a", "-v", "-o", tmp_path / "k.cubin", tmp_path / "k.ptx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"C75(08|10)|setmaxnreg ignored|serialized", said)
    assert said.count("0 bytes spill stores, 0 bytes spill loads") == len(texts)
    figures = dict(re.findall(r"'k_(\w+)_sm_90a'.*?Used (\d+) registers", said, re.S))
    assert int(figures.pop("bf16_odd")) < 100 and set(figures.values()) == {"168"}


@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="no nvdisasm (pip install nvidia-cuda-nvdisasm)")
def test_instructions():
    """Four products for each 64 of k, and nothing slow between them."""
    text = module([emit_kernel("k", schedule_wgmma(FIGURES["bf16 4096"], SM90A), SM90A)], SM90A)
    lines = sass(translate(text, SM90A), "sm_90a").splitlines()
    products = [n for n, line in enumerate(lines) if "HGMMA.64x256x16.F32.BF16" in line]
    assert len(products) == 4 and products[-1] - products[0] < 40
    between = "\n".join(lines[products[0] : products[-1]])
    assert not re.search(r"MEMBAR|LDL|STL|LDS|WARPGROUP.DEPBAR", between)
    whole = "\n".join(lines)
    for name in ("UTMALDG.2D.MULTICAST", "USETMAXREG.DEALLOC", "USETMAXREG.TRY_ALLOC", "STG.E.128"):
        assert name in whole, name
    assert "LDL" not in whole
