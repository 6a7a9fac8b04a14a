"""Sorting networks: stable, NaN last, signs of zero kept, the same on every machine, in n log(n)^2 steps."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import ORDERS, EmulatedPlan
from simt.native import needs_emulator
from simt.ptx import assemble, needs_ptxas

import pullback as pb
from pullback.codegen.ptx import check_shared, gpu_target
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.kernel.work import work
from pullback.ops.ordered import stable_argsort

TYPES = [pb.f32, pb.f64, pb.f16, pb.i32, pb.i64, pb.i8, pb.u8, pb.u32, pb.bool]


def numbers(dtype, shape, seed=0) -> np.ndarray:
    """Many equals; floats with zeros of both signs, infinities, NaN and subnormal numbers."""
    r = np.random.default_rng(seed)
    if dtype.kind == "f":
        least = float(np.finfo(dtype.numpy).smallest_subnormal)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, least, -least, 1.0, -1.0]
        x = np.where(r.random(shape) < 0.5, r.choice(special, shape), r.integers(-9, 9, shape) / 4)
        return x.astype(dtype.numpy)
    if dtype.kind == "b":
        return r.random(shape) < 0.5
    info = np.iinfo(dtype.numpy)
    return r.choice([info.min, info.max, info.max - 1, 0, 1, 2, 100], shape).astype(dtype.numpy)


def sorts(shape, dtype, axis):
    def sorts(x):
        return [f(x, axis=axis, descending=d) for f in (pb.sort, pb.argsort) for d in (False, True)]

    return pb.function(dtype[shape])(sorts)


def check(x: np.ndarray, axis: int, got) -> None:
    """Bit for bit (every NaN alike): what stands first among equals was first before."""
    for k, descending in enumerate((False, True)):
        order = stable_argsort(x, axis, descending)
        want = np.take_along_axis(x, order, axis)
        assert np.array_equal(got[2 + k], order)
        np.testing.assert_array_equal(got[k], want)
        if x.dtype.kind == "f":
            assert np.array_equal(np.signbit(got[k])[want == 0], np.signbit(want)[want == 0])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type(dtype):
    f = sorts((3, 37), dtype, 1)
    x = numbers(dtype, (3, 37))
    check(x, 1, pb.build(f, cache=False).sorts(x))


@pytest.mark.parametrize("cpu", ["v2", "v3", "native"])
def test_every_length(cpu):
    lengths = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 100, *([1000] if cpu == "native" else [])]
    functions = [sorts((2, n), pb.f32, 1) for n in lengths]
    for n, f in zip(lengths, functions, strict=True):
        f.name = f"sorts{n}"
    program = pb.build(*functions, cpu=cpu, cache=False)
    for n in lengths:
        x = numbers(pb.f32, (2, n), n)
        check(x, 1, getattr(program, f"sorts{n}")(x))


@pytest.mark.parametrize(("shape", "axis"), [((21, 40), 0), ((3, 18, 5), 1), ((2, 3, 4), 2), ((1, 9), 0)])
def test_along_any_axis(shape, axis):
    x = numbers(pb.f32, shape)
    check(x, axis, pb.build(sorts(shape, pb.f32, axis), cache=False).sorts(x))


def test_the_work_grows_little_faster_than_the_axis():
    def steps(n: int) -> float:
        f = pb.function(pb.f32[2, n])(lambda x: pb.sort(x))
        build = Build(trace_functions([f]), pb.Options(cpu="v3", cache=False))
        return sum(work(k) for k in build.plans["v3"].kernels.values())

    assert steps(1024) < 60 * steps(64)  # n log(n)^2: 44 times as much; n^2: 256 times


def on_gpu(shape, axis, gpu="sm_90", **options) -> Build:
    options = pb.Options(target="cuda", gpu=gpu, cache=False, **options)
    return Build(trace_functions([sorts(shape, pb.f32, axis)]), options)


@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_120"])
def test_sorts_assemble(gpu):
    build = on_gpu((3, 300), 1, gpu)
    assert assemble(build.ptx[gpu], gpu)


def test_rows_of_a_block_fit_its_shared_memory():
    """8192 pairs of key and position, twice, and their values take 160 KiB: sm_86 has 99, and a thread for a row."""
    f = pb.function(pb.f32[2, 8192])(lambda x: pb.sort(x))
    build = Build(trace_functions([f]), pb.Options(target="cuda", gpu="sm_80,sm_86", cache=False))
    spaces = {isa: {b.space for k in plan.kernels.values() for b in k.locals} for isa, plan in build.plans.items()}
    assert spaces == {"sm_80": {"shared"}, "sm_86": {"local"}}
    for isa, plan in build.plans.items():
        for kernel in plan.kernels.values():
            check_shared(kernel, gpu_target(isa))


@needs_emulator
@pytest.mark.parametrize(("shape", "axis"), [((2, 100), 1), ((70, 3), 0), ((600,), 0), ((3, 7), 1)])
def test_on_a_gpu(shape, axis):
    """Short rows one for a thread, others one for a block, whose threads wait for each other after each stage."""
    build = on_gpu(shape, axis)
    spaces = {b.space for k in build.plans["sm_90"].kernels.values() for b in k.locals}
    assert ("shared" in spaces) == (shape[axis] > 32)
    x = numbers(pb.f32, shape)
    for order in ORDERS:
        check(x, axis, EmulatedPlan(build.plans["sm_90"], gpu_target("sm_90"), order).call("sorts", [x]))
