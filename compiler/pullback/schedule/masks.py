"""Schedule steps on masks: drop what always holds, peel iterations so that it does, shorten loops to what it lets run.

Pure functions kernel -> kernel on IR 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import ScheduleError
from ..kernel.kernel import (
    A,
    Affine,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    exprs,
    loads,
    map_store,
    stores,
    subst,
    walk,
)
from .steps import on_loops, upper

Ranges = dict[str, tuple[int, int]]


def _bounds(a: Affine, ranges: Ranges) -> tuple[int, int]:
    low = high = a.const
    for n, c in a.terms:
        first, last = ranges[n]
        low += c * (first if c > 0 else last)
        high += c * (last if c > 0 else first)
    return low, high


def drop_masks(kernel: Kernel) -> Kernel:
    """Remove masks that hold for every iteration around them, and stores whose masks never hold."""

    def keep(masks: tuple[Mask, ...], ranges: Ranges) -> tuple[Mask, ...]:
        left = tuple((a, b) for a, b in masks if _bounds(a, ranges)[1] >= b)
        return masks if len(left) == len(masks) else left

    def never(masks: tuple[Mask, ...], ranges: Ranges) -> bool:
        return any(_bounds(a, ranges)[0] >= b for a, b in masks)

    def go(stmts: tuple[Stmt, ...], ranges: Ranges) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Store):
                if s.masks and s.other in ("keep", "any") and never(s.masks, ranges):
                    continue

                def leaf(e):
                    return replace(e, masks=keep(e.masks, ranges)) if isinstance(e, Load) and e.masks else e

                s = map_store(s, leaf)
                masks = keep(s.masks, ranges)
                out.append(s if masks is s.masks else replace(s, masks=masks, other=s.other if masks else "keep"))
            elif isinstance(s, Loop):
                last = s.extent - 1 if isinstance(s.extent, int) else _bounds(s.extent, ranges)[1] - 1
                body = go(s.body, {**ranges, s.axis: (0, max(last, 0))})
                if body:
                    out.append(replace(s, body=body))
            elif isinstance(s, Tile):
                out.append(replace(s, body=go(s.body, ranges)))
            else:
                out.append(s)
        return tuple(out)

    return replace(kernel, body=go(kernel.body, {}))


def peel(kernel: Kernel, axis: str, first: int) -> Kernel:
    """A loop -> its first iterations, then the others, as two loops in the same order."""

    def f(s: Loop) -> tuple[Stmt, ...]:
        if not isinstance(s.extent, int):
            raise ScheduleError(f"{kernel.name}: the extent of '{axis}' is not constant")
        if not 0 < first < s.extent:
            return (s,)
        rest = subst(s.body, {axis: A(axis) + first if s.extent - first > 1 else A(first)})
        return replace(s, extent=first), replace(s, extent=s.extent - first, body=rest)

    return on_loops(kernel, axis, f)


def peel_masked(kernel: Kernel, axis: str) -> Kernel:
    """Peel the last iterations of a loop if the others then need no mask."""
    first: int | None = None

    def look(stmts, ranges: Ranges, extent: int):
        nonlocal first
        for s in stmts:
            if isinstance(s, Store):
                for a, b in (*s.masks, *(m for e in exprs(s) for x in loads(e) for m in x.masks)):
                    if (c := a.coef(axis)) > 0 and _bounds(a, ranges)[1] >= b:
                        rest = _bounds(Affine(a.const, tuple(t for t in a.terms if t[0] != axis)), ranges)[1]
                        good = (b - 1 - rest) // c + 1  # iterations for which it holds
                        first = min(good, extent if first is None else first)
            elif isinstance(s, Loop):
                last = s.extent - 1 if isinstance(s.extent, int) else _bounds(s.extent, ranges)[1] - 1
                inside = {**ranges, s.axis: (0, max(last, 0))}
                look(s.body, inside, s.extent if s.axis == axis and isinstance(s.extent, int) else extent)
            elif isinstance(s, Tile):
                look(s.body, ranges, extent)

    look(kernel.body, {}, 0)
    return drop_masks(peel(kernel, axis, first)) if first is not None and first > 0 else kernel


def tighten(kernel: Kernel, where: Callable[[Loop], bool] = lambda s: True) -> Kernel:
    """Shorten loops over whose last iterations every store below is masked away."""

    def reach(stmts, axis: str, ranges: Ranges) -> int | None:
        """How many iterations of axis matter; None: all."""
        most = 0
        for s in stores(stmts):
            inner = {
                t.axis: (0, (t.extent if isinstance(t.extent, int) else upper(t.extent, {})) - 1)
                for t in walk(stmts)
                if isinstance(t, Loop) and isinstance(t.extent, int)
            }
            best = None
            for a, b in s.masks if s.other == "keep" else ():
                c = a.coef(axis)
                rest = Affine(a.const, tuple(t for t in a.terms if t[0] != axis))
                if c > 0 and all(n in inner or n in ranges for n, _ in rest.terms):
                    low = _bounds(rest, {**ranges, **inner})[0]
                    n = max(0, (b - 1 - low) // c + 1)
                    best = n if best is None else min(best, n)
            if best is None:
                return None
            most = max(most, best)
        return most

    def go(stmts: tuple[Stmt, ...], ranges: Ranges) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Loop) and isinstance(s.extent, int):
                if where(s) and (n := reach(s.body, s.axis, ranges)) is not None and n < s.extent:
                    s = replace(s, extent=n)
                s = replace(s, body=go(s.body, {**ranges, s.axis: (0, max(s.extent - 1, 0))}))
            out.append(s)
        return tuple(out)

    return drop_masks(replace(kernel, body=go(kernel.body, {})))
