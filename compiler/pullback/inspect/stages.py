"""Text of every stage of a build, for `pullback inspect`, `--dump-dir` and readers of this project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..driver import Build
from ..graph import text as graph_text
from ..graph.program import Program
from ..kernel import text as kernel_text
from ..lower.groups import LoopPiece, Region


def _graph(build: Build) -> str:
    """The forward part: what the script wrote, without derivatives and updates."""
    return graph_text.print_program(build.traced, gradient=False)


def _gradient(build: Build) -> str:
    return graph_text.print_program(build.traced)


def _optimized(build: Build) -> str:
    return graph_text.print_program(build.optimized)


def _kernels(build: Build) -> str:
    """The fused nests before any schedule, in the order of execution, each distinct one once."""
    seen: dict[int, object] = {}

    def visit(region: Region) -> None:
        for p in region.pieces:
            if isinstance(p, LoopPiece):
                visit(p.body)
            else:
                seen.setdefault(id(p.kernel), p.kernel)

    for region in build.regions.values():
        visit(region)
    return "\n\n".join(map(kernel_text.print_kernel, seen.values())) + "\n"


def _schedule(build: Build) -> str:
    parts = []
    for isa, plan in build.plans.items():
        for key, kernel in plan.kernels.items():
            parts.append(f"# {isa} {key}\n{kernel_text.print_kernel(kernel)}")
    return "\n\n".join(parts) + "\n"


def _plan(build: Build) -> str:
    return "\n".join(f"# {isa}\n{kernel_text.print_plan(plan)}" for isa, plan in build.plans.items())


def _memory(build: Build) -> str:
    """Where every buffer of the arena lies and when it lives, and how much a step needs."""
    plan = next(iter(build.plans.values()))
    lines = [f"state {plan.state_bytes} bytes, constants {len(plan.constants)} bytes"]
    lines += [f"  {s.name}: {s.type} at {s.offset}" for s in plan.state]
    for f in plan.functions:
        lines.append(f"function {f.name}: arena {f.arena} bytes, scratch {f.scratch} bytes for each worker")
        for a in sorted(f.allocations, key=lambda a: (a.offset, a.first)):
            span = f"launches {a.first}..{a.last}"
            lines.append(f"  {a.offset:>10} +{a.nbytes:<10} {span:<18} {a.name}: {a.type}  # {a.loc}")
    return "\n".join(lines) + "\n"


def _llvm(build: Build) -> str:
    return "\n".join(build.llvm.values())


def _asm(build: Build) -> str:
    return "\n".join(build.assembly.values())


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
}
"""Name of a stage -> its text, in the order of the pipeline."""


def select(program: Program, names: list[str]) -> Program:
    """The program with only the named functions."""
    from dataclasses import replace

    from ..errors import BuildError

    known = [f.name for f in program.functions]
    for n in names:
        if n not in known:
            raise BuildError(f"no function {n!r}; the program has {', '.join(dict.fromkeys(known))}")
    return replace(program, functions=tuple(f for f in program.functions if f.name in names))


def dump(build: Build, folder: Path) -> None:
    """Write every stage and the time of each pass into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, stage) in enumerate(STAGES.items()):
        suffix = {"llvm": "ll", "asm": "s"}.get(name, "txt")
        (folder / f"{k}-{name}.{suffix}").write_text(stage(build))
    (folder / "timings.txt").write_text(timings(build))


def timings(build: Build) -> str:
    total = sum(s for n, s in build.timings.items() if not n.startswith("pass "))
    lines = [f"{seconds * 1e3:10.2f} ms  {name}" for name, seconds in build.timings.items()]
    return "\n".join([*lines, f"{total * 1e3:10.2f} ms  total"]) + "\n"
