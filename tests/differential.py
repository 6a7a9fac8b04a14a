"""Differential testing: random programs computed in every way that the compiler has, which must agree.

    python tests/differential.py --count 5000 --seed 0 --jobs 2

For every case (`random_programs.py`): the graph evaluator on the traced and on the optimised graph; the kernel
evaluator on the plan with unscheduled and with scheduled kernels; compiled code from a real artifact, fused and
unfused, called twice.  All of them use the same elementary functions (`compiled_math.py`), so everything below
the graph must agree bit for bit, and with the graph evaluator too where no floats are summed.  Gradients are also
compared with finite differences.

Settings vary from batch to batch: instruction set, threads, recomputation, and thresholds of summation and of
schedules lowered so far that small graphs reach every branch.  A failure is shrunk to a few nodes and printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from compiled_math import compiled_math
from plan_coverage import coverage, report
from random_graphs import LOC, same_values
from random_programs import Case, flat, make_case, program, retyped

import pullback_runtime as rt
from pullback.autodiff import push
from pullback.codegen import cpu
from pullback.codegen.target import Target, cpu_target, host_level
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.tensor import Tensor
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, Node, make
from pullback.graph.program import Program
from pullback.graph.text import to_text
from pullback.graph.types import TensorType, f32, f64
from pullback.kernel.evaluate import evaluate_plan, pack_state, unpack_state
from pullback.kernel.kernel import Kernel
from pullback.kernel.plan import Plan
from pullback.kernel.plan_verify import verify_plan
from pullback.kernel.scalars import SCALARS
from pullback.kernel.verify import verify
from pullback.lower.plan import Kernels, make_plan
from pullback.ops import leaf
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
        level = rng.choice([v for v in LEVELS if v <= host_level()])
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
            verify(after, self.setting.target)
            return after

        plan = make_plan(self.optimized, self.regions, Kernels(verified, lambda k: cpu.scratch_layout(k)[1]))
        verify_plan(plan)
        return plan

    @cached_property
    def plan(self) -> Plan:
        return self.plan_with(lambda k: schedule(k, self.setting.target, self.setting.limits))

    @property
    def plans(self) -> dict[str, Plan]:
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


# ---- comparing ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Failure:
    seed: int
    way: str
    detail: str


def tolerance(case: Case, expected: Results) -> float:
    """How far sums in another order may lead.  f32: as far as the same graph in f64 says that f32 has led."""
    if case.kind in ("exact", "half"):
        return 0.0 if case.kind == "exact" else 2e-2
    if case.kind != "f32":
        return 1e-10
    truth = by_graph(in_f64(case), retyped(case.graph, f32, f64))
    error = 0.0
    for x, y in zip(expected, truth, strict=True):
        if x.dtype.kind == "f" and x.size:
            both = np.isfinite(x) & np.isfinite(y)
            scale = max(1.0, np.abs(y[both]).max(initial=0.0))
            error = max(error, (np.abs(x[both] - y[both]) / scale).max(initial=0.0))
    return 2e-6 + 30 * error


def in_f64(case: Case) -> Case:
    wide = tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in case.arrays)
    return replace(case, graph=retyped(case.graph, f32, f64), arrays=wide)


def difference(expected: Results, got: Results, tolerance: float = 0.0) -> str | None:
    """Where two lists of results differ, in words (as far as both go)."""
    for i, (x, y) in enumerate(zip(expected, got, strict=False)):
        if not same_values([x], [y], tolerance):
            if x.shape != y.shape or x.dtype != y.dtype:
                return f"result {i}: {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
            wrong = np.argwhere(~((x == y) | ((x != x) & (y != y))))
            at = tuple(wrong[0]) if len(wrong) else ()
            where = f"{len(wrong)} of {x.size} elements, first at {list(map(int, at))}"
            return f"result {i}: {where}: {x[at]!r} and {y[at]!r}" if len(wrong) else f"result {i}: signs of zeros"
    return None


def check(
    cases: Sequence[Case],
    setting: Setting,
    seen: Counter | None = None,
    first: bool = False,
    unfused: bool = True,
) -> list[Failure]:
    """All ways for all cases; an error of a whole batch is looked for case by case.

    first: one failure will do.  unfused: compile without fusion too.
    """
    with setting.active(), compiled_math():
        failures: list[Failure] = []
        try:
            for failure in _check(cases, setting, seen, unfused):
                failures.append(failure)
                if first:
                    break
            return failures
        except Exception as error:
            if len(cases) > 1 and not first:
                return [f for c in cases for f in check([c], setting, None, False, unfused)]
            return [Failure(cases[0].seed, "build", _shortened(error))]


def _shortened(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    return f"{type(error).__name__} at {place}: {str(error)[:300]}"


def _check(cases: Sequence[Case], setting: Setting, seen: Counter | None, unfused: bool) -> Iterator[Failure]:
    failed: set[int] = set()

    def compare(way: str, reference: list[Results], run: Way, found: list[Results], exact: bool) -> Iterator[Failure]:
        for k, c in enumerate(cases):
            try:
                got = run(k, c)
                detail = difference(reference[k], got, 0.0 if exact else allowed[k])
            except Exception as error:
                got, detail = [], _shortened(error)
            found.append(got)
            if detail and k not in failed:  # what follows from it is not told
                failed.add(k)
                yield Failure(c.seed, way, detail)

    traced = program(cases)
    fused = SettingBuild(traced, setting, fusion=True)
    expected = [by_graph(c, c.graph) for c in cases]
    allowed = [tolerance(c, e) for c, e in zip(cases, expected, strict=True)]
    plain, scheduled, compiled, rest = [], [], [], []
    yield from compare("derivative", expected, lambda k, c: derivative(c, expected[k]), rest, False)
    graphs = [f.graph for f in fused.optimized.functions]
    yield from compare("optimised graph", expected, lambda k, c: by_graph(c, graphs[k]), rest, False)
    plan = fused.unscheduled
    yield from compare("unscheduled kernels", expected, lambda k, c: by_plan(c, k, plan, 1), plain, False)
    plan = fused.plan
    yield from compare("scheduled kernels", plain, lambda k, c: by_plan(c, k, plan), scheduled, True)
    if seen is not None:
        coverage(fused.regions, lambda k: schedule(k, setting.target, setting.limits), seen)
    with loaded(fused, setting) as p:
        yield from compare("compiled", scheduled, lambda k, c: by_artifact(c, k, p, k % 2 == 1), compiled, True)
    if not unfused:
        return
    with loaded(SettingBuild(traced, setting, fusion=False), setting) as p:
        yield from compare("compiled without fusion", compiled, lambda k, c: by_artifact(c, k, p, False), rest, True)


@contextmanager
def loaded(build: SettingBuild, setting: Setting) -> Iterator[rt.Program]:
    with tempfile.NamedTemporaryFile(suffix=".so") as f:
        f.write(build.artifact)
        f.flush()
        artifact = rt.load(f.name, threads=setting.threads)
        yield artifact
        artifact.close()


# ---- gradients ------------------------------------------------------------------------------------------
def derivative(case: Case, expected: Results) -> Results:
    """The loss's change along a direction: finite differences, the gradient's product with it, the jvp.

    Returns `expected`, or what differs in place of its first result.  Points where the one-sided differences
    disagree (kinks) say nothing.
    """
    if case.kind != "gradient":
        return expected
    rng = np.random.default_rng(case.seed)
    wrt = [k for k, x in enumerate(case.graph.inputs) if x.dtype is f64]
    directions = {k: rng.standard_normal(case.graph.inputs[k].shape) for k in wrt}
    loss = case.graph.outputs[0]

    def along(h: float) -> float:
        moved = [a + h * directions[k] if k in directions else a for k, a in enumerate(case.arrays)]
        return float(evaluate(Graph("loss", case.graph.inputs, (loss,)), moved)[0])

    h = 1e-6
    low, middle, high = along(-h), along(0.0), along(h)
    left, right = (middle - low) / h, (high - middle) / h
    slope = (high - low) / (2 * h)
    size = max(1.0, abs(slope))
    if not abs(left - right) < 1e-3 * size:
        return expected
    gradients = evaluate(Graph("gradients", case.graph.inputs, case.graph.outputs[1 : 1 + len(wrt)]), case.arrays)
    product = sum(float(np.vdot(g, directions[k])) for g, k in zip(gradients, wrt, strict=True))
    tangents = {case.graph.inputs[k]: Tensor(make(leaf.Constant.of(directions[k], f64), loc=LOC)) for k in wrt}
    (pushed,) = push([loss], tangents)
    jvp = 0.0 if pushed is None else float(evaluate(Graph("jvp", case.graph.inputs, (pushed.node,)), case.arrays)[0])
    if abs(product - slope) > 1e-4 * size or abs(jvp - product) > 1e-9 * max(1.0, abs(product)):
        raise AssertionError(f"finite difference {slope}, gradient {product}, jvp {jvp}")
    return expected


# ---- shrinking ------------------------------------------------------------------------------------------
def shrink(case: Case, fails: Callable[[Case], bool], seconds: float = 60.0) -> Case:
    """A smaller case that still fails: fewer outputs and states, nodes cut off at a value that becomes an input."""
    end = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for smaller in _smaller(case):
            if time.monotonic() > end:
                break
            if fails(smaller):
                case, progress = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    g = case.graph
    count = len(g.outputs) - len(case.writes)
    for k in range(len(case.writes)):
        outputs = (*g.outputs[: count + k], *g.outputs[count + k + 1 :])
        if outputs:
            yield _trimmed(case, outputs, (*case.writes[:k], *case.writes[k + 1 :]))
    if count + len(case.writes) > 1:
        for k in range(count):
            yield _trimmed(case, (*g.outputs[:k], *g.outputs[k + 1 :]), case.writes)
    inner = [n for n in g.nodes if n not in g.inputs and isinstance(n.type, TensorType)]
    if not case.writes and len(g.outputs) == 1:
        for n in inner:
            if n is not g.outputs[0]:
                yield _trimmed(case, (n,), ())
    for n in reversed(inner):
        if n.inputs and n not in g.outputs:
            yield _cut(case, n)


def _trimmed(case: Case, outputs: Sequence[Node], writes: Sequence[str]) -> Case:
    """With other outputs, and without inputs that nothing reads."""
    reached = set(Graph("g", (), tuple(outputs)).nodes)
    split = len(case.arguments)
    kept = [k for k, x in enumerate(case.graph.inputs) if x in reached]
    inputs = tuple(case.graph.inputs[k] for k in kept)
    reads = tuple(case.reads[k - split] for k in kept if k >= split)
    graph = Graph(case.graph.name, inputs, tuple(outputs))
    kind = "f64" if case.kind == "gradient" else case.kind
    return replace(case, graph=graph, kind=kind, reads=reads, writes=tuple(writes),
                   arrays=tuple(case.arrays[k] for k in kept))  # fmt: skip


def _cut(case: Case, node: Node) -> Case:
    """With a node's value as one more argument."""
    g, split = case.graph, len(case.arguments)
    (value,) = evaluate(Graph("value", g.inputs, (node,)), case.arrays)
    new = make(leaf.Input(f"{node.op.name}{len(g.inputs)}.{len(g.nodes)}", node.dtype, node.shape), loc=LOC)
    replaced: dict[Node, Node] = {node: new} | {x: x for x in g.inputs}
    for n in g.nodes:
        if n not in replaced:
            xs = tuple(replaced[x] for x in n.inputs)
            replaced[n] = n if xs == n.inputs else n.replace(xs)
    inputs = (*g.inputs[:split], new, *g.inputs[split:])
    cut = replace(
        case,
        graph=Graph(g.name, inputs, tuple(replaced[n] for n in g.outputs)),
        arrays=(*case.arrays[:split], value, *case.arrays[split:]),
    )
    return _trimmed(cut, cut.graph.outputs, cut.writes)


