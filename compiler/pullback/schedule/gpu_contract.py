"""The GPU schedule of contractions in f32 and f64: kernel -> kernel on IR 2.

A block computes a tile of the result.  Stretches of k of both operands are staged in shared memory, [k, i] and
[k, j], by coalesced accesses of 16 bytes where their alignment is known; each thread adds k in order into a tile of
its own in registers.  So every element has one accumulator and the CPU's bits.  An operand is any expression: what
was fused into it is evaluated once for each element staged, what was fused behind, once for each element stored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Protocol, TypeVar

from ..codegen.target import Target
from ..errors import ScheduleError
from ..graph.types import i32
from ..kernel.kernel import (
    A,
    Affine,
    AxisValue,
    Barrier,
    Const,
    Expr,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    apply,
    loads,
    map_expr,
    map_stmts,
    stores,
    written,
)
from .contraction import Contraction, accumulation, normalise
from .gpu_limits import GPU, GpuLimits
from .nest import extents_of, stride
from .pipeline import pipeline
from .sinking import expand, sink
from .staging import Operand, pack
from .steps import bind, on_loops, split, tidy

ROWS, COLUMNS = "xs", "ws"
"""The staged operands, in shared memory."""


class Sides(Protocol):
    """Elements of the result that a block computes."""

    rows: int
    columns: int


Tile = TypeVar("Tile", bound=Sides)


@dataclass(frozen=True, slots=True)
class BlockTile:
    """Elements of the result that a block and a thread compute, and the stretch of k that is staged."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)


TILES = (
    BlockTile(128, 128, 8, 8, 8),
    BlockTile(64, 64, 8, 4, 4),
    BlockTile(32, 32, 16, 4, 4),
    BlockTile(16, 64, 16, 4, 4),
    BlockTile(64, 16, 16, 4, 4),
    BlockTile(16, 16, 16, 2, 4),
)
"""The largest first."""
STAGES = 2
"""Of the staged operands: one is filled while the other is used."""
ACCUMULATORS = 64
"""Registers of a thread for its tile."""


def schedule_contraction(
    kernel: Kernel,
    target: Target,
    fixed: Collection[str] = (),
    limits: GpuLimits = GPU,
    tile: BlockTile | None = None,
) -> Kernel:
    """The buffers `fixed` keep their shapes; `tile` overrides `choose` (tests and measurements)."""
    kernel, c = normalise(kernel, target, fixed)
    if min(extents_of(kernel)[a] for a in "ij") == 1:
        raise ScheduleError(f"{kernel.name}: one row or one column is no tile")
    t = tile or choose(kernel, c, limits)
    k = c.reduced[-1]
    rows, columns = _operand(c.acc, 1 if c.swapped else 0), _operand(c.acc, 0 if c.swapped else 1)

    kernel = _whole(kernel, c.acc, k, t.depth)

    # Blocks: outer.., ib, jb around one tile, in which k goes in stretches.
    kernel = split(kernel, "i", t.rows, "ib", "i", tail="mask")
    kernel = split(kernel, "j", t.columns, "jb", "j", tail="mask")
    kernel = sink(kernel, "i", past=("jb",))
    kernel = split(kernel, k, t.depth, "kb", k)
    kernel = sink(sink(kernel, "j"), "i", stop=("j",))

    for operand, axis, dst in ((rows, "i", ROWS), (columns, "j", COLUMNS)):
        kernel = _stage(kernel, operand, k, axis, dst, t, target)
    kernel = on_loops(kernel, "kb", _wait)

    kernel, i = _deal(kernel, "i", t.rows, t.thread_rows, "it", past=())
    kernel, j = _deal(kernel, "j", t.columns, t.thread_columns, "jt", past=i)
    kernel = pack(kernel, rows, i, "jt", "xr", space="register")
    kernel = expand(kernel, "j")
    bindings = dict.fromkeys((*c.outer, "ib", "jb"), "block") | {"it": "thread", "jt": "thread", k: "unroll"}
    bindings |= dict.fromkeys((*i, *j), "unroll") | {f"{a}_xr": "unroll" for a in i}
    kernel = bind(kernel, **bindings | {"j": "vector", "i_xr": "vector"})
    return tidy(pipeline(kernel, "kb", STAGES))


def choose(kernel: Kernel, c: Contraction, limits: GpuLimits) -> BlockTile:
    room = ACCUMULATORS * 32 // kernel.buffers[c.acc].dtype.bits
    return largest([t for t in TILES if t.thread_rows * t.thread_columns <= room], kernel, c, limits)


