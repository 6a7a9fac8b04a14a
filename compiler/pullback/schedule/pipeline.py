"""A schedule step: stages of shared memory that are filled ahead of their use.  Kernel -> kernel on IR 2.

    reduce kb < n            commit after each stage: `stages - 1` of them are on their way
      fill xs                reduce kb < n / 3
      fill ws                  wait 1; barrier; fill xs[2] for kb*3 + 2; commit; use xs[0]
      barrier         ->       wait 1; barrier; fill xs[0] for kb*3 + 3 (if < n); commit; use xs[1]
      use xs, ws               wait 1; barrier; fill xs[1] for kb*3 + 4 (if < n); commit; use xs[2]
      barrier                wait 0; barrier

What is filled by bare copies goes asynchronously, `stages - 1` iterations ahead.  What is filled by expressions goes
one iteration ahead through registers: loaded before the stage at hand is used, evaluated and stored after it.  The
iterations keep their order, so sums keep theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from ..errors import ScheduleError
from ..kernel.bounds import interval
from ..kernel.flight import is_zero
from ..kernel.kernel import (
    A,
    Affine,
    Barrier,
    Buffer,
    Commit,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    Wait,
    exprs,
    loads,
    map_stmts,
    map_store,
    read,
    stores,
    subst,
    walk,
    written,
)
from .nest import stride
from .steps import constant_extent, on_loops


@dataclass(frozen=True, slots=True)
class _Fill:
    """A nest that fills a buffer in shared memory, around one store."""

    buffer: str
    nest: Stmt
    asynchronous: bool


def pipeline(kernel: Kernel, axis: str, stages: int) -> Kernel:
    """Fill the shared buffers of the loops over `axis` ahead of their use, in `stages` stages.

    Each loop's body is: nests that each fill one shared buffer, a barrier, what uses them, a barrier.  The buffers
    get a leading dimension of `stages`; they may be used nowhere else.
    """
    if stages < 2:
        raise ScheduleError(f"{kernel.name}: a pipeline has two stages or more, not {stages}")
    shared = {b.name for b in kernel.locals if b.space == "shared"}
    filled: set[str] = set()
    held: dict[str, Buffer] = {}

    def f(s: Loop) -> tuple[Stmt, ...]:
        fills, used = _parts(kernel, s, shared)
        filled.update(x.buffer for x in fills)
        later = []
        for x in fills:
            if not x.asynchronous:
                fetch, put, buffers = _through_registers(kernel, x, held)
                held.update(buffers)
                later.append((fetch, put))
        return _Loop(s, [x for x in fills if x.asynchronous], later, used, stages, filled).written_out()

    piped = on_loops(kernel, axis, f)
    for t in stores(piped.body):
        for x in (t, *(x for e in exprs(t) for x in loads(e))):
            if x.buffer in filled and len(x.index) != len(kernel.buffers[x.buffer].shape) + 1:
                raise ScheduleError(f"{kernel.name}: '{x.buffer}' is also used outside of '{axis}'")
    locals_ = [_staged(b, stages) if b.name in filled else b for b in kernel.locals]
    return replace(piped, locals=(*locals_, *held.values()))


def _staged(b: Buffer, stages: int) -> Buffer:
    room = max((n * s for n, s in zip(b.shape, b.step, strict=True)), default=1)
    return replace(b, shape=(stages, *b.shape), strides=(room, *b.step) if b.strides else ())


# ---- reading the loop -----------------------------------------------------------------------------------
def _parts(kernel: Kernel, s: Loop, shared: Collection[str]) -> tuple[list[_Fill], tuple[Stmt, ...]]:
    """What the body fills, and what uses it."""
    constant_extent(s)
    at = next((i for i, t in enumerate(s.body) if isinstance(t, Barrier)), 0)
    used = s.body[at + 1 : -1]
    if not at or not used or not isinstance(s.body[-1], Barrier):
        raise ScheduleError(f"{kernel.name}: '{s.axis}' does not fill, wait, use and wait")
    fills = []
    for t in s.body[:at]:
        inside = stores((t,))
        if len(inside) != 1 or inside[0].buffer not in shared:
            raise ScheduleError(f"{kernel.name}: a nest in '{s.axis}' does not fill one shared buffer")
        if _moves(inside[0], s.axis):
            raise ScheduleError(f"{kernel.name}: '{inside[0].buffer}' moves with '{s.axis}' already")
        fills.append(_Fill(inside[0].buffer, t, _is_copy(kernel, t, inside[0])))
    changed, seen, filled = written(used), read(s.body[:at]), {x.buffer for x in fills}
    if clash := (changed & (seen | filled)) | (seen & filled):
        raise ScheduleError(f"{kernel.name}: '{min(clash)}' is filled and changed in one iteration of '{s.axis}'")
    return fills, used


def _moves(s: Store, axis: str) -> bool:
    return any(isinstance(i, Affine) and i.coef(axis) for i in s.index)


def _is_copy(kernel: Kernel, nest: Stmt, s: Store) -> bool:
    """May the store be asynchronous, in pieces of 4, 8 or 16 bytes?"""
    x, b = s.value, kernel.buffers[s.buffer]
    if not isinstance(x, Load) or x.dtype != b.dtype or (x.masks and not is_zero(x.other)) or s.where is not None:
        return False
    if kernel.buffers[x.buffer].space != "global" or x.buffer in kernel.outputs or s.other not in ("keep", "any"):
        return False
    if not all(isinstance(i, Affine) for i in (*x.index, *s.index)):
        return False
    size = b.dtype.size
    for t in walk((nest,)):
        if isinstance(t, Loop) and t.binding == "vector" and constant_extent(t) > 1:
            size *= constant_extent(t)
            if (stride(kernel, x, t.axis), stride(kernel, s, t.axis)) != (1, 1):
                return False
    return size in (4, 8, 16)


# ---- writing it -----------------------------------------------------------------------------------------
def _at_stage(stmts: tuple[Stmt, ...], buffers: Collection[str], stage: int) -> tuple[Stmt, ...]:
    """Accesses of the buffers go to one of their stages."""

    def there(x):
        return replace(x, index=(Affine(stage), *x.index)) if isinstance(x, Load | Store) and x.buffer in buffers else x

    return map_stmts(stmts, lambda s: (there(map_store(s, there)),) if isinstance(s, Store) else (s,))


def _sent(nest: Stmt) -> tuple[Stmt, ...]:
    return map_stmts((nest,), lambda s: (replace(s, asynchronous=True),) if isinstance(s, Store) else (s,))


def _through_registers(kernel: Kernel, x: _Fill, taken: Collection[str]) -> tuple[Stmt, Stmt, dict[str, Buffer]]:
    """A nest as two: what it loads from memory goes to registers; from there its value goes to shared memory."""
    chain: list[Loop] = []
    s: Stmt = x.nest
    while isinstance(s, Loop):
        if len(s.body) != 1:
            raise ScheduleError(f"{kernel.name}: '{x.buffer}' is not filled by perfectly nested loops")
        chain.append(s)
        s = s.body[0]
    if isinstance(s, Tile) or not isinstance(s, Store):
        raise ScheduleError(f"{kernel.name}: '{x.buffer}' is not filled by a store")
    moving = [t for t in chain if t.binding != "serial"]
    if len(moving) != len(chain):
        raise ScheduleError(f"{kernel.name}: registers cannot hold what a serial loop loads for '{x.buffer}'")
    held = [t for t in chain if constant_extent(t) > 1]
    shape, index = tuple(constant_extent(t) for t in held), tuple(A(t.axis) for t in held)
    buffers: dict[str, Buffer] = {}
    fetch: list[Stmt] = []

    def hold(e):
        if not isinstance(e, Load) or kernel.buffers[e.buffer].space != "global":
            return e
        name = next(n for i in range(len(taken) + len(fetch) + 1) if (n := f"{x.buffer}_{i}") not in (*taken, *buffers))
        buffers[name] = Buffer(name, shape, e.dtype, "register")
        fetch.append(Store(name, index, e))
        return Load(name, index, e.dtype)

    put: tuple[Stmt, ...] = (map_store(s, hold),)
    body: tuple[Stmt, ...] = tuple(fetch)
    for t in reversed(chain):
        put, body = (replace(t, body=put),), (replace(t, body=body),)
    return body[0], put[0], buffers


@dataclass(frozen=True, slots=True)
class _Loop:
    """One loop with its parts, and how its iterations are written."""

    loop: Loop
    sent: list[_Fill]
    later: list[tuple[Stmt, Stmt]]
    used: tuple[Stmt, ...]
    stages: int
    buffers: Collection[str]
    coming: list[Affine] = field(default_factory=list)

    def written_out(self) -> tuple[Stmt, ...]:
        """What does not fill whole turns of the stages comes first: sums end in a loop, where no compiler can move
        their last steps to where each is stored."""
        n, ahead = constant_extent(self.loop), self.stages - 1
        first, turns = n % self.stages, n // self.stages
        out: list[Stmt] = []
        for k in range(ahead):
            out += self.send(Affine(k), k, 1)
        out += self.put(0) if self.fetch(out, Affine(0), 1) else ()
        for k in range(first):
            out += self.iteration(Affine(k), k, 1)
        if turns:
            body: list[Stmt] = []
            for s in range(self.stages):
                k = A(self.loop.axis) * self.stages + (first + s)
                body += self.iteration(k, (first + s) % self.stages, turns)
            out.append(replace(self.loop, extent=turns, body=tuple(body)))
        return (*out, *((Wait(0),) if self.sent else ()), Barrier())

    def iteration(self, k: Affine, stage: int, turns: int) -> list[Stmt]:
        """One iteration, in a loop of that many turns."""
        ahead = self.stages - 1
        out: list[Stmt] = [Wait(ahead - 1)] if self.sent else []
        out.append(Barrier())
        out += self.send(k + ahead, (stage + ahead) % self.stages, turns)
        following = self.fetch(out, k + 1, turns)
        out += self.there(self.used, k, stage)
        if following:
            out += self.put((stage + 1) % self.stages)
        return out

    def there(self, stmts: tuple[Stmt, ...], k: Affine, stage: int) -> tuple[Stmt, ...]:
        return _at_stage(subst(stmts, {self.loop.axis: k}), self.buffers, stage)

    def exists(self, k: Affine, turns: int) -> bool | Mask:
        """Is there an iteration k?  In all turns, in none, or where a mask holds."""
        n = constant_extent(self.loop)
        low, high = interval(k, {self.loop.axis: (0, turns - 1)})
        return True if high < n else False if low >= n else (k, n)

    def send(self, k: Affine, stage: int, turns: int) -> list[Stmt]:
        """Copies for iteration k, if it exists, are a group."""
        if not self.sent:
            return []
        exists = self.exists(k, turns)
        nests = [t for x in self.sent for t in self.there(_sent(x.nest), k, stage)] if exists else []
        return [*(nests if exists is True else _masked(nests, exists, True)), Commit()]

    def fetch(self, out: list[Stmt], k: Affine, turns: int) -> bool:
        """Load what iteration k is filled with, if it exists."""
        exists = self.exists(k, turns)
        if exists:
            nests = [t for nest, _ in self.later for t in subst((nest,), {self.loop.axis: k})]
            out += nests if exists is True else _masked(nests, exists, False)
        self.coming[:] = [k]
        return bool(exists)

    def put(self, stage: int) -> list[Stmt]:
        """Store it."""
        return [t for _, nest in self.later for t in self.there((nest,), self.coming[0], stage)]


def _masked(nests: list[Stmt], mask: Mask, stored: bool) -> tuple[Stmt, ...]:
    """The nests where a mask holds: else nothing is loaded, nor, perhaps, `stored`."""

    def load(e):
        return replace(e, masks=(*e.masks, mask)) if isinstance(e, Load) else e

    def store(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store):
            return (s,)
        return (replace(map_store(s, load), masks=(*s.masks, mask) if stored else s.masks),)

    return map_stmts(tuple(nests), store)
