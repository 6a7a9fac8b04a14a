"""Shared memory of GPU kernels: schedules stay within what a block of each architecture has, and a build says where one
does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import schedule_nests as nests
from simt.ptx import assemble, needs_ptxas

import pullback as pb
from pullback import driver
from pullback.codegen.ptx import check_shared, emit_kernel, gpu_target, module, translate
from pullback.dsl.trace import trace_functions
from pullback.errors import BuildError
from pullback.graph.types import bf16, f16, f32, f64
from pullback.kernel.kernel import Buffer
from pullback.kernel.text import parse_kernel
from pullback.schedule import schedule

SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_90a": 227, "sm_100": 227, "sm_120": 99}
"""KiB that a block may ask for, by CUDA's programming guide (table of technical specifications)."""


def filled(floats: int) -> str:
    return f"""
kernel big(x: f32[32]) -> y: f32[32]
  s: f32[{floats}] shared
  block b < 1
    thread i < 32
      s[i] = x[i]
    barrier
    thread j < 32
      y[j] = s[j*-1 + 31]
"""


@pytest.mark.parametrize("gpu", SHARED)
def test_a_kernel_has_what_its_architecture_has(gpu):
    target, most = gpu_target(gpu), SHARED[gpu] << 8
    emit_kernel("big", parse_kernel(filled(most)), target)
    more = parse_kernel(filled(most + 1))
    reason = (
        rf"kernel big needs {4 * most + 128} bytes of shared memory \(s {4 * most + 4}\), but a block of {gpu} has "
    )
    with pytest.raises(BuildError, match=reason + str(4 * most)):
        emit_kernel("big", more, target)


@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_86", "sm_90", "sm_120"])
def test_all_of_it_assembles(gpu):
    """More than the 48 KiB that PTX may declare: it is asked for at the launch."""
    target = gpu_target(gpu)
    kernel = parse_kernel(filled(SHARED[gpu] << 8))
    assert assemble(translate(module([emit_kernel("big", kernel, target)], target), target), gpu)


def test_a_build_names_kernel_and_line(monkeypatch):
    @pb.function(pb.f32[4])
    def double(x):
        return x * 2.0

    room = Buffer("room", (30_000,), f32, "shared")

    def greedy(kernel, target, **how):
        after = schedule(kernel, target, **how)
        return replace(after, locals=(*after.locals, room)) if target.is_gpu else after

    monkeypatch.setattr(driver, "schedule", greedy)
    program, line = trace_functions([double]), double.loc.line + 2

    def built(gpu):
        return driver.Build(program, pb.Options(target="cuda", gpu=gpu, cache=False)).llvm

    assert built("sm_90")
    with pytest.raises(
        BuildError, match=rf"{__file__}:{line}: kernel \w+ needs 120064 .* \(room 120000\), .* of sm_86 has"
    ):
        built("sm_90,sm_86")


@pytest.mark.parametrize("gpu", SHARED)
def test_schedules_stay_within_it(gpu):
    target = gpu_target(gpu)
    kernels = [nests.linear(1024, 1024, 1024, dtype=t) for t in (f32, f64, bf16, f16)]
    kernels += [nests.linear(512, 512, 512, form) for form in ("NT", "TN", "TT")]
    kernels += [nests.norm_gradient(2048, n, 16) for n in (64, 3000, 12_000, 30_000)]
    for kernel in kernels:
        check_shared(schedule(kernel, target), target)
