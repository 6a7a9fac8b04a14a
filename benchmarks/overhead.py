"""What a call costs beyond its work, and what starting costs.

    python benchmarks/overhead.py

* A tiny compiled step (w -= 0.1 * x on 8 numbers), called from Python with the same arrays and with new ones.
* A fresh process that imports the runtime, loads digits and makes a first step; its resident memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import pullback as pb
from pullback import driver, nn, optim
from pullback.dsl.trace import trace_functions, trace_script

FIRST_STEP = """
import time
start = time.perf_counter()
import sys
import numpy as np
import pullback_runtime as rt
digits = rt.load(sys.argv[1], seed=0)
image, label = np.zeros((64, 64), "f4"), np.zeros(64, "i4")
digits.train(image=image, label=label)
seconds = time.perf_counter() - start
with open("/proc/self/status") as f:
    rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
print(seconds, rss / 1024)
"""


class Tiny(nn.Module):
    def __init__(self):
        self.linear = nn.Linear(8, 1, bias=False)


def tiny_program(folder: str):
    """(the program, seconds of the work alone)."""
    import pullback_runtime as rt

    model = Tiny()
    optimizer = optim.SGD(model, lr=0.1)

    @pb.function(pb.f32[1, 8])
    def step(x):
        optimizer.update([x])

    path = Path(folder) / "tiny.so"
    program = trace_functions([step], {"model": model, "optimizer": optimizer})
    driver.write(path, driver.compile_program(program, pb.Options(cache=False)))
    return rt.load(path, threads=1)


def per_call(call, n: int = 20000, rounds: int = 7) -> float:
    """Median microseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(n):
            call()
        times.append((time.perf_counter() - start) / n)
    return float(np.median(times)) * 1e6


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = tiny_program(folder)
        x = np.ones((1, 8), np.float32)
        many = [np.ones((1, 8), np.float32) for _ in range(1000)]
        step, turn = program.step, iter(())

        def new():
            nonlocal turn
            a = next(turn, None)
            if a is None:
                turn = iter(many)
                a = next(turn)
            step(x=a)

        def pick():
            nonlocal turn
            a = next(turn, None)
            if a is None:
                turn = iter(many)
                a = next(turn)

        same = per_call(lambda: step(x=x)) - per_call(lambda: None)
        fresh = per_call(new) - per_call(pick)
        print(
            f"a call with the same arrays: {same:.2f} us, with new ones: {fresh:.2f} us (the tiny step's work included)"
        )

        here = Path(__file__).resolve().parent.parent
        artifact = Path(folder) / "digits.so"
        digits = trace_script(here / "examples" / "digits.py", [], {"batch": 64})
        driver.write(artifact, driver.compile_program(digits))
        runs = []
        for _ in range(5):
            out = subprocess.run(
                [sys.executable, "-c", FIRST_STEP, str(artifact)], capture_output=True, text=True, check=True
            )
            runs.append([float(v) for v in out.stdout.split()])
        seconds, rss = np.median(runs, axis=0)
        print(f"import, load and first step of digits: {seconds:.3f} s, resident {rss:.1f} MB")


if __name__ == "__main__":
    main()
