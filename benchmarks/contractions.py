"""Contractions alone: matrix products of a compiled program against torch and numpy, alternating in one process.

    python benchmarks/contractions.py                        # the fixed shapes, 1 and 2 threads
    python benchmarks/contractions.py --random 50 --seed 7   # random shapes, each side 1 to 2048, all forms
    python benchmarks/contractions.py --cpu x86-64-v3        # code for AVX2, as a share of the AVX2 limit
    python benchmarks/contractions.py --shape 97,131,75 --threads 1 --clock cpu

One artifact has a function for each case and is called as a user calls it, results newly allocated; torch and numpy
get `out=`.  Every call is waited for.  Each number of threads is a process of its own, without the compiler, because
BLAS libraries read theirs when they start; between turns it waits until nobody's idle threads spin any more.
Medians over the rounds count.  `--clock cpu` measures the processor time of the calling thread instead, which is
what one thread needs on a machine that others use too.

The table has GFLOP/s, ours as a ratio to the better of the two others and as a share of what fused multiply-adds in
registers reach with this instruction set; the last lines are the geometric mean and the worst case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import exp, log, log10
from pathlib import Path
from random import Random
from statistics import median

from idle import wait_until_idle

Case = tuple[int, int, int, str]
"""m, n, k and the form; T says that a factor is stored the other way round."""

SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (128, 512, 784),
    (784, 512, 128),
    (64, 256, 256),
    (1024, 384, 1536),
    (97, 131, 75),
)
FORMS = ("NN", "NT", "TN")
HEADER = "    m     n     k  form thr   ours    torch    numpy   ratio  share   (GFLOP/s)"


def name(case: Case) -> str:
    return "f{}_{}_{}_{}".format(*case)


def stored(case: Case) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of the two factors in memory."""
    m, n, k, form = case
    return ((k, m) if form[0] == "T" else (m, k)), ((n, k) if form[1] == "T" else (k, n))


# ---- the building process ------------------------------------------------------------------------------------
def build(cases: Sequence[Case], cpu: str, path: Path) -> None:
    import pullback as pb
    from pullback import driver
    from pullback.dsl.trace import trace_functions

    def function(case: Case):
        def product(a, b):
            return (a.T if case[3][0] == "T" else a) @ (b.T if case[3][1] == "T" else b)

        return pb.function(*(pb.f32[s] for s in stored(case)), name=name(case))(product)

    program = trace_functions([function(c) for c in cases])
    driver.write(path, driver.compile_program(program, pb.Options(cache=False, cpu=cpu)))


def limit(cpu: str, steps: int = 200_000) -> float:
    """GFLOP/s of one core whose operands are all in registers."""
    import numpy as np

    from pullback.codegen.compile import load_kernels
    from pullback.codegen.cpu import emit_kernel, module, symbol
    from pullback.codegen.target import cpu_target
    from pullback.kernel.text import parse_kernel

    target = cpu_target(cpu)
    lanes = target.lanes(32)
    text = f"""kernel limit() -> y: f32[12,{lanes}]
  acc: f32[12,{lanes}] register
  unroll i < 12
    vector j < {lanes}
      acc[i, j] = 0.0
  reduce k < {steps}
    unroll i < 12
      vector j < {lanes}
        acc[i, j] = fma(acc[i, j], acc[i, j], acc[i, j])
  unroll i < 12
    vector j < {lanes}
      y[i, j] = acc[i, j]
"""
    loaded = load_kernels(module([emit_kernel("limit", parse_kernel(text), target)], target), target)
    run = loaded.bind(symbol("limit", target), [np.zeros((12, lanes), np.float32)], 1)
    times = []
    for _ in range(50):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return 2e-9 * 12 * lanes * steps / min(times)


# ---- the measuring processes ---------------------------------------------------------------------------------
def measure(
    contestants: dict[str, Callable[[], object]], clock: Callable[[], float], budget: float, rounds: int
) -> dict[str, float]:
    """Seconds per call, medians over alternating rounds."""
    counts = {}
    for who, call in contestants.items():
        call()
        start = clock()
        call()
        counts[who] = max(1, int(budget / rounds / (clock() - start)))
    times: dict[str, list[float]] = {who: [] for who in contestants}
    for r in range(rounds):
        for who in list(contestants)[:: 1 if r % 2 else -1]:
            call, count = contestants[who], range(counts[who])
            wait_until_idle()
            call()
            start = clock()
            for _ in count:
                call()
            times[who].append((clock() - start) / len(count))
    return {who: median(t) for who, t in times.items()}


