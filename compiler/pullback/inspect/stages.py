"""Text of every stage of a build, for `pullback inspect`, `--dump-dir` and readers of this project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..codegen.sass import sass
from ..driver import Build
from ..errors import BuildError
from ..graph.program import Program
from ..graph.text import to_text
from ..kernel.kernel import Kernel
from ..kernel.plan_text import print_plan
from ..kernel.text import print_kernel
from ..lower.groups import LoopPiece, Region
from .forward import forward


def _graph(build: Build) -> str:
    """The forward part: what the script wrote, without derivatives and what follows from them."""
    functions = tuple(forward(f) for f in build.traced.functions)
    return to_text(replace(build.traced, functions=functions))


def _gradient(build: Build) -> str:
    return to_text(build.traced)


def _optimized(build: Build) -> str:
    return to_text(build.optimized)


def _kernels(build: Build) -> str:
    """The fused nests before any schedule, in the order of execution, each distinct one once."""
    seen: dict[int, tuple[Kernel, str]] = {}

    def visit(region: Region) -> None:
        for p in region.pieces:
            if isinstance(p, LoopPiece):
                visit(p.body)
            else:
                seen.setdefault(id(p.kernel), (p.kernel, f"{p.label}, {p.loc}"))

    for region in build.regions.values():
        visit(region)
    return "\n".join(print_kernel(k, comment) for k, comment in seen.values())


def _schedule(build: Build) -> str:
    return "\n".join(
        print_kernel(kernel, f"{isa} {key}")
        for isa, plan in build.plans.items()
        for key, kernel in plan.kernels.items()
    )


def _plan(build: Build) -> str:
    return "\n".join(f"# {isa}\n{print_plan(plan, kernels=False)}" for isa, plan in build.plans.items())


def _memory(build: Build) -> str:
    """Where every buffer of the arena lies and when it lives, and how much a step needs, for each instruction set."""
    lines = []
    for isa, plan in build.plans.items():
        arena, scratch = (max(getattr(f, n) for f in plan.functions) for n in ("arena", "scratch"))
        lines.append(f"# {isa}: arena {arena} bytes, scratch {scratch} bytes for each worker")
        lines.append(f"state {plan.state_bytes} bytes, constants {len(plan.constants)} bytes")
        lines += [f"  {s.offset:>10} +{s.type.nbytes:<10} {s.name}: {s.type}" for s in plan.state]
        for f in plan.functions:
            lines.append(f"function {f.name}: arena {f.arena} bytes, scratch {f.scratch} bytes for each worker")
            for a in sorted(f.allocations, key=lambda a: (a.offset, a.first)):
                span = f"launches {a.first}..{a.last}"
                lines.append(f"  {a.offset:>10} +{a.nbytes:<10} {span:<18} {a.name}: {a.type}  # {a.loc}")
        lines.append("")
    return "\n".join(lines)


def _llvm(build: Build) -> str:
    return "\n".join(f"; {isa}\n{text}" for isa, text in build.llvm.items())


def _asm(build: Build) -> str:
    return "\n".join(f"# {isa}\n{text}" for isa, text in build.assembly.items())


def _ptx(build: Build) -> str:
    return "\n".join(f"// {isa}\n{text}" for isa, text in build.ptx.items()) or "// for GPUs: --target cuda\n"


def _sass(build: Build) -> str:
    if not build.ptx:
        raise BuildError("sass is of code for GPUs: --target cuda")
    return "\n".join(f"// {isa}\n{sass(text, isa)}" for isa, text in build.ptx.items())


STAGES: dict[str, Callable[[Build], str]] = {
    "graph": _graph,
    "gradient": _gradient,
    "optimized": _optimized,
    "kernels": _kernels,
    "schedule": _schedule,
    "plan": _plan,
    "memory": _memory,
    "llvm": _llvm,
    "asm": _asm,
    "ptx": _ptx,
}
"""Name of a stage -> its text, in the order of the pipeline."""

WITH_TOOLS: dict[str, Callable[[Build], str]] = {"sass": _sass}
"""Those that need programs which are not there everywhere."""


def select(program: Program, names: list[str]) -> Program:
    """The program with only the named functions."""
    known = [f.name for f in program.functions]
    for n in names:
        if n not in known:
            raise BuildError(f"no function {n!r}; the program has {', '.join(dict.fromkeys(known))}")
    return replace(program, functions=tuple(f for f in program.functions if f.name in names))


def dump(build: Build, folder: Path) -> None:
    """Write every stage and the time of each pass into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, stage) in enumerate(STAGES.items(), 1):
        suffix = {"llvm": "ll", "asm": "s", "ptx": "ptx"}.get(name, "txt")
        (folder / f"{k:02}-{name}.{suffix}").write_text(stage(build))
    (folder / "timings.txt").write_text(timings(build))


def timings(build: Build) -> str:
    """The time of each stage, below `passes` that of each pass."""
    lines = []
    for name, seconds in build.timings.items():
        lines.append(f"{seconds * 1e3:9.2f} ms  {name}")
        if name == "passes":
            lines += [f"{s * 1e3:9.2f} ms      {n}" for n, s in build.pass_timings.items()]
    return "\n".join([*lines, f"{sum(build.timings.values()) * 1e3:9.2f} ms  total"]) + "\n"
