"""Planted miscompiles: one wrong line in one module each, which the differential tests must notice.

    python tests/mutants.py                 all of them
    python tests/mutants.py "arena overlap" one

A mutant is a piece of source text and its replacement, applied while the module is imported, in a process of its
own; the text must occur exactly once, so a mutant that no longer applies is an error and not a survivor.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CASES = range(0, 192)
"""The seeds of the sample; it ends at the first failure."""


@dataclass(frozen=True)
class Mutant:
    """In `module` the line with `old` is wrong: `new` in its place."""

    name: str
    module: str
    old: str
    new: str


MUTANTS = (
    # passes
    Mutant("simplify: difference turned round", "pullback.passes.algebra",
           'if (z := _operand(y, "neg")) is not None:\n        return b.make(SUB, x, z)',
           'if (z := _operand(y, "neg")) is not None:\n        return b.make(SUB, z, x)'),
    Mutant("simplify: x * 0.0 = 0.0", "pullback.passes.algebra",
           "if c == 0 and not n.type.dtype.is_float:", "if c == 0:"),
    # derivatives
    Mutant("derivative of a quotient", "pullback.ops.elementwise",
           "return to_a, -(to_a * out)", "return to_a, to_a * out"),
    Mutant("cotangents of several users not added", "pullback.autodiff", "    return a + b\n", "    return b\n"),
    # fusion and nests
    Mutant("fusion: order of summation", "pullback.lower.rows",
           "width = min(LANES, next_power(n))",
           "width = min(LANES if len(w.cone.nodes) > 3 else LANES // 2, next_power(n))"),
    Mutant("nests: no mask on the last step", "pullback.lower.rows",
           "masks = [(at, n)] if n % width else []", "masks = []"),
    Mutant("nests: padding forgotten", "pullback.lower.nests", "return replace(e, other=other)", "return e"),
    Mutant("nests: last position of equal extremes", "pullback.lower.rows",
           'earlier = apply("or", apply("lt", j, i)', 'earlier = apply("or", apply("gt", j, i)'),
    # schedules
    Mutant("split: tail one too long", "pullback.schedule.steps",
           "body = add_masks(subst(s.body, {axis: at}), (at, n), unread, local)",
           "body = add_masks(subst(s.body, {axis: at}), (at, n + 1), unread, local)"),
    Mutant("split: peeled rest begins too early", "pullback.schedule.steps",
           "base += count * size", "base += count * size - (size > 1)"),
    Mutant("peel: one iteration twice", "pullback.schedule.masks",
           "{axis: A(axis) + first if s.extent - first > 1 else A(first)}",
           "{axis: A(axis) + first - 1 if s.extent - first > 1 else A(first - 1)}"),
    Mutant("pack: dimensions exchanged", "pullback.schedule.staging",
           "use = Load(name, index, e.dtype)", "use = Load(name, index[::-1], e.dtype)"),
    # emitter
    Mutant("emitter: wrong lane of a scattered load", "pullback.codegen.access",
           "b.offset(pointers, elem, i * k)\n            c = self.both",
           "b.offset(pointers, elem, (self.width - 1 - i) * k)\n            c = self.both"),
    Mutant("emitter: mask one lane too wide", "pullback.codegen.access",
           'm = b.icmp("slt", b.constants("i32", steps)', 'm = b.icmp("sle", b.constants("i32", steps)'),
    Mutant("emitter: stores do not age what was loaded", "pullback.codegen.builder",
           "self._epoch[b] = self._epoch.get(b, 0) + 1", "self._epoch[b] = self._epoch.get(b, 0)"),
    # planner
    Mutant("plan: readers of old state come too late", "pullback.lower.order",
           "before[writer].update(r for r in readers[old] if r != writer)", "before[writer].update(())"),
    Mutant("plan: arena overlap", "pullback.lower.memory",
           "f <= last and first <= l", "f < last and first < l"),
    Mutant("plan: in place although it is read later", "pullback.kernel.alias",
           "return bool(writes) and all(_before(r, w, y.step) for r in reads for w in writes)",
           "return bool(writes)"),
    Mutant("plan: slices of a scan's input one element apart", "pullback.lower.plan",
           "inner[root(v)] = Located(at.storage, (*at.strides, v.type.nbytes))",
           "inner[root(v)] = Located(at.storage, (*at.strides, v.type.dtype.size))"),
    # runtime
    Mutant("runtime: strided input copied in the wrong order", "pullback_runtime.arrays",
           'array = array.copy(order="C")', 'array = array.ravel("F").reshape(array.shape)'),
)  # fmt: skip


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, mutant: Mutant, *args):
        super().__init__(*args)
        self.mutant = mutant

    def get_code(self, fullname: str):
        return self.source_to_code(self.get_data(self.path), self.path)  # never from a cached .pyc

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path).decode()
        if source.count(self.mutant.old) != 1:
            raise SystemExit(
                f"mutant {self.mutant.name!r} applies {source.count(self.mutant.old)} times, expected once"
            )
        return source.replace(self.mutant.old, self.mutant.new).encode()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant):
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        if name != self.mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = _Loader(self.mutant, name, spec.origin)
        return spec


def plant(mutant: Mutant) -> None:
    """From now on an import of the module gets the wrong line."""
    assert mutant.module not in sys.modules
    sys.meta_path.insert(0, _Finder(mutant))


def survives(mutant: Mutant, seeds: Sequence[int] = CASES) -> str | None:
    """None if the sample notices; else what the process said.  In a process of its own."""
    command = [sys.executable, __file__, "--sample", mutant.name, str(seeds[0]), str(len(seeds))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == 1 and "noticed" in done.stdout:
        return None
    return (done.stdout + done.stderr)[-2000:] or "nothing noticed"


def sample(seeds: Sequence[int]) -> list[str]:
    """The first failures among these cases, a batch after another."""
    from differential import BATCH, Setting, check, isolated, make_case

    for first in range(0, len(seeds), BATCH):
        batch = seeds[first : first + BATCH]
        cases, setting = [make_case(s) for s in batch], Setting.of(batch[0])
        found = isolated(lambda cases=cases, setting=setting: check(cases, setting, first=True), 60.0)
        if found:
            return [found] if isinstance(found, str) else [f"{f.seed}: {f.way}: {f.detail}" for f in found]
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plant miscompiles; say which the differential sample notices.")
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--sample", action="store_true", help="used for the processes: NAME FIRST COUNT")
    options = parser.parse_args(arguments)
    if options.sample:
        name, first, count = options.names
        plant(next(m for m in MUTANTS if m.name == name))
        found = sample(range(int(first), int(first) + int(count)))
        print("noticed: " + found[0] if found else "nothing noticed")
        return 1 if found else 0
    chosen = [m for m in MUTANTS if not options.names or m.name in options.names]

    def one(m: Mutant) -> tuple[Mutant, str | None, float]:
        start = time.monotonic()
        return m, survives(m), time.monotonic() - start

    alive = 0
    with ThreadPoolExecutor(2) as pool:
        for m, why, seconds in pool.map(one, chosen):
            alive += why is not None
            print(
                f"{'SURVIVES' if why else 'noticed':<10}{seconds:5.1f} s  {m.name}" + (f"\n{why}" if why else ""),
                flush=True,
            )
    print(f"{len(chosen) - alive} of {len(chosen)} noticed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
