"""The emitter for machines with threads: what the bindings block, thread, warp and lane mean.

In: a scheduled kernel; out: the body of one function that every thread runs (`ptx.py` puts it into a kernel).  All
else is the CPU's emitter (`emit.py`).  What is different here:

* Loops bound to `thread`, `warp` and `lane` disappear: their axes get values from the thread's number.  Directly
  nested ones share it, the innermost fastest.  Where there are more threads than iterations the rest idles.
* What stands outside of such loops is run by all threads: each computes the same registers; memory is written by
  the first.
* Registers and locals are *distributed*: a buffer keeps its logical shape in the kernel, and each thread holds the
  elements that its own axes choose, so their terms are dropped from addresses.  Where one dimension moves with V times
  a lane, element e of it belongs to lane (e / V) mod 32, so that V neighbours are a vector of one lane; elements of
  another lane come by shuffles, which is all that a fold over lanes needs.
* An asynchronous store is a copy that the machine makes on its own (`copies.py`); `Commit` and `Wait` are each
  thread's own.
* `Barrier` waits for the threads that share the loops around it: in a warp loop the lanes of the warp, else the
  block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import NamedTuple

from ..errors import VerifyError
from ..graph.types import f32, f64
from ..kernel.concurrent import Arrive, Await, Copy, Role, Roles
from ..kernel.kernel import (
    Affine,
    Apply,
    Barrier,
    Buffer,
    Commit,
    Index,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    Tile,
    Wait,
    exprs,
    loads,
    stores,
    written,
)
from . import copies, inline, mma, roles, scalar, wgmma
from .builder import I32, Builder, Value
from .emit import Emitter

WARP = 32
LEVELS = ("thread", "warp", "lane")
PRIVATE = ("register", "local")
"""Spaces of which each thread has its own."""


def threads_of(kernel: Kernel) -> int:
    """Threads of one block: whole warps, enough for every loop bound to them."""
    most = 1

    def visit(stmts: tuple[Stmt, ...], threads: int, warps: int) -> None:
        nonlocal most
        for s in stmts:
            if isinstance(s, Loop):
                t = threads * s.extent if s.binding == "thread" else threads
                w = warps * s.extent if s.binding == "warp" else warps
                lanes = WARP if s.binding in ("warp", "lane") else 1
                most = max(most, t, w * lanes)
                visit(s.body, t, w)
            elif isinstance(s, Roles):
                most = max(most, sum(r.warps for r in s.body) * WARP)
            elif isinstance(s, Tile):
                visit(s.body, threads, warps)

    visit(kernel.body, 1, 1)
    return most if most == 1 else -(-most // WARP) * WARP


# ---- distribution ---------------------------------------------------------------------------------------
class Spread(NamedTuple):
    """How a private buffer lies across threads: element e of `dimension` in lane (e / unit) mod 32, or in thread
    (e / unit) mod `count`.  `others`: dimensions of which each thread has one element, that of its number."""

    dimension: int
    unit: int
    others: tuple[int, ...] = ()
    count: int = WARP

    def held(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape of what each thread has."""
        group = self.count * self.unit
        return tuple(
            -(-n // group) * self.unit if d == self.dimension else 1 if d in self.others else n
            for d, n in enumerate(shape)
        )

    def place(self, e: int) -> tuple[int, int]:
        """(lane or thread, which of its elements)."""
        at, within = divmod(e, self.unit)
        return at % self.count, at // self.count * self.unit + within


def distribution(kernel: Kernel) -> dict[str, Spread]:
    """How private buffers lie across the lanes of a warp, or the threads of a block.

    Those that do not are not in it: each thread has what its own axes choose, or a copy of the whole.  Raises
    `VerifyError` where a thread would need an element that it cannot get: for those across lanes by a shuffle that
    all lanes take part in, for others not at all.
    """
    private = {b.name for b in kernel.locals if b.space in PRIVATE}
    uses: dict[str, list[tuple[Load | Store, Mapping[str, Loop]]]] = {}
    for x, around in _accesses(kernel.body, {}) if private else ():
        if x.buffer in private:
            uses.setdefault(x.buffer, []).append((x, around))
    across: dict[str, Spread] = {}
    wgmma.check(kernel)
    for name, accesses in uses.items():
        terms = {_dealt_terms(x, around) for x, around in accesses}
        lanes = {(d, c) for t in terms for d, binding, c, _ in t if binding == "lane" and c > 0}
        others = {tuple(s for s in t if s[1] != "lane") for t in terms}
        if len(lanes) == len(others) == 1 and all(len([s for s in t if s[1] == "lane"]) <= 1 for t in terms):
            spread = Spread(*lanes.pop(), tuple(d for d, *_ in others.pop()))
            if reason := next(filter(None, (_misplaced(x, spread, around) for x, around in accesses)), ""):
                raise VerifyError(f"kernel {kernel.name}: {name} lies across lanes, and {reason}")
            across[name] = spread
        elif len(terms) > 1:
            raise VerifyError(f"kernel {kernel.name}: threads would read each other's elements of {name}")
        elif [s[1] for t in terms for s in t] == ["thread"]:
            ((d, _, c, n),) = terms.pop()
            spread = Spread(d, c, (), n)
            if c > 0 and not any(_misplaced(x, spread, around) for x, around in accesses):
                across[name] = spread
    return across


def _dealt_terms(x: Load | Store, around: Mapping[str, Loop]) -> tuple[tuple[int, str, int, int], ...]:
    """Where an access moves with threads: (dimension, binding, coefficient, extent); lanes of any extent alike."""
    out = []
    for d, i in enumerate(x.index):
        for n, c in i.terms if isinstance(i, Affine) else ():
            if n in around and (s := around[n]).binding in LEVELS:
                out.append((d, s.binding, c, 0 if s.binding == "lane" else s.extent))
    return tuple(sorted(out))


def _misplaced(x: Load | Store, spread: Spread, around: Mapping[str, Loop]) -> str:
    """What is wrong with an access of a buffer that lies across lanes; it is right if the element is the lane's own, or
    comes by a shuffle."""
    i = x.index[spread.dimension]
    if any(not isinstance(x.index[d], Affine) or len(x.index[d].terms) > 1 for d in spread.others):
        return "has more than one place for each thread"
    within, dealt = 0, False
    for n, c in i.terms if isinstance(i, Affine) else ():
        if n in around and around[n].binding in LEVELS:
            dealt = True
        elif c % (spread.count * spread.unit):  # a step from one neighbour to the next, or to where it does not belong
            within += c * (around[n].extent - 1) if n in around and 0 < c < spread.unit else spread.unit
    if not isinstance(i, Affine) or within + i.const % spread.unit >= spread.unit:
        return "its index does not move by whole warps"
    if dealt and spread.place(i.const)[0] == 0:
        return ""
    if isinstance(x, Store):
        return f"a store to {i} is not each lane's own"
    return "another lane's element is read under a mask" if x.masks else ""


def _accesses(stmts: Iterable[Stmt], around: Mapping[str, Loop]) -> Iterator[tuple[Load | Store, Mapping[str, Loop]]]:
    """Every access, with the loops of constant extent around it."""
    for s in stmts:
        if isinstance(s, Store):
            yield s, around
            for e in exprs(s):
                for x in loads(e):
                    yield x, around
        elif isinstance(s, Loop):
            yield from _accesses(s.body, {**around, s.axis: s} if isinstance(s.extent, int) else around)
        elif isinstance(s, Tile) and s.name != "wgmma":
            yield from _accesses(s.body, around)


def shuffle(b: Builder, v: Value, how: str, lane: int) -> Value:
    """A value of another lane: `idx`, of this lane; `down`, of that many lanes further on."""
    if v.ty.lanes > 1:
        return b.gather([shuffle(b, b.extract(v, i), how, lane) for i in range(v.ty.lanes)])
    elem, bits = v.ty.elem, v.ty.bits
    if bits == 64:
        n = b.bitcast(v, "i64")
        halves = [b.itrunc(n, "i32"), b.itrunc(b.lshr(n, 32), "i32")]
        low, high = (b.zext(shuffle(b, x, how, lane), "i64") for x in halves)
        return b.bitcast(b.or_(low, b.shl(high, 32)), elem)
    if bits < 32:
        return b.itrunc(shuffle(b, b.zext(v, "i32"), how, lane), elem)
    name = f"llvm.nvvm.shfl.sync.{how}.{v.ty.mangled}"
    return b.pure(v.ty, f"call {elem} @{name}(i32 -1, {elem} {v.ref}, i32 {lane}, i32 31)", v.depth)


# ---- the emitter ----------------------------------------------------------------------------------------
class ThreadEmitter(Emitter):
    """One kernel into the body that each thread runs.  `aligned`: parameters begin at multiples of 16 bytes."""

    def __init__(self, kernel: Kernel, b: Builder, pointers: Mapping[str, Value], status: Value, aligned: bool = True):
        super().__init__(kernel, b, pointers, status)
        self.aligned = aligned
        self.threads = threads_of(kernel)
        self.first_warp, self.warps = 0, max(1, self.threads // WARP)  # of the role at hand
        self.together = roles.has_roles(kernel)
        self.single = False  # a role of one thread
        self.common: set[str] = set()  # tokens at which several blocks arrive
        self.spread = distribution(kernel)
        self.bound: dict[str, str] = {}  # the axes around that stand for threads -> their binding
        self.ambient: Value | None = None  # which lanes take part in the lane loop at hand (None: all)
        self.folding = False  # the other lanes too then: what they make nobody reads
        self._written = [n for n in written(kernel.body) if self.buffers[n].space not in PRIVATE]
        self._idle: Value | None = None
        self._bare: dict[int, tuple[Store, Store]] = {}
        self.sums = {  # registers that products are added to
            s.buffer
            for s in stores(kernel.body)
            if self.buffers[s.buffer].space == "register" and self.buffers[s.buffer].dtype in (f32, f64)
            if isinstance(s.value, Apply) and any(isinstance(x, Load) and x.buffer == s.buffer for x in s.value.args)
        }
        self._layouts: dict[str, Buffer] = {}
        self._own: dict[int, tuple] = {}

    # ---- numbers of threads ------------------------------------------------------------------------------
    def _register(self, name: str) -> Value:
        return self.b.pure(I32, f"call i32 @llvm.nvvm.read.ptx.sreg.{name}()", 0)

    def number(self, binding: str) -> Value:
        """This thread's number at one level (i32)."""
        b = self.b
        if binding == "block":
            return self._register("ctaid.x")
        tid = self._register("tid.x")
        if binding != "warp":
            return tid if binding == "thread" else b.and_(tid, WARP - 1)
        warp = b.lshr(tid, 5)
        if self.together:  # so that the machine knows that all lanes agree
            warp = shuffle(b, warp, "idx", 0)
        return b.sub(warp, self.first_warp) if self.first_warp else warp

    @contextmanager
    def only(self, first_warp: int, warps: int) -> Iterator[None]:
        """What follows is for some warps of the block, which are counted from the first of them."""
        self.first_warp, self.warps = first_warp, warps
        yield
        self.first_warp, self.warps = 0, self.threads // WARP

    def decompose(self, flat: Value, axes: list[tuple[str, int]], first_free: bool = False) -> None:
        """Give axes their values from one flat number, the innermost fastest."""
        b = self.b
        for i, (a, n) in enumerate(axes):
            faster = prod(n for _, n in axes[i + 1 :])
            v = flat if faster == 1 else b.udiv(flat, faster)
            self.extents[a] = n
            self.env[a] = 0 if n == 1 and not first_free else b.zext(v if i == 0 else b.urem(v, n), "i64")

    # ---- statements --------------------------------------------------------------------------------------
    def _facts_of(self, s: Loop) -> tuple[list[str], int, bool]:
        names, bits, together = super()._facts_of(s)
        if all(x.asynchronous for x in stores(s.body)):  # nothing is computed: as many as the memory holds
            bits = max((self.buffers[x.buffer].dtype.bits for x in stores(s.body)), default=32)
        return names, bits, together

    def loop(self, s: Loop) -> None:
        if s.binding not in LEVELS:
            return super().loop(s)
        chain = [s]
        while len(chain[-1].body) == 1 and isinstance(t := chain[-1].body[0], Loop) and t.binding == s.binding:
            chain.append(t)
        axes = [(t.axis, t.extent) for t in chain]
        count = prod(n for _, n in axes)
        if s.binding in self.bound.values() or not all(isinstance(n, int) for _, n in axes):
            raise VerifyError(f"kernel {self.kernel.name}: {s.axis} is a {s.binding} loop that cannot be dealt out")
        if not count:
            return None
        flat = self.number(s.binding)
        saved = [(a, self.env.get(a), self.extents.get(a)) for a, _ in axes]
        self.decompose(flat, axes)
        self.bound |= dict.fromkeys((a for a, _ in axes), s.binding)
        there = {"thread": self.threads, "warp": self.warps, "lane": WARP}[s.binding]
        some = self.b.icmp("ult", flat, count) if count < there else None
        if s.binding == "lane":
            self.ambient = None if self.folding else some
            self.body(chain[-1].body)
            self.ambient = None
        else:
            with self.b.when(some):
                self.body(chain[-1].body)
        for a, value, extent in saved:
            del self.bound[a]
            self.env[a], self.extents[a] = value, extent

    def synchronise(self, s: Barrier | Commit | Wait | Arrive | Await) -> None:
        b = self.b
        if isinstance(s, Arrive | Await):
            return roles.emit(self, s)
        if isinstance(s, Commit):
            b.line("call void @llvm.nvvm.cp.async.commit.group()")
        elif isinstance(s, Wait):
            b.line(f"call void @llvm.nvvm.cp.async.wait.group(i32 {s.pending})")
        elif "warp" in self.bound.values():
            b.line("call void @llvm.nvvm.bar.warp.sync(i32 -1)")
        elif self.threads > 1:
            b.line("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")
        if not isinstance(s, Commit):
            b.touch(self._written)

    def tile(self, s: Tile) -> None:
        if isinstance(s, Roles | Role | Copy):
            roles.emit(self, s)
        elif s.name == "wgmma":
            wgmma.emit(self, s)
        elif s.name == "mma":
            mma.emit(self, s)
        else:
            self.folding = s.name == "fold"
            self.body(s.body)
            self.folding = False

    def store(self, s: Store, value: Value | None = None) -> None:
        """Registers: every thread its own.  Memory: the threads that the loops around choose, else the first."""
        if self.buffers[s.buffer].space in PRIVATE:
            return super().store(s, value)
        if s.asynchronous:
            with self._chosen():
                return copies.copy(self, s)
        if value is None and self.spread and any(self._crosses(x) for x in loads(s.value)):
            self._active(None, None)
            value = self.evaluate(s.value)  # all lanes take part in shuffles
        with self._chosen():
            if value is None and s.where is not None and not s.masks and self.width == 1:
                bare = self._bare.setdefault(id(s), (s, replace(s, where=None)))[1]
                with self.b.when(self.evaluate(s.where)):  # nothing else is computed, or read, where it does not hold
                    super().store(bare)
            elif not (self.sums and inline.store(self, s)):
                super().store(s, value)

    @contextmanager
    def _chosen(self) -> Iterator[None]:
        """The threads that write what is stored here."""
        b, around = self.b, set(self.bound.values())
        first = None
        if self.threads > 1 and "thread" not in around:
            missing = {"warp", "lane"} - around if self.threads > WARP else {"lane"} - around
            if missing:
                level = "thread" if len(missing) == 2 else missing.pop()
                first = b.icmp("eq", self.number(level), 0)
        ambient, self.ambient = self.ambient, None
        with b.when(self.both(ambient, first)):
            yield
        self.ambient = ambient

    def _active(self, condition: Value | None, mask: Value | None) -> None:
        super()._active(self.both(condition, self.ambient), mask)

    def _write(self, buffer: Buffer, s: Store, value: Value, mask, condition=None, place=None) -> None:
        if buffer.space in PRIVATE:
            condition = self.both(condition, self.ambient)
        super()._write(buffer, s, value, mask, condition, place)

    def conditions(self, masks):
        condition, mask = super().conditions(masks)
        if isinstance(condition, Value) and condition.ref in self.b.known:
            condition = None
        return condition, mask

    def report(self, site: int, value: Value) -> None:
        self.b.line(f"call void @pb_check_failed(ptr {self.status.ref}, i64 %call, i64 {site}, i64 {value.ref})")

    # ---- memory ------------------------------------------------------------------------------------------
    def place(self, buffer: Buffer, index: tuple[Index, ...], owner):
        if buffer.space not in PRIVATE:
            return super().place(buffer, index, owner)
        known = self._own.get(id(owner))
        if known is None:
            known = self._own[id(owner)] = (tuple(self._element(buffer, d, i) for d, i in enumerate(index)), owner)
        return super().place(self._layout(buffer), known[0], known)

    def _element(self, buffer: Buffer, d: int, i: Index) -> Index:
        """An index among the elements that each thread has."""
        if not isinstance(i, Affine):
            return i
        own = [(n, c) for n, c in i.terms if n not in self.bound]
        spread = self.spread.get(buffer.name)
        if spread is None or spread.dimension != d:
            return Affine(i.const, tuple(own))
        return Affine(spread.place(i.const)[1], tuple((n, c if c < spread.unit else c // spread.count) for n, c in own))

    def _layout(self, buffer: Buffer) -> Buffer:
        """What each thread has of a private buffer."""
        spread = self.spread.get(buffer.name)
        if spread is None:
            return buffer
        own = self._layouts.get(buffer.name)
        if own is None:
            own = self._layouts[buffer.name] = replace(buffer, shape=spread.held(buffer.shape), strides=())
        return own

    def guarded(self, buffer: Buffer) -> bool:
        return super().guarded(buffer) or (buffer.space == "shared" and self.ambient is not None)

    def load(self, e: Load) -> Value:
        buffer = self.buffers[e.buffer]
        if not buffer.size:  # nothing to read, perhaps nowhere
            return scalar.constant(self.b, e.other, buffer.dtype)
        v = super().load(e)
        if not self._crosses(e):
            return v
        spread = self.spread[e.buffer]
        i = e.index[spread.dimension]
        moves = any(n in self.bound for n, _ in i.terms)
        return shuffle(self.b, v, "down" if moves else "idx", spread.place(i.const)[0])

    def _crosses(self, e: Load) -> bool:
        """Is another lane's element read?"""
        spread = self.spread.get(e.buffer)
        if spread is None:
            return False
        i = e.index[spread.dimension]
        return spread.place(i.const)[0] != 0 or not any(n in self.bound for n, _ in i.terms)

    def pointer(self, buffer: Buffer) -> Value:
        p = self.pointers.get(buffer.name)
        if p is None:
            own = self._layout(buffer)
            room = own.size if buffer.space == "local" else own.size + 16
            p = self.pointers[buffer.name] = self.b.alloca(scalar.memory(buffer.dtype), max(room, 1), 16)
        return p

    def _safe(self, buffer: Buffer, p: Value, condition: Value | None) -> Value:
        """Where threads that take no part read.  Not from memory that others may be writing: from some of their own."""
        if condition is None or buffer.space in PRIVATE or buffer.name not in self._written:
            return super()._safe(buffer, p, condition)
        if self._idle is None:
            self._idle = self.b.alloca("i64", 4, 16)
        return self.b.select(condition, p, self._idle)

    def alignment(self, buffer: Buffer, x: Load | Store) -> int:
        """Vectors of memory are aligned where every term of the index is a multiple of them."""
        size = buffer.dtype.size
        if buffer.space in PRIVATE or self.width == 1 or not (self.aligned or buffer.space == "shared"):
            return size
        terms = [0]
        for i, step in zip(x.index, buffer.step, strict=True):
            if not isinstance(i, Affine):
                terms.append(step)
                continue
            terms.append(i.const * step)
            for n, c in i.terms:
                v = self.env[n]
                terms.append(c * step * (v if isinstance(v, int) else 1) if n != self.lane or isinstance(v, int) else 0)
        return size * self.width if not any(t % self.width for t in terms) else size
