"""Schedules: unscheduled kernels of IR 2 in, kernels that say how they run on one target out.

`schedule` recognises the family of a nest from its structure and applies its schedule; a schedule is a chain
of steps (`steps.py`, `staging.py`, `masks.py`), each a pure function kernel -> kernel that checks what it
relies on.  No step changes the order in which anything is summed, so every schedule gives the same bits.
"""

from __future__ import annotations

from collections.abc import Collection

from ..codegen.target import Target
from ..errors import ScheduleError
from ..kernel.kernel import Kernel, Loop, Stmt, Tile, loads, read, walk, written
from .contraction import accumulation, group, recognise
from .cpu_contract import schedule_contraction
from .cpu_map import schedule_map, walks_columns
from .cpu_rows import schedule_rows
from .gpu import schedule_gpu
from .gpu_limits import GPU, GpuLimits
from .limits import DEFAULT, Limits
from .nest import join_parts, outer_chain, split_parts, stride, whole_chunks

__all__ = ["Limits", "ScheduleError", "family", "schedule"]


def family(kernel: Kernel) -> str:
    """contraction | rows | map: which schedule a nest with one outermost statement gets."""
    if recognise(kernel) is not None and not _dots(kernel):
        return "contraction"
    _, body = outer_chain(kernel)
    inside = list(walk(body))
    if not any(isinstance(s, Loop) and s.role == "parallel" for s in inside):
        return "map"
    arrays = any(isinstance(s, Tile) for s in inside) or any(b.shape for b in kernel.locals)  # that a row keeps
    if arrays or not walks_columns(kernel):
        return "rows"
    return "map"  # such as scatter: what runs in order walks rows, columns are side by side


def schedule(kernel: Kernel, target: Target, limits: Limits = DEFAULT, gpu: GpuLimits = GPU) -> Kernel:
    """How a kernel runs on a target.  The result depends on the kernel and the target only; `limits` are for CPUs,
    `gpu` for GPUs.

    Outermost statements that do not touch what another one writes are scheduled apart, each with blocks of
    its own; others run one after the other in one block.
    """
    if any(isinstance(s, Loop) and s.extent == 0 for s in walk(kernel.body)):
        return kernel  # nothing runs, or sums of nothing: as it stands
    chunks = whole_chunks(kernel)
    chunked, kernel = chunks is not kernel, chunks
    if len(kernel.body) > 1 and (chunked or _independent(kernel.body)):
        parts, shared = split_parts(kernel)
        return join_parts(kernel, [_scheduled(p, target, shared, limits, gpu) for p in parts])
    return _scheduled(kernel, target, (), limits, gpu)


def _scheduled(kernel: Kernel, target: Target, fixed: Collection[str], limits: Limits, gpu: GpuLimits) -> Kernel:
    """A kernel with one outermost statement, or whose statements run one after the other."""
    if target.is_gpu:
        return schedule_gpu(kernel, target, family(kernel), fixed, gpu)
    return _FAMILIES[family(kernel)](kernel, target, fixed, limits)


_FAMILIES = {"contraction": schedule_contraction, "rows": schedule_rows, "map": schedule_map}


def _dots(kernel: Kernel) -> bool:
    """Dot products side by side, without rows or columns, so that nothing is used twice: a register tile would compute
    one at a time; as a map each lane has one of its own.  That is slower only where lanes would read from the same
    cache sets."""
    c, (_, chain, _, step) = group(kernel, False), recognise(kernel)
    if c.rows or c.columns:
        return False
    factors = accumulation(step)
    if factors[0] == factors[1]:  # nor can a panel hold one factor and not the other
        return True
    steps = [[(stride(kernel, x, n) or 0) * x.dtype.size for n in c.outer] for e in factors for x in loads(e)]
    return bool(chain) and not any(all(s and s % DEFAULT.page == 0 for s in of_load) for of_load in steps)


def _independent(stmts: tuple[Stmt, ...]) -> bool:
    """Are these loops that do not touch what another one writes?"""
    if not all(isinstance(s, Loop) and s.role == "parallel" for s in stmts):
        return False
    seen: set[str] = set()
    changed: set[str] = set()
    for s in stmts:
        w, r = written((s,)), read((s,))
        if w & seen or r & changed:
            return False
        seen |= w | r
        changed |= w
    return True
