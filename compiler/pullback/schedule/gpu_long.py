"""The GPU schedule of long rows: kernel -> kernel on IR 2.

A block for each row.  Its threads compute the elements, each its own share, which stays in registers.  The terms of a
sum go to shared memory, where the first warp adds them up in the order that the nest says, as if the row were its own
(`gpu_rows.py`); its result is in shared memory too, for all threads.  A row is read once, 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod

from ..codegen.target import Target
from ..codegen.threads import WARP
from ..errors import ScheduleError
from ..graph.types import DType, f32
from ..kernel.kernel import (
    A,
    Barrier,
    Buffer,
    Expr,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    Tile,
    children,
    exprs,
    loads,
    map_store,
    read,
    subst,
    walk,
    written,
)
from .gpu_limits import GPU, GpuLimits
from .gpu_rows import finish_rows
from .masks import peel_masked
from .nest import chain_of, fuse_chain, outer_chain
from .sinking import expand
from .staging import axes_in
from .steps import bind, split

SHARE = 16
"""Elements that a thread has of a row, or twice as many where the block would be too large."""
AHEAD = 16
"""Steps of a sum that are unrolled: so many terms are on their way from shared memory."""
ONE, STEP = "one", "_a"


def schedule_long(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: GpuLimits = GPU) -> Kernel:
    """A block for a row that is too long for a warp; refuses (`ScheduleError`) other nests."""
    chain, body = outer_chain(kernel)
    if not chain or any(isinstance(s, Loop) and not isinstance(s.extent, int) for s in walk(kernel.body)):
        raise ScheduleError(f"{kernel.name}: no rows")
    if max(map(_length, body)) <= WARP * limits.private:
        raise ScheduleError(f"{kernel.name}: a warp can hold these rows")
    if not kernel.outputs.isdisjoint(read(kernel.body)):
        raise ScheduleError(f"{kernel.name}: rows are changed in place")
    kernel, axes = fuse_chain(kernel, [s.axis for s in chain], fixed)
    chain, body = outer_chain(kernel)
    rows = _Rows(kernel)
    for s in body:
        rows.statement(s)
    rows.hand_on()
    shared = [replace(b, space="shared") for b in kernel.locals if b.name in rows.common]
    if sum(prod(b.shape) * b.dtype.size for b in (*shared, *rows.terms)) > limits.shared:
        raise ScheduleError(f"{kernel.name}: no room for the terms of a row")
    own = [b for b in kernel.locals if b.name not in rows.common]
    stmts = tuple(rows.out)
    for s in reversed(chain):
        stmts = (replace(s, body=stmts),)
    kernel = replace(kernel, locals=(*own, *shared, *rows.terms), body=stmts)
    kernel = bind(_threads(kernel, rows.columns, limits), **dict.fromkeys(axes, "block"))
    for axis, extent in rows.steps.items():
        if extent > AHEAD:
            kernel = bind(split(kernel, axis, AHEAD, f"{axis}{STEP}", axis), **{axis: "unroll"})
    return finish_rows(kernel, limits)


def _length(s: Stmt) -> int:
    """Elements that a statement of a row goes over."""
    return prod(t.extent for t in walk((s,)) if isinstance(t, Loop)) if isinstance(s, Loop) else 1


class _Rows:
    """The statements of a row, taken apart: what threads do, what the first warp does."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.local = {b.name: b for b in kernel.locals}
        self.partial = {x for s in walk(kernel.body) if isinstance(s, Tile) for x in written(s.body)}
        self.out: list[Stmt] = []
        self.columns: dict[str, int] = {}  # loops that threads share
        self.steps: dict[str, int] = {}  # loops of the first warp over terms
        self.common: set[str] = set()  # results of the first warp
        self.terms: list[Buffer] = []
        self._free: list[Buffer] = []
        self._warp: list[Stmt] = []  # not done yet by the first warp ...
        self._waiting: list[Buffer] = []  # ... which takes terms from these

    def statement(self, s: Stmt) -> None:
        """One statement of a row."""
        needed = read((s,))
        if not written(self._warp).isdisjoint(needed - self.partial):
            self.hand_on()
        mine = not self.partial.isdisjoint(needed)
        if isinstance(s, Store):
            if mine and (s.index or s.buffer not in self.local):
                raise ScheduleError(f"{self.kernel.name}: partial results are more than a sum's")
            self.common |= {s.buffer} if mine else set()
            return (self._warp if mine else self.out).append(s)
        if isinstance(s, Tile) and s.name == "fold":
            return self._warp.append(s)
        loops, body = chain_of(s, s.role) if isinstance(s, Loop) else ([], ())
        if loops and s.role == "reduce":
            inner, body = chain_of(body[0], "parallel") if len(body) == 1 else ([], body)
            loops += inner
        if not loops or not all(isinstance(t, Store) for t in body):
            raise ScheduleError(f"{self.kernel.name}: more than rows")
        if not mine and not self.partial.isdisjoint(written(body)):  # where they begin
            return self._warp.append(s)
        if len(loops) == 1 and not mine:
            self._column(loops[0].axis, loops[0].extent)
            return self.out.append(s)
        if not mine:
            raise ScheduleError(f"{self.kernel.name}: columns of columns")
        self._sum(loops, body)

    def hand_on(self) -> None:
        """The first warp does what is left to it; all wait for its results."""
        if self._warp:
            self.out += (Barrier(), Loop(ONE, 1, "parallel", tuple(self._warp), "warp"), Barrier())
            self._free += self._waiting
            self._warp, self._waiting = [], []

    def _column(self, axis: str, extent: int) -> None:
        if self.columns.setdefault(axis, extent) != extent:
            raise ScheduleError(f"{self.kernel.name}: '{axis}' has two extents")

    def _sum(self, loops: list[Loop], body: tuple[Stmt, ...]) -> None:
        """reduce k, parallel l: all threads find the terms, as elements of a row; the first warp adds them in order."""
        *outer, lane = loops
        adds = [s for s in body if s.buffer in self.partial]
        others = [s for s in body if s.buffer not in self.partial]
        if len(outer) > 1 or lane.role != "parallel" or any(s.role != "reduce" for s in outer):
            raise ScheduleError(f"{self.kernel.name}: a sum over several axes")
        if not adds or not self.partial.isdisjoint(read(others)) or len({s.masks for s in adds}) > 1:
            raise ScheduleError(f"{self.kernel.name}: more than sums")
        at = sum((A(s.axis) * lane.extent for s in outer), A(lane.axis))
        extent = lane.extent * prod(s.extent for s in outer)
        moving = {s.axis for s in loops}, written(others)
        staged = _staged([e for s in adds for e in exprs(s)], self.partial, *moving)
        rooms = [self._room(extent, e.dtype) for e in staged]
        terms = [Store(b.name, (at,), e, adds[0].masks) for b, e in zip(rooms, staged, strict=True)]
        places = [Load(b.name, (at,), b.dtype, adds[0].masks) for b in rooms]
        row = f"q{extent}"
        elements = subst((*others, *terms), {lane.axis: A(row) - (at - A(lane.axis))})
        places_of = (Load(s.buffer, s.index, f32, s.masks) for s in elements)
        if any(s.axis in axes_in(e) for s in outer for e in (*places_of, *(e for s in elements for e in exprs(s)))):
            raise ScheduleError(f"{self.kernel.name}: a sum that is not over neighbours")
        self._column(row, extent)
        self.out.append(Loop(row, extent, "parallel", elements))
        there = dict(zip(staged, places, strict=True))
        sums: tuple[Stmt, ...] = tuple(map_store(s, lambda e: there.get(e, e)) for s in adds)
        for s in reversed(loops):
            sums = (replace(s, body=sums),)
        self.steps |= {s.axis: max(s.extent, self.steps.get(s.axis, 0)) for s in outer}
        self._warp += sums
        self._waiting += rooms

    def _room(self, extent: int, dtype: DType) -> Buffer:
        """Shared memory for the terms of a sum: some whose terms are added up by now, or more."""
        for b in self._free:
            if b.dtype == dtype and b.shape == (extent,):
                self._free.remove(b)
                return b
        self.terms.append(Buffer(f"terms{len(self.terms)}", (extent,), dtype, "shared"))
        return self.terms[-1]


