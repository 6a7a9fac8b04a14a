"""Contractions alone: matrix products by our schedules against torch and numpy, alternating in one process.

    python benchmarks/contractions.py                      # the fixed shapes, 1 and 2 threads
    python benchmarks/contractions.py --random 50 --seed 7 # random shapes, each side 1 to 2048, all forms
    python benchmarks/contractions.py --shape 97,131,75 --threads 1

Each number of threads is a process of its own, because BLAS libraries read theirs when they start.  Every
contestant gets the same arrays; rounds alternate between contestants and the median counts.  The table says
GFLOP/s, and ours as a ratio to the better of the two others; the last lines are the geometric mean and the
worst case.  Blocks of a kernel are dealt to threads as the runtime does: the next one to whoever is free.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from math import exp, log, log10
from statistics import median

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


def nest(m: int, n: int, k: int, form: str):
    """The unscheduled kernel: out[i, j] = sum over k of a[i, k] b[k, j]; T: stored the other way round."""
    from pullback.kernel.kernel import Buffer, Const, Kernel, apply, load, loop, store

    a, b = Buffer("a", (k, m) if form[0] == "T" else (m, k)), Buffer("b", (n, k) if form[1] == "T" else (k, n))
    out, acc = Buffer("out", (m, n)), Buffer("acc", (), space="register")
    x = load(a, *(("k", "i") if form[0] == "T" else ("i", "k")))
    y = load(b, *(("j", "k") if form[1] == "T" else ("k", "j")))
    body = (
        store(acc, (), Const(0.0)),
        loop("k", k, "reduce", store(acc, (), apply("fma", x, y, load(acc)))),
        store(out, ("i", "j"), load(acc)),
    )
    return Kernel("contraction", (a, b, out), (acc,), (loop("i", m, "parallel", loop("j", n, "parallel", *body)),))


class Workers:
    """Runs the blocks of a kernel on some threads; each takes the next range of blocks that nobody has."""

    def __init__(self, threads: int):
        self.threads = threads
        self.gates = [threading.Semaphore(0) for _ in range(threads - 1)]
        self.done = threading.Semaphore(0)
        self.job = None
        for i in range(threads - 1):
            threading.Thread(target=self._work, args=(i,), daemon=True).start()

    def _work(self, i: int) -> None:
        while True:
            self.gates[i].acquire()
            self.job(i + 1)
            self.done.release()

    def run(self, job) -> None:
        self.job = job
        for gate in self.gates:
            gate.release()
        job(0)
        for _ in self.gates:
            self.done.acquire()


@dataclass
class Compiled:
    """A scheduled and compiled contraction on its arrays."""

    run: object  # of the number of repetitions
    seconds: float
    blocks: int


def ours(m: int, n: int, k: int, form: str, arrays, cpu: str, workers: Workers) -> Compiled:
    import numpy as np

    from pullback.codegen.compile import load_kernels
    from pullback.codegen.cpu import emit_kernel, module, scratch_layout, symbol
    from pullback.codegen.target import cpu_target
    from pullback.schedule import schedule

    start, target = time.perf_counter(), cpu_target(cpu)
    kernel = schedule(nest(m, n, k, form), target)
    loaded = load_kernels(module([emit_kernel("c", kernel, target)], target), target)
    seconds = time.perf_counter() - start
    function = loaded.function(symbol("c", target))
    rows = np.zeros((len(arrays), 6), np.int64)
    rows[:, 0] = np.arange(len(arrays))
    bases = np.array([a.ctypes.data for a in arrays], np.int64)
    loops = np.zeros(4, np.int64)
    size = scratch_layout(kernel)[1]
    scratch = [np.zeros(size + 4096, np.uint8) for _ in range(workers.threads)]
    aligned = [(s.ctypes.data + 4095) & ~4095 for s in scratch]
    keep = (loaded, rows, bases, loops, scratch)
    fixed = (rows.ctypes.data, bases.ctypes.data, loops.ctypes.data)
    blocks, threads = kernel.blocks, workers.threads

    def run(repeat: int, _keep=keep) -> None:
        if threads == 1:
            for _ in range(repeat):
                function(*fixed, aligned[0], 0, 0, blocks)
            return
        # All repetitions are one list of ranges, so that the cost of Python's locks does not count: a native
        # scheduler's is 0.1 microseconds.
        step = max(1, blocks // (4 * threads))
        ranges = [(lo, min(lo + step, blocks)) for lo in range(0, blocks, step)]
        following = iter(ranges * repeat).__next__  # atomic under the interpreter lock

        def job(worker: int) -> None:
            memory = aligned[worker]
            try:
                while True:
                    lo, hi = following()
                    function(*fixed, memory, 0, lo, hi)
            except StopIteration:
                return

        workers.run(job)

    return Compiled(run, seconds, blocks)


def measure(contestants: dict, budget: float, rounds: int) -> dict[str, float]:
    """Seconds per call, medians over alternating rounds."""
    counts = {}
    for name, run in contestants.items():
        run(1)
        start = time.perf_counter()
        run(1)
        counts[name] = max(1, int(budget / rounds / max(time.perf_counter() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(counts[name])
            times[name].append((time.perf_counter() - start) / counts[name])
    return {name: median(t) for name, t in times.items()}


def compare(cases, threads: int, cpu: str, budget: float, rounds: int) -> list[dict]:
    """In this process: every case, one line each on standard error, the figures as a list."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    rng, workers, out = np.random.default_rng(0), Workers(threads), []
    for m, n, k, form in cases:
        a = rng.standard_normal((k, m) if form[0] == "T" else (m, k)).astype(np.float32)
        b = rng.standard_normal((n, k) if form[1] == "T" else (k, n)).astype(np.float32)
        results = {name: np.empty((m, n), np.float32) for name in ("ours", "torch", "numpy")}
        c = ours(m, n, k, form, (a, b, results["ours"]), cpu, workers)
        na, nb = a.T if form[0] == "T" else a, b.T if form[1] == "T" else b
        ta, tb, tout = torch.from_numpy(na), torch.from_numpy(nb), torch.from_numpy(results["torch"])

        def by_torch(repeat: int, ta=ta, tb=tb, tout=tout) -> None:
            for _ in range(repeat):
                torch.mm(ta, tb, out=tout)

        def by_numpy(repeat: int, na=na, nb=nb, nout=results["numpy"]) -> None:
            for _ in range(repeat):
                np.matmul(na, nb, out=nout)

        seconds = measure({"ours": c.run, "torch": by_torch, "numpy": by_numpy}, budget, rounds)
        exact = na.astype(np.float64) @ nb.astype(np.float64)
        error = float(np.abs(results["ours"] - exact).max() / np.sqrt(k))
        assert error < 1e-4, f"{m},{n},{k} {form}: wrong by {error}"
        flops = 2e-9 * m * n * k
        row = {name: flops / t for name, t in seconds.items()}
        row |= {"shape": (m, n, k), "form": form, "threads": threads, "build": c.seconds, "blocks": c.blocks}
        row["ratio"] = row["ours"] / max(row["torch"], row["numpy"])
        out.append(row)
        print(line(row), file=sys.stderr, flush=True)
    return out