def compare(path: str, cases: Sequence[Case], args: argparse.Namespace) -> None:
    """In this process: a line of JSON for each case on standard output."""
    import numpy as np
    import torch

    import pullback_runtime as rt

    threads, clock = int(args.threads), time.thread_time if args.clock == "cpu" else time.perf_counter
    torch.set_num_threads(threads)
    program, rng = rt.load(path, threads=threads), np.random.default_rng(0)
    for case in cases:
        m, n, k, form = case
        a, b = (rng.standard_normal(s, np.float32) for s in stored(case))
        na, nb = a.T if form[0] == "T" else a, b.T if form[1] == "T" else b
        ta, tb = torch.from_numpy(na), torch.from_numpy(nb)
        by_numpy, by_torch = np.empty((m, n), np.float32), torch.empty(m, n)
        function = getattr(program, name(case))
        contestants = {
            "ours": lambda a=a, b=b, f=function: f(a=a, b=b),
            "torch": lambda a=ta, b=tb, out=by_torch: torch.mm(a, b, out=out),
            "numpy": lambda a=na, b=nb, out=by_numpy: np.matmul(a, b, out=out),
        }
        seconds = measure(contestants, clock, args.seconds, args.rounds)
        if m * n * k <= 1 << 28:
            error = float(np.abs(function(a=a, b=b) - na.astype(np.float64) @ nb).max() / np.sqrt(k))
        else:
            error = float(np.abs(function(a=a, b=b) - by_numpy).max() / np.sqrt(k))
        assert error < 1e-4, f"{case}: wrong by {error}"
        row = {who: 2e-9 * m * n * k / t for who, t in seconds.items()}
        ratio = row["ours"] / max(row["torch"], row["numpy"])
        print(json.dumps({"case": case, "threads": threads, **row, "ratio": ratio}), flush=True)


# ---- both ----------------------------------------------------------------------------------------------------
def random_cases(count: int, seed: int) -> list[Case]:
    """Each side 1 to 2048, evenly on a logarithmic scale for half of the shapes; every form."""
    rng, out = Random(seed), []
    for i in range(count):
        sides = [rng.randint(1, 2048) if i % 2 else min(2048, int(10 ** rng.uniform(0, log10(2049)))) for _ in range(3)]
        out.append((*sides, rng.choice(FORMS)))
    return out


def worker(path: Path, cases: Sequence[Case], threads: int, peak: float, args: argparse.Namespace) -> list[dict]:
    """The rows of one number of threads, each printed when it is there."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", str(path)]
    command += ["--seconds", str(args.seconds), "--rounds", str(args.rounds), "--clock", args.clock]
    rows = []
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(json.dumps(cases))
        process.stdin.close()
        for text in process.stdout:
            rows.append(row := json.loads(text))
            row["share"] = row["ours"] / (peak * threads)
            m, n, k, form = row["case"]
            numbers = " ".join(f"{row[who]:8.1f}" for who in ("ours", "torch", "numpy"))
            shares = f"{row['ratio']:5.2f}  {row['share']:5.2f}"
            print(f"{m:5d} {n:5d} {k:5d}  {form}  {threads}  {numbers}   {shares}", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--shape", action="append", help="m,n,k (repeatable); default: the fixed list")
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--random", type=int, metavar="N", help="N random shapes instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", default="native", help="native, or a level: x86-64-v3")
    parser.add_argument("--seconds", type=float, default=0.2, help="time for each contestant and case")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for one thread only")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        cases = [tuple(c) for c in json.load(sys.stdin)]
        return compare(args.worker, cases, args)
    if args.clock == "cpu" and args.threads != "1":
        parser.error("--clock cpu measures one thread: say --threads 1")
    shapes = [tuple(map(int, s.split(","))) for s in args.shape or ()] or SHAPES
    cases = [(*s, f) for s in shapes for f in args.form or FORMS]
    if args.random:
        cases = random_cases(args.random, args.seed)
        print(f"{args.random} random shapes, seed {args.seed}")
    cases = list(dict.fromkeys(cases))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build(cases, args.cpu, path := Path(folder) / "contractions.so")
        seconds, peak = time.perf_counter() - start, limit(args.cpu)
        print(f"{len(cases)} cases built in {seconds:.1f} s; limit for {args.cpu}: {peak:.1f} GFLOP/s a core")
        print(HEADER, flush=True)
        rows = [r for threads in args.threads.split(",") for r in worker(path, cases, int(threads), peak, args)]
    ratios = [r["ratio"] for r in rows]
    worst, low = min(rows, key=lambda r: r["ratio"]), min(rows, key=lambda r: r["share"])
    print(f"geometric mean of the ratio: {exp(sum(map(log, ratios)) / len(ratios)):.3f}")
    print(f"worst: {worst['ratio']:.2f} at {worst['case']}, {worst['threads']} threads")
    print(f"lowest share of the limit: {low['share']:.2f} at {low['case']}, {low['threads']} threads")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
