"""The schedule of contractions on sm_90a's warpgroup products: kernel -> kernel on IR 2.

One role brings boxes of both operands to shared memory, several stages ahead; the other multiplies, 16 rows a warp,
and keeps the sums in registers.  At the end each warp turns its sums through a little shared memory of its own, so that
what is fused behind the product reads and writes whole rows of vectors.

It serves bare operands in bf16, f16 or tf32 that bulk copies can read: one dimension contiguous, the others multiples
of 16 bytes apart.  Everything else, and what is launched in loops (where parameters move), is for `gpu_contract.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod

from ..codegen.target import Target
from ..errors import ScheduleError
from ..graph.types import f32, i64
from ..kernel.concurrent import Arrive, Await, Copy, Role, Roles
from ..kernel.kernel import (
    A,
    Affine,
    Apply,
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
    exprs,
    map_stmts,
    map_store,
    stores,
    subst,
)
from ..kernel.products import LINE
from .contraction import Contraction, accumulation, normalise, recognise
from .gpu_limits import GPU, GpuLimits
from .nest import cost, extents_of, outer_chain, rename, stride
from .steps import add_masks

TILES = ((128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.7), (64, 256, 0.8), (64, 128, 0.65), (64, 64, 0.5))
"""Rows and columns of a block, and about how much of the machine's speed they reach."""
STAGES = (4, 6)
"""Stages that are in flight: at least, and at most where memory allows."""
MEMORY = 226 << 10
"""Bytes of shared memory of a block, but for tokens."""
STRIP = 32
"""Columns that a warp turns at a time."""
TOGETHER = 16
"""Neighbouring blocks along the rows: those that run at the same time share operands in the second-level cache."""
PAIR = 2
"""Blocks below each other that run side by side: the columns' operand comes once for both."""
HEAVY = 8
"""Cycles for an element of what is fused behind, above which its code is not repeated for each row."""
LOADER = 4
"""Warps of the role that loads: one thread would do, but registers are dealt out to groups of four warps."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What `choose` decides: a tile's rows and columns, its k (elements of a line), and the stages in flight.  `grid`:
    blocks along rows and columns, each of which computes several tiles, one after the other; None: one tile each."""

    rows: int
    columns: int
    depth: int
    stages: int
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Factor:
    """An operand: what is loaded, whether k lies contiguous, whether it is rounded to tf32."""

    load: Load
    axis: str
    along_k: bool
    tf32: bool


def schedule_wgmma(
    kernel: Kernel,
    target: Target,
    fixed: Collection[str] = (),
    limits: GpuLimits = GPU,
    shape: Shape | None = None,
) -> Kernel:
    """The buffers `fixed` keep their shapes; `shape` overrides `choose` (tests and measurements)."""
    if "token" not in dict(target.spaces) or limits.moving:
        raise ScheduleError(f"{kernel.name}: {target.name} has no warpgroup products, or none in loops")
    kernel, c = normalise(kernel, target, fixed)
    kernel, c = _rows_outside(kernel, c)
    if len(c.reduced) != 1:
        raise ScheduleError(f"{kernel.name}: sums over several axes")
    acc, _, _, step = recognise(kernel)
    extents, k = extents_of(kernel), c.reduced[0]
    first, second = accumulation(step)
    a, b = (second, first) if c.swapped else (first, second)
    factors = _factor(kernel, a, "i", k), _factor(kernel, b, "j", k)
    if kernel.buffers[acc].dtype != f32 or len({f.load.dtype for f in factors}) != 1:
        raise ScheduleError(f"{kernel.name}: its sums are not in f32, or its operands of two types")
    s = shape or choose(kernel, extents, factors, c, limits)
    for f in factors:
        _check_reach(kernel, f, k, extents[k], s)
    return _Writer(kernel, c, factors, s).write(step)


