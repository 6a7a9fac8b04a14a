"""The GPU schedule of rows that are also summed over columns: kernel -> kernel on IR 2.

Such a nest (the gradient of a layer norm with those of its weight and bias) computes row after row and adds what it
finds to sums over the rows of a chunk, in order.  Here a block has a chunk, and its warps a row each: what they find
goes to shared memory; after a barrier the threads, each with columns of its own, add the rows' terms in order.  So the
sums have the CPU's bits, and as many rows are on their way at a time as a block has warps: while they compute, they
read the next ones into registers (`gpu_ahead.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from ..codegen.target import Target
from ..codegen.threads import WARP
from ..errors import ScheduleError
from ..kernel.kernel import (
    A,
    Affine,
    Apply,
    Barrier,
    Buffer,
    Expr,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    exprs,
    loads,
    map_stmts,
    map_store,
    read,
    stores,
    subst,
    walk,
    written,
)
from .gpu_ahead import reading, rows_ahead
from .gpu_limits import GPU, GpuLimits
from .gpu_rows import finish_rows
from .nest import chain_of, extents_of, outer_chain
from .staging import place
from .steps import bind, fresh, split

MOST, BUSY = 256, 4
"""A thread has at most so many registers, and needs so many for each element that it reads ahead."""
COLUMN = "_t"
"""Ends the names of the axes over columns that threads walk."""


@dataclass(frozen=True, slots=True)
class Sum:
    """One store of the nest: buffer[index] = fn(buffer[index], term), within these loops over columns."""

    store: Store
    loops: tuple[Loop, ...]

    @property
    def term(self):
        return self.store.value.args[1]


def schedule_sums(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: GpuLimits = GPU) -> Kernel:
    """A chunk of rows for a block, a row for a warp, columns for threads; refuses (`ScheduleError`) other nests."""
    chain, body = outer_chain(kernel)
    before, rows, after = _parts(kernel, body)
    if any(not isinstance(s.extent, int) for s in chain):
        raise ScheduleError(f"{kernel.name}: the chunks are no rectangle")
    around, row = chain_of(rows, "reduce")
    if any(m.coef(s.axis) for t in stores(row) for m, _ in t.masks for s in (*chain, *around)):
        raise ScheduleError(f"{kernel.name}: rows that there may not be")
    last = around[-1]
    sums = _sums(kernel, row, written(before))
    buffers = kernel.buffers
    bytes_of_row = sum(prod(s.extent for s in x.loops) * buffers[x.store.buffer].dtype.compute.size for x in sums)
    ahead = rows_ahead(kernel, row, last.axis, limits.private, MOST // BUSY)
    fresh(kernel, *(x.axis for x in ahead))
    most = limits.registers // (WARP * BUSY * max(sum(x.held for x in ahead), 1))
    warps = min(limits.sum_warps, most, limits.shared // max(bytes_of_row, 1), last.extent)
    if warps < 2:
        raise ScheduleError(f"{kernel.name}: no room for the terms of two rows")
    warps = 1 << (warps.bit_length() - 1)
    terms = {x.store.buffer: _terms(kernel, x, warps) for x in sums}
    names = {s.axis: s.axis + COLUMN for x in sums for s in x.loops} | {
        s.axis: s.axis + COLUMN for s in walk((*before, *after)) if isinstance(s, Loop)
    }
    step, adder = f"{last.axis}_b", f"{last.axis}_s"
    fresh(kernel, step, adder, *names.values())

    def add(x: Sum, count: int, at: Affine) -> Stmt:
        """The terms of `count` rows, in order, to one sum."""
        t = terms[x.store.buffer]
        index = x.store.index
        value = replace(x.store.value, args=(x.store.value.args[0], Load(t.name, (A(adder), *index), t.dtype)))
        added: tuple[Stmt, ...] = (Store(x.store.buffer, index, value, x.store.masks, x.store.other),)
        added = (Loop(adder, count, "reduce", subst(added, {last.axis: at + A(adder)}), "unroll"),)
        for s in reversed(x.loops):
            added = (replace(s, body=added),)
        return _renamed(added, names)[0]

    found = _found(row, {id(x.store): terms[x.store.buffer] for x in sums}, last.axis)
    held = reading(found, last.axis, ahead)

    def rows(first: Affine, size: int, stmts: Iterable[Stmt]) -> Loop:
        """`size` rows from the first one on, one for each warp."""
        return Loop(last.axis, size, "parallel", _moved(tuple(stmts), last.axis, first), "warp")

    def some(first: Affine, size: int, *stmts: Stmt) -> tuple[Stmt, ...]:
        """The same, and what they give to the sums."""
        return (rows(first, size, stmts), Barrier(), *(add(x, size, first) for x in sums), Barrier())

    whole, rest = divmod(last.extent, warps)
    turn = some(A(step) * warps, warps, *(x.over(take=True, fetch=warps) for x in ahead), *held)
    steady = whole - 1 if ahead else whole  # the last rows have none to fetch
    inner: tuple[Stmt, ...] = (rows(A(0), warps, (x.over(fetch=0) for x in ahead)),) if ahead else ()
    inner += (Loop(step, steady, "reduce", turn),) if steady else ()
    inner += some(A(steady * warps), warps, *(x.over(take=True) for x in ahead), *held) if ahead else ()
    inner += some(A(whole * warps), rest, *found) if rest else ()
    for s in reversed(around[:-1]):
        inner = (replace(s, body=inner),)
    inner = (*_renamed(before, names), *inner, *_renamed(after, names))
    for s in reversed(chain):
        inner = (replace(s, body=inner),)
    registers = (b for x in ahead for b in x.buffers(warps))
    kernel = replace(kernel, locals=(*kernel.locals, *terms.values(), *registers), body=inner)
    return finish_rows(_columns(kernel, chain, set(names.values()), terms, warps * WARP), limits)


def _parts(kernel: Kernel, body: tuple[Stmt, ...]) -> tuple[tuple[Stmt, ...], Loop, tuple[Stmt, ...]]:
    """What stands before the rows, the loop over them, what comes after."""
    at = [n for n, s in enumerate(body) if isinstance(s, Loop) and s.role == "reduce"]
    if len(at) != 1:
        raise ScheduleError(f"{kernel.name}: no sums over the columns of rows")
    n = at[0]
    if not any(isinstance(s, Loop) and s.role == "parallel" for s in walk(body[n].body)):
        raise ScheduleError(f"{kernel.name}: nothing within a row is parallel")
    return body[:n], body[n], body[n + 1 :]


def _sums(kernel: Kernel, row: tuple[Stmt, ...], started: set[str]) -> list[Sum]:
    """What adds to the buffers `started`; nothing else may touch these within a row."""
    found: list[Sum] = []

    def visit(stmts: tuple[Stmt, ...], loops: tuple[Loop, ...]) -> None:
        for s in stmts:
            if isinstance(s, Store) and s.buffer in started:
                e = s.value
                own = isinstance(e, Apply) and len(e.args) == 2 and isinstance(e.args[0], Load)
                if not own or e.args[0].buffer != s.buffer or e.args[0].index != s.index or e.args[0].masks:
                    raise ScheduleError(f"{kernel.name}: {s.buffer} is no sum")
                if s.where is not None or any(t.role != "parallel" for t in loops):
                    raise ScheduleError(f"{kernel.name}: {s.buffer} is no sum over rows alone")
                if s.index != tuple(A(t.axis) for t in loops):
                    raise ScheduleError(f"{kernel.name}: {s.buffer} has no place of its own for each column")
                found.append(Sum(s, loops))
            elif isinstance(s, Loop):
                visit(s.body, (*loops, s))
            elif not isinstance(s, Store) and not started.isdisjoint(written(s.body) | read(s.body)):
                raise ScheduleError(f"{kernel.name}: a sum within a fold")

    visit(row, ())
    reads = [x.buffer for s in stores(row) for e in exprs(s) for x in loads(e) if x.buffer in started]
    if not found or sorted(reads) != sorted(x.store.buffer for x in found) or len(set(reads)) != len(reads):
        raise ScheduleError(f"{kernel.name}: sums that are read within a row")
    return found


def _terms(kernel: Kernel, x: Sum, warps: int) -> Buffer:
    """Where the terms of a sum wait, for some rows."""
    b = kernel.buffers[x.store.buffer]
    return Buffer(f"{b.name}_terms", (warps, *(s.extent for s in x.loops)), b.dtype.compute, "shared")


def _found(row: tuple[Stmt, ...], terms: dict[int, Buffer], warp: str) -> tuple[Stmt, ...]:
    """The rows, with terms stored in place of sums."""
    out: list[Stmt] = []
    for s in row:
        if isinstance(s, Store) and id(s) in terms:
            t = terms[id(s)]
            s = Store(t.name, (A(f"{warp}'"), *s.index), s.value.args[1])
        elif isinstance(s, Loop):
            s = replace(s, body=_found(s.body, terms, warp))
        out.append(s)
    return tuple(out)


def _moved(found: tuple[Stmt, ...], axis: str, at: Affine) -> tuple[Stmt, ...]:
    """Row `axis` of a step for row `axis` of the chunk; `axis'` is its number within the step."""
    return subst(found, {axis: at + A(axis), f"{axis}'": A(axis)})


def _renamed(stmts: tuple[Stmt, ...], names: dict[str, str]) -> tuple[Stmt, ...]:
    """The same with other names for these axes."""
    out: list[Stmt] = []
    for s in stmts:
        if isinstance(s, Loop):
            new = names.get(s.axis, s.axis)
            body = subst(s.body, {s.axis: A(new)}) if new != s.axis else s.body
            s = replace(s, axis=new, body=_renamed(body, names))
        out.append(s)
    return tuple(out)


def _columns(kernel: Kernel, chain: list[Loop], columns: set[str], terms: Mapping[str, Buffer], threads: int) -> Kernel:
    """Columns to threads, chunks to blocks, sums to registers."""
    extents = extents_of(kernel)
    staged = [b.name for b in terms.values()]
    for axis in sorted(columns):
        if extents.get(axis, 0) > threads:
            kernel = split(kernel, axis, threads, f"{axis}w", axis, tail="mask")
            kernel = _guarded(bind(kernel, **{f"{axis}w": "unroll"}), staged)
        kernel = bind(kernel, **{axis: "thread"})
    sizes = {b.name: b for b in terms.values()}  # (the threads that there are too many of read nothing)
    kernel = replace(kernel, locals=tuple(sizes.get(b.name, b) for b in kernel.locals))
    for name in terms:
        kernel = place(kernel, name, "register")
    return bind(kernel, **dict.fromkeys((s.axis for s in chain), "block"))


def _guarded(kernel: Kernel, terms: Collection[str]) -> Kernel:
    """Nobody reads terms of columns that there are not."""

    def go(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store) or not s.masks:
            return (s,)

        def guarded(e: Expr) -> Expr:
            return replace(e, masks=s.masks) if isinstance(e, Load) and e.buffer in terms else e

        return (map_store(s, guarded),)

    return replace(kernel, body=map_stmts(kernel.body, go))
