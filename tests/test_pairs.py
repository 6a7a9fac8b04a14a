"""Contractions of bf16 in pairs: the schedule keeps the meaning, and VDPBF16PS has the bits of `fma_ftz`.

Schedules are tested on every machine, by the evaluator; compiled code where the processor has the instruction.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import schedule_nests as nests
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_emit import HERE, run_all
from test_schedule import LOW, SHAPES, TILINGS

from pullback.codegen.cpu import emit_kernel
from pullback.codegen.target import cpu_target
from pullback.errors import VerifyError
from pullback.graph.types import bf16
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Kernel, Tile, walk
from pullback.kernel.text import parse_kernel
from pullback.kernel.verify import verify
from pullback.schedule import Limits, schedule
from pullback.schedule.cpu_contract import schedule_contraction
from pullback.schedule.tiling import Tiling

DOT = replace(cpu_target("v4"), has_bf16_dot=True)
needs_dot = pytest.mark.skipif(not cpu_target().has_bf16_dot, reason="no AVX-512-BF16")
FORMS = ("NN", "NT", "TN", "TT")


def linear(m: int, n: int, k: int, form: str, epilogue: str = "plain", prologue: str = "plain") -> Kernel:
    return nests.linear(m, n, k, form, epilogue, prologue, bf16)


def in_pairs(kernel: Kernel) -> bool:
    return any(isinstance(s, Tile) and s.name == "dot" for s in walk(kernel.body))


# ---- schedules ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms(shape):
    for form, limits in product(FORMS, (Limits(), LOW)):
        after = schedule(kernel := linear(*shape, form), DOT, limits)
        nests.same_meaning(kernel, after)
        assert in_pairs(after) == (shape[:2] != (1, 1))


def test_neighbours():
    for epilogue, prologue, form, limits in (
        ("bias", "a", "NN", LOW),
        ("gelu", "b", "NT", Limits()),
        ("gelu", "both", "TN", LOW),
        ("bias", "both", "NT", LOW),
    ):
        nests.same_meaning(kernel := linear(13, 37, 11, form, epilogue, prologue), schedule(kernel, DOT, limits))


@pytest.mark.parametrize("tiling", TILINGS, ids=lambda t: f"{t.mr}x{t.nv},{t.mc},{t.nc},{t.kc}")
def test_every_tiling(tiling):
    tiling = replace(tiling, pack_b=True)  # stretches count pairs
    rows = 11 if tiling.carry_k or tiling.kc > 19 else 5
    for form, epilogue in product(("NN", "NT", "TN"), ("plain", "gelu")):
        kernel = linear(rows, 53, 37, form, epilogue, "b")
        after = schedule_contraction(kernel, DOT, tiling=tiling)
        nests.same_meaning(kernel, after)
        assert in_pairs(after)


@given(
    st.integers(1, 24), st.integers(1, 70), st.integers(1, 24), st.sampled_from(FORMS),
    st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(),
)  # fmt: skip
@example(m=10, n=2, k=3, form="TN", mr=9, nv=1, row_tiles=3, panels=1, pack_a=True)
@settings(max_examples=15, deadline=None)
def test_random_tilings(m, n, k, form, mr, nv, row_tiles, panels, pack_a):
    carry = k > 4
    tiling = Tiling(mr, nv, mr * row_tiles, nv * 16 * panels, (k + 3) // 4 if carry else k, pack_a, True, carry)
    nests.same_meaning(kernel := linear(m, n, k, form), schedule_contraction(kernel, DOT, tiling=tiling))


def test_batches_and_convolutions():
    for kernel in (nests.batched(2, 3, 9, 11, 5, bf16), nests.convolution(2, 4, 5, 3, 20, bf16)):
        for limits in (Limits(), LOW):
            after = schedule(kernel, DOT, limits)
            nests.same_meaning(kernel, after)
            assert in_pairs(after)


@pytest.mark.parametrize("change, message", [
    (("acc[j] = fma_ftz", "acc[j] = fma"), "expected acc = fma_ftz"),
    (("cast:f32(x[p, j])", "y[j]"), "expected products of bf16"),
    (("reduce p < 2", "reduce p < 3"), "expected an inner loop of 2"),
    (("tile dot", "tile dots"), "no tile 'dots'"),
])  # fmt: skip
def test_what_is_no_dot_is_refused(change, message):
    text = """kernel k(x: bf16[3,16]) -> y: f32[16]
  acc: f32[16] register
  vector j < 16
    acc[j] = 0.0
  tile dot
    vector j < 16
      unroll reduce p < 2
        acc[j] = fma_ftz(cast:f32(x[p, j]), cast:f32(x[p, j]), acc[j])
  vector j < 16
    y[j] = acc[j]
