"""Schedule steps that move loops: pure functions kernel -> kernel on IR 2.

A step applies to every loop of the axis that it names (peeled copies share their names), checks the
dependences that it relies on, and raises ScheduleError where they do not hold.  No step changes the order
in which a reduction adds: loops with role `reduce` or `ordered` keep the order of their iterations.
Steps that move data (pack, carry, spill) are in `staging.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from ..errors import ScheduleError
from ..kernel.kernel import (
    A,
    Affine,
    Index,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    exprs,
    loads,
    map_stmts,
    map_store,
    subst,
    walk,
)
from .liveness import dead_outside, unmoved, used_below

BINDINGS = frozenset(("serial", "unroll", "vector", "block", "thread", "warp", "lane"))
"""The last three are for GPUs."""


# ---- walking --------------------------------------------------------------------------------------------
def on_loops(kernel: Kernel, axis: str, f: Callable[[Loop], tuple[Stmt, ...]]) -> Kernel:
    """Replace every loop over `axis` (tiles are closed) by f(loop)."""
    found = False

    def go(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        nonlocal found
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Loop):
                if s.axis == axis:
                    found = True
                    out += f(s)
                    continue
                body = go(s.body)
                s = s if body is s.body else replace(s, body=body)
            out.append(s)
        return stmts if len(out) == len(stmts) and all(a is b for a, b in zip(out, stmts, strict=True)) else tuple(out)

    body = go(kernel.body)
    if not found:
        raise ScheduleError(f"{kernel.name}: no loop over '{axis}'")
    return replace(kernel, body=body)


def axes_of(stmts: Collection[Stmt]) -> set[str]:
    return {s.axis for s in walk(stmts) if isinstance(s, Loop)}


def fresh(kernel: Kernel, *names: str) -> None:
    """Refuse axis names that a kernel has already."""
    if taken := axes_of(kernel.body) & set(names):
        raise ScheduleError(f"{kernel.name}: there is an axis '{min(taken)}' already")


def constant_extent(s: Loop) -> int:
    if isinstance(s.extent, int):
        return s.extent
    raise ScheduleError(f"the extent of '{s.axis}' is {s.extent}, not a constant")


# ---- bind -----------------------------------------------------------------------------------------------
def bind(kernel: Kernel, **bindings: str) -> Kernel:
    """How loops run.  All but serial need constant extents; all but serial and unroll, iterations that do not
    depend on each other."""
    left, local = set(bindings), {b.name for b in kernel.locals}
    if unknown := set(bindings.values()) - BINDINGS:
        raise ScheduleError(f"no binding '{min(unknown)}'")

    def go(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Loop):
                s = replace(s, body=go(s.body), binding=bindings.get(s.axis, s.binding))
                if s.axis in bindings:
                    left.discard(s.axis)
                    if s.binding != "serial":
                        constant_extent(s)
                    if s.binding not in ("serial", "unroll") and s.role != "parallel":
                        raise ScheduleError(f"{kernel.name}: '{s.axis}' is a {s.role} loop and cannot be {s.binding}")
                    if s.binding == "vector" and (still := unmoved(s, local)):
                        raise ScheduleError(f"{kernel.name}: all lanes of '{s.axis}' store to the same '{min(still)}'")
            out.append(s)
        return tuple(out)

    kernel = replace(kernel, body=go(kernel.body))
    if left:
        raise ScheduleError(f"{kernel.name}: no loop over '{min(left)}'")
    return kernel


# ---- split ----------------------------------------------------------------------------------------------
def add_masks(stmts: tuple[Stmt, ...], mask: Mask, dead: Collection[str], local: Collection[str]) -> tuple[Stmt, ...]:
    """Guard the accesses below an axis that overruns: stores, and loads of memory of others that move with it.
    Outside, nobody reads the buffers `dead`; all others are kept."""
    axes = mask[0].axes

    def moves(i: Index) -> bool:
        return not axes.isdisjoint(i.axes) if isinstance(i, Affine) else any(map(moves_load, loads(i)))

    def moves_load(x: Load) -> bool:
        return any(map(moves, x.index))

    def backwards(x: Load) -> bool:
        """Does an overrun leave the buffer at its beginning?  (At its end it grows.)"""
        return any(isinstance(i, Affine) and i.coef(n) < 0 for i in x.index for n in axes)

    def guard_load(e):
        if isinstance(e, Load) and (e.buffer not in local or backwards(e)) and moves_load(e):
            return replace(e, masks=(*e.masks, mask))
        return e

    def guard(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store):
            return (s,)
        other = s.other
        if not s.masks:
            other = "any" if s.buffer in dead and s.where is None else "keep"
        elif other == "any" and s.buffer not in dead:
            raise ScheduleError(f"'{s.buffer}' is masked twice, and somebody may read it outside")
        return (replace(map_store(s, guard_load), masks=(*s.masks, mask), other=other),)

    return map_stmts(stmts, guard)


def split(
    kernel: Kernel, axis: str, factor: int, outer: str, inner: str, tail: str = "peel", dead: Collection[str] = ()
) -> Kernel:
    """axis -> outer * factor + inner.  What does not fill a whole step:

    tail='peel': a copy of the loop of its own, with one outer step; 'mask': the last step is masked;
    'even': all steps have the same size or one less (two loops, no small rest).

    `dead`: buffers that are only used below loops of this axis, and where each of these that reads an element
    comes after one of the same extent that writes it: the lanes outside of a mask need not keep their values.
    """
    fresh(kernel, *{outer, inner} - {axis})
    if factor < 1:
        raise ScheduleError(f"'{axis}' cannot be split by {factor}")
    local = {b.name: b for b in kernel.locals}
    below = used_below(kernel, axis) if tail == "mask" else set()
    if tail == "mask" and (seen := (set(dead) & set(local)) - below):
        raise ScheduleError(f"{kernel.name}: '{min(seen)}' is also used outside of '{axis}'")

    def part(s: Loop, count: int, size: int, base: int) -> Loop:
        at = A(inner) + base if count == 1 else A(outer) * size + A(inner) + base
        body = s.body if at == A(axis) else subst(s.body, {axis: at})
        return Loop(outer, count, s.role, (Loop(inner, size, s.role, body),), s.binding)

    def f(s: Loop) -> tuple[Stmt, ...]:
        n = constant_extent(s)
        steps, rest = divmod(n, factor)
        if rest and tail == "mask":
            at = A(outer) * factor + A(inner) if steps else A(inner)
            unread = {*dead, *dead_outside(s, local, below)}
            body = add_masks(subst(s.body, {axis: at}), (at, n), unread, local)
            return (Loop(outer, steps + 1, s.role, (Loop(inner, factor, s.role, body),), s.binding),)
        if rest and tail == "even" and steps:
            steps += 1
            size = -(-n // steps)
            small = steps * size - n  # this many steps have one less
            parts = ((steps - small, size), (small, size - 1))
        else:
            parts = ((steps, factor), (min(rest, 1), rest))
        out, base = [], 0
        for count, size in parts:
            if count:
                out.append(part(s, count, size, base))
                base += count * size
        return tuple(out)

    kernel = on_loops(kernel, axis, f)
    return grow(kernel, {outer, inner}) if tail == "mask" else kernel


def upper(a: Affine, extents: dict[str, int]) -> int:
    return a.const + sum(c * (extents[n] - 1) for n, c in a.terms if c > 0)


def grow(kernel: Kernel, axes: set[str]) -> Kernel:
    """Make local buffers as large as indices that move with `axes` need (a masked tail overruns)."""
    shapes = {b.name: list(b.shape) for b in kernel.locals}
    if not shapes:
        return kernel

    def visit(stmts, extents: dict[str, int]):
        for s in stmts:
            if isinstance(s, Store):
                for x in (s, *(x for e in exprs(s) for x in loads(e))):
                    shape = shapes.get(x.buffer)
                    for d, i in enumerate(x.index if shape else ()):
                        if isinstance(i, Affine) and not axes.isdisjoint(i.axes):
                            shape[d] = max(shape[d], 1 + upper(i, extents))
            elif isinstance(s, Loop):
                n = s.extent if isinstance(s.extent, int) else upper(s.extent, extents)
                visit(s.body, {**extents, s.axis: n})
            elif isinstance(s, Tile):
                visit(s.body, extents)

    visit(kernel.body, {})
    sized = (b if tuple(shapes[b.name]) == b.shape else replace(b, shape=tuple(shapes[b.name])) for b in kernel.locals)
    return replace(kernel, locals=tuple(sized))


def rename_loops(kernel: Kernel, names: dict[str, str], where: Callable[[Loop], bool]) -> Kernel:
    """Give the loops of some axes that satisfy `where` names of their own, so that they can be bound apart."""
    fresh(kernel, *names.values())

    def go(stmts: tuple[Stmt, ...], renaming: bool) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Loop):
                hit = s.axis in names and (renaming or where(s))
                body = go(s.body, renaming or hit)
                if hit:
                    s = Loop(names[s.axis], s.extent, s.role, subst(body, {s.axis: A(names[s.axis])}), s.binding)
                elif body is not s.body:
                    s = replace(s, body=body)
            out.append(s)
        return tuple(out)

    return replace(kernel, body=go(kernel.body, False))


def tidy(kernel: Kernel, keep: str = "") -> Kernel:
    """Write out loops that run once (but not the axis `keep`, nor what one warp or lane does); every top-level chain of
    blocks is left one loop."""

    def once(s: Loop) -> tuple[Stmt, ...]:
        return subst(s.body, {s.axis: Affine(0)}) if s.extent == 1 else (s,)

    def go(stmts: tuple[Stmt, ...], held: bool) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Loop):
                block = s.binding == "block"
                inner = [t for t in s.body if isinstance(t, Loop) and t.binding == "block"]
                lanes = s.binding in ("warp", "lane")
                stays = s.extent != 1 or s.axis == keep or lanes or (block and not inner and not held)
                s = replace(s, body=go(s.body, held or (block and s.extent != 1)))
                out += (s,) if stays else once(s)
            else:
                out.append(s)
        return tuple(out)

    return replace(kernel, body=go(kernel.body, len(kernel.body) == 1))