def line(row: dict) -> str:
    m, n, k = row["shape"]
    numbers = " ".join(f"{row[name]:8.1f}" for name in ("ours", "torch", "numpy"))
    return f"{m:5d} {n:5d} {k:5d}  {row['form']}  {row['threads']}  {numbers}   {row['ratio']:5.2f}"


HEADER = "    m     n     k  form thr   ours    torch    numpy   ratio    (GFLOP/s)"


def random_cases(count: int, seed: int):
    """Each side 1 to 2048, evenly on a logarithmic scale for half of the shapes; every form."""
    from random import Random

    rng, out = Random(seed), []
    for i in range(count):
        sides = [rng.randint(1, 2048) if i % 2 else min(2048, int(10 ** rng.uniform(0, log10(2049)))) for _ in range(3)]
        out.append((*sides, rng.choice(FORMS)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--shape", action="append", help="m,n,k (repeatable); default: the fixed list")
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--random", type=int, metavar="N", help="N random shapes instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", default="native", help="native, or a level: x86-64-v3")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each contestant and case")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        spec = json.loads(args.worker)
        print(json.dumps(compare(spec, int(args.threads), args.cpu, args.seconds, args.rounds)))
        return
    shapes = [tuple(map(int, s.split(","))) for s in args.shape or ()] or SHAPES
    cases = [(*s, f) for s in shapes for f in args.form or FORMS]
    if args.random:
        cases = random_cases(args.random, args.seed)
        print(f"{args.random} random shapes, seed {args.seed}")
    print(HEADER, flush=True)
    rows = []
    for threads in args.threads.split(","):
        env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        env |= {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, __file__, "--worker", json.dumps(cases), "--threads", threads, "--cpu", args.cpu]
        command += ["--seconds", str(args.seconds), "--rounds", str(args.rounds)]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout)
    ratios = [r["ratio"] for r in rows]
    worst = min(rows, key=lambda r: r["ratio"])
    print(f"geometric mean of the ratio: {exp(sum(map(log, ratios)) / len(ratios)):.3f}")
    print(f"worst: {worst['ratio']:.2f} at {worst['shape']} {worst['form']}, {worst['threads']} threads")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
