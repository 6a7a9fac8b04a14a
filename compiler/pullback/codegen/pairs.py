"""Tiles on pairs of bf16: kernel IR in, VDPBF16PS and shuffles out.

`dot`: a vector of sums takes in a pair of products.  `pairs`: a copy of pairs in vectors.  `transpose` of pairs: each
counts as one number of 32 bits.  Tiles of another form than the schedules make are emitted as they stand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..graph.types import bf16
from ..kernel.kernel import (
    Affine,
    Apply,
    AxisValue,
    Expr,
    Index,
    Load,
    Loop,
    Mask,
    Store,
    Tile,
    map_expr,
    walk_expr,
)
from . import scalar
from .access import chunks
from .builder import I32, Builder, Type, Value, ty
from .shuffles import transpose

if TYPE_CHECKING:
    from .emit import Emitter


def _loops(em: Emitter, s: Tile) -> tuple[Loop, Loop, Store] | None:
    """The vector's loop, the pair's, and the store within (of which nobody reads what its masks leave out)."""
    outer = s.body[0]
    if len(s.body) != 1 or not isinstance(outer, Loop) or not isinstance(outer.body[0], Loop) or em.lane is not None:
        return None
    inner = outer.body[0]
    store = inner.body[0]
    if not isinstance(store, Store) or store.where is not None or not isinstance(outer.extent, int):
        return None
    if store.masks and (store.other != "any" or em.buffers[store.buffer].space == "global"):
        return None
    return outer, inner, store


def _steps(em: Emitter, x: Load | Store, *axes: str) -> tuple[int, ...] | None:
    """Elements from one iteration of each axis to the next."""
    if not all(isinstance(a, Affine) for a in x.index):
        return None
    flat = em.buffers[x.buffer].flat(x.index)
    return tuple(flat.coef(a) for a in axes)


# ---- dot ----------------------------------------------------------------------------------------------------
def dot(em: Emitter, s: Tile) -> bool:
    """sums += products of pairs, the first of each pair first."""
    found, b = _loops(em, s), em.b
    if found is None or not b.target.has_bf16_dot:
        return False
    outer, inner, store = found
    lanes = outer.extent
    value = store.value
    if lanes != b.target.lanes(32) or not isinstance(value, Apply) or value.fn != "fma_ftz":
        return False
    operands = []
    for f in value.args[:2]:
        x = f.args[0] if isinstance(f, Apply) and f.fn == "cast" else f
        if not isinstance(x, Load) or x.masks or em.buffers[x.buffer].dtype != bf16:
            return False
        steps = _steps(em, x, outer.axis, inner.axis)
        if steps is None or steps[0] not in (0, 2) or abs(steps[1]) != 1:
            return False
        operands.append((x, *steps))
    if _steps(em, store, outer.axis, inner.axis) != (1, 0):
        return False
    saved = _enter(em, outer, inner)
    em.env[outer.axis] = 0
    factors = [_operand(em, x, wide, step, inner.axis, lanes) for x, wide, step in operands]
    em.env[inner.axis] = 0
    em.across(outer.axis, lanes)
    acc = em.evaluate(value.args[2])
    t = acc.ty.text
    both = ", ".join(f"<{2 * lanes} x bfloat> {f.ref}" for f in factors)
    text = f"call {t} @llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}({t} {acc.ref}, {both})"
    em._write(em.buffers[store.buffer], store, b.pure(acc.ty, text, max(x.depth for x in (acc, *factors))), None)
    _leave(em, saved)
    return True


def _operand(em: Emitter, x: Load, wide: int, step: int, pair: str, lanes: int) -> Value:
    """Pairs, the first in the upper halves: a vector of them, or the same in every lane."""
    b = em.b
    em.env[pair] = 0 if step > 0 else 1
    p, _ = em.place(em.buffers[x.buffer], x.index, x)
    label = x.buffer
    v = b.load(ty("i16", 2 * lanes), p, 2, label) if wide else b.load(I32, p, 2, label)
    words = _as(b, v, ty("i32", lanes if wide else 1))
    if step > 0:  # the first lies in the lower half
        words = _around(b, words)
    return _as(b, b.splat(words, lanes), ty("bfloat", 2 * lanes))


def _around(b: Builder, words: Value) -> Value:
    """The halves of each 32 bits the other way round."""
    return b.intrinsic("fshl", words, words, b.like(words, 16))


def _as(b: Builder, v: Value, type: Type) -> Value:
    """The same bits."""
    return v if v.ty is type else b.pure(type, f"bitcast {v} to {type}", v.depth)


# ---- pairs --------------------------------------------------------------------------------------------------
def copy(em: Emitter, s: Tile) -> bool:
    """Vectors of the first and of the second of each pair, interleaved; one vector where both are one stretch."""
    found, b = _loops(em, s), em.b
    if found is None:
        return False
    outer, inner, store = found
    lanes, buffer = outer.extent, em.buffers[store.buffer]
    to = _steps(em, store, outer.axis, inner.axis)
    if to is None or to[0] != 2 or abs(to[1]) != 1 or buffer.dtype != bf16 or lanes & (lanes - 1):
        return False
    saved = _enter(em, outer, inner)
    em.env[outer.axis] = em.env[inner.axis] = 0
    value = _one_stretch(store.value, outer.axis, inner.axis)
    if value is not None:
        em.across(inner.axis, 2 * lanes)
        both = scalar.to_memory(b, b.splat(em.evaluate(value), 2 * lanes), bf16)
        if to[1] < 0:
            both = b.shuffle(both, None, [i ^ 1 for i in range(2 * lanes)])
    else:
        em.across(outer.axis, lanes)
        halves = []
        for i in (0, 1):
            em.env[inner.axis] = i
            halves.append(scalar.to_memory(b, b.splat(em.evaluate(store.value), lanes), bf16))
        first, second = halves if to[1] > 0 else halves[::-1]
        both = b.shuffle(first, second, [i // 2 + lanes * (i & 1) for i in range(2 * lanes)])
    em.env[inner.axis] = 0 if to[1] > 0 else 1
    em.across(None, 1)
    p, _ = em.place(buffer, store.index, store)
    b.store(both, p, 2, buffer.name)
    _leave(em, saved)
    return True


def _one_stretch(e: Expr, outer: str, inner: str) -> Expr | None:
    """The value as one of the inner axis alone, if a step of the outer axis is two of the inner one."""

    def bound(m: Mask) -> Mask:  # both of a pair, or none
        return m if m[0].coef(inner) else (m[0] * 2 + inner, m[1] * 2)

    def pairwise(x: Expr) -> Expr:
        return replace(x, masks=tuple(map(bound, x.masks))) if isinstance(x, Load) and x.masks else x

    e = map_expr(e, pairwise)
    forms: list[Index] = []
    for x in walk_expr(e):
        if isinstance(x, Load):
            forms += [*x.index, *(m for m, _ in x.masks)]
        elif isinstance(x, AxisValue):
            forms.append(x.index)
    one = all(isinstance(a, Affine) and a.coef(outer) == 2 * a.coef(inner) for a in forms)
    return e if one and any(a.coef(inner) for a in forms) else None


# ---- transpose ----------------------------------------------------------------------------------------------
def turn(em: Emitter, s: Tile) -> bool:
    """Loops u, v and a pair around a copy: words along u are loaded, squares of them turned, words along v stored."""
    u, b = s.body[0], em.b
    if len(s.body) != 1 or em.lane is not None or not isinstance(u, Loop) or not isinstance(u.body[0], Loop):
        return False
    v = u.body[0]
    pair = v.body[0]
    if not isinstance(pair, Loop) or not isinstance(u.extent, int) or not isinstance(v.extent, int):
        return False
    store = pair.body[0]
    x = store.value if isinstance(store, Store) else None
    if not isinstance(x, Load) or x.masks or store.masks or store.where is not None or x.dtype != bf16:
        return False
    to, of = (_steps(em, a, u.axis, v.axis, pair.axis) for a in (store, x))
    if to is None or of is None or abs(to[2]) != 1 or abs(of[2]) != 1:
        return False
    if to[0] == 2 and of[1] == 2:
        u, v, to, of = v, u, (to[1], to[0], to[2]), (of[1], of[0], of[2])
    if to[1] != 2 or of[0] != 2:
        return False
    saved = _enter(em, u, v, pair)
    width = b.target.lanes(32)
    for u0, nu in chunks(u.extent, width):
        for v0, nv in chunks(v.extent, width):
            n = min(nu, nv)
            for ub in range(u0, u0 + nu, n):
                for vb in range(v0, v0 + nv, n):
                    words = []
                    for i in range(n):
                        em.env |= {u.axis: ub, v.axis: vb + i, pair.axis: int(of[2] < 0)}
                        p, _ = em.place(em.buffers[x.buffer], x.index, x)
                        words.append(b.load(ty("i32", n), p, 2, x.buffer))
                    for i, word in enumerate(transpose(b, words, n) if n > 1 else words):
                        if to[2] != of[2]:
                            word = _around(b, word)
                        em.env |= {u.axis: ub + i, v.axis: vb, pair.axis: int(to[2] < 0)}
                        b.store(word, em.place(em.buffers[store.buffer], store.index, store)[0], 2, store.buffer)
    _leave(em, saved)
    return True


def _enter(em: Emitter, *loops: Loop) -> list[tuple]:
    saved = [(x.axis, em.env.get(x.axis), em.extents.get(x.axis)) for x in loops]
    for x in loops:
        em.extents[x.axis] = x.extent
    return saved


def _leave(em: Emitter, saved: list[tuple]) -> None:
    em.across(None, 1)
    for axis, value, extent in saved:
        em.env[axis], em.extents[axis] = value, extent


PAIRS = {"dot": dot, "pairs": copy, "transpose": turn}
"""By the tile's name: emit it, or say that it is of no form known here."""
