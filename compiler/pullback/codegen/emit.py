"""The one emitter: a scheduled kernel (kernel IR in), the body of an LLVM function (text out).

It decides nothing.  It walks the statements: a `serial` loop becomes a loop, `unroll` copies, `vector`
vector instructions of the machine's width (and narrower ones for what remains), a mask a predicate; an
affine index becomes a chain of address computations, outermost axes first, so that the builder's
value-numbering hoists each as far as it goes.  Register buffers are arrays in the entry block, accessed with
constant indices: SROA alone turns them into registers.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import VerifyError
from ..kernel.concurrent import Arrive, Await
from ..kernel.kernel import (
    Affine,
    Apply,
    AxisValue,
    Barrier,
    Buffer,
    Checked,
    Commit,
    Const,
    Expr,
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
    walk_expr,
    written,
)
from . import scalar, tiles
from .access import Access, chunks
from .builder import Builder, Value, ty

MAX_CHUNKS = 32
"""A vector loop of more vectors than this becomes a loop over vectors."""


class Emitter(Access):
    """One kernel into one function."""

    def __init__(self, kernel: Kernel, b: Builder, pointers: Mapping[str, Value], status: Value):
        super().__init__(kernel, b, pointers)
        self.status = status
        # Where the statement at hand is active: a scalar condition and lanes (None: everywhere).
        self.condition: Value | None = None
        self.mask: Value | None = None
        self._values: dict[int, Value] = {}  # expressions of the store at hand
        self._facts: dict[int, tuple] = {}

    # ---- statements --------------------------------------------------------------------------------------
    def body(self, stmts: tuple[Stmt, ...]) -> None:
        for s in stmts:
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, Loop):
                self.loop(s)
            elif isinstance(s, Tile):
                self.tile(s)
            else:
                self.synchronise(s)

    def tile(self, s: Tile) -> None:
        tiles.tile(self, s)

    def synchronise(self, s: Barrier | Commit | Wait | Arrive | Await) -> None:
        raise VerifyError(f"kernel {self.kernel.name}: {type(s).__name__} has no meaning on a CPU")

    def loop(self, s: Loop) -> None:
        axis, n = s.axis, s.extent
        before, reach = self.env.get(axis), self.extents.get(axis)
        if isinstance(n, Affine):
            self.extents[axis] = self.range(n)[1]
            n = self.index(n)
        if isinstance(n, int):
            self.extents[axis] = n
        if isinstance(n, int) and n <= 0:
            pass
        elif n == 1 or (s.binding == "unroll" and isinstance(n, int)):
            for i in range(n):
                self.env[axis] = i
                self.body(s.body)
        elif s.binding == "vector" and self.lane is None and isinstance(n, int) and self._lanewise(s):
            self._vectors(s, n)
        else:
            with self.b.loop(0, n, self._facts_of(s)[0]) as i:
                self.env[axis] = i
                self.body(s.body)
        self.env[axis], self.extents[axis] = before, reach

    def _vectors(self, s: Loop, n: int) -> None:
        width = self.b.target.lanes(self._facts_of(s)[1])
        whole, at = n // width, 0
        if whole > MAX_CHUNKS:
            with self.b.loop(0, whole, self._facts_of(s)[0]) as i:
                self._lanes(s, self.b.mul(i, width), width)
            at = whole * width
        for start, lanes in chunks(n, width, at):
            self._lanes(s, start, lanes)

    def _lanes(self, s: Loop, start: int | Value, width: int) -> None:
        self.env[s.axis] = start
        self.across(s.axis, width)
        self.body(s.body)
        self.across(None, 1)

    def _facts_of(self, s: Loop) -> tuple[list[str], int, bool]:
        """The memory stored to in a loop, its widest element in bits, and whether lanes may run together."""
        facts = self._facts.get(id(s))
        if facts is None:
            inside = stores(s.body)
            names, together = {x.buffer for x in inside}, True
            for x in inside:
                read = [y for e in exprs(x) for y in loads(e)]
                names.update(y.buffer for y in read)
                moves = any(not isinstance(i, Affine) or i.coef(s.axis) for i in x.index)
                scatters = any(not isinstance(i, Affine) for i in x.index)
                if scatters and any(y.buffer == x.buffer for y in read):
                    together = False
                if not moves and any(_depends(e, s.axis) for e in exprs(x)):
                    together = False  # one element takes all lanes: in order
            bits = max((self.buffers[x].dtype.bits for x in names), default=32)
            facts = self._facts[id(s)] = (sorted(written(s.body)), max(bits, 32), together)
        return facts

    def _lanewise(self, s: Loop) -> bool:
        return self._facts_of(s)[2]

    # ---- stores ------------------------------------------------------------------------------------------
    def store(self, s: Store, value: Value | None = None) -> None:
        """Emit a store; `value`: what its expression gives, if that has been emitted already."""
        b, buffer = self.b, self.buffers[s.buffer]
        self._values = {} if value is None else {id(s.value): value}
        if s.where is not None and s.masks and s.other != "keep":
            raise VerifyError(f"kernel {self.kernel.name}: a store to {s.buffer} has both `where` and `other`")
        condition, mask = self.conditions(s.masks) if s.masks else (None, None)
        number = None
        if condition is not None or mask is not None:
            if isinstance(s.other, str):
                if condition is False:
                    return
                if s.other == "any" and buffer.space != "global" and self._inside(buffer, s.index):
                    number = "any"
            else:
                number = scalar.constant(b, s.other, buffer.dtype)
                if condition is False:
                    return self._write(buffer, s, number, None)
        if number is None and condition is not None and buffer.space != "register":
            with b.when(condition):
                self._active(None, mask)
                self._masked(buffer, s, mask)
        else:
            self._active(condition, mask)
            if number is None:
                self._masked(buffer, s, mask, condition)
            else:
                value = self.expr(s.value)
                if number != "any":
                    value = value if mask is None else b.select(mask, value, number)
                    value = value if condition is None else b.select(condition, value, number)
                self._write(buffer, s, value, None)
        self._active(None, None)

    def _active(self, condition: Value | None, mask: Value | None) -> None:
        self.condition, self.mask = condition, mask

    def _masked(self, buffer: Buffer, s: Store, mask: Value | None, condition: Value | None = None) -> None:
        """Store where mask, condition and predicate hold; keep the rest."""
        b = self.b
        value = self.expr(s.value)
        if s.where is None:
            return self._write(buffer, s, value, mask, condition)
        where = self.expr(s.where)
        place = self.place(buffer, s.index, s)
        if where.ty.lanes > 1:
            mask = where if mask is None else b.and_(mask, where)
            self._write(buffer, s, value, mask, condition, place)
        elif buffer.space == "register":
            condition = where if condition is None else b.and_(condition, where)
            self._write(buffer, s, value, mask, condition, place)
        else:
            with b.when(where):
                self._write(buffer, s, value, mask, condition, place)

    def _write(self, buffer: Buffer, s: Store, value: Value, mask, condition=None, place=None) -> None:
        b, dtype = self.b, buffer.dtype
        pointers, k = place or self.place(buffer, s.index, s)
        elem, size = scalar.memory(dtype), dtype.size
        label, private = buffer.name, buffer.space == "register"
        value = scalar.to_memory(b, value, dtype)
        if isinstance(pointers, Value) and k == 0:  # one element; lanes agree, or the last one wins
            value = b.extract(value, value.ty.lanes - 1)
            if mask is not None:
                condition = self.any(mask) if condition is None else b.and_(condition, self.any(mask))
            if condition is not None:
                if buffer.space != "register":
                    with b.when(condition):
                        return b.store(value, pointers, size, label)
                value = b.select(condition, value, b.load(value.ty, pointers, size, label, private))
            return b.store(value, pointers, size, label)
        value = b.splat(value, self.width)
        if isinstance(pointers, Value) and k == 1:
            if condition is not None or (mask is not None and buffer.space == "register"):
                old = b.load(value.ty, pointers, size, label, private)
                value = value if mask is None else b.select(mask, value, old)
                value = value if condition is None else b.select(condition, value, old)
            elif mask is not None:
                return b.masked_store(value, pointers, mask, size, label)
            return b.store(value, pointers, self.alignment(buffer, s), label)
        lanes = pointers if isinstance(pointers, list) else None
        active = self.lane_values(mask)
        for i in range(self.width):
            if active[i] is False:
                continue
            p = lanes[i] if lanes else b.offset(pointers, elem, i * k)
            x, c = b.extract(value, i), None if active[i] is True else active[i]
            if condition is not None:
                c = condition if c is None else b.and_(c, condition)
            if c is not None and buffer.space == "register":
                x, c = b.select(c, x, b.load(x.ty, p, size, label, True)), None
            with b.when(c):
                b.store(x, p, size, label)

    def _inside(self, buffer: Buffer, index) -> bool:
        """Do all lanes of the loops around stay inside of the last dimension?  (Then 'any' may write them.)"""
        if not index or not isinstance(index[-1], Affine):
            return False
        lo, hi = self.range(index[-1])
        return lo is not None and lo >= 0 and hi < buffer.shape[-1]

    # ---- expressions -------------------------------------------------------------------------------------
    def evaluate(self, e: Expr) -> Value:
        """The value of an expression here and now, outside of a store."""
        self._values = {}
        return self.expr(e)

    def expr(self, e: Expr) -> Value:
        """The value of an expression: a scalar if lanes agree by construction, else a vector."""
        v = self._values.get(id(e))
        if v is None:
            v = self._values[id(e)] = self._fresh(e)
        return v

    def _fresh(self, e: Expr) -> Value:
        if isinstance(e, Apply):
            args = [self.expr(a) for a in e.args]
            return scalar.apply(self.b, e.fn, args, [a.dtype for a in e.args], e.dtype)
        if isinstance(e, Load):
            return self.load(e)
        if isinstance(e, Const):
            return scalar.constant(self.b, e.value, e.dtype)
        if isinstance(e, AxisValue):
            return self._axis_value(e)
        return self._checked(e)

    def _axis_value(self, e: AxisValue) -> Value:
        b, x, lanes = self.b, self.index(e.index), self.width
        k = e.index.coef(self.lane) if self.lane else 0
        lo, hi = self.range(e.index)
        short = lo is not None and lo >= -(1 << 31) and hi < 1 << 31
        elem = "i32" if short and e.dtype.bits <= 32 else "i64"
        v = b.const(ty(elem), x) if isinstance(x, int) else b.itrunc(x, elem)
        if k:
            v = b.add(b.splat(v, lanes), b.constants(elem, [i * k for i in range(lanes)]))
        if e.dtype.kind == "f":
            return scalar.rounded(b, b.sitofp(v, scalar.register(e.dtype)), e.dtype)
        if e.dtype.kind == "b":
            return b.icmp("ne", v, 0)
        t = scalar.register(e.dtype)
        return b.itrunc(v, t)

    def _checked(self, e: Checked) -> Value:
        """0 <= value < bound, else report the first lane that fails and go on with 0."""
        b, v, dtype = self.b, self.expr(e.value), e.value.dtype
        limit = (1 << (dtype.bits - (dtype.kind == "i"))) - 1
        if e.bound > limit:
            if dtype.kind == "u":
                return v
            bad = b.icmp("slt", v, 0)
        else:
            bad = b.icmp("uge", v, e.bound)
        fails = bad
        if self.mask is not None:
            fails = b.and_(fails, self.mask)
        if self.condition is not None:
            fails = b.and_(fails, self.condition)
        key = ("checked", v.ref, fails.ref, e.bound, e.site)
        if not b.recall(key):
            lanes = fails.ty.lanes
            with b.when(self.any(fails) if lanes > 1 else fails):
                if lanes > 1:
                    bits = b.pure(ty(f"i{lanes}"), f"bitcast {fails} to i{lanes}", fails.depth)
                    first = b.here(bits.ty, f"call i{lanes} @llvm.cttz.i{lanes}(i{lanes} {bits.ref}, i1 true)")
                    first = b.zext(first, "i64") if lanes < 64 else first
                    value = b.extract(b.splat(v, lanes), first)
                else:
                    value = v
                wide = b.sext(value, "i64") if dtype.kind == "i" else b.zext(value, "i64")
                self.report(e.site, wide)
            b.remember(key)
        return b.select(bad, b.like(v, 0), v)

    def report(self, site: int, value: Value) -> None:
        """A check failed (here)."""
        self.b.line(f"call void @pb_check_failed(ptr {self.status.ref}, i64 {site}, i64 {value.ref})")

    def guarded(self, buffer: Buffer) -> bool:
        """May only lanes that store something read it?"""
        return buffer.space == "global"

    def load(self, e: Load) -> Value:
        b, buffer = self.b, self.buffers[e.buffer]
        dtype, condition, mask = buffer.dtype, None, None
        if e.masks:
            condition, mask = self.conditions(e.masks)
            if condition is False:
                return scalar.constant(b, e.other, dtype)
        if self.guarded(buffer):  # a lane that stores nothing must not touch memory either
            condition, mask = self.both(condition, self.condition), self.both(mask, self.mask)
        if e.masks and any(isinstance(i, Checked) for i in e.index):
            saved = self.condition, self.mask, self._values
            self._values = {}
            self._active(self.both(condition, self.condition), self.both(mask, self.mask))
            place = self.place(buffer, e.index, e)
            self.condition, self.mask, self._values = saved
        else:
            place = self.place(buffer, e.index, e)
        return self.read(buffer, place, condition, mask, e.other if e.masks else None, self.alignment(buffer, e))


def _depends(e: Expr, axis: str) -> bool:
    """Does the value of an expression differ from lane to lane?"""
    for x in walk_expr(e):
        if isinstance(x, Load):
            if any(isinstance(i, Affine) and i.coef(axis) for i in x.index) or any(m.coef(axis) for m, _ in x.masks):
                return True
        elif isinstance(x, AxisValue) and x.index.coef(axis):
            return True
    return False
