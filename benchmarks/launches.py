"""Where the time of a step goes: every call of a function's plan, on one thread.

    python benchmarks/launches.py benchmarks/pullback_mlp.py --function train
    python benchmarks/launches.py benchmarks/pullback_mlpdeep.py --by kernel
    python benchmarks/launches.py examples/digits.py --dim batch=64 --alone

Prints for each call its blocks, median microseconds, GFLOP/s of its multiply-adds and GB/s of the bytes it touches;
the sum is what one thread needs, `inspect --stage plan` shows which buffers are meant.  Calls run in the order of the
step, so each finds the caches as the step leaves them; with `--alone` each is repeated by itself.  `--by kernel` adds
up the calls of each kernel.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from pullback.codegen.compile import load_kernels
from pullback.codegen.cpu import scratch_layout
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import parse_dims, trace_script
from pullback.kernel.kernel import Apply, Kernel, Loop, Store, exprs, walk_expr
from pullback.kernel.plan import ARENA, CONSTANTS, FIRST_ARGUMENT, STATE, Call, Repeat
from pullback.kernel.plan_text import traffic


def flops(kernel: Kernel) -> int:
    """Operations of the multiply-adds of all blocks."""

    def count(stmts, times: int) -> int:
        n = 0
        for s in stmts:
            if isinstance(s, Loop):
                n += count(s.body, times * (s.extent if isinstance(s.extent, int) else 1))
            elif isinstance(s, Store):
                fmas = sum(isinstance(x, Apply) and x.fn == "fma" for e in exprs(s) for x in walk_expr(e))
                n += 2 * fmas * times
        return n

    return count(kernel.body, 1)


def calls(steps) -> list[Call]:
    out: list[Call] = []
    for s in steps:
        out += calls(s.body) if isinstance(s, Repeat) else s.calls
    return out


def measure(calls: list[Callable[[], None]], rounds: int, alone: bool) -> np.ndarray:
    """Seconds of each call in each round."""
    times = np.zeros((len(calls), rounds))
    turns = [[i] for i in range(len(calls))] if alone else [list(range(len(calls)))]
    for turn in turns:
        for r in range(rounds):
            for i in turn:
                start = time.perf_counter()
                calls[i]()
                times[i, r] = time.perf_counter() - start
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--function", default="train")
    parser.add_argument("--dim", action="append", default=[])
    parser.add_argument("--repeat", type=int, default=25)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--by", choices=("call", "kernel"), default="call")
    args, rest = parser.parse_known_args()
    sys.path.insert(0, str(args.script.resolve().parent))
    build = Build(trace_script(args.script, rest, parse_dims(args.dim)), Options(cache=False))
    (target,) = build.targets
    plan = build.plans[target.isa]
    loaded = load_kernels(build.llvm[target.isa], target)
    f = next(f for f in plan.functions if f.name == args.function)
    sizes = {ARENA: f.arena, STATE: plan.state_bytes, CONSTANTS: len(plan.constants)}
    sizes |= {FIRST_ARGUMENT + i: t.nbytes for i, t in enumerate((*f.inputs, *f.outputs))}
    memory = {base: np.zeros(n + 64, np.uint8) for base, n in sizes.items()}
    rng = np.random.default_rng(0)
    for m in memory.values():
        m[: len(m) // 4 * 4].view(np.float32)[:] = rng.uniform(0.1, 1, len(m) // 4)
    for i, t in enumerate(f.inputs):
        if t.dtype.is_integer:
            memory[FIRST_ARGUMENT + i][:] = 0
    found = calls(f.steps)
    bound = []
    for c in found:
        arrays = [memory[a.base][a.offset :] for a in c.arguments]
        scratch = scratch_layout(plan.kernels[c.kernel])[1]
        bound.append(loaded.bind(f"k_{c.kernel}_{target.isa}", arrays, c.blocks, scratch))
    no_blocks = [memory[a.base][a.offset :] for a in found[0].arguments]
    nothing = loaded.bind(f"k_{found[0].kernel}_{target.isa}", no_blocks, 0)
    overhead = float(np.median(measure([nothing], 99, False)))
    medians = np.maximum(np.median(measure(bound, args.repeat, args.alone), axis=1) - overhead, 1e-9)

    rows: dict[object, list[tuple[Call, float]]] = {}
    for i, (c, t) in enumerate(zip(found, medians, strict=True)):
        rows.setdefault(i if args.by == "call" else c.kernel, []).append((c, float(t)))
    print(f"{'us':>9} {'GFLOP/s':>8} {'GB/s':>6} {'calls':>5} {'blocks':>6}  label (elements of each argument)")
    for row in rows.values():
        c, t = row[0][0], sum(t for _, t in row)
        kernel = plan.kernels[c.kernel]
        share = sum(c.blocks for c, _ in row) / max(kernel.blocks, 1)
        moved = sum(r + w for r, w in traffic(kernel).values()) * share
        sizes = " ".join(f"{prod(b.shape)}" for b in kernel.params)
        rates = f"{flops(kernel) * share / t / 1e9:8.1f} {moved / t / 1e9:6.1f}"
        print(f"{t * 1e6:9.1f} {rates} {len(row):5} {c.blocks:6}  {c.label} ({sizes})")
    print(f"{medians.sum() * 1e6:9.1f} us in all")


if __name__ == "__main__":
    main()
