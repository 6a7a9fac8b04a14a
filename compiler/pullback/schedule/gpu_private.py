"""Where the locals of a GPU kernel live: kernel -> kernel on IR 2.

Each thread has its own.  Registers need constant indices, so the loops that move a buffer are unrolled where that
is little code; else it lies in local memory, which the caches hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from ..codegen.threads import Spread
from ..kernel.kernel import Affine, Kernel, Loop, Stmt, exprs, loads, map_stmts, stores, walk
from .staging import place

FREE = frozenset(("unroll", "vector", "thread", "warp", "lane"))
"""Bindings that make an index constant for each copy or thread."""


def place_private(kernel: Kernel, limit: int, across: Mapping[str, Spread]) -> Kernel:
    """Registers for locals of which a thread has at most `limit` elements; `across`: those that lanes share."""
    loops: dict[str, list[Loop]] = {}
    for s in walk(kernel.body):
        if isinstance(s, Loop):
            loops.setdefault(s.axis, []).append(s)
    serial = {a for a, found in loops.items() if any(s.binding not in FREE for s in found)}
    moving: dict[str, set[str]] = {}
    copies: dict[str, int] = {}  # of an access, were its loops unrolled
    by_data: set[str] = set()
    for s in stores(kernel.body):
        for x in (s, *(x for e in exprs(s) for x in loads(e))):
            axes = set().union(*(serial.intersection(i.axes) for i in x.index if isinstance(i, Affine)))
            moving.setdefault(x.buffer, set()).update(axes)
            extents = [s.extent for a in axes for s in loops[a]]
            if not all(isinstance(i, Affine) for i in x.index) or not all(isinstance(n, int) for n in extents):
                by_data.add(x.buffer)
            else:
                unrolled = prod(max(s.extent for s in loops[a]) for a in axes)
                copies[x.buffer] = max(copies.get(x.buffer, 1), unrolled)
    unroll: set[str] = set()
    for b in kernel.locals:
        axes = moving.get(b.name, set())
        fixed = not axes and b.name not in by_data
        if b.space not in ("register", "local") or (b.space == "register" and fixed):
            continue
        spread = across.get(b.name)
        held = prod(spread.held(b.shape) if spread else b.shape)
        if b.name not in by_data and held <= limit and copies.get(b.name, 1) <= limit:
            unroll |= axes
            kernel = place(kernel, b.name, "register")
        else:
            kernel = place(kernel, b.name, "local")
    return rebind(kernel, dict.fromkeys(unroll, "unroll"))


def rebind(kernel: Kernel, bindings: Mapping[str, str]) -> Kernel:
    """Bind serial loops, those in tiles too."""

    def go(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Loop) and s.binding == "serial" and s.axis in bindings:
            return (replace(s, binding=bindings[s.axis]),)
        return (s,)

    return replace(kernel, body=map_stmts(kernel.body, go)) if bindings else kernel
