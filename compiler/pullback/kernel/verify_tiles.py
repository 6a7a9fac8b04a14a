"""What the body of a tile must be: the loops that the emitter will make of its name.

Part of `verify.py`: a tile in, what is wrong with it out (or nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod

from .kernel import A, Affine, Apply, Const, Load, Loop, Stmt, Store, Tile, exprs, map_stmts, walk, walk_expr


def _nest(tile: Tile) -> tuple[list[Loop], tuple]:
    """The perfectly nested loops, and what they hold."""
    loops: list[Loop] = []
    body = tile.body
    while len(body) == 1 and isinstance(body[0], Loop):
        loops.append(body[0])
        body = body[0].body
    return loops, body


def _transpose(tile: Tile) -> str:
    """Two loops around copies, whose inner axes are not the same in source and target; or three, around pairs."""
    loops, body = _nest(tile)
    if len(loops) not in (2, 3) or not all(isinstance(s, Store) for s in body):
        return "expected two nested loops around stores"
    if len(loops) == 3 and loops[2].extent != 2:
        return "expected pairs, or two loops"
    if any(not isinstance(s.value, Load) for s in body):
        return "expected copies"
    return "" if all(isinstance(s.extent, int) for s in loops) else "expected constant extents"


def _pairs(tile: Tile) -> str:
    """A loop around a loop of two around a store."""
    loops, body = _nest(tile)
    if len(loops) != 2 or len(body) != 1 or not isinstance(body[0], Store):
        return "expected two nested loops around one store"
    return "" if isinstance(loops[0].extent, int) and loops[1].extent == 2 else "expected an inner loop of 2"


def _dot(tile: Tile) -> str:
    """Pairs that add products of bf16 to an f32."""
    (s,) = _nest(tile)[1][:1] or (None,)
    if reason := _pairs(tile):
        return reason
    v = s.value
    acc = isinstance(v, Apply) and v.fn == "fma_ftz" and v.args[2]
    if not isinstance(acc, Load) or (acc.buffer, acc.index) != (s.buffer, s.index):
        return f"expected {s.buffer} = fma_ftz(.., .., {s.buffer})"
    if any(not isinstance(f, Apply) or f.fn != "cast" or f.args[0].dtype.name != "bf16" for f in v.args[:2]):
        return "expected products of bf16"
    return ""


def _fold(tile: Tile) -> str:
    """Loops of halving extents (or nests, over lanes and their neighbours), each of which combines the upper half of
    some arrays into the lower; the upper half is nobody's then."""
    extents: list[int] = []
    for s in tile.body:
        loops, body = _nest(Tile("fold", (s,)))
        if not loops or not all(isinstance(t.extent, int) for t in loops):
            return "expected loops of constant extent"
        axes, h = {t.axis for t in loops}, prod(t.extent for t in loops)
        extents.append(h)
        for t in body:
            if not isinstance(t, Store):
                return "expected stores in its loops"
            loaded = [x for e in exprs(t) for x in walk_expr(e) if isinstance(x, Load)]
            upper = tuple(i + h if isinstance(i, Affine) and not axes.isdisjoint(i.axes) else i for i in t.index)
            if not any(x.buffer == t.buffer and x.index == upper for x in loaded):
                return f"expected {t.buffer}[{loops[0].axis}] to take in {t.buffer}[{loops[0].axis} + {h}]"
    if any(a != 2 * b for a, b in pairwise(extents)) or (extents and extents[-1] != 1):
        return f"expected extents that halve down to 1, got {extents}"
    return ""


def upper_half(step: Stmt) -> Stmt:
    """What follows a step of a fold: nobody reads the upper half any more."""
    loops = [s for s in walk((step,)) if isinstance(s, Loop)]
    axes, h = {s.axis for s in loops}, prod(s.extent for s in loops)

    def gone(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store):
            return (s,)
        index = tuple(i + h if not axes.isdisjoint(i.axes) else i for i in s.index)
        return (Store(s.buffer, index, Const(0, s.value.dtype), ((A(0), 0),), "any"),)

    return map_stmts((step,), gone)[0]


TILES: dict[str, Callable[[Tile], str]] = {"transpose": _transpose, "fold": _fold, "pairs": _pairs, "dot": _dot}
