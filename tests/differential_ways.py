"""How differential tests build a program, and the ways to compute it: settings, evaluators, artifacts."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from random_programs import Case, flat

import pullback_runtime as rt
from pullback.codegen import cpu
from pullback.codegen.target import Target, cpu_target, host_level
from pullback.config import Options
from pullback.driver import Build
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph
from pullback.graph.program import Program
from pullback.graph.types import TensorType
from pullback.kernel.evaluate import evaluate_plan, pack_state, unpack_state
from pullback.kernel.kernel import Kernel
from pullback.kernel.plan import Plan
from pullback.kernel.plan_verify import verify_plan
from pullback.kernel.verify import verify
from pullback.lower.plan import Kernels, make_plan
from pullback.schedule import Limits, schedule

BATCH = 16
"""Consecutive seeds that share a setting and an artifact."""
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")

SUMMATION = {"LANES": (4, 16), "LONG": (16, 64), "SMALL_CHUNK": (2, 4), "CHUNKS": (2, 5)}
"""Constants of `lower/summation.py`, and the values they take where thresholds are lowered."""


@dataclass(frozen=True)
class Setting:
    """How a batch is built and run."""

    level: str
    limits: Limits
    summation: dict[str, int]
    threads: int
    recompute: bool

    @staticmethod
    def of(seed: int) -> Setting:
        rng = random.Random(f"setting {seed // BATCH}")
        dot = ["native"] if cpu_target().has_bf16_dot else []  # the only one that multiplies in pairs
        level = rng.choice([v for v in LEVELS if v <= host_level()] + dot)
        lowered = rng.random() < 0.8
        limits = Limits(
            block=rng.choice((8, 64, 300)),
            block_flops=rng.choice((16, 400)),
            blocks=rng.choice((2, 5)),
            heavy=rng.choice((1, 6)),
            light=rng.choice((2, 8)),
            group=rng.choice((1, 2, 4)),
            row_vectors=rng.choice((1, 2, 8)),
            pack_bytes=rng.choice((64, 512)),
            pack_k=rng.choice((2, 8)),
            long_k=rng.choice((8, 16)),
            deep_k=rng.choice((16, 32)),
            far_bytes=256,
            page=rng.choice((32, 64)),
        )
        summation = {name: rng.choice(values) for name, values in SUMMATION.items()}
        threads, recompute = rng.choice((1, 2)), rng.random() < 0.5
        return Setting(level, limits if lowered else Limits(), summation if lowered else {}, threads, recompute)

    @property
    def target(self) -> Target:
        """The instruction set, with small caches where thresholds are lowered."""
        target = cpu_target(self.level)
        return replace(target, l1=512, l2=2048, l3=8192) if self.summation else target

    @contextmanager
    def active(self) -> Iterator[None]:
        """Lowering with this setting's order of summation, in every room that has imported it."""
        rooms = [m for name, m in sys.modules.items() if name.startswith("pullback.lower.")]
        before = [(vars(m), name, vars(m)[name]) for m in rooms for name in self.summation if name in vars(m)]
        try:
            for names, name, _ in before:
                names[name] = self.summation[name]
            yield
        finally:
            for names, name, value in before:
                names[name] = value


class SettingBuild(Build):
    """A build as a setting says."""

    def __init__(self, traced: Program, setting: Setting, fusion: bool):
        options = Options(cpu=setting.level, fusion=fusion, recompute=setting.recompute, cache=False)
        super().__init__(traced, options)
        self.setting = setting

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.setting.target,)

    def plan_with(self, scheduled: Callable[[Kernel], Kernel]) -> Plan:
        """The plan of kernels as `scheduled` changes them, all of them verified."""

        def verified(kernel: Kernel) -> Kernel:
            verify(kernel)
            after = scheduled(kernel)
            verify(after, self.targets[0])
            return after

        scratch = (lambda k: 0) if self.targets[0].is_gpu else (lambda k: cpu.scratch_layout(k)[1])
        plan = make_plan(self.optimized, self.regions, Kernels(verified, scratch))
        verify_plan(plan)
        return plan

    @cached_property
    def plan(self) -> Plan:
        return self.plan_with(lambda k: schedule(k, self.setting.target, self.setting.limits))

    @property
    def _planned(self) -> dict[str, Plan]:
        return {self.setting.target.isa: self.plan}

    @property
    def unscheduled(self) -> Plan:
        return self.plan_with(lambda k: k)


# ---- ways to compute ------------------------------------------------------------------------------------
Results = list[np.ndarray]
Way = Callable[[int, Case], Results]


def by_graph(case: Case, graph: Graph) -> Results:
    """The graph evaluator, two calls one after the other."""
    states, results = case.initial, []
    count = len(graph.outputs) - len(case.writes)
    for _ in range(2):
        inputs = [*case.arrays[: len(case.arguments)], *(states[n] for n in case.reads)]
        outputs = evaluate(graph, inputs)
        states = states | dict(zip(case.writes, outputs[count:], strict=True))
        results += flat(outputs[:count], states, case)
    return results


def by_plan(case: Case, k: int, plan: Plan, calls: int = 2) -> Results:
    """The kernel evaluator."""
    state, results = pack_state(plan, {f"c{k}.{n}": a for n, a in case.initial.items()}), []
    for _ in range(calls if case.states else 1):
        outputs = evaluate_plan(plan, f"f{k}", state, case.arrays[: len(case.arguments)])
        after = unpack_state(plan, state)
        results += flat(outputs, {n: after[f"c{k}.{n}"] for n in case.states}, case)
    return results


def by_artifact(case: Case, k: int, loaded: rt.Program, awkward: bool) -> Results:
    """Compiled code, two calls.  `awkward`: inputs that the runtime has to convert first."""
    function, results = loaded.functions[f"f{k}"], []
    rng = random.Random(case.seed)
    inputs = []
    for x, array in zip(case.arguments, case.arrays, strict=False):
        inputs.append(_awkward(rng, array) if awkward else as_runtime(array, x.type))
    for n, a in case.initial.items():
        loaded.state[f"c{k}.{n}"][...] = as_runtime(a, case.states[n])
    for _ in range(2):
        outputs = function(*inputs)
        state = {n: loaded.state[f"c{k}.{n}"] for n in case.states}
        results += [np.array(a, t.dtype.numpy) for a, t in zip(flat(outputs, state, case), _types(case), strict=True)]
    return results


def _types(case: Case) -> list[TensorType]:
    results = len(case.graph.outputs) - len(case.writes)
    return [*(n.type for n in case.graph.outputs[:results]), *case.states.values()]


def as_runtime(array: np.ndarray, t: TensorType) -> np.ndarray:
    """An array with the type that the runtime expects (bf16 through ml_dtypes)."""
    return array.astype(rt.arrays.numpy_dtype(t.dtype.name))


def _awkward(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """The same values, strided, or in a wider type."""
    wider = {"f": np.float64, "i": np.int64, "u": np.int64}.get(array.dtype.kind)
    if wider is not None and rng.random() < 0.5:
        array = array.astype(wider)
    return array.repeat(2, axis=-1)[..., ::2] if array.ndim and rng.random() < 0.5 else array


@contextmanager
def loaded(build: SettingBuild, setting: Setting) -> Iterator[rt.Program]:
    with tempfile.NamedTemporaryFile(suffix=".so") as f:
        f.write(build.artifact)
        f.flush()
        artifact = rt.load(f.name, threads=setting.threads)
        yield artifact
        artifact.close()
