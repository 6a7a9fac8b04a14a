"""`mma.sync`: the products of a warp on tensor cores.  A tile of kernel IR (`kernel/fragments.py`) in, LLVM IR out.

A lane holds four sums of each 16 x 8, as its loops over lanes deal them out.  Factors of 16 bits come from shared
memory by `ldmatrix`, four 8 x 8 matrices at a time, transposed on the way where k is not what lies contiguous; of 32
bits so where it is, else one by one.  Fragments are shared between the tiles of a row and of a column: they are read
once (the builder numbers values).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..graph.types import f32
from ..kernel.fragments import Fragments, Operand, fragments
from ..kernel.kernel import Affine, Tile
from . import scalar
from .builder import FLOAT, I32, PTR, Value

if TYPE_CHECKING:
    from .threads import ThreadEmitter

_FOUR = "{ i32, i32, i32, i32 }"
_SUMS = "{ float, float, float, float }"
_ROW = 16
"""Bytes of a row of an 8 x 8 matrix, as `ldmatrix` reads it."""


def emit(em: ThreadEmitter, tile: Tile) -> None:
    """Add the products of one tile; what the instruction cannot read is done as the tile's body says."""
    f = fragments(tile)
    assert isinstance(f, Fragments)
    a, b = _fragment(em, f, f.a, True), _fragment(em, f, f.b, False)
    if a is None or b is None:
        return em.body(tile.body)
    for n in range(2):
        _multiply(em, f, a, b[2 * n : 2 * n + 2], n)


def _multiply(em: ThreadEmitter, f: Fragments, a: list[Value], b: list[Value], n: int) -> None:
    """One instruction: 16 rows and 8 columns."""
    build, acc = em.b, em.buffers[f.store.buffer]
    g, t, *rest = f.axes
    outside = {x: em.bound.get(x) for x in (g, t)}
    em.bound |= dict.fromkeys((g, t), "lane")
    places = []
    for h, v in ((0, 0), (0, 1), (1, 0), (1, 1)):
        em.env |= dict(zip(rest, (h, n, v, 0), strict=True))
        places.append(em.place(acc, f.store.index, f.store)[0])
    for x in (g, t):
        if outside[x] is None:
            del em.bound[x]
    sums = [build.load(FLOAT, p, 4, acc.name, True) for p in places]
    dtype = f.a.load.dtype
    name = {"bf16": "k16.row.col.bf16", "f16": "k16.row.col.f32.f32", "f32": "k8.row.col.tf32"}[dtype.name]
    kind = "<2 x half>" if dtype.name == "f16" else "i32"
    words = [build.pure(I32, f"bitcast i32 {x.ref} to {kind}", x.depth) if kind != "i32" else x for x in (*a, *b)]
    operands = ", ".join([*(f"{kind} {x.ref}" for x in words), *(f"float {x.ref}" for x in sums)])
    r = build.here(FLOAT, f"call {_SUMS} @llvm.nvvm.mma.m16n8{name}({operands})")
    for i, p in enumerate(places):
        build.store(build.here(FLOAT, f"extractvalue {_SUMS} {r.ref}, {i}"), p, 4, acc.name)


def _fragment(em: ThreadEmitter, f: Fragments, x: Operand, rows: bool) -> list[Value] | None:
    """A lane's four words of a factor; None if the buffer does not lie as the machine needs.

    Of a matrix of 8 x 8 a lane has the elements (g, 2 t) and (g, 2 t + 1), or (g, t) of 32 bits.  Words of the rows:
    matrices (0, 0), (8, 0), (0, 8), (8, 8) of (row, k); of the columns (0, 0), (0, 8), (8, 0), (8, 8) of (column, k).
    """
    b, buffer = em.b, em.buffers[x.load.buffer]
    size = buffer.dtype.size
    step, depth = buffer.step[x.across], buffer.step[x.along]
    flat = buffer.flat(Affine(i.const, tuple(p for p in i.terms if p[0] not in f.axes)) for i in x.load.index)
    lane = em.number("lane")
    half = _ROW // size  # k from one matrix to the next
    aligned = all(c * size % _ROW == 0 for c in (flat.const, *(c for _, c in flat.terms)))
    along_k = depth == 1
    if aligned and (along_k or (step == 1 and size == 2)) and (step if along_k else depth) * size % _ROW == 0:
        matrix, row = b.lshr(lane, 3), b.and_(lane, 7)
        low, high = b.and_(matrix, 1), b.lshr(matrix, 1)
        i, k = (low, high) if rows else (high, low)
        if along_k:
            at = b.add(b.mul(b.add(b.mul(i, 8), row), step), b.mul(k, half))
        else:
            at = b.add(b.mul(b.add(b.mul(k, 8), row), depth), b.mul(i, 8))
        p = _address(em, buffer, at, flat)
        p = b.pure(PTR, f"addrspacecast ptr {p.ref} to ptr addrspace(3)", p.depth)
        trans = "" if along_k else ".trans"
        text = f"call {_FOUR} @llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4{trans}.b16.p3(ptr addrspace(3) {p.ref})"
        four = b.read(I32, text, p.depth, buffer.name)
        words = [b.pure(I32, f"extractvalue {_FOUR} {four.ref}, {i}", four.depth) for i in range(4)]
        return words if buffer.dtype != f32 else [_tf32(b, w) for w in words]
    if buffer.dtype != f32:
        return None
    g, t = b.lshr(lane, 2), b.and_(lane, 3)
    at = b.add(b.mul(g, step), b.mul(t, depth))
    words = []
    for m in range(4):
        i, k = (m % 2, m // 2) if rows else (m // 2, m % 2)
        p = _address(em, buffer, at, flat + (i * 8 * step + k * 4 * depth))
        words.append(_tf32(b, b.bitcast(b.load(FLOAT, p, 4, buffer.name), "i32")))
    return words


def _address(em: ThreadEmitter, buffer, lane: Value, flat: Affine) -> Value:
    """base + what the lane adds + what the loops around add + a constant, in this order."""
    b, elem = em.b, scalar.memory(buffer.dtype)
    p, c, terms = b.offset(em.pointer(buffer), elem, b.zext(lane, "i64")), flat.const, []
    for n, k in flat.terms:
        v = em.env[n]
        if isinstance(v, int):
            c += v * k
        else:
            terms.append((v, k))
    for v, k in sorted(terms, key=lambda x: x[0].depth):
        p = b.offset(p, elem, b.mul(v, k))
    return b.offset(p, elem, c)


def _tf32(b, word: Value) -> Value:
    """Rounded to 10 bits of mantissa, halves away from zero."""
    return b.pure(I32, f"call i32 @llvm.nvvm.f2tf32.rna(float {b.bitcast(word, 'float').ref})", word.depth)
