"""The CPU schedule of rows: kernel -> kernel on IR 2.

A row kernel has parallel loops inside of its outer ones: the strided partial results of a reduction (`parallel
l` in `reduce ko`), maps over a row, column sums over the rows of a chunk.  They become vectors; outer loops
become blocks of rows.  Values that live between stages stay in registers where their whole row is a few
vectors, else in memory of the worker.  The order of every reduction is in the nest and stays.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..codegen.target import Target
from ..kernel.kernel import Affine, Kernel, Loop, Stmt, Store, Tile, exprs, loads, map_stmts, stores, walk
from .common import deal, lane_price, lanes_of, vectorise, work
from .limits import DEFAULT, Limits
from .masks import peel_masked
from .nest import cost, extents_of, outer_chain
from .staging import place
from .steps import bind, tidy


def schedule_rows(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: Limits = DEFAULT) -> Kernel:
    """Any nest with parallel loops inside; those that hold only stores are vectorised."""
    chain, body = outer_chain(kernel)
    axes = [s.axis for s in chain]
    kernel = deal(kernel, axes, work(body), 2 * limits.block) if axes else kernel
    for axis in _chunked(kernel, axes):
        kernel = peel_masked(kernel, axis)
    extents = extents_of(kernel)
    for axis in _innermost(kernel.body):
        loops = [s for s in walk(kernel.body) if isinstance(s, Loop) and s.axis == axis]
        inside = [t for s in loops for t in s.body]
        lanes = lanes_of(kernel, inside, target)
        if not _worth(kernel, inside, axis, extents[axis], lanes):
            continue
        vectors = -(-extents[axis] // lanes)
        lanes = min(lanes, 1 << (extents[axis] - 1).bit_length())  # short rows take narrower vectors
        heavy = sum(cost(s.value) for s in stores(inside))
        kernel = vectorise(kernel, axis, lanes, vectors if vectors <= 4 else 4 if heavy <= 16 else 1)
    return tidy(_place(_bind_folds(kernel), target, limits.row_vectors))


def _bind_folds(kernel: Kernel) -> Kernel:
    """Each step of a fold combines two halves lane by lane."""

    def go(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Tile) and s.name == "fold":
            return (replace(s, body=tuple(replace(t, binding="vector") for t in s.body)),)
        return (s,)

    return replace(kernel, body=map_stmts(kernel.body, go))


def _chunked(kernel: Kernel, axes: list[str]) -> list[str]:
    """Serial loops that masks speak of, innermost last: peeled so that only their last iteration is masked."""
    out: list[str] = []
    for s in walk(kernel.body):
        if isinstance(s, Loop) and s.axis not in out and s.axis not in axes and not _only_stores(s):
            out += [s.axis] if any(m.coef(s.axis) for t in stores(s.body) for m, _ in t.masks) else []
    return out


def _only_stores(s: Loop) -> bool:
    return all(isinstance(t, Store) for t in s.body)


def _innermost(stmts: tuple[Stmt, ...]) -> list[str]:
    """Axes of parallel loops that hold only stores; what is in tiles is the emitter's."""
    out: list[str] = []
    bad: set[str] = set()

    def go(body):
        for s in body:
            if isinstance(s, Loop):
                fits = s.role == "parallel" and s.binding == "serial" and isinstance(s.extent, int) and s.extent > 1
                if _only_stores(s) and fits:
                    out.append(s.axis)
                else:
                    bad.add(s.axis)
                    go(s.body)

    go(stmts)
    return [a for a in dict.fromkeys(out) if a not in bad]


def _worth(kernel: Kernel, stmts: list[Store], axis: str, extent: int, lanes: int) -> bool:
    arithmetic = sum(cost(s.value) + 1 for s in stmts)
    scalar = sum(1 + len(loads(s.value)) for s in stmts) + arithmetic
    return lane_price(kernel, stmts, axis, extent, lanes) + arithmetic * -(-extent // lanes) / extent < scalar


def _place(kernel: Kernel, target: Target, row_vectors: int) -> Kernel:
    """Register buffers need constant indices: unroll the loops that move them if that is little code, else
    keep them in memory."""
    extents = extents_of(kernel)
    bindings = {s.axis: s.binding for s in walk(kernel.body) if isinstance(s, Loop)}
    movers: dict[str, set[str]] = {}
    for s in stores(kernel.body):
        for x in (s, *(x for e in exprs(s) for x in loads(e))):
            for i in x.index:
                if isinstance(i, Affine):
                    serial = {n for n, _ in i.terms if bindings[n] not in ("unroll", "vector")}
                    movers.setdefault(x.buffer, set()).update(serial)
    unroll: set[str] = set()
    for b in kernel.locals:
        if b.space != "register" or not (loops := movers.get(b.name)):
            continue
        small = b.size <= row_vectors * target.lanes(b.dtype.compute.bits)
        copies = 1
        for n in loops:
            copies *= extents[n]
        if small and copies <= 4 and all(_constant(kernel, n) for n in loops):
            unroll |= loops
        else:
            kernel = place(kernel, b.name, "local")
    return bind(kernel, **dict.fromkeys(unroll, "unroll")) if unroll else kernel


def _constant(kernel: Kernel, axis: str) -> bool:
    return all(isinstance(s.extent, int) for s in walk(kernel.body) if isinstance(s, Loop) and s.axis == axis)