# ---- what is served -------------------------------------------------------------------------------------
def _rows_outside(kernel: Kernel, c: Contraction) -> tuple[Kernel, Contraction]:
    """Columns are what lies contiguous in the outputs."""
    _, body = outer_chain(kernel)
    params = {b.name for b in kernel.params}
    outs = [t for t in stores(body[2:]) if t.buffer in params]
    if all(stride(kernel, t, "j") == 1 for t in outs):
        return kernel, c
    if all(stride(kernel, t, "i") == 1 for t in outs):
        return rename(kernel, {"i": "j", "j": "i"}), replace(c, swapped=not c.swapped)
    raise ScheduleError(f"{kernel.name}: no axis of the product lies contiguous in its results")


def _factor(kernel: Kernel, e: Expr, axis: str, k: str) -> Factor:
    """An operand that bulk copies can bring; rows or columns move with `axis`."""
    tf32 = isinstance(e, Apply) and e.fn == "tf32"
    x = e.args[0] if tf32 or (isinstance(e, Apply) and e.fn == "cast") else e
    if not isinstance(x, Load) or x.masks or x.dtype.name not in ("bf16", "f16", "f32") or tf32 != (x.dtype == f32):
        raise ScheduleError(f"{kernel.name}: an operand is no bare load of bf16, f16 or tf32")
    b = kernel.buffers[x.buffer]
    if b.space != "global" or b.name in kernel.outputs or not all(isinstance(i, Affine) for i in x.index):
        raise ScheduleError(f"{kernel.name}: {b.name} is no parameter that is only read, by affine indices")
    size = b.dtype.size
    wide = [d for d, n in enumerate(b.shape) if n > 1]
    near = [d for d in wide if b.step[d] == 1]
    if len(near) != 1 or len(wide) > 5 or any(b.step[d] * size % 16 or b.step[d] <= 0 for d in wide if d != near[0]):
        raise ScheduleError(f"{kernel.name}: {b.name} does not lie as bulk copies need it")
    moves = {n: [(d, i.coef(n)) for d, i in enumerate(x.index) if i.coef(n)] for n in (axis, k)}
    if any(len(m) != 1 or m[0][1] != 1 for m in moves.values()) or moves[axis][0][0] == moves[k][0][0]:
        raise ScheduleError(f"{kernel.name}: {b.name} does not walk rows and k along two dimensions")
    if near[0] not in (moves[axis][0][0], moves[k][0][0]):
        raise ScheduleError(f"{kernel.name}: {b.name} is contiguous along neither rows nor k")
    along_k = near[0] == moves[k][0][0]
    if tf32 and not along_k:
        raise ScheduleError(f"{kernel.name}: products in tf32 need k contiguous in {b.name}")
    return Factor(x, axis, along_k, tf32)


def _check_reach(kernel: Kernel, f: Factor, k: str, extent: int, s: Shape) -> None:
    """Where the last box reaches beyond k, zeros must come: the map ends there, for all blocks alike."""
    (form,) = (i for i in f.load.index if i.coef(k))
    if extent % s.depth and len(form.terms) > 1:
        raise ScheduleError(f"{kernel.name}: the ends of k in {f.load.buffer} move with {form}")


