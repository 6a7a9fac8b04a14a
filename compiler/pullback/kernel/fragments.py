"""Reading an `mma` tile: 16 x 16 sums of a warp in registers, to which products from shared memory are added.

    tile mma
      lane g < 8
        lane t < 4
          unroll h < 2
            unroll n < 2
              unroll v < 2
                unroll reduce q < 16
                  acc[16*m + 8*h + g, 16*p + 8*n + 2*t + v] = fma(cast:f32(xs[16*m + 8*h + g, q]), ..., acc[...])

The loops say which lane has which elements of the sums: rows g and g + 8, columns 2 t, 2 t + 1 and those 8 further on.
What moves the tile stands in the indices beside these axes.  q goes over 32 bytes of an operand: 16 of bf16 or f16, 8
of f32, which `tf32` rounds.  The verifier asks whether a tile is of this form, the emitter for its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph.types import bf16, f16, f32
from .kernel import Affine, Apply, Buffer, Expr, Load, Loop, Store, Tile

_LOOPS = (("lane", 8), ("lane", 4), ("unroll", 2), ("unroll", 2), ("unroll", 2))
DEPTH = {bf16: 16, f16: 16, f32: 8}
"""Products that one instruction adds to each sum."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A load of a factor, the dimension along which its rows (or columns) go, and the one of k."""

    load: Load
    across: int
    along: int


@dataclass(frozen=True, slots=True)
class Fragments:
    """The axes g, t, h, n, v, q of a tile, and its operands."""

    axes: tuple[str, ...]
    store: Store
    a: Operand
    b: Operand
    depth: int


def fragments(tile: Tile) -> Fragments | str:
    """The parts of a tile, or what it lacks."""
    chain: list[Loop] = []
    stmts = tile.body
    while len(stmts) == 1 and isinstance(stmts[0], Loop):
        chain.append(stmts[0])
        stmts = stmts[0].body
    if len(chain) != 6 or tuple((s.binding, s.extent) for s in chain[:5]) != _LOOPS:
        return "expected loops over lanes (8, 4), then 2, 2, 2, then k"
    if [s.role for s in chain] != ["parallel"] * 5 + ["reduce"] or len(stmts) != 1:
        return "expected one store in five parallel loops and a sum"
    axes = tuple(s.axis for s in chain)
    g, t, h, n, v, q = axes
    s, depth = stmts[0], chain[5].extent
    if not isinstance(s, Store) or s.masks or s.where is not None or len(s.index) != 2:
        return "expected a store to sums, everywhere"
    rows, columns = {g: 1, h: 8}, {t: 2, n: 8, v: 1}
    if _moves(s.index[0], axes) != rows or _moves(s.index[1], axes) != columns:
        return f"expected sums at [8 {h} + {g}, 8 {n} + 2 {t} + {v}]"
    e = s.value
    if not isinstance(e, Apply) or e.fn not in ("fma", "fma_ftz") or e.args[2] != Load(s.buffer, s.index, f32):
        return "expected acc = fma(a, b, acc) in f32"
    found = [_operand(x, moves, q, axes) for x, moves in ((e.args[0], rows), (e.args[1], columns))]
    if None in found:  # the factors may stand the other way round
        found = [_operand(x, moves, q, axes) for x, moves in ((e.args[1], rows), (e.args[0], columns))]
    if None in found or not isinstance(depth, int):
        return f"expected factors that move with the sums' rows, or columns, and with {q}"
    return Fragments(axes, s, found[0], found[1], depth)


def _moves(i: object, axes: tuple[str, ...]) -> dict[str, int]:
    return {a: c for a, c in i.terms if a in axes} if isinstance(i, Affine) else {"": 0}


def _operand(e: Expr, moves: dict[str, int], q: str, axes: tuple[str, ...]) -> Operand | None:
    x = e.args[0] if isinstance(e, Apply) and e.fn in ("cast", "tf32") else e
    if not isinstance(x, Load) or x.masks or (x.dtype == f32 and x is e):
        return None
    dimensions = [_moves(i, axes) for i in x.index]
    if [d for d in dimensions if d] not in ([moves, {q: 1}], [{q: 1}, moves]):
        return None
    return Operand(x, dimensions.index(moves), dimensions.index({q: 1}))


def mma_rule(tile: Tile, buffers: Mapping[str, Buffer]) -> str:
    """What keeps a tile from being products of the machine's size."""
    f = fragments(tile)
    if isinstance(f, str):
        return f
    types = {x.load.dtype for x in (f.a, f.b)}
    if len(types) != 1 or not types <= DEPTH.keys():
        return f"both factors are bf16, f16, or tf32(f32); got {', '.join(sorted(map(str, types)))}"
    if f.depth != DEPTH[f.a.load.dtype]:
        return f"k goes over {DEPTH[f.a.load.dtype]} of {f.a.load.dtype}, not {f.depth}"
    if any(x.load.buffer not in buffers or buffers[x.load.buffer].space != "shared" for x in (f.a, f.b)):
        return "its factors lie in shared memory"
    return ""
