"""Checks a kernel against the rules of the kernel IR: a broken rule is a bug of lowering or of a schedule step.

The rules: names are bound once on a path; every access lies inside of its buffer where its own masks hold;
scalar functions exist and get the types they are made for; iterations of a parallel loop touch different
elements, or locals of their own; a local is stored before it is loaded; block loops are outermost; the
register buffers of a scheduled kernel have indices that unrolling makes constant; a tile is what its name says.
Plans: `plan_verify.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import VerifyError
from . import concurrent
from .bounds import Range, highest, interval, may_meet, tighten, within
from .concurrent import Arrive, Await, Copy, Role, Roles
from .flight import broken_rule
from .fragments import mma_rule
from .kernel import (
    Affine,
    Apply,
    AxisValue,
    Barrier,
    Buffer,
    Checked,
    Commit,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    Wait,
    exprs,
    walk,
    walk_expr,
)
from .plan_verify import verify_plan
from .products import wgmma_rule
from .scalars import SCALARS
from .text import BINDINGS, ROLES, loop_words, print_stmt
from .verify_tiles import TILES

if TYPE_CHECKING:
    from ..codegen.target import Target

__all__ = ["verify", "verify_plan"]

MOVING = frozenset(("unroll", "vector", "thread", "warp", "lane"))
"""Bindings that give an index a constant (or a lane) per copy, as registers need."""


@dataclass(slots=True)
class _Access:
    """One access in program order."""

    at: int
    write: bool
    index: tuple[Index, ...]
    block: int
    """The number of the top-level statement."""
    extents: tuple[Range, ...] | None
    """Where each dimension of the index lies, if block ranges must be compared."""


@dataclass(slots=True)
class _Loop:
    """A loop around the statement at hand: its axis' range and, for the end, the accesses since it began."""

    stmt: Loop
    extent: int
    start: int
    inner: dict[str, Range] = field(default_factory=dict)


def verify(kernel: Kernel, target: Target | None = None) -> None:
    """Raise `VerifyError`, which names the kernel and the statement, if a rule is broken.

    With a target (`codegen.target.Target`) its loops and buffers must be ones that the machine has: threads,
    warps, lanes and shared memory are for GPUs.
    """
    _Verifier(kernel).run()
    if target is not None:
        for s in walk(kernel.body):
            if isinstance(s, Loop) and s.binding in ("thread", "warp", "lane") and s.binding not in dict(target.ids):
                raise VerifyError(f"kernel {kernel.name}: {target.name} has no loops bound to {s.binding}")
        for b in kernel.locals:
            if b.space in ("shared", "token") and b.space not in dict(target.spaces):
                what = "shared memory" if b.space == "shared" else "tokens"
                raise VerifyError(f"kernel {kernel.name}: {target.name} has no {what} for {b.name}")


