"""The step `pipeline`: the same sums in the same order, whatever the number of stages and of iterations."""

from __future__ import annotations

import pytest
import schedule_nests as nests
from emulated import ORDERS, load, run_kernel
from simt.native import needs_emulator
from test_ptx import bits

from pullback.codegen.ptx import gpu_target
from pullback.errors import ScheduleError
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Kernel, Loop, stores, walk
from pullback.kernel.text import parse_kernel
from pullback.kernel.verify import verify
from pullback.schedule.pipeline import pipeline

SM80 = gpu_target("sm_80")
TEXT = """
kernel sums(x: f32[N,32], w: f32[N,32]) -> y: f32[32]
  xs: f32[32] shared
  ws: f32[32] shared
  acc: f32[32] register
  thread i < 32
    acc[i] = 0.0
  reduce kb < N
    thread r < 8
      vector v < 4
        xs[r*4 + v] = x[kb, r*4 + v]
    thread i < 32
      ws[i] = exp(w[kb, i])
    barrier
    thread i < 32
      acc[i] = fma(xs[i*-1 + 31], ws[i*-1 + 31], acc[i])
    barrier
  thread i < 32
    y[i] = acc[i]
"""


def sums(n: int, text: str = TEXT) -> Kernel:
    kernel = parse_kernel(text.replace("N", str(n)))
    verify(kernel, SM80)
    return kernel


@needs_emulator
def test_stages_and_iterations():
    kernels = {f"s{s}n{n}": (k := sums(n), pipeline(k, "kb", s)) for s in (2, 3, 4) for n in (1, 2, 3, 5, 8, 12)}
    loaded = load({key: after for key, (_, after) in kernels.items()}, SM80)
    for key, (before, after) in kernels.items():
        verify(after, SM80)
        arrays = nests.arrays_for(before)
        wanted = evaluate(before, arrays)["y"]
        assert bits(evaluate(after, arrays)["y"]) == bits(wanted), key
        for order in ORDERS:
            got, _ = run_kernel(loaded, key, after, SM80, arrays, order)
            assert abs(got["y"] - wanted).max() < 1e-4, key  # exp is the machine's own


def test_what_is_sent_and_what_goes_through_registers():
    after = pipeline(sums(12), "kb", 3)
    assert {s.buffer for s in stores(after.body) if s.asynchronous} == {"xs"}
    assert after.buffers["xs"].shape == (3, 32) and after.buffers["ws_0"].space == "register"
    (loop,) = (s for s in walk(after.body) if isinstance(s, Loop) and s.axis == "kb")
    assert loop.extent == 4
    unread = [s for s in stores(after.body) if s.buffer == "ws_0" and not s.value.masks]
    assert len(unread) == 3  # before the loop, and where an iteration follows in every turn


REFUSED = {
    "two stages or more": ("", "", 1),
    "does not fill, wait, use and wait": ("    barrier\n  thread", "  thread", 2),
    "does not fill one shared buffer": ("ws[i] = exp(w[kb, i])", "acc[i] = exp(w[kb, i])", 2),
    "is filled and changed": ("acc[i] = fma", "xs[i] = fma", 2),
    "also used outside": ("y[i] = acc[i]", "y[i] = acc[i] + xs[i]", 2),
    "no loop over": ("reduce kb < N", "reduce kc < N", 2),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused(reason):
    good, bad, stages = REFUSED[reason]
    text = TEXT.replace(good, bad) if good else TEXT
    kernel = parse_kernel((text.replace("[kb,", "[kc,") if "kc" in bad else text).replace("N", "6"))
    with pytest.raises(ScheduleError, match=reason):
        pipeline(kernel, "kb", stages)
