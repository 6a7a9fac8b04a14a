"""The GPU schedule of rows: kernel -> kernel on IR 2.

One warp for each iteration of the outer loops.  A parallel loop inside of them runs over lanes, 32 neighbours at a
time, or over 32 pairs of neighbours; what stands between such loops all lanes do alike.  Element e of a row's values is
held by lane e mod 32, or (e / 2) mod 32, so a fold of 64 partial sums is five shuffles and one addition within a lane,
in the order that the nest says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ..codegen.target import Target
from ..codegen.threads import WARP, distribution
from ..errors import ScheduleError
from ..kernel.kernel import A, Barrier, Kernel, Loop, Stmt, Store, Tile, map_stmts, read, stores, subst, walk, written
from .gpu_limits import GPU, GpuLimits
from .gpu_private import place_private, rebind
from .masks import peel_masked
from .nest import extents_of, fuse_chain, order_axes, outer_chain
from .sinking import expand
from .steps import bind, split, tidy

PAIR = 2
"""Neighbours that a lane takes: 64 partial results are two for each lane, so it can add up no more of them."""

NEIGHBOUR = "_v"
"""Ends the names of axes over them."""


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
    unit = _neighbours(kernel, inner)
    for axis, extent in inner.items():
        if extent > WARP * unit:
            kernel = split(kernel, axis, WARP * unit, f"{axis}_w", axis, tail="mask")
            kernel = peel_masked(kernel, f"{axis}_w")
    for axis in _chunks(kernel, inner):
        kernel = peel_masked(kernel, axis)
    kernel = _separate(_lanes(kernel, inner, unit))
    kernel = rebind(kernel, dict.fromkeys(_steps(kernel, limits.private // unit), "unroll"))
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


def _neighbours(kernel: Kernel, inner: Mapping[str, int]) -> int:
    """How many neighbours a lane takes: a pair where there are enough of them, and all loops are of pairs."""
    loops = [s for s in walk(kernel.body) if isinstance(s, Loop) and s.axis in inner]
    pairs = all(s.extent % PAIR == 0 and all(isinstance(t, Store) for t in s.body) for s in loops)
    return PAIR if pairs and max(inner.values(), default=0) > WARP else 1


def _chunks(kernel: Kernel, inner: Collection[str]) -> list[str]:
    """Serial loops around lanes that masks speak of: peeled so that only their last iterations are masked."""
    out: list[str] = []
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.role == "reduce" and s.axis not in (*out, *inner):
            masked = any(m.coef(s.axis) for t in stores(s.body) for m, _ in t.masks)
            out += [s.axis] if masked and isinstance(s.extent, int) else []
    return out


def _steps(kernel: Kernel, most: int) -> set[str]:
    """Loops of a few steps over lanes.  Unrolled, all that they read of a row is on its way before any of it is used,
    and stays in registers for the next loop that reads it."""
    found: dict[str, bool] = {}
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.binding == "serial" and isinstance(s.extent, int):
            lanes = all(isinstance(t, Loop) and t.binding == "lane" for t in s.body)
            found[s.axis] = found.get(s.axis, True) and lanes and s.extent <= most
    return {axis for axis, few in found.items() if few}


def _lanes(kernel: Kernel, inner: Collection[str], unit: int) -> Kernel:
    """These loops, and the steps of folds, run over lanes, and over the neighbours in each."""

    def dealt(s: Loop) -> Loop:
        if unit == 1:
            return replace(s, binding="lane")
        v = f"{s.axis}{NEIGHBOUR}"
        body = subst(s.body, {s.axis: A(s.axis) * unit + A(v)})
        some = Loop(v, min(s.extent, unit), s.role, body, "vector")
        return replace(s, extent=max(s.extent // unit, 1), body=(some,), binding="lane")

    def go(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Tile) and s.name == "fold":
            return (replace(s, body=tuple(map(dealt, s.body))),)
        return (dealt(s),) if isinstance(s, Loop) and s.axis in inner else (s,)

    kernel = replace(kernel, body=map_stmts(kernel.body, go))
    for axis in inner if unit > 1 else ():
        kernel = expand(kernel, f"{axis}{NEIGHBOUR}")
    return kernel


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
