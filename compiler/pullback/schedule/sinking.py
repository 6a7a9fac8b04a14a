"""Schedule steps that push a parallel loop inwards: pure functions kernel -> kernel on IR 2.

`sink` is interchange, fission and 'accumulate in registers' in one; `expand` makes vectors of scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from ..errors import ScheduleError
from ..kernel.kernel import A, Affine, Kernel, Load, Loop, Stmt, Store, exprs, loads, map_stmts, map_store, stores
from .liveness import live_in, unmoved
from .steps import constant_extent, on_loops


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
        if s.extent != 1 and (len(runs) > 1 or any(through(t) for t in s.body)):
            for b in unmoved(s, local):
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
        carried = grown.keys() & unmoved(s, local)
        return _add_index(body, carried, axis) if carried else body

    on_loops(kernel, axis, first)
    for s in moved:  # a copy that is smaller than the first still needs its place
        for b in grown.keys() & unmoved(s, local):
            grown[b] = max(grown[b], constant_extent(s))
    return _grown(on_loops(kernel, axis, second), grown, axis)


def expand(kernel: Kernel, axis: str) -> Kernel:
    """Give every local value that one iteration of a parallel loop makes for itself a place per iteration (a
    scalar becomes a vector, so that the loop can be bound to lanes)."""
    local = {b.name: b for b in kernel.locals}
    grown: dict[str, int] = {}

    def look(s: Loop) -> tuple[Stmt, ...]:
        for b in unmoved(s, local):
            if live_in(s.body, local[b]):
                raise ScheduleError(f"{kernel.name}: '{b}' goes from one iteration of '{axis}' to the next")
            grown[b] = max(grown.get(b, 0), constant_extent(s))
        return (s,)

    def widen(s: Loop) -> tuple[Stmt, ...]:
        mine = grown.keys() & unmoved(s, local)
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


def _unindexed(kernel: Kernel, buffer: str, rank: int) -> bool:
    """Is there an access to the buffer with another number of indices?"""
    for s in stores(kernel.body):
        for x in (s, *(x for e in exprs(s) for x in loads(e))):
            if x.buffer == buffer and len(x.index) != rank:
                return True
    return False
