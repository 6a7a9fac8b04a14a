"""How long building takes: in a warm process without a cache, from the cache, deeper models, and the whole command.

    python benchmarks/build_time.py

JAX (if installed) traces and compiles the same training steps in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pullback import driver
from pullback.config import Options
from pullback.dsl.trace import trace_script

HERE = Path(__file__).resolve().parent


def build(name: str, options: Options, out: Path, argv=()) -> tuple[float, driver.Build]:
    """Seconds from tracing to a file that can be loaded."""
    start = time.perf_counter()
    made = driver.Build(trace_script(HERE / f"pullback_{name}.py", argv), options)
    driver.write(out, made.artifact)
    return time.perf_counter() - start, made


def cached(name: str, options: Options, out: Path) -> float:
    start = time.perf_counter()
    driver.write(out, driver.compile_program(trace_script(HERE / f"pullback_{name}.py"), options))
    return time.perf_counter() - start


def jax_times(name: str) -> tuple[float, float]:
    """(trace and compile, whole process up to the first steps) in seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / "worker.py"), "jax", name, "2", "."],
        input="",
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[0])["compile_s"], time.perf_counter() - start


def command(name: str, out: Path) -> float:
    start = time.perf_counter()
    script = str(HERE / f"pullback_{name}.py")
    arguments = ["-m", "pullback.cli", "build", script, "-o", str(out), "--no-cache", "-q"]
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - start


def main(rounds: int = 5) -> None:
    has_jax = importlib.util.find_spec("jax") is not None
    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder) / "model.so", Path(folder) / "cache"
        for name in ("mlp", "mlpdeep"):
            build(name, Options(cache=False), out)  # imports, LLVM's start
            cached(name, Options(cache_dir=cache), out)
            rows = []
            for _ in range(rounds):
                cold, made = build(name, Options(cache=False), out)
                again = cached(name, Options(cache_dir=cache), out)
                rows.append(
                    (cold, made.timings["llvm"], again, command(name, out), *(jax_times(name) if has_jax else ()))
                )
            cold, llvm, again, whole, *peer = (statistics.median(r) for r in zip(*rows, strict=True))
            line = f"{name}: build {cold:.2f} s (LLVM {llvm:.2f}), cached {again:.3f} s, whole command {whole:.2f} s"
            if peer:
                line += f"; JAX traces and compiles in {peer[0]:.2f} s, its process takes {peer[1]:.2f} s"
            print(line)
        rows = []
        for _ in range(rounds):
            pair = [build("mlpdeep", Options(cache=False), out, ["--layers", n]) for n in ("24", "48")]
            rows.append([t for seconds, made in pair for t in (seconds, made.timings["llvm"])])
        a, llvm_a, b, llvm_b = (statistics.median(r) for r in zip(*rows, strict=True))
        print(
            f"mlpdeep with 24 layers {a:.2f} s (LLVM {llvm_a:.2f}), with 48 {b:.2f} s (LLVM {llvm_b:.2f}): "
            f"{b / a:.2f}x, LLVM {llvm_b / llvm_a:.2f}x"
        )


if __name__ == "__main__":
    main()