def _staged(values: list[Expr], partial: Collection[str], axes: Collection[str], made: Collection[str]) -> list[Expr]:
    """What sums take from elements of a row: the largest expressions without partial results, or what these read, if
    that is less."""
    wholes: dict[Expr, None] = {}

    def moves(x: Load) -> bool:
        return x.buffer in made or not axes_in(x).isdisjoint(axes)

    def go(e: Expr) -> None:
        found = loads(e)
        if any(x.buffer in partial for x in found):
            for x in children(e):
                go(x)
        elif any(map(moves, found)):
            wholes[e] = None

    for e in values:
        go(e)
    parts = dict.fromkeys(x for e in wholes for x in loads(e) if moves(x))
    return list(parts if len(parts) < len(wholes) else wholes)


def _threads(kernel: Kernel, columns: Mapping[str, int], limits: GpuLimits) -> Kernel:
    """The elements of rows to threads, by vectors; as many threads as have a small share each."""
    unit = next(n for n in (4, 2, 1) if all(extent % n == 0 for extent in columns.values()))
    threads = min(limits.row_threads, max(WARP, 1 << (max(columns.values()) // SHARE - 1).bit_length()))
    for axis, extent in columns.items():
        if extent > threads * unit:
            kernel = split(kernel, axis, threads * unit, f"{axis}_w", axis, tail="mask")
            kernel = peel_masked(kernel, f"{axis}_w")
            if -(-extent // threads) <= limits.private:
                kernel = bind(kernel, **{f"{axis}_w": "unroll"})
        if unit > 1:
            kernel = expand(split(kernel, axis, unit, axis, f"{axis}_v"), f"{axis}_v")
            kernel = bind(kernel, **{f"{axis}_v": "vector"})
        kernel = bind(kernel, **{axis: "thread"})
    return kernel