class _Verifier:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.buffers = kernel.buffers
        self.ranges: dict[str, Range] = {}
        self.bounds: list[Mask] = []  # what affine extents say: axis - extent < 0
        self.path: list[_Loop] = []
        self.bindings: dict[str, str] = {}
        self.accesses: dict[str, list[_Access]] = {b: [] for b in self.buffers}
        self.parallel: list[tuple[_Loop, int]] = []
        self.clock = 0
        self.stored: set[str] = {b.name for b in kernel.params}
        self.scheduled = self.several = False
        self.block = 0
        self.stmt: Stmt | None = None
        self.known: dict[int, Expr] = {}  # expressions checked under the loops at hand

    def fail(self, reason: str) -> VerifyError:
        where = "" if self.stmt is None else f": `{_headline(self.stmt)}`"
        return VerifyError(f"kernel {self.kernel.name}{where}: {reason}")

    def run(self) -> None:
        k = self.kernel
        if len(self.buffers) != len(k.params) + len(k.locals):
            raise self.fail("two buffers have the same name")
        for b in self.buffers.values():
            if (b.space == "global") != (b in k.params):
                raise self.fail(f"{b.name}: parameters are global, locals are not; got {b.space}")
            if b.space not in ("global", "local", "register", "shared", "token"):
                raise self.fail(f"{b.name}: no such space: {b.space}")
            if any(n < 0 for n in b.shape) or (b.strides and len(b.strides) != len(b.shape)):
                raise self.fail(f"{b.name}: shape {b.shape} and strides {b.strides} do not go together")
        self.scheduled = _scheduled(k.body)
        self.several = len(k.body) > 1 and all(_is_block(s) for s in k.body)
        self.body(k.body, True)
        self.stmt = None
        for loop, end in self.parallel:
            self.independent(loop, end)
        if self.several:
            self.ranges_apart()
        if broken := broken_rule(k) or concurrent.broken_rule(k):
            self.stmt, reason = broken
            raise self.fail(reason)

    # ---- statements
    def body(self, stmts: Sequence[Stmt], outermost: bool) -> None:
        for n, s in enumerate(stmts):
            self.stmt = s
            if not self.path:
                self.block = n
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, Loop):
                self.loop(s, outermost and (len(stmts) == 1 or (all(_is_block(t) for t in stmts) and not self.path)))
            elif isinstance(s, Copy | Arrive | Await):
                self.signal(s)
            elif isinstance(s, Tile):
                check_tile(self, s)
                self.body(s.body, False)
            elif not isinstance(s, Barrier | Commit | Wait):
                raise self.fail(f"no statement: {type(s).__name__}")

    def signal(self, s: concurrent.Signal) -> None:
        self.index(self.buffer(s.token), s.index, ())
        if isinstance(s, Await):
            self.axes_bound(s.phase)
        elif isinstance(s, Copy):
            self.body(s.body, False)

    def loop(self, s: Loop, outermost: bool) -> None:
        if s.role not in ROLES or s.binding not in BINDINGS:
            raise self.fail(f"role {s.role!r} or binding {s.binding!r} is unknown")
        if s.axis in self.ranges:
            raise self.fail(f"axis {s.axis} is bound by a loop around it already")
        if s.binding == "block" and (not outermost or s.role != "parallel" or not isinstance(s.extent, int)):
            raise self.fail("block loops are parallel, outermost, among themselves and of constant extent")
        if s.binding == "vector" and any(p.stmt.binding == "vector" for p in self.path):
            raise self.fail("a vector loop in a vector loop")
        extent = s.extent
        if isinstance(extent, Affine):
            self.axes_bound(extent)
            extent = interval(extent, self.ranges)[1]
        if s.binding in ("vector", "unroll") and not isinstance(s.extent, int):
            raise self.fail(f"a loop bound to {s.binding} has a constant extent")
        if extent <= 0:
            return  # never runs
        loop = _Loop(s, extent, self.clock)
        for p in self.path:
            p.inner[s.axis] = (0, max(extent - 1, p.inner.get(s.axis, (0, 0))[1]))
        self.path.append(loop)
        self.ranges[s.axis] = (0, extent - 1)
        self.bindings[s.axis] = s.binding
        if isinstance(s.extent, Affine):
            self.bounds.append((Affine.of(s.axis) - s.extent, 0))
        self.known = {}
        self.body(s.body, outermost and s.binding == "block")
        self.known = {}
        if isinstance(s.extent, Affine):
            self.bounds.pop()
        del self.ranges[s.axis]
        self.path.pop()
        if s.role == "parallel" and extent > 1:
            self.parallel.append((loop, self.clock))

    def store(self, s: Store) -> None:
        b = self.buffer(s.buffer)
        for e in exprs(s):
            self.expr(e)
        if s.value.dtype not in (b.dtype, b.dtype.compute):
            raise self.fail(f"stores {s.value.dtype} to {b.name}, which is {b.dtype}")
        if s.where is not None and s.where.dtype.kind != "b":
            raise self.fail(f"`where` is {s.where.dtype}, expected bool")
        if isinstance(s.other, str) and s.other not in ("keep", "any"):
            raise self.fail(f"outside of masks 'keep', 'any' or a number; got {s.other!r}")
        if s.asynchronous and b.space != "shared":
            raise self.fail(f"an asynchronous store goes to shared memory, not to {b.name}")
        if s.where is not None and s.other != "keep":
            raise self.fail("a store with `where` keeps what is there elsewhere")
        self.masks(s.masks)
        self.index(b, s.index, s.masks if s.other == "keep" else ())
        self.access(b.name, True, s.index, s.masks if s.other == "keep" else ())
        self.stored.add(b.name)

    def access(self, buffer: str, write: bool, index: tuple[Index, ...], masks: tuple[Mask, ...]) -> None:
        extents = None
        if self.several and self.buffers[buffer].space == "global":
            limits = [*masks, *self.bounds]
            ranges = tighten(self.ranges, limits) or self.ranges
            extents = tuple(
                (-highest(i * -1, ranges, limits), highest(i, ranges, limits))
                if isinstance(i, Affine)
                else (0, i.bound - 1)
                for i in index
            )
        self.accesses[buffer].append(_Access(self.clock, write, index, self.block, extents))
        self.clock += 1

    # ---- expressions
    def expr(self, e: Expr) -> None:
        for x in walk_expr(e):
            if isinstance(x, Load):
                if x.buffer not in self.stored:
                    self.buffer(x.buffer)
                    raise self.fail(f"loads {x.buffer} before anything was stored to it")
                if id(x) not in self.known:
                    self.load(x)
                self.access(x.buffer, False, x.index, x.masks)
            elif id(x) not in self.known:
                if isinstance(x, Apply):
                    self.apply(x)
                elif isinstance(x, AxisValue):
                    self.axes_bound(x.index)
                elif isinstance(x, Checked):
                    if not x.dtype.is_integer or x.bound < 1:
                        raise self.fail(f"a check needs an integer and a positive bound, got {x.dtype}, {x.bound}")
                elif not isinstance(x, Const):
                    raise self.fail(f"no expression: {type(x).__name__}")
            self.known[id(x)] = x  # holding it keeps its id its own

    def load(self, x: Load) -> None:
        b = self.buffer(x.buffer)
        if x.dtype != b.dtype:
            raise self.fail(f"loads {x.dtype} from {b.name}, which is {b.dtype}")
        self.masks(x.masks)
        self.index(b, x.index, x.masks)

    def apply(self, e: Apply) -> None:
        scalar = SCALARS.get(e.fn)
        if scalar is None:
            raise self.fail(f"no scalar function {e.fn!r}")
        if len(e.args) != scalar.arity:
            raise self.fail(f"{e.fn} takes {scalar.arity} arguments, got {len(e.args)}")
        types = [a.dtype for a in e.args]
        if e.fn == "select":
            if types[0].kind != "b":
                raise self.fail(f"select chooses by a bool, got {types[0]}")
            types = types[1:]
        if any(t.compute != types[0].compute for t in types):
            raise self.fail(f"{e.fn} of different types: {', '.join(map(str, types))}")
        if types[0].kind not in scalar.kinds:
            raise self.fail(f"{e.fn} is not for {types[0]}")
        if scalar.bits not in (0, types[0].compute.bits):
            raise self.fail(f"{e.fn} is for {scalar.bits} bits, got {types[0]}")
        if e.fn == "bitcast" and types[0].bits != e.dtype.bits:
            raise self.fail(f"bitcast from {types[0]} to {e.dtype}")
        if scalar.result == "bool" and e.dtype.kind != "b":
            raise self.fail(f"{e.fn} gives bool, not {e.dtype}")
        if scalar.result == "same" and e.dtype.compute != types[0].compute:
            raise self.fail(f"{e.fn} of {types[0]} cannot give {e.dtype}")

    # ---- pieces
    def buffer(self, name: str) -> Buffer:
        if name not in self.buffers:
            raise self.fail(f"no buffer {name!r}; there are {', '.join(self.buffers)}")
        return self.buffers[name]

    def axes_bound(self, a: Affine) -> None:
        for n, _ in a.terms:
            if n not in self.ranges:
                raise self.fail(f"axis {n} is not bound here; the loops around are {', '.join(self.ranges) or 'none'}")

    def masks(self, masks: Sequence[Mask]) -> None:
        for m, bound in masks:
            if not isinstance(m, Affine) or not isinstance(bound, int):
                raise self.fail("masks are affine < constant")
            self.axes_bound(m)

    def index(self, b: Buffer, index: Sequence[Index], masks: Sequence[Mask]) -> None:
        if len(index) != len(b.shape):
            raise self.fail(f"{b.name} has {len(b.shape)} dimensions, the index has {len(index)}")
        for d, (i, n) in enumerate(zip(index, b.shape, strict=True)):
            if isinstance(i, Checked):
                if i.bound > n:
                    raise self.fail(f"dimension {d} of {b.name} has {n} elements, the check allows {i.bound}")
                if b.space == "register":
                    raise self.fail(f"registers cannot be indexed by values: {b.name}")
                continue
            self.axes_bound(i)
            low, high = interval(i, self.ranges)
            if (low < 0 or high >= n) and not within(i, n, self.ranges, [*masks, *self.bounds]):
                raise self.fail(f"index {i} of {b.name} can be {low} to {high}, dimension {d} has {n} elements")
            if self.scheduled and b.space == "register":
                for a, _ in i.terms:
                    if self.bindings[a] not in MOVING:
                        raise self.fail(f"register {b.name} moves with {a}, a loop bound to {self.bindings[a]}")

    # ---- dependences
    def independent(self, loop: _Loop, end: int) -> None:
        """Two iterations of a parallel loop write different elements, or locals of their own."""
        s = loop.stmt
        for name, all_accesses in self.accesses.items():
            mine = [a for a in all_accesses if loop.start <= a.at < end]
            writes = [a.index for a in mine if a.write]
            if not writes:
                continue
            b = self.buffers[name]
            if b.space != "global" and mine[0].write:
                after = next((a for a in all_accesses if a.at >= end), None)
                if after is None or after.write:
                    continue  # lives within one iteration
            if may_meet(s.axis, loop.extent, writes, [a.index for a in mine if not a.write], loop.inner, b.step):
                self.stmt = s
                raise self.fail(f"iterations of {s.axis} are not independent: they can meet in {name}")

    def ranges_apart(self) -> None:
        """The ranges of blocks run at the same time: what one writes no other touches."""
        for name, accesses in self.accesses.items():
            if self.buffers[name].space != "global":
                continue
            for a in accesses:
                for b in accesses if a.write else ():
                    if a.block != b.block and all(p <= last and first <= q for (p, q), (first, last) in _pairs(a, b)):
                        self.stmt = self.kernel.body[a.block]
                        raise self.fail(f"another range of blocks can meet this one in {name}")


