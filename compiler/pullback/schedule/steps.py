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
    Buffer,
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
    stores,
    subst,
    walk,
)

BINDINGS = frozenset(("serial", "unroll", "vector", "block"))


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
    """How loops run.  block and vector need iterations that do not depend on each other; unroll, vector and
    block need constant extents."""
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
                    if s.binding in ("vector", "block") and s.role != "parallel":
                        raise ScheduleError(f"{kernel.name}: '{s.axis}' is a {s.role} loop and cannot be {s.binding}")
                    if s.binding == "vector" and (still := _unmoved(s, local)):
                        raise ScheduleError(f"{kernel.name}: all lanes of '{s.axis}' store to the same '{min(still)}'")
            out.append(s)
        return tuple(out)

    kernel = replace(kernel, body=go(kernel.body))
    if left:
        raise ScheduleError(f"{kernel.name}: no loop over '{min(left)}'")
    return kernel


# ---- split ----------------------------------------------------------------------------------------------
def add_masks(stmts: tuple[Stmt, ...], mask: Mask, accumulates: bool, local: Collection[str]) -> tuple[Stmt, ...]:
    """Guard the accesses below an axis that overruns: stores, and loads of memory of others that move with it.
    Outside, what a reduction accumulates is kept and other elements of local buffers are read by nobody."""
    axes = mask[0].axes

    def moves(i: Index) -> bool:
        return not axes.isdisjoint(i.axes) if isinstance(i, Affine) else any(map(moves_load, loads(i)))

    def moves_load(x: Load) -> bool:
        return any(map(moves, x.index))

    def guard_load(e):
        if isinstance(e, Load) and e.buffer not in local and moves_load(e):
            return replace(e, masks=(*e.masks, mask))
        return e

    def guard(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store):
            return (s,)
        other = s.other
        if not s.masks:
            kept = s.buffer not in local or s.where is not None
            kept = kept or (accumulates and any(x.buffer == s.buffer for x in loads(s.value)))
            other = "keep" if kept else "any"
        elif other == "any" and accumulates:
            raise ScheduleError(f"'{s.buffer}': a reduction under two overrunning axes")
        return (replace(map_store(s, guard_load), masks=(*s.masks, mask), other=other),)

    return map_stmts(stmts, guard)


def split(kernel: Kernel, axis: str, factor: int, outer: str, inner: str, tail: str = "peel") -> Kernel:
    """axis -> outer * factor + inner.  What does not fill a whole step:

    tail='peel': a copy of the loop of its own, with one outer step; 'mask': the last step is masked;
    'even': all steps have the same size or one less (two loops, no small rest).
    """
    fresh(kernel, *{outer, inner} - {axis})
    if factor < 1:
        raise ScheduleError(f"'{axis}' cannot be split by {factor}")
    local = {b.name for b in kernel.locals}

    def part(s: Loop, count: int, size: int, base: int) -> Loop:
        at = A(inner) + base if count == 1 else A(outer) * size + A(inner) + base
        body = s.body if at == A(axis) else subst(s.body, {axis: at})
        return Loop(outer, count, s.role, (Loop(inner, size, s.role, body),), s.binding)

    def f(s: Loop) -> tuple[Stmt, ...]:
        n = constant_extent(s)
        steps, rest = divmod(n, factor)
        if rest and tail == "mask":
            at = A(outer) * factor + A(inner) if steps else A(inner)
            body = add_masks(subst(s.body, {axis: at}), (at, n), s.role != "parallel", local)
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


# ---- sink -----------------------------------------------------------------------------------------------
def covers(s: Store, buffer: Buffer, extents: dict[str, int]) -> bool:
    """Does a store under loops of these extents overwrite the whole buffer?"""
    if s.where is not None or (s.masks and s.other == "keep"):
        return False
    for n, i in zip(buffer.shape, s.index, strict=True):
        if not isinstance(i, Affine) or i.const or any(c < 0 or a not in extents for a, c in i.terms):
            return False
        reach = 0  # a dense mixed radix: each coefficient at most one past what the smaller ones reach
        for a, c in sorted(i.terms, key=lambda t: t[1]):
            if c > reach + 1:
                return False
            reach += c * (extents[a] - 1)
        if reach + 1 < n:
            return False
    return True


def live_in(stmts: Collection[Stmt], buffer: Buffer) -> bool:
    """May these statements read the buffer's value from before?  (True when in doubt.)"""

    def go(stmts, extents: dict[str, int]) -> bool | None:
        for s in stmts:
            if isinstance(s, Store):
                if any(x.buffer == buffer.name for e in exprs(s) for x in loads(e)):
                    return True
                if s.buffer == buffer.name:
                    return not covers(s, buffer, extents)
            elif isinstance(s, Loop | Tile):
                inside = extents
                if isinstance(s, Loop):
                    inside = {**extents, s.axis: s.extent} if isinstance(s.extent, int) and s.extent else {}
                if (r := go(s.body, inside)) is not None:
                    return r
        return None

    return go(stmts, {}) is True


