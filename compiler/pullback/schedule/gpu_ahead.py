"""Rows of parameters that warps read ahead: statements of IR 2 in, the same statements on registers out.

A warp that takes one row after another fetches the next one into registers before it computes with the one at hand, so
that memory is busy meanwhile.  `gpu_sums.py` says when.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..codegen.threads import WARP
from ..graph.types import DType
from ..kernel.kernel import (
    A,
    Affine,
    Buffer,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    exprs,
    loads,
    map_stmts,
    map_store,
    stores,
    subst,
    walk,
)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Rows of a parameter, one for each warp: that at hand and the next.  `load` reads element `axis` of row `row`;
    `row'` is the number of the warp."""

    name: str
    columns: int
    row: str
    axis: str
    load: Load

    @property
    def dtype(self) -> DType:
        return self.load.dtype

    @property
    def held(self) -> int:
        """Elements of a row that one lane has."""
        return -(-self.columns // WARP)

    def element(self, when: str, column: Affine) -> Load:
        return Load(f"{self.name}_{when}", (A(f"{self.row}'"), column), self.dtype)

    def buffers(self, warps: int) -> tuple[Buffer, ...]:
        return tuple(
            Buffer(f"{self.name}_{when}", (warps, self.columns), self.dtype, "register") for when in ("now", "next")
        )

    def over(self, take: bool = False, fetch: int | None = None) -> Loop:
        """Take the next row; fetch the one that is so many rows further on."""
        now, then = (self.element(when, A(self.axis)) for when in ("now", "next"))
        stmts: tuple[Stmt, ...] = (Store(now.buffer, now.index, then),) if take else ()
        if fetch is not None:
            stmts += subst((Store(then.buffer, then.index, self.load),), {self.row: A(self.row) + fetch})
        return Loop(self.axis, self.columns, "parallel", stmts)


Key = tuple[str, int, tuple[Index, ...]]


def _key(x: Load, row: str, columns: Collection[str]) -> Key | None:
    """Which row an access reads, if it is one element after the other: the parameter, the dimension of its columns, the
    other indices."""
    moving = [d for d, i in enumerate(x.index) if not isinstance(i, Affine) or not i.axes.isdisjoint(columns)]
    if len(moving) != 1 or not isinstance(x.index[moving[0]], Affine) or x.index[moving[0]].coef(row):
        return None
    rest = (*x.index[: moving[0]], *x.index[moving[0] + 1 :])
    return (x.buffer, moving[0], rest) if any(i.coef(row) for i in rest) else None


def rows_ahead(kernel: Kernel, stmts: tuple[Stmt, ...], row: str, longest: int, room: int) -> list[Ahead]:
    """What the statements of a row read that nobody changes, as far as lanes have room: for `longest` elements of one
    parameter, for `room` of all of them."""
    columns = {s.axis for s in walk(stmts) if isinstance(s, Loop)}
    found: dict[Key, Ahead] = {}
    for x in (x for s in stores(stmts) for e in exprs(s) for x in loads(e)):
        key = _key(x, row, columns)
        if key is None or key in found or x.buffer not in kernel.buffers or x.buffer in kernel.outputs:
            continue
        b, d = kernel.buffers[x.buffer], key[1]
        name = f"{b.name}_{len(found)}"
        axis = f"{name}_c"
        load = Load(b.name, (*x.index[:d], A(axis), *x.index[d + 1 :]), b.dtype)
        new = Ahead(name, b.shape[d], row, axis, load)
        if b.space == "global" and new.held <= min(longest, room):
            found[key] = new
            room -= new.held
    return list(found.values())


def reading(stmts: tuple[Stmt, ...], row: str, ahead: Collection[Ahead]) -> tuple[Stmt, ...]:
    """The statements of a row, on the elements at hand."""
    columns = {s.axis for s in walk(stmts) if isinstance(s, Loop)}
    held = {_key(x.load, row, {x.axis}): x for x in ahead}

    def leaf(e: Expr) -> Expr:
        key = _key(e, row, columns) if isinstance(e, Load) else None
        if key not in held:
            return e
        now = held[key].element("now", e.index[key[1]])
        return replace(e, buffer=now.buffer, index=now.index)

    return map_stmts(stmts, lambda s: (map_store(s, leaf),) if isinstance(s, Store) else (s,))
