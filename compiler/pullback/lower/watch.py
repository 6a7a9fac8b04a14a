"""`--watch-nan`: every kernel checks the floats that it stores; regions in, regions out.

A stored value v becomes `select(check(not finite(v)) == 0, v, v)`: the check is an ordinary checked integer with
bound 1, so masks, vectors, the commit point and the status work as for indices, and no IR knows of NaN watching.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.types import bool_, i32
from ..kernel.kernel import Apply, Checked, Const, Expr, Kernel, Stmt, Store, apply, map_stmts
from .groups import LoopPiece, Piece, Region

SITE = "nan: "
"""How a site of this kind begins (the runtime raises another error for it)."""


def watch(region: Region) -> Region:
    """The region with every floating result checked for NaN and infinity."""
    return replace(region, pieces=tuple(map(_watched, region.pieces)))


def _watched(piece: Piece | LoopPiece) -> Piece | LoopPiece:
    if isinstance(piece, LoopPiece):
        return replace(piece, body=watch(piece.body))
    site = len(piece.sites)
    kernel = _checked(piece.kernel, site)
    if kernel is piece.kernel:
        return piece
    return replace(piece, kernel=kernel, sites=(*piece.sites, f"{SITE}a result of {piece.label}"))


def _checked(kernel: Kernel, site: int) -> Kernel:
    outputs = {b.name for b in kernel.params if b.name in kernel.outputs and b.dtype.is_float}
    if not outputs:
        return kernel

    def rule(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Store) and s.buffer in outputs and not isinstance(s.value, Const):
            return (replace(s, value=_finite(s.value, site)),)
        return (s,)

    return replace(kernel, body=map_stmts(kernel.body, rule))


def _finite(v: Expr, site: int) -> Expr:
    bad = Apply("cast", (apply("not", apply("isfinite", v, dtype=bool_)),), i32)
    return Apply("select", (apply("eq", Checked(bad, 1, site), Const(0, i32)), v, v), v.dtype)