# ---- the command ----------------------------------------------------------------------------------------
def isolated(run: Callable[[], object], timeout: float = 300.0) -> object:
    """The result of `run` in a process of its own; a text where that process died or hung."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(run()))
    child.start()
    send.close()
    try:
        return receive.recv() if receive.poll(timeout) else f"no answer within {timeout:g} s"
    except EOFError:
        child.join()
        return f"the process ended with status {child.exitcode}"
    finally:
        child.kill()
        child.join()


def run_batch(seeds: Sequence[int], shrinking: bool = True) -> tuple[list[str], Counter]:
    """The failures of a batch, as texts to print, and what it covered."""
    setting, seen = Setting.of(seeds[0]), Counter()

    def failures(cases: Sequence[Case], counter: Counter | None = None) -> list[Failure]:
        result = isolated(lambda: (check(cases, setting, counter), counter))
        if isinstance(result, tuple):
            seen.update(result[1] or ())
            return result[0]
        if len(cases) > 1:
            return [f for c in cases for f in failures([c])]
        return [Failure(cases[0].seed, "crash", str(result))]

    cases = [make_case(s) for s in seeds]
    texts = []
    for f in failures(cases, Counter()):
        case = cases[f.seed - seeds[0]]
        if shrinking:
            case = shrink(case, lambda c, f=f: any(g.way == f.way for g in failures([c])))
            again = failures([case])
            f = again[0] if again else f
        states = f" reads {case.reads} writes {case.writes}" if case.states else ""
        texts.append(
            f"seed {f.seed} ({case.kind}, {setting.level}{states}): {f.way}: {f.detail}\n{to_text(case.graph)}"
        )
    return texts, seen


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare all ways to compute random programs.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; a case is its seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--no-shrink", dest="shrink", action="store_false")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.count)
    batches: dict[int, list[int]] = {}
    for s in seeds:
        batches.setdefault(s // BATCH, []).append(s)
    done, wrong, seen, start = 0, 0, Counter(), time.monotonic()
    jobs = [(b, options.shrink) for b in batches.values()]
    warm_up()
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        for count, texts, covered in pool.map(_job, jobs):
            done, wrong = done + count, wrong + len(texts)
            seen.update(covered)
            for text in texts:
                print("\n" + text, flush=True)
            rate = done / (time.monotonic() - start)
            print(f"\r{done} of {len(seeds)} graphs, {wrong} wrong, {rate:.1f} graphs/s", end="", flush=True)
    print()
    print(report(seen))
    return 1 if wrong else 0


def warm_up() -> None:
    """Compile what every batch needs, before processes fork."""
    with compiled_math():
        SCALARS["exp"].evaluate(np.float32(1))
    assert SettingBuild(program([]), Setting.of(0), True).artifact


def _job(job: tuple[list[int], bool]) -> tuple[int, list[str], Counter]:
    return len(job[0]), *run_batch(*job)


if __name__ == "__main__":
    sys.exit(main())
