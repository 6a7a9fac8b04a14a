"""Tiles that the emitter knows by name: kernel IR in, shuffles out.

A tile's body is its meaning.  What has no rule here, or not the shape that its rule expects, is emitted as it
stands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..kernel.kernel import Affine, Loop, Stmt, Store, Tile, exprs, loads
from .access import chunks
from .builder import Builder, Value

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
    """Vectors along u are loaded, squares of them turned, vectors along v stored."""
    saved = [(x.axis, em.env.get(x.axis), em.extents.get(x.axis)) for x in (u, v)]
    em.extents[u.axis], em.extents[v.axis] = u.extent, v.extent
    width = em.b.target.lanes(max(em.buffers[s.buffer].dtype.bits, 32))
    for u0, nu in chunks(u.extent, width):
        for v0, nv in chunks(v.extent, width):
            n = min(nu, nv)
            for ub in range(u0, u0 + nu, n):
                for vb in range(v0, v0 + nv, n):
                    _square(em, s, u.axis, ub, v.axis, vb, n)
    for axis, value, extent in saved:
        em.env[axis], em.extents[axis] = value, extent


def _square(em: Emitter, s: Store, u: str, u0: int, v: str, v0: int, n: int) -> None:
    b, rows = em.b, []
    em.env[u] = u0
    em.across(u, n)
    for i in range(n):
        em.env[v] = v0 + i
        rows.append(b.splat(em.evaluate(s.value), n))
    columns = transpose(b, rows) if n > 1 else rows
    em.env[v] = v0
    em.across(v, n)
    for i in range(n):
        em.env[u] = u0 + i
        em.store(s, columns[i])
    em.across(None, 1)


def transpose(b: Builder, rows: list[Value]) -> list[Value]:
    """n vectors of n lanes -> the n columns.

    Squares inside of 128 bits by unpacking, then whole 128-bit parts: each step is one instruction on x86.
    """
    n, group = len(rows), 128 // max(rows[0].ty.bits, 8)
    parts = n // group
    if group not in (2, 4) or parts not in (1, 2, 4):
        return _butterfly(b, rows)
    inside: list[Value] = []
    for q in range(0, n, group):
        r = rows[q : q + group]
        if group == 4:
            low, high = _unpack(b, r[0], r[1], 1), _unpack(b, r[2], r[3], 1)
            pairs = [(low[0], high[0]), (low[1], high[1])]
            inside += [x for p, o in pairs for x in _unpack(b, p, o, 2)]
        else:
            inside += _unpack(b, r[0], r[1], 1)
    if parts == 1:
        return inside
    out: list[Value | None] = [None] * n
    for m in range(group):
        x = inside[m::group]
        if parts == 2:
            y = [_parts(b, x[0], x[1], (t, 2 + t), group) for t in range(2)]
        else:
            half = [_parts(b, x[i], x[i + 1], p, group) for i in (0, 2) for p in ((0, 1, 4, 5), (2, 3, 6, 7))]
            y = [_parts(b, half[h], half[h + 2], p, group) for h in (0, 1) for p in ((0, 2, 4, 6), (1, 3, 5, 7))]
        out[m::group] = y
    return out


def _unpack(b: Builder, x: Value, y: Value, size: int) -> list[Value]:
    """Interleave pieces of `size` lanes from the lower and from the upper halves of each 128 bits."""
    n, group = x.ty.lanes, 128 // x.ty.bits
    out = []
    for start in (0, group // 2):
        lanes: list[int] = []
        for part in range(0, n, group):
            for i in range(0, group // 2, size):
                for side in (0, n):
                    lanes += range(side + part + start + i, side + part + start + i + size)
        out.append(b.shuffle(x, y, lanes))
    return out


def _parts(b: Builder, x: Value, y: Value, parts: tuple[int, ...], group: int) -> Value:
    return b.shuffle(x, y, [p * group + i for p in parts for i in range(group)])


def _butterfly(b: Builder, rows: list[Value]) -> list[Value]:
    """log2(n) exchanges of blocks across the diagonal: any element type, any power of two."""
    n, rows, d = len(rows), list(rows), 1
    while d < n:
        for i in range(n):
            if not i & d:
                x, y = rows[i], rows[i + d]
                rows[i] = b.shuffle(x, y, [l if not l & d else n + l - d for l in range(n)])
                rows[i + d] = b.shuffle(x, y, [l + d if not l & d else n + l for l in range(n)])
        d *= 2
    return rows