def _pairs(a: _Access, b: _Access) -> zip:
    return zip(a.extents or (), b.extents or (), strict=True)


def _is_block(s: Stmt) -> bool:
    return isinstance(s, Loop) and s.binding == "block"


def _scheduled(stmts: Sequence[Stmt]) -> bool:
    for s in stmts:
        if isinstance(s, Loop | Tile) and ((isinstance(s, Loop) and s.binding != "serial") or _scheduled(s.body)):
            return True
    return False


def _headline(s: Stmt) -> str:
    if isinstance(s, Loop):
        return f"{loop_words(s)} {s.axis} < {s.extent}"
    if isinstance(s, Tile):
        return concurrent.words(s)
    text = print_stmt(s)[-1]
    return text if len(text) < 300 else text[:300] + "..."


# ---- tiles ----------------------------------------------------------------------------------------------
def check_tile(v: _Verifier, tile: Tile) -> None:
    """The body must be what the emitter will make of the name."""
    if isinstance(tile, Role | Roles):
        return
    products = {"mma": lambda t: mma_rule(t, v.buffers), "wgmma": lambda t: wgmma_rule(t, v.buffers)}
    check = {**TILES, **products}.get(tile.name)
    if check is None:
        raise v.fail(f"no tile {tile.name!r}")
    reason = check(tile)
    if reason:
        raise v.fail(f"tile {tile.name}: {reason}")
