"""Script -> artifact: the whole pipeline on one screen.

    trace -> passes -> lower (fusion, nests) -> plan (schedule, memory) -> LLVM IR -> object code -> one `.so`

`Build` holds the result of every stage; a stage runs when it is first asked for.  `build()` is what users call
from Python: compile through the cache, then load.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path

from pullback_runtime.files import write_atomically

from . import passes
from .artifact.reopen import program_text
from .artifact.write import artifact_bytes
from .cache import Cache
from .codegen import cpu, ptx
from .codegen.compile import assembly, compile_module
from .codegen.native import native_object
from .codegen.ptx import gpu_target
from .codegen.ptx_lines import with_lines
from .codegen.target import Target, cpu_target
from .collector import collector_paused
from .config import Options
from .dsl.functions import ScriptFunction
from .dsl.pytree import tree_leaves
from .dsl.trace import trace_functions
from .errors import BuildError
from .graph import content
from .graph.program import SEED, Program
from .graph.types import Dim
from .kernel.kernel import Kernel
from .kernel.plan import Plan
from .kernel.verify import verify, verify_plan
from .lower.groups import Region
from .lower.plan import Kernels, make_plan
from .lower.regions import Lowering
from .lower.watch import watch
from .passes.checkpoint import checkpoint
from .passes.precision import applies as precision_applies
from .passes.precision import precision
from .passes.split_sums import split_sums
from .schedule import schedule
from .schedule.gpu_limits import GPU, GpuLimits


class Build:
    """One program on its way down.  `timings`: stage -> seconds, in order; `pass_timings`: pass -> seconds."""

    def __init__(
        self,
        program: Program,
        options: Options | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ):
        self.traced, self.options, self.on_stage = program, options or Options(), on_stage
        self.timings: dict[str, float] = {}
        self.pass_timings: dict[str, float] = {}
        self.cache = Cache.of(self.options)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.on_stage(name)
        start = time.perf_counter()
        with collector_paused():
            yield
        self.timings[name] = time.perf_counter() - start

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The machines to compile for: instruction sets, best last, then GPUs."""
        return targets_of(self.options)

    @cached_property
    def _passes(self) -> tuple[passes.Pass, ...]:
        chosen = (*passes.PASSES, *precision(self.options.precision))
        if self.options.precision != "f32" and any(t.is_gpu for t in self.targets):
            chosen = (*chosen, split_sums)
        return (*chosen, checkpoint) if self.options.recompute else chosen

    @cached_property
    def _optimized(self) -> Program:
        with self._stage("passes"):
            return passes.run(self.traced, self._passes, timings=self.pass_timings, checked=False)

    @cached_property
    def optimized(self) -> Program:
        """The program after all passes, verified."""
        passes.check(self.traced, self._passes, self._optimized)
        return self._optimized

    @cached_property
    def regions(self) -> dict[int, Region]:
        program = self._optimized
        with self._stage("lower"):
            lowering = Lowering(self.options.fusion)
            regions = {i: lowering.region(f.graph, len(f.writes)) for i, f in enumerate(program.functions)}
            return {i: watch(r) for i, r in regions.items()} if self.options.watch_nan else regions

    @cached_property
    def _planned(self) -> dict[str, Plan]:
        """isa -> plan: what differs among instruction sets is how kernels are scheduled and cut into blocks."""
        regions = self.regions
        with self._stage("schedule and plan"):
            return {t.isa: self._plan(t, regions) for t in self.targets}

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plans, verified."""
        for plan in self._planned.values():
            verify_plan(plan)
        return self._planned

    def _plan(self, target: Target, regions: dict[int, Region]) -> Plan:
        def scheduled(kernel: Kernel, gpu: GpuLimits = GPU) -> Kernel:
            verify(kernel)
            after = schedule(kernel, target, gpu=gpu)
            verify(after, target)
            return after

        def in_loops(kernel: Kernel) -> Kernel:
            return scheduled(kernel, replace(GPU, moving=True))

        scratch = (lambda k: 0) if target.is_gpu else (lambda k: cpu.scratch_layout(k)[1])
        return make_plan(self._optimized, regions, Kernels(scheduled, scratch, in_loops if target.is_gpu else None))

    @cached_property
    def llvm(self) -> dict[str, str]:
        """isa -> the module with all kernels of that instruction set."""
        plans = self._planned
        with self._stage("emit"):
            return {t.isa: _module(plans[t.isa], t) for t in self.targets}

    @cached_property
    def assembly(self) -> dict[str, str]:
        return {t.isa: assembly(self.llvm[t.isa], t) for t in self.targets if not t.is_gpu}

    @cached_property
    def ptx(self) -> dict[str, str]:
        """isa -> PTX of all kernels, for GPUs."""
        gpus, texts = [t for t in self.targets if t.is_gpu], self.llvm
        if not gpus:
            return {}
        with self._stage("ptx"):
            found = {t: self._translated(texts[t.isa], t) for t in gpus}
            return {t.isa: with_lines(text, self._planned[t.isa], t) for t, text in found.items()}

    def _translated(self, text: str, target: Target) -> str:
        return self.cache.find((text, target), lambda: ptx.translate(text, target).encode()).decode()

    @cached_property
    def objects(self) -> list[bytes]:
        texts = self.llvm
        with self._stage("llvm"):
            return [self._compiled(texts[t.isa], t) for t in self.targets if not t.is_gpu]

    def _compiled(self, text: str, target: Target) -> bytes:
        return self.cache.find((text, target), lambda: compile_module(text, target))

    @cached_property
    @collector_paused()
    def artifact(self) -> bytes:
        """The bytes of the `.so`."""
        _ = self.llvm  # the stages before, in this thread
        with ThreadPoolExecutor(1) as aside:  # LLVM runs without the interpreter's lock
            text, verified = aside.submit(program_text, self.traced), aside.submit(lambda: (self.optimized, self.plans))
            objects, ptx = self.objects, self.ptx
        with self._stage("link"):
            native = self.cache.find("native module", native_object) if objects else b""
            made = *verified.result(), self.targets, objects, native, self.options.content(), text.result()
            return artifact_bytes(*made, ptx)


def _module(plan: Plan, target: Target) -> str:
    if target.is_gpu:
        return ptx.plan_module(plan, target)
    return cpu.module([cpu.emit_kernel(key, kernel, target) for key, kernel in plan.kernels.items()], target)


def targets_of(options: Options) -> tuple[Target, ...]:
    """The machines that options name."""
    lists = (options.target, options.cpu, options.gpu)
    kinds, cpus, gpus = (list(dict.fromkeys(n.strip() for n in x.split(","))) for x in lists)
    if unknown := set(kinds) - {"cpu", "cuda"}:
        raise BuildError(f"--target {min(unknown)}: expected cpu, cuda or cpu,cuda")
    targets = [cpu_target(n) for n in cpus] if "cpu" in kinds else []
    return (*targets, *((gpu_target(n) for n in gpus) if "cuda" in kinds else ()))


def remarks(program: Program, options: Options) -> list[str]:
    """What a build should say of options that give the right numbers, but not in the time that one hopes for."""
    slow = [t for t in targets_of(options) if not t.is_gpu and not t.has_bf16_dot]
    if options.precision != "bf16" or not slow or not any(precision_applies(f.graph) for f in program.functions):
        return []
    names = " and ".join(f"native ({t.tune})" if t.name == "native" else t.name for t in slow)
    return [
        f"--precision bf16: no AVX-512-BF16 (VDPBF16PS) on {names}: matrix products take seven to nine times as "
        "long as in f32; use --cpu native on a processor that has it, or --precision f32"
    ]


def compile_program(program: Program, options: Options | None = None, **kwargs) -> bytes:
    """The artifact of a traced program, from the cache where an equal one was built before."""
    options = options or Options()
    return Cache.of(options).find(cache_key(program, options), lambda: Build(program, options, **kwargs).artifact)


def cache_key(program: Program, options: Options) -> list:
    """What an artifact depends on, beside the compiler itself: content of the program with its source locations,
    options and targets."""
    parts = [program.name, program.options, program.states, sorted(options.content().items()), targets_of(options)]
    for f in program.functions:
        locs = [(n.loc.file, n.loc.line) for n in f.graph.nodes]
        parts.append((f.name, f.arguments, f.reads, f.writes, f.inputs, f.outputs, f.dims, f.training, f.padded, f.loc))
        parts.append((f.prints, f.unpadded, content.key(f.graph), locs))
    return parts


def write(path: Path, artifact: bytes) -> None:
    """Atomically: a loaded artifact is never overwritten in place."""
    write_atomically(path, artifact, mode=0o755)


def build(
    *functions: ScriptFunction,
    dims: Mapping[str | Dim, int | Iterable[int]] | None = None,
    output: str | os.PathLike | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    **options,
):
    """Compile `@pb.function`s and load them: `pb.build(train, predict, dims={"batch": 64})`.

    dims: "batch" or "predict.batch" -> a size, or several.
    output: where to write the artifact; by default it is in memory only (the program's `path` is None then).
    seed, threads: as in `rt.load`.  device: too; by default the processor, if the target has it.
    options: the fields of `pullback.config.Options`.
    Returns a `pullback_runtime.Program`, the same that `rt.load` gives of a file.
    """
    import pullback_runtime as rt

    for f in functions:
        if not isinstance(f, ScriptFunction):
            raise BuildError(f"pb.build takes functions made by @pb.function, got {f!r}")
    known = [f.name for f in fields(Options)]
    for name in options:
        if name not in known:
            own = "dims, output, seed, threads, device"
            raise BuildError(f"pb.build has no option {name!r}: it has {own}, {', '.join(known)}")
    if dims is not None and not isinstance(dims, Mapping):
        raise BuildError(f'dims is {dims!r}: expected names and sizes, such as {{"batch": 64}}')
    program, chosen = trace_functions(functions, dims=dims), Options(**options)
    for remark in remarks(program, chosen):
        warnings.warn(remark, stacklevel=3)
    artifact = compile_program(program, chosen)
    how = {"seed": seed, "threads": threads, "device": device or ("cpu" if "cpu" in chosen.target else "cuda")}
    if output is not None:
        try:
            write(Path(output), artifact)
        except OSError as e:
            raise BuildError(f"cannot write {os.fspath(output)}: {e.strerror}") from None
        return rt.load(output, **how)
    with tempfile.TemporaryDirectory(prefix="pullback-") as folder:  # the loader wants a file
        path = Path(folder) / f"{program.name}.so"
        write(path, artifact)
        loaded = rt.load(path, **how)
    loaded.path = None
    return loaded


def jit(function: ScriptFunction) -> Callable:
    """What calling a `@pb.function` on arrays does: build for their shapes, once for each, and run.

    Only for functions without state: what reads or writes parameters belongs to a program of its own (`pb.build`).
    """
    import numpy as np

    built: dict[tuple, object] = {}

    def call(*args, **kwargs):
        given = dict(zip(function.specs, args, strict=False)) | kwargs
        dims = _bind(function, {name: given.get(name) for name in function.specs}, np.shape)
        key = tuple(sorted(dims.items()))
        if key not in built:
            program = trace_functions([function], dims=dims)
            if len(program.states) > 1:
                names = ", ".join(n for n in program.states if n != SEED)
                raise BuildError(
                    f"{function.loc}: {function.name} has state ({names}), so it needs a program that keeps it: "
                    f"program = pb.build({function.name}, ...), then program.{function.name}(...)"
                )
            built[key] = build(function, dims=dims)
        return getattr(built[key], function.name)(*args, **kwargs)

    return call


def _bind(function: ScriptFunction, given: dict[str, object], shape_of) -> dict[str, int]:
    """The sizes of the named dimensions, from the arrays of a call (wrong shapes are the call's own error)."""
    dims: dict[str, int] = {}
    for name, spec in function.specs.items():
        leaves, values = tree_leaves(spec), tree_leaves(given[name])
        for leaf, value in zip(leaves, values, strict=False):
            for d, n in zip(leaf.shape, shape_of(value), strict=False):
                if isinstance(d, Dim):
                    dims.setdefault(d.name, n)
    return dims
