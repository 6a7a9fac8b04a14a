"""The GPU schedule of rows whose elements change places (sorting): kernel -> kernel on IR 2.

A block for each row.  The row's arrays are in shared memory; each of the nest's stages is dealt out to the threads, and
the block waits between one stage and the next.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..codegen.target import Target
from ..codegen.threads import WARP
from ..errors import ScheduleError
from ..kernel.kernel import Barrier, Kernel, Loop, Stmt, Store
from .gpu_limits import GPU, GpuLimits
from .nest import chain_of, outer_chain
from .steps import bind, split

ROOM = 1 << 10
"""Bytes of shared memory that are left, for the alignment of the arrays."""


def schedule_exchange(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: GpuLimits = GPU) -> Kernel:
    """Rows whose statements all are parallel loops around stores; refuses (`ScheduleError`) other nests."""
    chain, body = outer_chain(kernel)
    if not kernel.locals or not all(b.shape for b in kernel.locals):
        raise ScheduleError(f"{kernel.name}: not all of a row is in arrays")
    stages = [chain_of(s, "parallel") if isinstance(s, Loop) else ([], (s,)) for s in body]
    if not all(isinstance(s, Store) for _, inner in stages for s in inner):
        raise ScheduleError(f"{kernel.name}: some of it is not parallel")
    extents = {s.axis: s.extent for loops, _ in stages for s in loops}
    if not all(isinstance(n, int) for n in extents.values()) or max(b.size for b in kernel.locals) < 2 * WARP:
        raise ScheduleError(f"{kernel.name}: rows too short for a block")
    if sum(b.size * b.dtype.size for b in kernel.locals) + ROOM > target.shared:
        raise ScheduleError(f"{kernel.name}: no room for a row")
    for axis, n in extents.items():
        if n > limits.threads:
            kernel = split(kernel, axis, limits.threads, f"{axis}_t", axis, tail="mask")
    _, body = outer_chain(kernel)
    stmts: list[Stmt] = []
    for s in body:
        stmts += [Barrier()] * bool(stmts) + [_dealt(s, limits.threads)[0]]
    inside = tuple(stmts)
    for s in reversed(chain):
        inside = (replace(s, body=inside),)
    kernel = replace(kernel, locals=tuple(replace(b, space="shared") for b in kernel.locals), body=inside)
    return bind(kernel, **dict.fromkeys((s.axis for s in chain), "block"))


def _dealt(s: Stmt, threads: int) -> tuple[Stmt, int]:
    """The innermost loops to so many threads, those around them in series; and how many threads that takes."""
    if not isinstance(s, Loop):
        return s, 1
    parts = [_dealt(t, threads) for t in s.body]
    taken = max(n for _, n in parts)
    body = tuple(t for t, _ in parts)
    fits = taken * s.extent <= threads and not any(isinstance(t, Loop) and t.binding == "serial" for t in body)
    return replace(s, body=body, binding="thread" if fits else "serial"), taken * s.extent if fits else threads
