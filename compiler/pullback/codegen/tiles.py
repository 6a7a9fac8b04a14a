"""Tiles that the emitter knows by name: kernel IR in, shuffles out.

A tile's body is its meaning.  What has no rule here, or not the shape that its rule expects, is emitted as it
stands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..kernel.kernel import Affine, Loop, Stmt, Store, Tile, exprs, loads
from .access import chunks
from .pairs import PAIRS
from .shuffles import concat, transpose

if TYPE_CHECKING:
    from .emit import Emitter


def tile(em: Emitter, s: Tile) -> None:
    """Emit a tile."""
    if s.name == "fold":
        return em.body(bind(s.body, "vector" if em.lane is None else "unroll"))
    if s.name == "transpose":
        found = _transposition(em, s)
        if found is not None:
            return _transpose(em, *found)
    if s.name not in PAIRS or not PAIRS[s.name](em, s):
        em.body(s.body)


def bind(stmts: tuple[Stmt, ...], binding: str) -> tuple[Stmt, ...]:
    """Innermost loops bound so: each step of a fold combines two halves, lane by lane."""
    return tuple(
        replace(s, binding=binding)
        if isinstance(s, Loop) and all(isinstance(x, Store) for x in s.body)
        else replace(s, body=bind(s.body, binding))
        if isinstance(s, Loop | Tile)
        else s
        for s in stmts
    )


# ---- transpose ----------------------------------------------------------------------------------------------
def _transposition(em: Emitter, s: Tile) -> tuple[Store, Loop, Loop] | None:
    """The store, the loop along which its loads are contiguous, and the one along which it is."""
    outer = s.body[0]
    if len(s.body) != 1 or not isinstance(outer, Loop) or len(outer.body) != 1 or em.lane is not None:
        return None
    inner = outer.body[0]
    if not isinstance(inner, Loop) or len(inner.body) != 1 or not isinstance(inner.body[0], Store):
        return None
    store = inner.body[0]
    if not isinstance(outer.extent, int) or not isinstance(inner.extent, int) or store.where is not None:
        return None
    for u, v in ((outer, inner), (inner, outer)):
        if _coefficients(em, store.buffer, store.index, u, v)[1] != 1:
            continue
        reads = [_coefficients(em, x.buffer, x.index, u, v) for e in exprs(store) for x in loads(e)]
        if reads and all(r[0] in (0, 1) for r in reads) and any(r[0] == 1 for r in reads):
            return store, u, v
    return None


def _coefficients(em: Emitter, buffer: str, index, u: Loop, v: Loop) -> tuple[int, int]:
    if not all(isinstance(a, Affine) for a in index):
        return -1, -1
    flat = em.buffers[buffer].flat(index)
    return flat.coef(u.axis), flat.coef(v.axis)


def _transpose(em: Emitter, s: Store, u: Loop, v: Loop) -> None:
    """Vectors along u are loaded, turned, and stored along v.

    Where v is a whole vector, pieces of 128 bits are loaded to where they belong, which costs loads instead of half
    of the shuffles; elsewhere squares are turned.
    """
    saved = [(x.axis, em.env.get(x.axis), em.extents.get(x.axis)) for x in (u, v)]
    em.extents[u.axis], em.extents[v.axis] = u.extent, v.extent
    bits = max(em.buffers[s.buffer].dtype.bits, 32)
    width, piece = em.b.target.lanes(bits), 128 // bits
    for u0, nu in chunks(u.extent, width):
        for v0, nv in chunks(v.extent, width):
            n, m = (piece, nv) if nv == width and nu >= piece else (min(nu, nv),) * 2
            for ub in range(u0, u0 + nu, n):
                for vb in range(v0, v0 + nv, m):
                    _turn(em, s, u.axis, ub, n, v.axis, vb, m)
    for axis, value, extent in saved:
        em.env[axis], em.extents[axis] = value, extent


def _turn(em: Emitter, s: Store, u: str, u0: int, n: int, v: str, v0: int, m: int) -> None:
    """m vectors of n lanes along u -> n vectors of m lanes along v."""
    b, rows = em.b, []
    em.env[u] = u0
    em.across(u, n)
    for i in range(m):
        em.env[v] = v0 + i
        rows.append(b.splat(em.evaluate(s.value), n))
    rows = [concat(b, rows[i::n]) for i in range(n)]
    columns = transpose(b, rows, n) if n > 1 else rows
    em.env[v] = v0
    em.across(v, m)
    for i in range(n):
        em.env[u] = u0 + i
        em.store(s, columns[i])
    em.across(None, 1)