def sink(
    kernel: Kernel,
    axis: str,
    past: Collection[str] | None = None,
    stop: Collection[str] = (),
    cut: Callable[[Stmt], bool] = lambda s: False,
) -> Kernel:
    """Move a parallel loop inwards past the loops in `past` (default: all but `stop`), distributing it over
    the statements met there; a new copy begins after a statement that `cut` names.

    Legal because its iterations are independent, as long as every value that one copy leaves for another
    has a place per iteration: a local buffer that is live into a copy gets one dimension more.  This is
    interchange, fission and 'accumulate in registers' in one.
    """
    local = {b.name: b for b in kernel.locals}
    grown: dict[str, int] = {}

    def through(t: Stmt) -> bool:
        return isinstance(t, Loop) and (t.axis in past if past is not None else t.axis not in stop)

    def distribute(s: Loop) -> tuple[Stmt, ...]:
        if s.role != "parallel":
            raise ScheduleError(f"{kernel.name}: '{axis}' is a {s.role} loop; only parallel loops may sink")
        runs: list[tuple[Stmt, ...]] = []

        def push(stmts) -> tuple[Stmt, ...]:
            out: list[Stmt] = []
            run: list[Stmt] = []

            def flush():
                if run:
                    runs.append(tuple(run))
                    out.append(replace(s, body=tuple(run)))
                    run.clear()

            for t in stmts:
                if through(t):
                    if isinstance(t.extent, Affine) and t.extent.coef(axis):
                        raise ScheduleError(f"{kernel.name}: the extent of '{t.axis}' moves with '{axis}'")
                    flush()
                    out.append(replace(t, body=push(t.body)))
                else:
                    run.append(t)
                    if cut(t):
                        flush()
            flush()
            return tuple(out)

        body = push(s.body)
        if len(runs) > 1 or any(through(t) for t in s.body):
            for b in _unmoved(s, local):
                if any(live_in(r, local[b]) for r in runs):
                    grown[b] = max(grown.get(b, 0), constant_extent(s))
        return body

    moved: list[Loop] = []
    bodies: dict[int, tuple[Stmt, ...]] = {}

    def first(s: Loop) -> tuple[Stmt, ...]:
        moved.append(s)
        bodies[id(s)] = distribute(s)
        return (s,)

    def second(s: Loop) -> tuple[Stmt, ...]:  # all copies of the loop agree on what has grown
        body = bodies[id(s)]
        carried = grown.keys() & _unmoved(s, local)
        return _add_index(body, carried, axis) if carried else body

    on_loops(kernel, axis, first)
    for s in moved:  # a copy that is smaller than the first still needs its place
        for b in grown.keys() & _unmoved(s, local):
            grown[b] = max(grown[b], constant_extent(s))
    return _grown(on_loops(kernel, axis, second), grown, axis)


def expand(kernel: Kernel, axis: str) -> Kernel:
    """Give every local value that one iteration of a parallel loop makes for itself a place per iteration (a
    scalar becomes a vector, so that the loop can be bound to lanes)."""
    local = {b.name: b for b in kernel.locals}
    grown: dict[str, int] = {}

    def look(s: Loop) -> tuple[Stmt, ...]:
        for b in _unmoved(s, local):
            if live_in(s.body, local[b]):
                raise ScheduleError(f"{kernel.name}: '{b}' goes from one iteration of '{axis}' to the next")
            grown[b] = max(grown.get(b, 0), constant_extent(s))
        return (s,)

    def widen(s: Loop) -> tuple[Stmt, ...]:
        mine = grown.keys() & _unmoved(s, local)
        return (replace(s, body=_add_index(s.body, mine, axis)),) if mine else (s,)

    on_loops(kernel, axis, look)
    return _grown(on_loops(kernel, axis, widen), grown, axis) if grown else kernel


def _add_index(stmts: tuple[Stmt, ...], buffers: Collection[str], axis: str) -> tuple[Stmt, ...]:
    """buffer[...] -> buffer[axis, ...] for these buffers."""

    def more(x):
        return replace(x, index=(A(axis), *x.index)) if isinstance(x, Load) and x.buffer in buffers else x

    def widen(t: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(t, Store):
            return (t,)
        t = map_store(t, more)
        return (replace(t, index=(A(axis), *t.index)) if t.buffer in buffers else t,)

    return map_stmts(stmts, widen)


def _grown(kernel: Kernel, grown: dict[str, int], axis: str) -> Kernel:
    """Buffers with one dimension more; every access must have it."""
    for b in kernel.locals:
        if b.name in grown and _unindexed(kernel, b.name, len(b.shape) + 1):
            raise ScheduleError(f"{kernel.name}: '{b.name}' is also used outside of '{axis}'")
    wide = (replace(b, shape=(grown[b.name], *b.shape)) if b.name in grown else b for b in kernel.locals)
    return replace(kernel, locals=tuple(wide))


def _unmoved(s: Loop, local: Collection[str]) -> set[str]:
    """Local buffers that a loop stores to without moving along its axis."""
    return {
        t.buffer
        for t in stores(s.body)
        if t.buffer in local and not any(isinstance(i, Affine) and i.coef(s.axis) for i in t.index)
    }


def _unindexed(kernel: Kernel, buffer: str, rank: int) -> bool:
    """Is there an access to the buffer with another number of indices?"""
    for s in stores(kernel.body):
        for x in (s, *(x for e in exprs(s) for x in loads(e))):
            if x.buffer == buffer and len(x.index) != rank:
                return True
    return False


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


def tidy(kernel: Kernel) -> Kernel:
    """Write out loops that run once, but leave every top-level chain of blocks one loop."""

    def once(s: Loop) -> tuple[Stmt, ...]:
        return subst(s.body, {s.axis: Affine(0)}) if s.extent == 1 else (s,)

    def go(stmts: tuple[Stmt, ...], held: bool) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in stmts:
            if isinstance(s, Loop):
                block = s.binding == "block"
                inner = [t for t in s.body if isinstance(t, Loop) and t.binding == "block"]
                stays = s.extent != 1 or (block and not inner and not held)
                s = replace(s, body=go(s.body, held or (block and s.extent != 1)))
                out += (s,) if stays else once(s)
            else:
                out.append(s)
        return tuple(out)

    return replace(kernel, body=go(kernel.body, len(kernel.body) == 1))
