"""The GPU schedule of contractions on tensor cores: kernel -> kernel on IR 2.

For factors in bf16 or f16, and in f32 where the nest rounds them to tf32.  A block computes a tile of the result, each
of its warps a part, 16 x 16 at a time (tiles `mma`).  Stretches of k of both operands go through stages of shared
memory as they lie in memory, [i, k] or [k, i], with 16 bytes of room after each row, so that eight rows lie in
different banks.  Beyond the ends rows, columns and k are zeros.  What was fused into an operand is evaluated when it is
staged, what was fused behind, on the sums in registers.

The machine adds the products of one instruction in an order and a precision of its own, so sums differ from the
CPU's in the last bits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import gcd

from ..codegen.target import Target
from ..errors import ScheduleError
from ..graph.types import DType, bf16, f16, f32
from ..kernel.flight import is_zero
from ..kernel.fragments import DEPTH
from ..kernel.kernel import (
    A,
    Affine,
    Apply,
    AxisValue,
    Barrier,
    Buffer,
    Const,
    Expr,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    loads,
    map_expr,
    map_store,
)
from .contraction import Contraction, accumulation, normalise, recognise
from .gpu_contract import largest
from .gpu_limits import GPU, GpuLimits
from .nest import chain_of, extents_of, outer_chain, stride
from .pipeline import pipeline
from .steps import bind, tidy

STAGE = 64
"""Bytes of a stretch of k: 32 of bf16, 16 of tf32."""
ROOM = 16
"""Bytes between rows in shared memory."""

GROUP = 8
"""Tiles below each other that are computed together,"""
WIDE = 32
"""where there are more than so many side by side."""


@dataclass(frozen=True, slots=True)
class WarpTile:
    """Elements of the result that a block computes, and its warps along rows and columns."""

    rows: int
    columns: int
    down: int
    across: int
    stages: int = 4

    @property
    def threads(self) -> int:
        return 32 * self.down * self.across


TILES = (
    WarpTile(128, 128, 2, 4),
    WarpTile(128, 64, 2, 2),
    WarpTile(64, 128, 2, 2),
    WarpTile(64, 64, 2, 2),
    WarpTile(32, 64, 2, 2),
    WarpTile(64, 32, 2, 2),
    WarpTile(32, 32, 2, 2),
)
"""The largest first."""


def schedule_mma(
    kernel: Kernel,
    target: Target,
    fixed: Collection[str] = (),
    limits: GpuLimits = GPU,
    tile: WarpTile | None = None,
) -> Kernel:
    """The buffers `fixed` keep their shapes; `tile` overrides `largest` (tests and measurements)."""
    factors = _factors(kernel)
    kernel, c = normalise(kernel, target, fixed)
    t = tile or largest(TILES, kernel, c, limits)
    return _Writer(kernel, c, t, factors).kernel()


def _factors(kernel: Kernel) -> DType:
    """What tensor cores multiply: the type of both factors in shared memory."""
    found = recognise(kernel)
    types = {_staged(e)[0].dtype for e in accumulation(found[3])} if found else set()
    if len(types) != 1 or not types <= {bf16, f16, f32} or kernel.buffers[found[0]].dtype != f32:
        raise ScheduleError(f"{kernel.name}: no product for tensor cores")
    (dtype,) = types
    if dtype == f32 and not all(isinstance(e, Apply) and e.fn == "tf32" for e in accumulation(found[3])):
        raise ScheduleError(f"{kernel.name}: tensor cores have no exact products in f32")
    return dtype


def _staged(e: Expr) -> tuple[Expr, str]:
    """What is staged of a factor, and what is applied to it then: a cast, tf32, or nothing."""
    if isinstance(e, Apply) and (e.fn == "tf32" or (e.fn == "cast" and e.args[0].dtype in (bf16, f16))):
        return e.args[0], e.fn
    return e, ""


@dataclass(frozen=True, slots=True)
class _Operand:
    """One operand: its buffer in shared memory, what is staged, its axis of the result, what is applied later."""

    dst: str
    value: Expr
    axis: str
    size: int
    along_k: bool
    applied: str


class _Writer:
    """The parts of the scheduled kernel."""

    def __init__(self, kernel: Kernel, c: Contraction, t: WarpTile, dtype: DType):
        chain, stmts = outer_chain(kernel)
        self.given, self.c, self.t, self.dtype = kernel, c, t, dtype
        self.extents = extents_of(kernel)
        self.outer = [s for s in chain if s.axis not in ("i", "j")]
        self.reduce, inner = chain_of(stmts[1], "reduce")
        self.step: Store = inner[0]
        self.after: tuple[Stmt, ...] = stmts[2:]
        self.k = c.reduced[-1]
        self.depth = STAGE // dtype.size
        factors = accumulation(self.step)
        rows, columns = reversed(factors) if c.swapped else factors
        self.operands = [self._operand(rows, "i", "xs", t.rows), self._operand(columns, "j", "ws", t.columns)]
        self.at = {"i": A("ib") * t.rows, "j": A("jb") * t.columns}  # where the block's tile begins

    def _blocks(self) -> list[Loop]:
        """Of a wide result, blocks that run together have few rows: the operands' tiles they share are fewer."""
        t = self.t
        down, across = -(-self.extents["i"] // t.rows), -(-self.extents["j"] // t.columns)
        axes = [("ib", down), ("jb", across)]
        if across > WIDE and down > GROUP and down % GROUP == 0:
            self.at["i"] = A("ig") * (t.rows * GROUP) + self.at["i"]
            axes = [("ig", down // GROUP), ("jb", across), ("ib", GROUP)]
        return [Loop(axis, n, "parallel", (), "block") for axis, n in axes]

    def kernel(self) -> Kernel:
        t, blocks = self.t, self._blocks()
        body: tuple[Stmt, ...] = self._stages()
        for s in reversed(self.reduce[:-1]):
            body = (replace(s, body=body),)
        zero = Store(self.c.acc, self._sums(), Const(0.0))
        body = (*self._dealt((zero,)), *body, *self._dealt(self._epilogue()))
        for s in reversed([*self.outer, *blocks]):
            body = (replace(s, body=body),)
        local = {s.buffer for s in self.after if isinstance(s, Store)} & {b.name for b in self.given.locals}
        own = [replace(b, shape=(2,)) for b in self.given.locals if b.name in local]
        sums = replace(self.given.buffers[self.c.acc], shape=(t.rows, t.columns))
        kernel = replace(self.given, locals=(sums, *own, *map(self._shared, self.operands)), body=body)
        kernel = bind(kernel, **dict.fromkeys(self.c.outer, "block"))
        return tidy(pipeline(kernel, "kb", t.stages))

    # ---- staging -----------------------------------------------------------------------------------------
    def _operand(self, factor: Expr, axis: str, dst: str, size: int) -> _Operand:
        value, applied = _staged(factor)
        steps = {a: {stride(self.given, x, a) for x in loads(value)} for a in (self.k, axis)}
        return _Operand(dst, value, axis, size, 1 in steps[self.k] and 1 not in steps[axis], applied)

    def _shared(self, x: _Operand) -> Buffer:
        near, far = (self.depth, x.size) if x.along_k else (x.size, self.depth)
        room = (ROOM if x.along_k or self.dtype != f32 else 2 * ROOM) // self.dtype.size
        return Buffer(x.dst, (far, near), self.dtype, "shared", (near + room, 1))

    def _stages(self) -> tuple[Stmt, ...]:
        """k in stretches: fill, wait, use, wait."""
        fills = [self._fill(x) for x in self.operands]
        steps = -(-self.extents[self.k] // self.depth)
        return (Loop("kb", steps, "reduce", (*fills, Barrier(), self._use(), Barrier())),)

    def _fill(self, x: _Operand) -> Stmt:
        """Neighbouring threads copy neighbours in memory, up to 16 bytes each."""
        lanes = self._lanes(x)
        near, far = (self.depth, x.size) if x.along_k else (x.size, self.depth)
        abreast = near // lanes
        rows = min(max(1, self.t.threads // abreast), far)
        names = {a: f"{a}_{x.dst}" for a in "furv"}
        at_far = A(names["u"]) * rows + A(names["f"])
        at_near = A(names["r"]) * lanes + A(names["v"])
        index = (at_far, at_near)
        k, i = (at_near, at_far) if x.along_k else (at_far, at_near)
        env = {self.k: A("kb") * self.depth + k, x.axis: self.at[x.axis] + i}
        masks = {self.k: self._mask(self.k, env[self.k], self.depth), x.axis: self._mask(x.axis, env[x.axis], x.size)}
        bare = isinstance(x.value, Load) and (not x.value.masks or is_zero(x.value.other))
        value = self._placed(x.value, env, masks, everywhere=bare)
        store = Store(x.dst, index, value)
        if not bare and masks[self.k]:
            store = replace(store, masks=masks[self.k], other=0.0)
        nest: Stmt = store
        for name, n, binding in (
            ("v", lanes, "vector"),
            ("r", abreast, "thread"),
            ("f", rows, "thread"),
            ("u", far // rows, "unroll"),
        ):
            nest = Loop(names[name], n, "parallel", (nest,), binding)
        return nest

    def _lanes(self, x: _Operand) -> int:
        """Elements that every load takes in one aligned access, at most 16 bytes in shared memory."""
        axis, near = (self.k, self.depth) if x.along_k else (x.axis, x.size)
        room = 16 // self.dtype.size
        if self._mask(axis, Affine(), near):
            room = gcd(room, self.extents[axis])
        for load in loads(x.value):
            step = stride(self.given, load, axis)
            if not all(isinstance(i, Affine) for i in load.index) or step not in (0, 1):
                return 1
            if step == 1:
                flat = self.given.buffers[load.buffer].flat(load.index)
                room = gcd(room, flat.const, *(c for n, c in flat.terms if n != axis))
            for m, bound in load.masks:
                if m.coef(axis):
                    room = gcd(room, m.const - bound, *(c for _, c in m.terms if c not in (1, -1)))
        return room

    def _mask(self, axis: str, at: Affine, size: int) -> tuple[Mask, ...]:
        """Where a position along an axis exists, if it may not."""
        n = self.extents[axis]
        return ((at, n),) if n % size else ()

    def _placed(self, e: Expr, env: dict[str, Affine], masks: dict[str, tuple[Mask, ...]], everywhere=False) -> Expr:
        """An expression at a place of the block's tile; loads that move with an axis, only where it exists."""

        def leaf(x: Expr) -> Expr:
            if isinstance(x, Load) and x.buffer in {b.name for b in self.given.params}:
                moved = {a for i in x.index for a in _axes(i)}
                more = [m for a, found in masks.items() if a in moved or everywhere for m in found]
                x = replace(x, masks=(*((m.subst(env), b) for m, b in x.masks), *more))
                return replace(x, index=tuple(i.subst(env) if isinstance(i, Affine) else i for i in x.index))
            return replace(x, index=x.index.subst(env)) if isinstance(x, AxisValue) else x

        return map_expr(e, leaf)

    # ---- fragments ---------------------------------------------------------------------------------------
    def _own(self) -> dict[str, Affine]:
        """Where a lane's elements lie in the block's tile."""
        t = self.t
        row = A("wi") * (t.rows // t.down) + A("mi") * 16 + A("h") * 8 + A("g")
        column = A("wj") * (t.columns // t.across) + A("mj") * 16 + A("n") * 8 + A("t") * 2 + A("v")
        return {"i": row, "j": column}

    def _sums(self) -> tuple[Affine, ...]:
        return tuple(self._own().values())

    def _warps(self, *body: Stmt) -> Loop:
        """A loop over the warps and over the 16 x 16 of each."""
        t, out = self.t, body
        steps = (("mj", t.columns // t.across // 16, "unroll"), ("mi", t.rows // t.down // 16, "unroll"))
        for axis, n, binding in (*steps, ("wj", t.across, "warp"), ("wi", t.down, "warp")):
            out = (Loop(axis, n, "parallel", out, binding),)
        return out[0]

    def _dealt(self, stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """What each lane does with its elements."""
        return (self._warps(*_lanes_of(stmts, "vector")),)

    def _use(self) -> Stmt:
        depth = DEPTH[self.dtype]
        at = self._own()
        k = A("kk") * depth + A("q")
        factors = []
        for x in self.operands:
            index = (at[x.axis], k) if x.along_k else (k, at[x.axis])
            e: Expr = Load(x.dst, index, self.dtype)
            factors.append(Apply(x.applied, (e,), f32) if x.applied else e)
        acc = Load(self.c.acc, self._sums(), f32)
        step = replace(self.step, index=acc.index, value=replace(self.step.value, args=(*factors, acc)))
        q = Loop("q", depth, "reduce", (step,), "unroll")
        loop = self._warps(Tile("mma", _lanes_of((q,), "unroll")))
        inner = loop.body[0]  # k outside of rows and columns: a fragment serves all of them
        steps = Loop("kk", self.depth // depth, "reduce", inner.body, "unroll")
        return replace(loop, body=(replace(inner, body=(steps,)),))

    def _epilogue(self) -> tuple[Stmt, ...]:
        """What follows the sum, on the elements of a lane: a pair lies side by side."""
        own = self._own()
        env = {a: self.at[a] + own[a] for a in "ij"}
        masks = {"i": self._mask("i", env["i"], self.t.rows), "j": self._mask("j", env["j"], self.t.columns)}
        local = {b.name for b in self.given.locals} - {self.c.acc}
        acc = Load(self.c.acc, self._sums(), f32)

        def read(x: Expr) -> Expr:
            if isinstance(x, Load) and x.buffer == self.c.acc:
                return acc
            return replace(x, index=(A("v"),)) if isinstance(x, Load) and x.buffer in local else x

        out: list[Stmt] = []
        for s in self.after:
            if not isinstance(s, Store):
                raise ScheduleError(f"{self.given.name}: a loop follows the sum")
            placed = map_store(s, lambda e: self._placed(read(e), env, masks) if isinstance(e, Load | AxisValue) else e)
            if s.buffer in local:
                out.append(replace(placed, index=(A("v"),)))
                continue
            index = tuple(i.subst(env) if isinstance(i, Affine) else i for i in placed.index)
            more = (*((m.subst(env), b) for m, b in s.masks), *masks["i"], *masks["j"])
            out.append(replace(placed, index=index, masks=more))
        return tuple(out)


def _lanes_of(stmts: Sequence[Stmt], pairs: str) -> tuple[Stmt, ...]:
    """The loops of a lane over its sums of 16 x 16: `kernel/fragments.py`."""
    out = tuple(stmts)
    for axis, n, binding in (
        ("v", 2, pairs),
        ("n", 2, "unroll"),
        ("h", 2, "unroll"),
        ("t", 4, "lane"),
        ("g", 8, "lane"),
    ):
        out = (Loop(axis, n, "parallel", out, binding),)
    return out


def _axes(i: object) -> frozenset[str]:
    if isinstance(i, Affine):
        return i.axes
    return frozenset(a for x in loads(i) for j in x.index for a in _axes(j))
