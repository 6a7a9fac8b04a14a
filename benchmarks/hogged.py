"""A training step on two threads while another process keeps one core busy, beside one thread on a quiet machine.

python benchmarks/hogged.py [mlp|mlpdeep]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workloads

import pullback_runtime as rt
from pullback import driver
from pullback.dsl.trace import trace_script


def median_ms(program, name: str, n: int = 60) -> float:
    x, y = workloads.data(name)
    times = []
    for _ in range(n):
        start = time.perf_counter()
        program.train(x=x, y=y)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "mlp"
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.so"
        driver.write(path, driver.compile_program(trace_script(Path(__file__).parent / f"pullback_{name}.py")))
        one, two = (rt.load(path, threads=n) for n in (1, 2))
        rounds = []
        for _ in range(5):
            alone, both = median_ms(one, name), median_ms(two, name)
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                os.sched_setaffinity(hog.pid, cores[1:])
                time.sleep(0.3)
                hogged = median_ms(two, name)
            finally:
                hog.kill()
                hog.wait()
            rounds.append((alone, both, hogged, hogged / alone))
    alone, both, hogged, ratio = (statistics.median(r) for r in zip(*rounds, strict=True))
    print(
        f"{name}: 1 thread {alone:.2f} ms, 2 threads {both:.2f} ms, 2 threads and a hog {hogged:.2f} ms: {ratio:.2f}x"
    )


if __name__ == "__main__":
    main()
