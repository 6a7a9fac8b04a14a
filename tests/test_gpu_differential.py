"""Random programs on the emulated GPU: the bits of the kernel evaluator, in three orders of threads.

The graphs are those of `differential.py`; thresholds are lowered, so that small graphs reach every branch of the GPU
schedules.  More of them: `python tests/test_gpu_differential.py 0 2000`.
"""

from __future__ import annotations

import random
import sys
from dataclasses import fields

import pytest
from compiled_math import compiled_math
from differential import difference
from differential_ways import BATCH, Results, Setting, SettingBuild, by_plan
from emulated import ORDERS, EmulatedPlan
from random_programs import Case, flat, make_case, program
from simt.native import needs_emulator

from pullback.codegen.ptx import gpu_target
from pullback.codegen.target import Target
from pullback.graph.text import to_text
from pullback.kernel.evaluate import pack_state, unpack_state
from pullback.kernel.kernel import Kernel
from pullback.schedule import schedule
from pullback.schedule.gpu_limits import GPU, GpuLimits

LOWERED = {
    "threads": (32, 64),
    "vector_from": (1, 8),
    "warps": (1, 2, 3),
    "sum_warps": (2, 4),
    "scatter": (4, 64),
    "row": (2, 4, 8),
    "row_threads": (32, 64),
    "private": (1, 4),
}
"""Thresholds, and the values that they take here."""


class GpuBuild(SettingBuild):
    """A build for one GPU, with lowered thresholds."""

    def __init__(self, traced, setting: Setting, seed: int):
        super().__init__(traced, setting, fusion=seed // BATCH % 4 != 3)
        rng = random.Random(f"gpu {seed // BATCH}")
        low = {name: rng.choice(values) for name, values in LOWERED.items()}
        assert {f.name for f in fields(GpuLimits)} >= set(low)
        self.limits = GpuLimits(**low) if setting.summation else GPU

    @property
    def targets(self) -> tuple[Target, ...]:
        return (gpu_target("sm_90"),)

    def on_gpu(self, kernel: Kernel) -> Kernel:
        return schedule(kernel, self.targets[0], gpu=self.limits)


def by_emulator(case: Case, k: int, device: EmulatedPlan) -> Results:
    """Two calls on the device."""
    plan, results = device.plan, []
    state = pack_state(plan, {f"c{k}.{n}": a for n, a in case.initial.items()})
    device.state[: len(state)] = state
    for _ in range(2 if case.states else 1):
        outputs = device.call(f"f{k}", case.arrays[: len(case.arguments)])
        after = unpack_state(plan, device.state[: len(state)])
        results += flat(outputs, {n: after[f"c{k}.{n}"] for n in case.states}, case)
    return results


def failures(first: int) -> list[str]:
    """What is wrong with a batch of cases."""
    cases, setting = [make_case(s) for s in range(first, first + BATCH)], Setting.of(first)
    wrong = []
    with setting.active(), compiled_math():
        build = GpuBuild(program(cases), setting, first)
        plain = build.plan_with(lambda k: k)
        expected = [by_plan(c, k, plain) for k, c in enumerate(cases)]
        plan = build.plan_with(build.on_gpu)
        for order in ORDERS:
            device = EmulatedPlan(plan, build.targets[0], order)
            for k, case in enumerate(cases):
                if found := difference(expected[k], by_emulator(case, k, device)):
                    wrong.append(f"seed {case.seed} ({case.kind}), {order}: {found}\n{to_text(case.graph)}")
    return wrong


@needs_emulator
@pytest.mark.parametrize("batch", range(5))
def test_random_programs(batch):
    assert not failures(BATCH * batch)


if __name__ == "__main__":
    start, count = map(int, sys.argv[1:])
    for seed in range(start, start + count, BATCH):
        print(seed, *failures(seed), sep="\n", flush=True)
