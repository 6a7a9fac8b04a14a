"""Script -> artifact: the whole pipeline on one screen.

    trace -> passes -> lower (fusion, nests) -> plan (schedule, memory) -> LLVM IR -> object code -> one `.so`

`Build` holds the result of every stage; a stage runs when it is first asked for.  `build()` is what users call
from Python: compile through the cache, then load.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from . import __version__, passes
from .artifact.write import artifact_bytes
from .cache import Cache
from .codegen.compile import assembly, compile_module
from .codegen.emit import emit_module, scratch_bytes
from .codegen.native import native_module
from .codegen.target import Target, cpu_target
from .config import Options
from .errors import BuildError
from .graph.content import program_key
from .graph.program import Program
from .kernel.plan import Plan
from .lower import lower
from .lower.groups import Region
from .lower.plan import Kernels, make_plan
from .schedule import schedule


class Build:
    """One program on its way down.  `timings`: stage or pass -> seconds, in order."""

    def __init__(
        self, program: Program, options: Options | None = None, on_stage: Callable[[str], None] = lambda s: None
    ):
        self.traced, self.options, self.on_stage = program, options or Options(), on_stage
        self.timings: dict[str, float] = {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.on_stage(name)
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The instruction sets to compile for, best last."""
        names = [n.strip() for n in self.options.cpu.split(",") if n.strip()]
        if not names:
            raise BuildError("--cpu names no instruction set")
        return tuple(cpu_target(n) for n in names)

    @cached_property
    def optimized(self) -> Program:
        with self._stage("passes"):
            return passes.run(self.traced, passes.pipeline(self.options), timings=self.timings)

    @cached_property
    def regions(self) -> dict[int, Region]:
        program = self.optimized
        with self._stage("lower"):
            return {i: lower(f.graph, self.options) for i, f in enumerate(program.functions)}

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """isa -> plan: what differs among instruction sets is how kernels are scheduled and cut into blocks."""
        regions = self.regions
        with self._stage("schedule and plan"):
            return {t.isa: self._plan(t, regions) for t in self.targets}

    def _plan(self, target: Target, regions: dict[int, Region]) -> Plan:
        kernels = Kernels(lambda k: schedule(k, target), scratch_bytes)
        return make_plan(self.optimized, regions, kernels)

    @cached_property
    def llvm(self) -> dict[str, str]:
        """isa -> the module with all kernels of that instruction set."""
        plans = self.plans
        with self._stage("emit"):
            return {t.isa: emit_module(plans[t.isa].kernels, t) for t in self.targets}

    @cached_property
    def assembly(self) -> dict[str, str]:
        return {t.isa: assembly(self.llvm[t.isa], t) for t in self.targets}

    @cached_property
    def objects(self) -> list[bytes]:
        texts = self.llvm
        with self._stage("llvm"):
            return [compile_module(texts[t.isa], t) for t in self.targets]

    @cached_property
    def artifact(self) -> bytes:
        """The bytes of the `.so`."""
        objects, plans = self.objects, self.plans
        with self._stage("link"):
            return artifact_bytes(self.optimized, plans, self.targets, objects, native_module, self.options.content())


def compile_program(program: Program, options: Options | None = None, **kwargs) -> bytes:
    """The artifact of a traced program, from the cache where an equal one was built before."""
    options = options or Options()
    cache = Cache.of(options)
    key = cache_key(program, options)
    found = cache.get(key)
    if found is None:
        found = Build(program, options, **kwargs).artifact
        cache.put(key, found)
    return found


def cache_key(program: Program, options: Options) -> str:
    """Content of the program, the options, the machine (for `native`) and this version."""
    targets = [repr(cpu_target(n.strip())) for n in options.cpu.split(",")]
    text = repr((__version__, program_key(program), sorted(options.content().items()), targets))
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, artifact: bytes) -> None:
    """Atomically: a loaded artifact is never overwritten in place."""
    from pullback_runtime.files import write_atomically

    write_atomically(path, artifact)
