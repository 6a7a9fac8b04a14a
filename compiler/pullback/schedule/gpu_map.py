"""The GPU schedule of maps and of columns: kernel -> kernel on IR 2.

One thread for each iteration of the outer parallel loops, or for a few that lie in one 16-byte vector.  Neighbours
in memory go to neighbouring threads.  What is inside of these loops (sums over columns, sorts, scatters in order) a
thread runs from end to end, so this schedule serves every nest.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from math import prod

from ..codegen.target import Target
from ..errors import ScheduleError
from ..kernel.kernel import Affine, Kernel, Load, Loop, Stmt, Store, exprs, loads, stores, walk
from .common import lanes_of
from .gpu_limits import GPU, GpuLimits
from .gpu_private import place_private
from .gpu_scatter import ranges
from .nest import cost, extents_of, fuse_chain, memory, order_axes, outer_chain, stride
from .steps import bind, split, tidy

AHEAD, HEAVY, FURTHER = 16, 24, 4
"""Steps of a sum that are unrolled, unless one costs more than this; where threads are few and steps cheap, so many
times more."""


def schedule_map(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: GpuLimits = GPU) -> Kernel:
    """Any nest: threads for its outer parallel loops, one thread if there are none."""
    with suppress(ScheduleError):
        kernel = ranges(kernel, fixed, limits)
    chain, _ = outer_chain(kernel)
    axes = [s.axis for s in chain if isinstance(s.extent, int)]
    if len(axes) != len(chain):
        axes = axes[: next(i for i, s in enumerate(chain) if not isinstance(s.extent, int))]
    extents = extents_of(kernel)
    few = prod(extents[a] for a in axes) < limits.blocks * limits.threads
    if axes:
        if len(axes) == len(chain):
            kernel, axes = fuse_chain(kernel, axes, fixed)
            axes = _coalesced(kernel, axes)
            kernel = order_axes(kernel, axes)
        kernel = _deal(kernel, axes, target, limits)
    return tidy(place_private(_ahead(kernel, few), limits.private, {}))


def _ahead(kernel: Kernel, few: bool) -> Kernel:
    """Sums in order are unrolled by a few steps, so that their loads are on their way together."""
    loops: dict[str, list[Loop]] = {}
    for s in walk(kernel.body):
        if isinstance(s, Loop):
            loops.setdefault(s.axis, []).append(s)
    taken = set(loops)
    for axis, found in loops.items():
        small = all(isinstance(s.extent, int) and s.binding == "serial" and s.role == "reduce" for s in found)
        flat = [t for s in found for t in s.body]
        if not small or not all(isinstance(t, Store) for t in flat) or f"{axis}_a" in taken:
            continue
        price = sum(cost(e) for t in flat for e in exprs(t))
        steps = AHEAD * FURTHER if few and price * FURTHER <= HEAVY else AHEAD
        if price <= HEAVY and max(s.extent for s in found) > AHEAD:
            kernel = split(kernel, axis, steps, f"{axis}_a", axis)
            kernel = bind(kernel, **{axis: "unroll"})
    return kernel


def _coalesced(kernel: Kernel, axes: list[str]) -> list[str]:
    """The axes with the one last along which neighbouring threads touch the fewest segments of memory."""
    _, body = outer_chain(kernel)
    extents = extents_of(kernel)

    def price(axis: str) -> tuple[float, int]:
        total = 0.0
        for x in memory(kernel, body):
            s = stride(kernel, x, axis)
            cost = 0.1 if s == 0 else 1.0 if s in (1, -1) else 8.0
            total += cost * (1.5 if isinstance(x, Store) else 1.0)
        return (total / min(extents[axis], 32), -axes.index(axis))

    if any(isinstance(s, Loop) and not isinstance(s.extent, int) for s in walk(body)):
        return axes  # extents that move with outer axes: in their order
    wide = [a for a in axes if extents[a] > 1]
    v = min(wide, key=price, default=None)
    return axes if v is None else [a for a in axes if a != v] + [v]


def _deal(kernel: Kernel, axes: list[str], target: Target, limits: GpuLimits) -> Kernel:
    """Bind the outer axes to blocks and threads, the last one perhaps to vectors."""
    extents = extents_of(kernel)
    body = outer_chain(kernel)[1]
    v, inner = axes[-1], extents[axes[-1]]
    column = any(isinstance(s, Loop) for s in body)
    total = prod(extents[a] for a in axes)
    bindings: dict[str, str] = {}
    lanes = lanes_of(kernel, body, target)
    if not column and total >= limits.vector_from and _vectors(kernel, body, axes, lanes):
        kernel = split(kernel, v, lanes, v, f"{v}_v")
        bindings[f"{v}_v"] = "vector"
        inner //= lanes
    even = 1 << (max(total // limits.blocks, 32) - 1).bit_length()  # few threads go to many processors
    left, room = list(axes), min(limits.threads, even)
    while left and room > 1:
        a = left[-1]
        n = inner if a == v else extents[a]
        if n > room:
            parts = -(-n // room)
            size = -(-n // parts)
            if a == v:
                size = min(room, -(-size // 32) * 32)  # whole warps
            if size > 1:
                peel = column and len(left) == 1  # a peeled tail is a range of blocks of its own
                kernel = split(kernel, a, size, f"{a}_b", a, tail="peel" if peel else "mask")
                bindings[a] = "thread"
                left[-1] = f"{a}_b"
            break
        bindings[a] = "thread"
        room //= max(n, 1)
        left.pop()
    bindings |= dict.fromkeys(left, "block")
    return bind(kernel, **bindings)


def _vectors(kernel: Kernel, body: tuple[Stmt, ...], axes: list[str], lanes: int) -> bool:
    """Can each thread take `lanes` neighbours along the last axis with aligned vectors, or values that all share?"""
    v, extents = axes[-1], extents_of(kernel)
    if lanes < 2 or extents[v] % lanes:
        return False
    local = {b.name for b in kernel.locals}
    for s in stores(body):
        for x in (s, *(x for e in exprs(s) for x in loads(e))):
            if any(m.coef(v) for m, _ in x.masks) or x.buffer in local:
                return False
            step = stride(kernel, x, v)
            if step not in (0, 1) or (step == 0 and isinstance(x, Store)) or not _affine(x):
                return False
            if step == 1 and not _aligned(kernel, x, v, lanes):
                return False
        if s.where is not None:
            return False
    return True


def _affine(x: Load | Store) -> bool:
    return all(isinstance(i, Affine) for i in x.index)


def _aligned(kernel: Kernel, x: Load | Store, v: str, lanes: int) -> bool:
    flat = kernel.buffers[x.buffer].flat(x.index)
    return flat.const % lanes == 0 and all(c % lanes == 0 for n, c in flat.terms if n != v)