def choose(
    kernel: Kernel, extents: dict[str, int], factors: Sequence[Factor], c: Contraction, limits: GpuLimits
) -> Shape:
    """The tile with the least work for the busiest processor, and as many stages as fit."""
    size = factors[0].load.dtype.size
    m, n, batch = extents["i"], extents["j"], prod(extents[a] for a in c.outer)
    depth, line = extents[c.reduced[0]], LINE // size

    def price(tile: tuple[int, int, float]) -> float:
        rows, columns, speed = tile
        blocks = -(-m // rows) * -(-n // columns) * batch
        return -(-blocks // limits.blocks) * rows * columns / speed

    rows, columns, _ = min(TILES, key=price)
    if 2 * m * n < -(-m // rows) * rows * -(-n // columns) * columns or depth < line:
        raise ScheduleError(f"{kernel.name}: too small for a tile")
    room = (MEMORY - rows * (STRIP + 8) * 4) // ((rows + columns) * LINE)
    steps = -(-depth // line)
    stages = max(1, min(steps, room, STAGES[1]))
    shape = Shape(rows, columns, line, stages)
    grid = _grid(-(-m // rows), -(-n // columns), batch, shape, limits.blocks)
    even = [s for s in range(stages, min(stages, STAGES[0]) - 1, -1) if steps % s == 0]
    return replace(shape, stages=even[0], grid=grid) if grid and even else shape


def _grid(down: int, across: int, batch: int, s: Shape, blocks: int) -> tuple[int, int] | None:
    """Blocks that compute as many tiles each, in no more rounds than it takes anyway; near to square in elements."""
    rounds = -(-down * across * batch // blocks)
    grids = [
        (p, q)
        for p in range(1, down + 1)
        for q in range(1, min(across, blocks // p) + 1)
        if down % p == across % q == 0 and down // p * (across // q) * batch == rounds
    ]
    return min(grids, key=lambda g: (g[0] % PAIR, g[0] * s.rows + g[1] * s.columns)) if rounds > 1 and grids else None


# ---- the kernel -----------------------------------------------------------------------------------------
class _Writer:
    """Builds the scheduled kernel: names are fresh, since nothing of the old body but its expressions stays."""

    def __init__(self, kernel: Kernel, c: Contraction, factors: Sequence[Factor], s: Shape):
        self.kernel, self.c, self.shape = kernel, c, s
        extents = extents_of(kernel)
        self.m, self.n, self.k = extents["i"], extents["j"], extents[c.reduced[0]]
        outer = [(a, extents[a]) for a in c.outer]
        self.factors = factors
        taken = {b.name for b in kernel.params + kernel.locals}
        names = ("xs", "ws", "out", "full", "empty")
        self.xs, self.ws, self.out, self.full, self.empty = (_fresh(n, taken) for n in names)
        self.acc = Buffer(c.acc, (s.rows, s.columns), f32, "register")
        self.warps = s.rows // 16
        rows, columns = -(-self.m // s.rows), -(-self.n // s.columns)
        groups = [g for g in range(1, TOGETHER + 1) if rows % g == 0]
        down, across = s.grid or (max(groups, key=lambda g: (g % PAIR == 0, g)), columns)
        self.pair = PAIR if down % PAIR == 0 else 1
        groups = [*outer, ("ig", rows // down), ("jg", columns // across)]
        groups = [(a, n) for a, n in groups if n > 1]
        self.blocks, self.turns = [("jb", across), ("ib", down)], groups  # across first: neighbours share columns
        if s.grid is None:
            self.blocks, self.turns = [*groups, *self.blocks], []
        there = dict(groups)
        group_row, group_column = (A(a) if a in there else Affine() for a in ("ig", "jg"))
        self.row = group_row * (down * s.rows) + A("ib") * s.rows
        self.column = group_column * (across * s.columns) + A("jb") * s.columns
        self.turn = Affine()  # the tiles of a block before this one
        for axis, extent in self.turns:
            self.turn = self.turn * extent + A(axis)
        self.rounds, self.rest = divmod(-(-self.k // s.depth), s.stages)
        if self.rest and s.grid:
            raise ScheduleError(f"{kernel.name}: {s.stages} stages do not divide the steps of k")

    def write(self, step: Store) -> Kernel:
        s, size = self.shape, self.factors[0].load.dtype.size
        assert s.depth * size == LINE
        dtype = self.factors[0].load.dtype

        def staged(name: str, f: Factor, n: int) -> Buffer:
            return Buffer(name, (s.stages, n, s.depth) if f.along_k else (s.stages, s.depth, n), dtype, "shared")

        load = self.turned(self.steps(self.bring))
        multiply = (*self.clear(), *self.steps(lambda *at: self.multiply(step, *at)), *self.finish())
        multiply = self.turned(multiply)
        body: tuple[Stmt, ...] = (
            Roles("roles", (Role("load", load, LOADER), Role("multiply", multiply, self.warps)), self.pair),
        )
        body = _loops([(a, n, "block") for a, n in self.blocks], body)
        kept = [replace(b, shape=(4,)) for b in self.kernel.locals if b.name != self.c.acc]
        strip = Buffer(self.out, (self.warps, 16, STRIP), f32, "shared", (16 * (STRIP + 8), STRIP + 8, 1))
        tokens = (Buffer(n, (s.stages,), i64, "token") for n in (self.full, self.empty))
        operands = (staged(self.xs, self.factors[0], s.rows), staged(self.ws, self.factors[1], s.columns))
        return Kernel(self.kernel.name, self.kernel.params, (*operands, self.acc, strip, *kept, *tokens), body)

    def turned(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """All tiles of a block, one after the other."""
        for axis, extent in reversed(self.turns):
            body = (Loop(axis, extent, "ordered", body),)
        return body

    def steps(self, part) -> tuple[Stmt, ...]:
        """`part(stage, round)` for every stretch of k: rounds over all stages, then what is left."""
        out: list[Stmt] = []
        if self.rounds:
            body = part(A("s"), A("ko"))
            out.append(Loop("ko", self.rounds, "reduce", (Loop("s", self.shape.stages, "reduce", body),)))
        if self.rest:
            out.append(Loop("s", self.rest, "reduce", part(A("s"), Affine(self.rounds))))
        return tuple(out)

    def phase(self, round: Affine) -> Affine:
        """Of the tokens, which count on from tile to tile."""
        return self.turn * self.rounds + round

    # ---- the role that loads
    def bring(self, stage: Affine, round: Affine) -> tuple[Stmt, ...]:
        at = round * (self.shape.stages * self.shape.depth) + stage * self.shape.depth
        return (
            Await(self.empty, (stage,), self.phase(round) - 1),
            self.copy(self.factors[0], self.xs, self.row, self.shape.rows, stage, at),
            self.copy(self.factors[1], self.ws, self.column, self.shape.columns, stage, at),
            Arrive(self.full, (stage,)),
        )

    def copy(self, f: Factor, to: str, first: Affine, count: int, stage: Affine, at: Affine) -> Copy:
        """A box of an operand; what lies beyond its parameter, or beyond k, is zero."""
        k, x, buffer = self.c.reduced[0], f.load, self.kernel.buffers[f.load.buffer]
        env = {f.axis: first + A("r"), k: at + A("kk")}
        index = tuple(i.subst(env) for i in x.index)
        masks: list[Mask] = []
        extent, whole = (self.m, count) if f.axis == "i" else (self.n, count)
        for old, new, n in zip(x.index, index, buffer.shape, strict=True):
            if old.coef(f.axis) and extent % whole:
                masks.append((new, n))
            elif old.coef(k) and self.k % self.shape.depth:
                masks.append((new, old.const + self.k))
        value: Expr = replace(x, index=index, masks=tuple(masks))
        if f.tf32:
            value = Apply("tf32", (value,), f32)
        axes = [("r", count), ("kk", self.shape.depth)]
        if not f.along_k:
            axes.reverse()
        store = Store(to, (stage, *(A(n) for n, _ in axes)), value)
        return Copy("copy", _loops([(n, e, "serial") for n, e in axes], (store,)), self.full, (stage,))

    # ---- the role that multiplies
    def fragment(self, columns: int) -> list[tuple[str, int, str]]:
        """The loops over what a warp's threads have of so many columns."""
        run = [("g", 8, "lane"), ("q", 4, "lane"), ("e", 2, "vector")]
        return [("h", 2, "unroll"), ("t", columns // 8, "unroll"), *run]

    def clear(self) -> tuple[Stmt, ...]:
        index = (A("w") * 16 + A("h") * 8 + A("g"), A("t") * 8 + A("q") * 2 + A("e"))
        loops = [("w", self.warps, "warp"), *self.fragment(self.shape.columns)]
        return _loops(loops, (Store(self.acc.name, index, Const(0.0)),))

    def multiply(self, step: Store, stage: Affine, round: Affine) -> tuple[Stmt, ...]:
        here = Load(self.acc.name, (A("r"), A("c")), f32)

        def operand(name: str, f: Factor, axis: str) -> Expr:
            index = (A(axis), A("kk")) if f.along_k else (A("kk"), A(axis))
            x = Load(name, (stage, *index), f.load.dtype)
            return x if f.tf32 else Apply("cast", (x,), f32)

        rows, columns = operand(self.xs, self.factors[0], "r"), operand(self.ws, self.factors[1], "c")
        value = Apply(step.value.fn, (rows, columns, here), f32)
        loops = [("r", self.shape.rows, "unroll"), ("c", self.shape.columns, "unroll")]
        body: tuple[Stmt, ...] = (Store(self.acc.name, here.index, value),)
        body = _loops(loops, (Loop("kk", self.shape.depth, "reduce", body, "unroll"),))
        return Await(self.full, (stage,), self.phase(round)), Tile("wgmma", body), Arrive(self.empty, (stage,))

    def finish(self) -> tuple[Stmt, ...]:
        """Strips of columns: each warp lays its sums out in rows, then evaluates what is fused behind."""
        mine = (A("w") * 16 + A("h") * 8 + A("g"), A("d") * STRIP + A("t") * 8 + A("q") * 2 + A("e"))
        to = (A("w"), A("h") * 8 + A("g"), A("t") * 8 + A("q") * 2 + A("e"))
        turn = _loops(self.fragment(STRIP), (Store(self.out, to, Load(self.acc.name, mine, f32)),))
        row, column = A("y") * 4 + A("p"), A("u") * 4 + A("v")
        body = self.behind(row, column)
        heavy = sum(cost(e) for t in stores(body) for e in exprs(t)) > HEAVY
        loops = [("y", 4, "serial" if heavy else "unroll"), ("p", 4, "lane"), ("u", 8, "lane"), ("v", 4, "vector")]
        strip = (*turn, Barrier(), *_loops(loops, body), Barrier())
        return _loops([("w", self.warps, "warp"), ("d", self.shape.columns // STRIP, "unroll")], strip)

    def behind(self, row: Affine, column: Affine) -> tuple[Stmt, ...]:
        """The stores of the result, for one element of a strip."""
        _, stmts = outer_chain(self.kernel)
        local = {b.name: b for b in self.kernel.locals if b.name != self.c.acc}
        if any(b.shape for b in local.values()):
            raise ScheduleError(f"{self.kernel.name}: what follows the product keeps more than numbers")
        sums = Load(self.out, (A("w"), row, column), f32)

        def leaf(e: Expr) -> Expr:
            if isinstance(e, Load) and e.buffer == self.c.acc:
                return sums
            return replace(e, index=(A("v"),)) if isinstance(e, Load) and e.buffer in local else e

        def lanes(t: Stmt) -> tuple[Stmt, ...]:
            assert isinstance(t, Store)
            t = map_store(t, leaf)
            return (replace(t, index=(A("v"),)) if t.buffer in local else t,)

        i = self.row + A("w") * 16 + row
        j = self.column + A("d") * STRIP + column
        body = map_stmts(subst(stmts[2:], {"i": i, "j": j}), lanes)
        known = {*local, self.out}
        if self.m % self.shape.rows:
            body = add_masks(body, (i, self.m), set(local), known)
        if self.n % self.shape.columns:
            body = add_masks(body, (j, self.n), set(local), known)
        return body


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _loops(axes: Sequence[tuple[str, int, str]], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Parallel loops, outermost first: (axis, extent, binding)."""
    for axis, extent, binding in reversed(axes):
        body = (Loop(axis, extent, "parallel", body, binding),)
    return body
