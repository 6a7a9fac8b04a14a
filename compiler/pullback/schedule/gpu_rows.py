"""The GPU schedule of rows: kernel -> kernel on IR 2.

One warp for each iteration of the outer loops.  A parallel loop inside of them runs over lanes, 32 neighbours at a
time; what stands between such loops all lanes do alike.  Element e of a row's values is held by lane e mod 32, so a
fold of 64 partial sums is one addition in each lane and five shuffles, in the order that the nest says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..codegen.target import Target
from ..codegen.threads import WARP, distribution
from ..errors import ScheduleError
from ..kernel.kernel import Barrier, Kernel, Loop, Stmt, Tile, map_stmts, read, stores, walk, written
from .gpu_limits import GPU, GpuLimits
from .gpu_private import place_private
from .masks import peel_masked
from .nest import extents_of, fuse_chain, order_axes, outer_chain
from .steps import bind, split, tidy


def schedule_rows(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: GpuLimits = GPU) -> Kernel:
    """A nest with parallel loops inside; refuses (`ScheduleError`, `VerifyError`) what lanes cannot share."""
    chain, body = outer_chain(kernel)
    inner = _innermost(body)
    if not inner or max(inner.values()) < limits.row or any(not isinstance(s.extent, int) for s in chain):
        raise ScheduleError(f"{kernel.name}: rows too short for a warp")
    kernel, axes = fuse_chain(kernel, [s.axis for s in chain], fixed)
    body = outer_chain(kernel)[1]
    if any(isinstance(s, Loop) and s.axis in axes for s in walk(body)):
        raise ScheduleError(f"{kernel.name}: an outer axis has a namesake inside")
    return finish_rows(_deal(kernel, axes, limits), limits)


def finish_rows(kernel: Kernel, limits: GpuLimits) -> Kernel:
    """A nest whose warp loops hold rows: what is parallel in these runs over lanes, locals get their places."""
    inner: dict[str, int] = {}
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.binding == "warp":
            for axis, extent in _innermost(s.body).items():
                inner[axis] = max(extent, inner.get(axis, 0))
    for axis, extent in inner.items():
        if extent > WARP:
            kernel = split(kernel, axis, WARP, f"{axis}_w", axis, tail="mask")
            kernel = peel_masked(kernel, f"{axis}_w")
    for axis in _chunks(kernel, inner):
        kernel = peel_masked(kernel, axis)
    kernel = _separate(_bind_folds(bind(kernel, **dict.fromkeys(inner, "lane"))))
    kernel = place_private(kernel, limits.private, distribution(kernel))
    distribution(kernel)
    return tidy(kernel)


def _innermost(stmts: tuple[Stmt, ...]) -> dict[str, int]:
    """Parallel loops that hold no other parallel loop -> extent."""
    out: dict[str, int] = {}
    outside: set[str] = set()

    def go(body) -> bool:
        found = False
        for s in body:
            if isinstance(s, Tile):
                found = True
            elif isinstance(s, Loop):
                below = go(s.body)
                mine = s.role == "parallel" and isinstance(s.extent, int) and s.extent > 1
                if mine and not below:
                    out[s.axis] = max(out.get(s.axis, 0), s.extent)
                else:
                    outside.add(s.axis)
                found |= below or mine
        return found

    go(stmts)
    if mixed := outside & set(out):
        raise ScheduleError(f"'{min(mixed)}' is a loop of two kinds")
    return out


def _chunks(kernel: Kernel, inner: Collection[str]) -> list[str]:
    """Serial loops around lanes that masks speak of: peeled so that only their last iterations are masked."""
    out: list[str] = []
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.role == "reduce" and s.axis not in (*out, *inner):
            masked = any(m.coef(s.axis) for t in stores(s.body) for m, _ in t.masks)
            out += [s.axis] if masked and isinstance(s.extent, int) else []
    return out


def _bind_folds(kernel: Kernel) -> Kernel:
    def go(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Tile) and s.name == "fold":
            return (replace(s, body=tuple(replace(t, binding="lane") for t in s.body)),)
        return (s,)

    return replace(kernel, body=map_stmts(kernel.body, go))


def _separate(kernel: Kernel) -> Kernel:
    """Where lanes read memory that lanes of this warp write, the warp waits between statements."""
    shared = {b.name for b in kernel.params} & written(kernel.body) & read(kernel.body)
    if not shared:
        return kernel

    def apart(stmts: tuple[Stmt, ...], again: bool) -> tuple[Stmt, ...]:
        """`again`: something before has touched the memory, perhaps in the iteration before."""
        out: list[Stmt] = []
        for s in stmts:
            touches = not shared.isdisjoint(written((s,)) | read((s,)))
            if isinstance(s, Loop) and s.binding != "lane":
                s = replace(s, body=apart(s.body, s.role != "parallel"))
            out += (Barrier(), s) if touches and again else (s,)
            again |= touches
        return tuple(out)

    def rows(s: Stmt) -> tuple[Stmt, ...]:
        return (replace(s, body=apart(s.body, False)),) if isinstance(s, Loop) and s.binding == "warp" else (s,)

    return replace(kernel, body=map_stmts(kernel.body, rows))


def _deal(kernel: Kernel, axes: list[str], limits: GpuLimits) -> Kernel:
    """The outer loops to blocks, a few iterations of one of them to the warps of a block."""
    if not axes:
        return replace(kernel, body=(Loop("row", 1, "parallel", kernel.body, "warp"),))
    extents = extents_of(kernel)
    warps, last = limits.warps, axes[-1]
    if len(axes) > 1:  # without a tail, which would have to be a range of blocks of its own

        def fitting(axis: str) -> int:
            return next(n for n in range(limits.warps, 0, -1) if extents[axis] % n == 0)

        last = max(reversed(axes), key=fitting)
        warps = fitting(last)
        axes = [*(a for a in axes if a != last), last]
        kernel = order_axes(kernel, axes)
    bindings = dict.fromkeys(axes, "block")
    if warps < extents[last]:
        kernel = split(kernel, last, warps, f"{last}_b", last)
        bindings[f"{last}_b"] = "block"
    return bind(kernel, **bindings | {last: "warp"})
