"""Pullback beside its peers: the same training steps, one process for each system, taking turns.

    python benchmarks/run.py                       # mlp and mlpdeep, 2 threads, all systems that are installed
    python benchmarks/run.py mlp --threads 1 --systems pullback,jax --rounds 20 --picture bench.png
    python benchmarks/run.py mlp --systems pullback --precision bf16

Prints a table of medians, ratios to the best peer, compile time, peak memory and shares of the machine's measured
limits.  Only ratios of one run mean anything: machines differ, and this one may be shared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import workloads
from contractions import limit

HERE = Path(__file__).parent
PACKAGE = {"pullback": "pullback", "jax": "jax", "torch": "torch", "inductor": "torch"}


class Worker:
    """A system in a process of its own."""

    def __init__(self, system: str, workload: str, threads: int, folder: str):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | {
            "OMP_NUM_THREADS": str(threads),
            "JAX_PLATFORMS": "cpu",
        }
        self.system, self.times, self.rss = system, [], 0.0
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), system, workload, str(threads), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.info = self._answer()
        self.start_s = time.perf_counter() - start

    def _answer(self) -> dict:
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.system}: the worker ended with status {self.process.wait()}")

    def run(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.times += answer["times"]
        self.rss = answer["rss_mb"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def machine_limits(threads: int) -> tuple[float, float]:
    """(GFLOP/s of fused multiply-adds in registers, GB/s of a large copy), measured now."""
    flops = threads * limit("native")
    x = np.zeros(64 << 20, np.uint8)
    y = np.empty_like(x)
    bandwidth = max(_rate(lambda: np.copyto(y, x), 2.0 * x.nbytes) for _ in range(5)) / 1e9
    return flops, bandwidth


def _rate(work, amount: float) -> float:
    start = time.perf_counter()
    work()
    return amount / (time.perf_counter() - start)


def compare(workload: str, systems: list[str], threads: int, rounds: int, steps: int) -> list[dict]:
    """One row for each system."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(s, workload, threads, folder) for s in systems]
        for _ in range(rounds):
            for w in workers:
                w.run(steps)
        for w in workers:
            w.close()
    flops, bandwidth = machine_limits(threads)
    floor = workloads.matmul_flops(workload) / flops / 1e9 + workloads.state_bytes(workload) / bandwidth / 1e9
    best = min(
        (statistics.median(w.times) for w in workers if not w.system.startswith("pullback")),
        default=statistics.median(workers[0].times),
    )
    return [
        {
            "workload": workload,
            "system": w.system,
            "median_ms": statistics.median(w.times) * 1e3,
            "min_ms": min(w.times) * 1e3,
            "ratio": statistics.median(w.times) / best,
            "limit": floor / statistics.median(w.times),
            "compile_s": w.info["compile_s"],
            "process_s": w.start_s,
            "rss_mb": w.rss,
            "loss": w.info["loss"],
        }
        for w in workers
    ]


def table(rows: list[dict]) -> str:
    head = "| workload | system | median ms | min ms | / best peer | share of limit | compile s | start s | peak MB |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r['workload']} | {r['system']} | {r['median_ms']:.2f} | {r['min_ms']:.2f} | {r['ratio']:.2f} "
            f"| {r['limit']:.0%} | {r['compile_s']:.2f} | {r['process_s']:.1f} | {r['rss_mb']:.0f} |"
        )
    return "\n".join(lines)


def precisions(rows: list[dict]) -> list[str]:
    """What less precision gains over f32, of the same rounds."""
    exact = {r["workload"]: r for r in rows if r["system"] == "pullback"}
    return [
        f"{r['workload']}: {r['system']} is {exact[r['workload']]['median_ms'] / r['median_ms']:.2f} times as fast as "
        f"pullback (fastest steps: {exact[r['workload']]['min_ms'] / r['min_ms']:.2f}); losses {r['loss']:.4f} and "
        f"{exact[r['workload']]['loss']:.4f} after three steps"
        for r in rows
        if r["system"].startswith("pullback-") and r["workload"] in exact
    ]


def picture(rows: list[dict], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["workload"] for r in rows))
    fig, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        mine = [r for r in rows if r["workload"] == name]
        bars = ax.bar([r["system"] for r in mine], [r["median_ms"] for r in mine])
        ax.bar_label(bars, fmt="%.2f")
        ax.set_title(f"{name}: training step, ms")
    fig.tight_layout()
    fig.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=[], help=f"of {', '.join(workloads.WORKLOADS)}")
    parser.add_argument("--systems", default="pullback,jax,torch,inductor")
    parser.add_argument("--precision", default="", help="also pullback with these (bf16, tf32), and what they gain")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="steps of each turn")
    parser.add_argument("--picture", help="also draw a bar chart there")
    args = parser.parse_args()
    systems = [s for s in args.systems.split(",") if importlib.util.find_spec(PACKAGE[s])]
    systems += [f"pullback-{p}" for p in args.precision.split(",") if p]
    rows = []
    for name in args.workloads or workloads.WORKLOADS:
        rows += compare(name, systems, args.threads, args.rounds, args.steps)
    print("\n".join([table(rows), *precisions(rows)]))
    if args.picture:
        picture(rows, args.picture)


if __name__ == "__main__":
    main()