"""
    verify(parse_kernel(text))
    with pytest.raises(VerifyError, match=message):
        verify(parse_kernel(text.replace(*change)))


# ---- compiled -------------------------------------------------------------------------------------------
def check_compiled(kernels: list[Kernel], scheduled: list[Kernel], seeds=range(1)) -> None:
    for seed in seeds:
        inputs = [nests.arrays_for(k, seed) for k in kernels]
        for k, arrays, got in zip(kernels, inputs, run_all(scheduled, inputs), strict=True):
            for name, want in evaluate(k, arrays).items():
                np.testing.assert_array_equal(got[name].view(np.uint32).reshape(want.shape), want.view(np.uint32))


@needs_dot
def test_compiled_contractions():
    kernels = [linear(*shape, form) for shape in (*SHAPES, (33, 100, 70)) for form in FORMS]
    kernels += [linear(13, 37, 11, form, "bias", "both") for form in FORMS]
    kernels += [nests.batched(2, 3, 9, 11, 6, bf16), nests.convolution(2, 4, 5, 3, 20, bf16)]
    scheduled = [schedule(k, cpu_target()) for k in kernels]
    for k, s in zip(kernels, scheduled, strict=True):
        assert in_pairs(s) == (emit_kernel("k", s, cpu_target()).count("dpbf16ps") > 0), k
    check_compiled(kernels, scheduled)


@needs_dot
def test_the_instruction_is_fma_ftz():
    """All bit patterns: subnormal numbers, infinities, NaN; sums that cancel, overflow and vanish."""
    before = linear(64, 64, 5, "NN")
    after = schedule(before, cpu_target())
    assert in_pairs(after)
    rng = np.random.default_rng(0)
    for low, high in ((0, 255), (40, 90), (1, 4), (60, 66), (120, 134)):
        exponents = [rng.integers(low, high + 1, b.shape) for b in before.params[:2]]
        bits = [e << 23 | rng.integers(0, 128, e.shape) << 16 | rng.integers(0, 2, e.shape) << 31 for e in exponents]
        arrays = {f"x{i}": b.astype(np.uint32).view(np.float32) for i, b in enumerate(bits)}
        (got,), want = run_all([after], [arrays]), evaluate(before, arrays)
        np.testing.assert_array_equal(got["y0"], want["y0"])
        finite = ~np.isnan(want["y0"])
        assert np.array_equal(got["y0"][finite].view(np.uint32), want["y0"][finite].view(np.uint32))


def test_processors_with_and_without_it_agree():
    kernel = linear(13, 37, 21, "NT", "bias")
    arrays = nests.arrays_for(kernel)
    results = []
    for level in [*HERE, "native"]:
        (got,) = run_all([schedule(kernel, cpu_target(level))], [arrays], level)
        results.append(got["y0"])
    assert all(r.tobytes() == results[0].tobytes() for r in results)


def test_what_is_rounded_already_is_not_rounded_again():
    """Copies of bf16 move 16 bits; a value cast to bf16 is rounded once."""
    text = """kernel k(x: bf16[64], z: f32[64]) -> y: bf16[64], u: bf16[64]
  vector j < 64
    y[j] = x[j]
    u[j] = cast:bf16(z[j])
"""
    for level in ("v3", "v4"):
        llvm = emit_kernel("k", parse_kernel(text), cpu_target(level))
        vectors = 64 // cpu_target(level).lanes()
        assert llvm.count("splat (i32 32767)") == vectors and llvm.count("fcmp uno") == vectors
    kernel = parse_kernel(text)
    x = np.arange(64, dtype=np.uint32) << 16 | 0x7F900000 * (np.arange(64, dtype=np.uint32) % 2)
    arrays = {"x": x.view(np.float32), "z": np.linspace(-1, 1, 64, dtype=np.float32)}
    (got,) = run_all([kernel], [arrays])
    for name, want in evaluate(kernel, arrays).items():
        np.testing.assert_array_equal(got[name], want)


def test_casts_may_stand_in_the_operands():
    """From f32: rounded while they are packed."""
    text = """kernel k(x: f32[13,21], w: f32[37,21]) -> y: f32[13,37]
  acc: f32[] register
  parallel i < 13
    parallel j < 37
      acc = 0.0
      reduce k < 21
        acc = fma_ftz(cast:f32(cast:bf16(x[i, k])), cast:f32(cast:bf16(w[j, k])), acc)
      y[i, j] = acc
"""
    kernel = parse_kernel(text)
    after = schedule(kernel, DOT)
    assert in_pairs(after)
    nests.same_meaning(kernel, after)
    if cpu_target().has_bf16_dot:
        check_compiled([kernel], [schedule(kernel, cpu_target())], range(3))


def test_no_pairs_of_other_types():
    for target in (cpu_target("v4"), DOT):
        assert not in_pairs(schedule(nests.linear(9, 33, 8), target))
    assert not in_pairs(schedule(linear(9, 33, 8, "NN"), cpu_target("v4")))
