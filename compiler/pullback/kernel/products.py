"""Reading a `wgmma` tile: a product of matrices in shared memory, added to one in registers (kernel IR in).

    tile wgmma
      unroll i < 128
        unroll j < 256
          unroll reduce k < 64
            acc[i, j] = fma(cast:f32(xs[s, i, k]), cast:f32(ws[s, k, j]), acc[i, j])

The verifier asks whether a tile is of this form, the emitter for its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph.types import bf16, f16, f32
from .kernel import Affine, Apply, Buffer, Expr, Load, Loop, Store, Tile

GROUP = 4
"""Warps that multiply together, 16 rows each."""
ROWS = 64
"""Rows of one instruction."""
LINE = 128
"""Bytes of a line of an operand: what lies contiguous is cut into such."""
DEPTH = {bf16: 16, f16: 16, f32: 8}
"""Products that one instruction adds, by the operands' type (f32: rounded to tf32)."""
SUMS = ("fma", "fma_ftz")


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix in the last two dimensions of a shared buffer.  `along_k`: k is the last one."""

    buffer: str
    at: tuple[Affine, ...]
    along_k: bool


@dataclass(frozen=True, slots=True)
class Product:
    acc: str
    rows: int
    columns: int
    depth: int
    a: Operand
    b: Operand


def product(tile: Tile) -> Product | str:
    """The parts of a tile, or what it lacks."""
    chain: list[Loop] = []
    stmts = tile.body
    while len(stmts) == 1 and isinstance(stmts[0], Loop) and isinstance(stmts[0].extent, int):
        chain.append(stmts[0])
        stmts = stmts[0].body
    if len(chain) != 3 or [s.role for s in chain] != ["parallel", "parallel", "reduce"] or len(stmts) != 1:
        return "expected loops over rows, columns and k around one store"
    i, j, k = (s.axis for s in chain)
    s = stmts[0]
    whole = (Affine.of(i), Affine.of(j))
    if not isinstance(s, Store) or s.masks or s.where is not None or s.index != whole:
        return f"expected a store to all [{i}, {j}]"
    v = s.value
    if not isinstance(v, Apply) or v.fn not in SUMS or v.args[2] != Load(s.buffer, whole, f32):
        return "expected acc = fma(a, b, acc) in f32"
    a, b = _operand(v.args[0], i, k), _operand(v.args[1], j, k)
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b
    return Product(s.buffer, *(t.extent for t in chain), a, b)


def _operand(e: Expr, row: str, k: str) -> Operand | str:
    x = e.args[0] if isinstance(e, Apply) and e.fn == "cast" else e
    if not isinstance(x, Load) or x.masks or len(x.index) < 2 or not all(isinstance(i, Affine) for i in x.index):
        return "expected operands that are loads without masks"
    *at, y, z = x.index
    if any(not {row, k}.isdisjoint(i.axes) for i in at) or {y, z} != {Affine.of(row), Affine.of(k)}:
        return f"expected {x.buffer}[.., {row}, {k}] or {x.buffer}[.., {k}, {row}]"
    return Operand(x.buffer, tuple(at), z == Affine.of(k))


def wgmma_rule(tile: Tile, buffers: Mapping[str, Buffer]) -> str:
    """What keeps a tile from being products of the machine's size."""
    p = product(tile)
    if isinstance(p, str):
        return p
    if p.rows % ROWS or p.columns % 8 or not 8 <= p.columns <= 256:
        return f"a multiple of {ROWS} rows and of 8 columns, at most 256, is needed; got {p.rows}, {p.columns}"
    if any(x.buffer not in buffers or buffers[x.buffer].space != "shared" for x in (p.a, p.b)):
        return "its operands lie in shared memory"
    types = {buffers[x.buffer].dtype for x in (p.a, p.b)}
    if len(types) != 1 or not types <= DEPTH.keys():
        return f"its operands are both bf16, f16 or f32; got {', '.join(sorted(map(str, types)))}"
    (dtype,) = types
    line = LINE // dtype.size
    for x, n in ((p.a, p.rows), (p.b, p.columns)):
        b = buffers[x.buffer]
        if b.strides or b.shape[-2:] != ((n, p.depth) if x.along_k else (p.depth, n)):
            return f"{x.buffer} is not the operand and nothing more"
        if (p.depth != line) if x.along_k else (n % line or dtype == f32):
            return f"{x.buffer} does not lie in lines of {line}" + (" along k" if dtype == f32 else "")
    return "" if p.depth % DEPTH[dtype] == 0 else f"k goes in steps of {DEPTH[dtype]}"
