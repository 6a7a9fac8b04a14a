"""Asynchronous stores of kernel IR: their rules, the evaluator's and the GPU's meaning of them (on the emulator)."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import ORDERS, load, run_kernel
from simt.emulator import EmulationError
from simt.native import needs_emulator
from test_ptx import bits

from pullback.codegen.ptx import emit_kernel, gpu_target
from pullback.errors import VerifyError
from pullback.kernel.content import content_key
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Kernel
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify

SM90 = gpu_target("sm_90")

# two stages, by turns; the last step stands behind the loop
PIPELINE = """
kernel pipeline(x: f32[6,128], z: f32[6,30], h: bf16[6,64]) -> y: f32[2,64]
  s: f32[2,64] shared
  r: f32[2,64] shared
  g: bf16[2,64] shared
  acc: f32[64] register
  block b < 2
    thread t < 64
      acc[t] = 0.0
    thread t < 16
      vector v < 4
        async s[0, t*4 + v] = x[0, t*4 + v + b*64]
    thread t < 64
      async r[0, t] = z[0, t | t < 30 else 0]
    thread t < 8
      vector v < 8
        async g[0, t*8 + v] = h[0, t*8 + v | t < 7 else 0]
    commit
    reduce n < 2
      unroll reduce m < 2
        thread t < 16
          vector v < 4
            async s[m*-1 + 1, t*4 + v] = x[n*2 + m + 1, t*4 + v + b*64]
        thread t < 64
          async r[m*-1 + 1, t] = z[n*2 + m + 1, t | t < 30 else 0]
        thread t < 8
          vector v < 8
            async g[m*-1 + 1, t*8 + v] = h[n*2 + m + 1, t*8 + v | t < 7 else 0]
        commit
        wait 1
        barrier
        thread t < 64
          acc[t] = acc[t] + s[m, t] * r[m, t] - cast:f32(g[m, t])
        barrier
    wait 0
    barrier
    thread t < 64
      y[b, t] = acc[t] + s[0, t] * r[0, t] - cast:f32(g[0, t])
"""


def arrays() -> dict[str, np.ndarray]:
    g = np.random.default_rng(3)
    return {n: g.standard_normal(s).astype(np.float32) for n, s in (("x", (6, 128)), ("z", (6, 30)), ("h", (6, 64)))}


def parsed(text: str) -> Kernel:
    kernel = parse_kernel(text)
    verify(kernel, SM90)
    assert parse_kernel(print_kernel(kernel)) == kernel
    return kernel


@needs_emulator
@pytest.mark.parametrize("lockstep", [True, False])
def test_stages_by_turns(lockstep):
    kernel, x = parsed(PIPELINE), arrays()
    wanted = evaluate(kernel, x, lockstep=lockstep)["y"]
    assert np.isfinite(wanted).all()
    loaded = load({"p": kernel}, SM90)
    for order in ORDERS:
        got, _ = run_kernel(loaded, "p", kernel, SM90, x, order)
        assert bits(got["y"]) == bits(wanted)
    text = emit_kernel("p", kernel, SM90)
    for size, count in (("cg.shared.global.16(", 3), ("cg.shared.global.16.s(", 3), ("ca.shared.global.4.s(", 3)):
        assert text.count(f"@llvm.nvvm.cp.async.{size}") == count


PLANTED = {
    "no wait": ("        wait 1\n", "", ("async",)),
    "a group too few is waited for": ("wait 1", "wait 2", ("async",)),
    "no barrier behind the wait": ("wait 1\n        barrier", "wait 1", ("race", "uninitialised")),
    "no barrier before the stage is filled anew": (
        "cast:f32(g[m, t])\n        barrier",
        "cast:f32(g[m, t])",
        ("race", "async"),
    ),
    "no wait behind the loop": ("    wait 0\n    barrier\n", "    barrier\n", ("async",)),
}


@needs_emulator
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs(bug):
    """The emulator names every one; the evaluator, which has no threads, those about waits."""
    good, bad, kinds = PLANTED[bug]
    assert PIPELINE.count(good) == 1
    torn = parse_kernel(PIPELINE.replace(good, bad))
    loaded = load({"p": torn}, SM90)
    for order in ORDERS:
        with pytest.raises(EmulationError) as e:
            run_kernel(loaded, "p", torn, SM90, arrays(), order)
        assert e.value.kind in kinds
    assert np.isnan(evaluate(torn, arrays())["y"]).any() == ("wait" in bug and "barrier" not in bug)


REFUSED = {
    "goes to shared memory": ("  g: bf16[2,64] shared", "  g: bf16[2,64] local"),
    "affine indices": ("async s[0, t*4 + v] = x[0,", "async s[0, t*4 + v] = x[check(cast:i32(z[0, 0]), 6, 0),"),
    "its value is a load": ("= x[0, t*4 + v + b*64]", "= x[0, t*4 + v + b*64] * 2.0"),
    "a parameter that nobody stores to, not y": ("= x[0, t*4 + v + b*64]", "= y[b, t*4 + v]"),
    "0 where its masks fail, not 1": ("z[0, t | t < 30 else 0]", "z[0, t | t < 30 else 1]"),
    "0 where its masks fail, not -0.0": ("z[0, t | t < 30 else 0]", "z[0, t | t < 30 else -0.0]"),
    "leaves alone": ("async r[0, t]", "async r[0, t | t < 31 else 0]"),
    "not all threads": ("    commit\n    reduce", "    thread t < 2\n      commit\n    reduce"),
    "0 or more": ("wait 1", "wait -1"),
    "waited for to the end": ("    wait 0\n", ""),
    "no commit follows": ("        commit\n", ""),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused(reason):
    good, bad = REFUSED[reason]
    assert good in PIPELINE
    with pytest.raises(VerifyError, match=reason):
        verify(parse_kernel(PIPELINE.replace(good, bad)), SM90)


def test_the_key_tells_how_a_copy_is_made():
    plain = PIPELINE.replace("async ", "")
    keys = [content_key(parse_kernel(t)) for t in (PIPELINE, plain, PIPELINE.replace("wait 1", "wait 0"))]
    assert len(set(keys)) == 3