def largest(tiles: Sequence[Tile], kernel: Kernel, c: Contraction, limits: GpuLimits) -> Tile:
    """The first tile of which there are enough to keep the processors busy, and that is not mostly padding."""
    extents = extents_of(kernel)
    m, n, depth = extents["i"], extents["j"], prod(extents[k] for k in c.reduced)
    batch = prod(extents[a] for a in c.outer)
    if min(m, n, depth) < limits.contraction:
        raise ScheduleError(f"{kernel.name}: too small for a tile")

    def blocks(t: Tile) -> int:
        return -(-m // t.rows) * -(-n // t.columns) * batch

    def padded(t: Tile) -> int:
        return blocks(t) * t.rows * t.columns

    least = min(map(padded, tiles))
    fitting = [t for t in tiles if padded(t) <= 1.5 * least]
    return next((t for t in fitting if blocks(t) >= limits.blocks), max(fitting, key=blocks))


# ---- staging --------------------------------------------------------------------------------------------
def _operand(acc: str, n: int) -> Operand:
    return lambda s: factors[n] if s.buffer == acc and (factors := accumulation(s)) else None


def _whole(kernel: Kernel, acc: str, k: str, depth: int) -> Kernel:
    """k in whole stretches: beyond its end products are -0.0, which changes no sum (nor the sign of a zero)."""
    n = extents_of(kernel)[k]
    if n % depth == 0:
        return kernel
    inside = (A(k), n)

    def masked(e: Expr) -> Expr:
        moves = isinstance(e, Load) and any(isinstance(i, Affine) and i.coef(k) for i in e.index)
        return replace(e, masks=(*e.masks, inside)) if moves else e

    def padded(e: Expr, negative: bool) -> Expr:
        new = map_expr(e, masked)
        if isinstance(e, Load) and not e.masks and not negative and new is not e:
            return new
        zero = Const(-0.0 if negative else 0.0, e.dtype)
        return apply("select", apply("lt", AxisValue(A(k), i32), Const(n, i32)), new, zero)

    def pad(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Loop) and s.axis == k:
            return (replace(s, extent=-(-n // depth) * depth),)
        if not isinstance(s, Store) or s.buffer != acc or (factors := accumulation(s)) is None:
            return (s,)
        steps = [min((abs(stride(kernel, x, k) or 0) for x in loads(e)), default=0) for e in factors]
        first = steps[0] == 1 or steps[1] != 1  # what lies along k goes through registers anyhow
        x, w = (padded(e, negative) for e, negative in zip(factors, (first, not first), strict=True))
        return (replace(s, value=replace(s.value, args=(x, w, s.value.args[2]))),)

    return replace(kernel, body=map_stmts(kernel.body, pad))


def _stage(kernel: Kernel, operand: Operand, k: str, axis: str, dst: str, t: BlockTile, target: Target) -> Kernel:
    """Copy a stretch of an operand to shared memory [k, axis]: neighbouring threads read neighbours in memory."""
    picked = [x for s in stores(kernel.body) if (e := operand(s)) is not None for x in loads(e)]
    along_k = any(stride(kernel, x, k) == 1 for x in picked) and not any(stride(kernel, x, axis) == 1 for x in picked)
    near, far = (k, axis) if along_k else (axis, k)
    lanes = _lanes(kernel, picked, near, target)
    kernel = pack(kernel, operand, (k, axis), "kb", dst, pad=(k, target.lanes(32)), space="shared")
    near, far = f"{near}_{dst}", f"{far}_{dst}"
    if along_k:
        kernel = sink(kernel, near, past=(far,))
    extents = extents_of(kernel)
    abreast = -(-extents[near] // lanes)
    if abreast > t.threads:
        raise ScheduleError(f"{kernel.name}: {t.threads} threads cannot stage {extents[near]} elements abreast")
    kernel = split(kernel, near, lanes, f"{near}_t", near, tail="mask")
    kernel = split(kernel, far, t.threads // abreast, f"{far}_u", far)
    return bind(kernel, **{near: "vector", f"{near}_t": "thread", far: "thread", f"{far}_u": "unroll"})


def _lanes(kernel: Kernel, picked: Collection[Load], axis: str, target: Target) -> int:
    """Elements along an axis that every load takes in one aligned access, or 1."""
    room = 0
    for x in picked:
        if not (step := stride(kernel, x, axis)):
            if step is None:
                return 1
            continue
        flat = kernel.buffers[x.buffer].flat(i if isinstance(i, Affine) else Affine() for i in x.index)
        masks = ((m.const - b, *(c for _, c in m.terms if c not in (1, -1))) for m, b in x.masks if m.coef(axis))
        whole = (flat.const, *(c for n, c in flat.terms if n != axis), *(c for m in masks for c in m))
        room = gcd(room, *whole) if step == 1 and all(isinstance(i, Affine) for i in x.index) else 1
    lanes = target.lanes(32)
    return lanes if room % lanes == 0 else 1


# ---- threads --------------------------------------------------------------------------------------------
def _wait(s: Loop) -> tuple[Stmt, ...]:
    """Nobody reads what is not staged yet; nobody stages over what is still read."""
    first = next(n for n, t in enumerate(s.body) if isinstance(t, Loop) and not written((t,)) <= {ROWS, COLUMNS})
    return (replace(s, body=(*s.body[:first], Barrier(), *s.body[first:], Barrier())),)


def _deal(kernel: Kernel, axis: str, size: int, each: int, thread: str, past: Collection[str]):
    """Threads along an axis of the tile, each with runs of up to four elements, far apart: no bank conflicts."""
    run = min(each, 4)
    axes: tuple[str, ...] = (axis,)
    if each > run:
        kernel = split(kernel, axis, size // each * run, f"{axis}h", axis)
        axes = (f"{axis}h", axis)
    kernel = split(kernel, axis, run, thread, axis)
    if each > run:
        kernel = sink(kernel, f"{axis}h", past=(thread,))
    if past:
        for a in reversed(past):
            kernel = sink(kernel, a, past=(thread,))
    return kernel, axes
