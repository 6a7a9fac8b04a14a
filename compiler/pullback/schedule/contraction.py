"""Contractions (matrix products of all kinds) on IR 2: recognised, read, brought into one form.

The nest: parallel axes around `acc = 0; reduce k: acc = fma(a, b, acc); stores of expressions of acc`.  An
axis that only `a` moves with is a *row*, one that only `b` moves with a *column*; others are outer axes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import ceil, inf, prod

from ..codegen.target import Target
from ..kernel.kernel import Apply, Expr, Kernel, Load, Loop, Store, loads, stores, written
from .nest import chain_of, extents_of, fuse_chain, order_axes, outer_chain, rename, stride
from .pairs import fits
from .staging import Operand, axes_in


@dataclass(frozen=True, slots=True)
class Contraction:
    """A nest of this family: its axes in groups (outermost first) and where they lie in memory."""

    acc: str
    outer: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    reduced: tuple[str, ...]
    swapped: bool  # the column operand is fma's first factor
    pair: tuple[str, ...] = ()  # the axis within pairs of k, where products are added in pairs (`pairs.py`)

    @property
    def inner(self) -> str:
        """The reduced axis whose elements follow each other most closely."""
        return (self.pair or self.reduced)[-1]


def accumulation(s: Store) -> tuple[Expr, Expr] | None:
    """(a, b) of `acc = fma(a, b, acc)`, or fma_ftz."""
    v = s.value
    if isinstance(v, Apply) and v.fn in ("fma", "fma_ftz") and s.where is None:
        c = v.args[2]
        if isinstance(c, Load) and c.buffer == s.buffer and c.index == s.index:
            return v.args[0], v.args[1]
    return None


def recognise(kernel: Kernel) -> tuple[str, list[Loop], list[Loop], Store] | None:
    """(acc, parallel loops, reduce loops, the accumulating store) if the kernel is a contraction."""
    chain, stmts = outer_chain(kernel)
    if len(stmts) < 3 or not isinstance(stmts[0], Store) or not isinstance(stmts[1], Loop):
        return None
    init, rest = stmts[0], stmts[2:]
    reduce, inner = chain_of(stmts[1], "reduce")
    if not reduce or len(inner) != 1 or not isinstance(inner[0], Store) or accumulation(inner[0]) is None:
        return None
    step = inner[0]
    local = {b.name: b for b in kernel.locals}
    if init.buffer != step.buffer or step.buffer not in local or local[step.buffer].shape or step.masks or init.masks:
        return None
    if not all(isinstance(s, Store) for s in rest) or any(not isinstance(s.extent, int) for s in (*chain, *reduce)):
        return None
    if init.buffer in written(rest):
        return None
    return step.buffer, chain, reduce, step


def group(kernel: Kernel, swapped: bool) -> Contraction:
    acc, chain, reduce, step = recognise(kernel)
    a, b = accumulation(step)
    rows, columns = (axes_in(b), axes_in(a)) if swapped else (axes_in(a), axes_in(b))
    names = [s.axis for s in chain]
    return Contraction(
        acc,
        tuple(n for n in names if (n in rows) == (n in columns)),
        tuple(n for n in names if n in rows and n not in columns),
        tuple(n for n in names if n in columns and n not in rows),
        tuple(s.axis for s in reduce),
        swapped,
    )


def normalise(kernel: Kernel, target: Target, fixed: Collection[str] = ()) -> tuple[Kernel, Contraction]:
    """Fuse axes where memory allows; name the row axis of the tile `i`, the vectorised column axis `j`, and
    put all other axes around them."""
    c = group(kernel, False)
    kernel = order_axes(kernel, (*c.outer, *c.rows, *c.columns))
    left: list[str] = []
    for axes in (c.outer, c.rows, c.columns, c.reduced):
        kernel, names = fuse_chain(kernel, list(axes), fixed)
        left.append(names)
    outer, rows, columns, reduced = left
    extents = extents_of(kernel)
    outs = [s for s in epilogue(kernel) if s.buffer in {b.name for b in kernel.params}]

    def nearest(axes: list[str]) -> str | None:  # what lies closest in the outputs, then the longest
        def far(n: str):
            return (min((abs(stride(kernel, s, n) or 1 << 40) for s in outs), default=0), -extents[n])

        return min(axes, key=far, default=None)

    i, j = nearest(rows), nearest(columns)
    acc, _, _, step = recognise(kernel)
    a, b = accumulation(step)
    lanes = target.lanes(kernel.buffers[acc].dtype.bits)
    k = reduced[-1]

    def price(col: str | None, row: str | None, operand: Expr) -> float:
        """Cycles per element of k when `col` is vectorised: fma, transposition, scattered stores."""
        n, m, depth = extents.get(col, 1), extents.get(row, 1), prod(extents[x] for x in reduced)
        if n == 1:  # scalars, two at a time; pairs are added in vectors only
            return inf if m > 1 and fits(step, target) else max(m / 2, 4.0)
        vectors = ceil(n / lanes)
        wide = max((abs(stride(kernel, x, col) or 0) for x in loads(operand)), default=0) if col else 0
        near = max((abs(stride(kernel, x, k) or 0) for x in loads(operand)), default=0)
        load = 1 if wide <= 1 else 5 if near <= 1 else 2 * lanes
        scatter = any(stride(kernel, s, col) not in (0, 1) for s in outs) if col and n > 1 else False
        return max(m * vectors, 4) + load * vectors + scatter * 4.0 * m * n / depth

    swapped = price(i, j, a) < 0.9 * price(j, i, b)
    if swapped:
        i, j, rows, columns = j, i, columns, rows
    outer += [n for n in rows + columns if n not in (i, j)]
    names = {n: f"o{d}" for d, n in enumerate(outer)} | {n: f"k{d}" for d, n in enumerate(reduced)}
    names |= {n: new for n, new in ((i, "i"), (j, "j")) if n}
    kernel = rename(order_axes(kernel, [*outer, *(n for n in (i, j) if n)]), names)
    if i is None:  # matrix-vector products: an axis of one
        kernel = _wrap(kernel, "i", len(outer))
    if j is None:
        kernel = _wrap(kernel, "j", len(outer) + 1)
    return kernel, Contraction(
        acc, tuple(names[n] for n in outer), ("i",), ("j",), tuple(names[n] for n in reduced), swapped
    )


def _wrap(kernel: Kernel, axis: str, depth: int) -> Kernel:
    """Add a parallel axis of extent 1 below the `depth` outermost loops."""
    chain, body = outer_chain(kernel)
    for s in (*reversed(chain[depth:]), Loop(axis, 1, "parallel", ()), *reversed(chain[:depth])):
        body = (replace(s, body=body),)
    return replace(kernel, body=body)


def epilogue(kernel: Kernel) -> list[Store]:
    _, stmts = outer_chain(kernel)
    return stores(stmts[2:])


def operands(c: Contraction) -> tuple[Operand, Operand]:
    """Which expression of a store is the row operand, and which the column operand."""

    def pick(n: int) -> Operand:
        def f(s: Store) -> Expr | None:
            if s.buffer not in (c.acc, "tile") or (factors := accumulation(s)) is None:
                return None
            return factors[n].args[0] if c.pair else factors[n]  # in pairs: before it is widened

        return f

    return pick(1 if c.swapped else 0), pick(0 if c.swapped else 1)


def lanes_for(kernel: Kernel, c: Contraction, target: Target) -> int:
    """Lanes of the column axis; one column is computed in scalars (several rows at a time)."""
    return target.lanes(kernel.buffers[c.acc].dtype.bits) if c.pair or extents_of(kernel)["j"] > 1 else 1


def picked(kernel: Kernel, operand: Operand) -> set[Expr]:
    return {e for s in stores(kernel.body) if (e := operand(s)) is not None}


def unit(kernel: Kernel, operand: Operand, axis: str) -> bool:
    """Does the operand's widest load walk an axis element by element?"""
    steps = [abs(stride(kernel, x, axis) or 0) for e in picked(kernel, operand) for x in loads(e)]
    return max(steps, default=0) == 1
