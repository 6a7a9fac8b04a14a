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
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from compiled_math import compiled_math
from differential_shrink import shrink
from differential_ways import BATCH, Results, Setting, SettingBuild, Way, by_artifact, by_graph, by_plan, loaded
from plan_coverage import coverage, report
from random_graphs import LOC, same_values
from random_programs import Case, make_case, program, retyped

from pullback.autodiff import push
from pullback.dsl.tensor import Tensor
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, make
from pullback.graph.text import to_text
from pullback.graph.types import bf16, f16, f32, f64
from pullback.kernel.scalars import SCALARS
from pullback.ops import leaf
from pullback.schedule import schedule

__all__ = ["BATCH", "Failure", "Setting", "check", "isolated", "make_case", "run_batch", "shrink"]


# ---- comparing ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Failure:
    seed: int
    way: str
    detail: str


PRECISION = {
    "f64": (2e-16, 1e-10), "gradient": (2e-16, 1e-10), "f32": (6e-8, 5e-6), "half": (4e-3, 2e-2),
    "rounded": (4e-3, 1e-2),
}  # fmt: skip
"""Kind -> the last bit of its numbers, and the tolerance where that bit does not lead far."""


def tolerance(case: Case, expected: Results) -> float:
    """How far sums in another order may lead: 1e-10 in f64, and more where a last bit of the inputs leads further.
    Shorter types: also as far as the same graph in f64 says that they have led."""
    if case.kind == "exact":
        return 0.0
    rng = np.random.default_rng(case.seed)
    last, least = PRECISION[case.kind]

    def nudged(a: np.ndarray) -> np.ndarray:
        return (a * (1 + rng.choice((-2, 2), a.shape) * last)).astype(a.dtype) if a.dtype.kind == "f" else a

    error = distance(expected, by_graph(replace(case, arrays=tuple(map(nudged, case.arrays))), case.graph))
    if case.kind in ("f32", "half", "rounded"):
        wide = in_f64(case)
        error = max(error, distance(expected, by_graph(wide, wide.graph)))
    return least + 100 * error


def distance(results: Results, others: Results) -> float:
    """The largest difference of finite elements, relative to the largest of them (and to 1)."""
    most = 0.0
    for x, y in zip(results, others, strict=True):
        if x.dtype.kind == "f" and x.size:
            both = np.isfinite(x) & np.isfinite(y)
            scale = max(1.0, np.abs(y[both]).max(initial=0.0))
            most = max(most, float((np.abs(x[both] - y[both]) / scale).max(initial=0.0)))
    return most


def in_f64(case: Case) -> Case:
    graph = retyped(case.graph, (f32, bf16, f16), f64)
    return replace(
        case, graph=graph, arrays=tuple(a.astype(x.dtype.numpy) for a, x in zip(case.arrays, graph.inputs, strict=True))
    )


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
