"""The one emitter: a scheduled kernel (kernel IR in), the body of an LLVM function (text out).

It decides nothing.  It walks the statements: a `serial` loop becomes a loop, `unroll` copies, `vector`
vector instructions of the machine's width (and narrower ones for what remains), a mask a predicate; an
affine index becomes a chain of address computations, outermost axes first, so that the builder's
value-numbering hoists each as far as it goes.  Register buffers are arrays in the entry block, accessed with
constant indices: SROA alone turns them into registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from ..errors import VerifyError
from ..kernel.kernel import (
    Affine,
    Apply,
    AxisValue,
    Buffer,
    Checked,
    Const,
    Expr,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    Tile,
    exprs,
    loads,
    stores,
    walk_expr,
    written,
)
from . import scalar, tiles
from .builder import I64, Builder, Value, ty

MAX_CHUNKS = 32
"""A vector loop of more vectors than this becomes a loop over vectors."""


class Emitter:
    """One kernel into one function.  `pointers`: the address of each buffer that is not in registers."""

    def __init__(self, kernel: Kernel, b: Builder, pointers: Mapping[str, Value], status: Value):
        self.kernel, self.b, self.status = kernel, b, status
        self.buffers = kernel.buffers
        self.pointers = dict(pointers)
        self.env: dict[str, int | Value] = {}
        self.extents: dict[str, int] = {}
        self.lane: str | None = None  # the axis that runs over lanes
        self.width = 1
        # Where the statement at hand is active: a scalar condition and lanes (None: everywhere).
        self.condition: Value | None = None
        self.mask: Value | None = None
        self._values: dict[int, Value] = {}  # expressions of the store at hand
        self._flat: dict[int, tuple] = {}
        self._facts: dict[int, tuple] = {}

    # ---- statements --------------------------------------------------------------------------------------
    def body(self, stmts: tuple[Stmt, ...]) -> None:
        for s in stmts:
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, Loop):
                self.loop(s)
            elif isinstance(s, Tile):
                tiles.tile(self, s)
            else:
                raise VerifyError(f"kernel {self.kernel.name}: {type(s).__name__} has no meaning on a CPU")

    def loop(self, s: Loop) -> None:
        axis, n = s.axis, s.extent
        before, reach = self.env.get(axis), self.extents.get(axis)
        if isinstance(n, Affine):
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
        while at < n:
            while width > n - at:
                width //= 2
            self._lanes(s, at, width)
            at += width

    def _lanes(self, s: Loop, start: int | Value, width: int) -> None:
        self.env[s.axis] = start
        self.across(s.axis, width)
        self.body(s.body)
        self.across(None, 1)

    def across(self, axis: str | None, width: int) -> None:
        """From now on `axis` runs over the lanes of vectors (None, or one lane: there are none)."""
        self.lane, self.width = (axis, width) if width > 1 else (None, 1)

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
        if condition is False or mask is not None or condition is not None:
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
                condition = self._any(mask) if condition is None else b.and_(condition, self._any(mask))
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
            return b.store(value, pointers, size, label)
        lanes = pointers if isinstance(pointers, list) else None
        active = self._lane_values(mask)
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

    # ---- indices -----------------------------------------------------------------------------------------
    def range(self, a: Affine) -> tuple[int | None, int | None]:
        """The least and the largest value over all iterations (None: not known)."""
        lo = hi = a.const
        for n, k in a.terms:
            e = self.extents.get(n)
            if e is None:
                return None, None
            if k > 0:
                hi += k * (e - 1)
            else:
                lo += k * (e - 1)
        return lo, hi

    def index(self, a: Affine) -> int | Value:
        """The value of an affine form (of its first lane), i64."""
        b, c, terms = self.b, a.const, []
        for n, k in a.terms:
            v = self.env[n]
            if v.__class__ is int:
                c += v * k
            else:
                terms.append((v, k))
        r = None
        for v, k in sorted(terms, key=_depth):
            m = b.mul(v, k)
            r = m if r is None else b.add(r, m)
        return c if r is None else b.add(r, c)

    def place(self, buffer: Buffer, index, owner) -> tuple[Value | list[Value], int]:
        """Address of an access and its step from lane to lane, in elements; a list of addresses where lanes differ."""
        known = self._flat.get(id(owner))
        if known is None:
            step = buffer.step
            flat = Affine()
            for a, s in zip(index, step, strict=True):
                if isinstance(a, Affine):
                    flat = flat + a * s
            gathers = [(a, s) for a, s in zip(index, step, strict=True) if not isinstance(a, Affine)]
            known = self._flat[id(owner)] = (flat.const, flat.terms, gathers, owner, scalar.memory(buffer.dtype))
        c, affine, gathers, _, elem = known
        b, env, lane, k, terms = self.b, self.env, self.lane, 0, []
        for n, coef in affine:
            v = env[n]
            if n == lane:
                k = coef
            if v.__class__ is int:
                c += v * coef
            else:
                terms.append((v, coef))
        p = self.pointer(buffer)
        lanes = None
        for a, s in gathers:
            v = b.sext(self.expr(a), "i64")
            if v.ty.lanes > 1:
                v = b.mul(v, s)
                lanes = v if lanes is None else b.add(lanes, v)
            else:
                terms.append((v, s))
        if len(terms) > 1:
            terms.sort(key=_depth)
        for v, coef in terms:
            p = b.offset(p, elem, b.mul(v, coef))
        if c:
            p = b.offset(p, elem, c)
        if lanes is None:
            return p, k
        return [b.offset(b.offset(p, elem, b.extract(lanes, i)), elem, i * k) for i in range(self.width)], k

    def pointer(self, buffer: Buffer) -> Value:
        p = self.pointers.get(buffer.name)
        if p is None:  # a register array; room behind it lets narrower and masked vectors overrun
            p = self.pointers[buffer.name] = self.b.alloca(scalar.memory(buffer.dtype), buffer.size + 16)
        return p

    # ---- masks -------------------------------------------------------------------------------------------
    def conditions(self, masks) -> tuple[Value | bool | None, Value | None]:
        """A scalar condition (None: holds, False: never) and a vector of lanes (None: all)."""
        b, condition, mask = self.b, None, None
        for a, bound in masks:
            lo, hi = self.range(a)
            if hi is not None and hi < bound:
                continue
            x, k = self.index(a), a.coef(self.lane) if self.lane else 0
            if k and self._agree(a, k, bound):
                k = 0
            if k == 0:
                if isinstance(x, int):
                    if x >= bound:
                        return False, None
                    continue
                c = b.icmp("slt", x, bound)
                condition = c if condition is None else b.and_(condition, c)
                continue
            steps = [i * k for i in range(self.width)]
            if isinstance(x, int):
                active = [x + s < bound for s in steps]
                if all(active):
                    continue
                if not any(active):
                    return False, None
                m = b.constants("i1", active)
            else:
                room = b.sub(b.const(I64, bound), x)  # lanes with step < room are active
                if lo is None or lo < -(1 << 30) or hi > 1 << 30:
                    room = b.smin(b.smax(room, min(0, k * self.width)), max(0, k * self.width) + 1)
                m = b.icmp("slt", b.constants("i32", steps), b.splat(b.itrunc(room, "i32"), self.width))
            mask = m if mask is None else b.and_(mask, m)
        return condition, mask

    def _agree(self, a: Affine, k: int, bound: int) -> bool:
        """Do all lanes give the same answer?  So it is where a + multiples of k * width reach the bound exactly."""
        c, unit = bound - a.const, 0
        for n, coef in a.terms:
            v = self.env[n]
            if v.__class__ is int:
                c -= v * coef
            elif n == self.lane:
                unit = gcd(unit, coef * self.width)
            else:
                unit = gcd(unit, coef)
        group = abs(k) * self.width
        if k < 0:
            c -= abs(k)  # the first lane is the largest: it alone must not cross
        return c % group == 0 and unit % group == 0

    def _lane_values(self, mask: Value | None) -> list[Value | bool]:
        """A mask lane by lane, constants as bool."""
        if mask is None or mask.const is True:
            return [True] * self.width
        if mask.ref[0] == "<":
            return [x == "i1 true" for x in mask.ref[1:-1].split(", ")]
        return [self.b.extract(mask, i) for i in range(self.width)]

    def _any(self, mask: Value) -> Value:
        n = mask.ty.lanes
        return self.b.icmp("ne", self.b.pure(ty(f"i{n}"), f"bitcast {mask} to i{n}", mask.depth), 0)

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
            with b.when(self._any(fails) if lanes > 1 else fails):
                if lanes > 1:
                    bits = b.pure(ty(f"i{lanes}"), f"bitcast {fails} to i{lanes}", fails.depth)
                    first = b.here(bits.ty, f"call i{lanes} @llvm.cttz.i{lanes}(i{lanes} {bits.ref}, i1 true)")
                    first = b.zext(first, "i64") if lanes < 64 else first
                    value = b.extract(b.splat(v, lanes), first)
                else:
                    value = v
                wide = b.sext(value, "i64") if dtype.kind == "i" else b.zext(value, "i64")
                b.line(f"call void @pb_check_failed(ptr {self.status.ref}, i64 {e.site}, i64 {wide.ref})")
            b.remember(key)
        return b.select(bad, b.like(v, 0), v)

    def load(self, e: Load) -> Value:
        b, buffer = self.b, self.buffers[e.buffer]
        dtype, condition, mask = buffer.dtype, None, None
        if e.masks:
            condition, mask = self.conditions(e.masks)
            if condition is False:
                return scalar.constant(b, e.other, dtype)
        if buffer.space == "global":  # a lane that stores nothing must not touch memory either
            condition, mask = self._both(condition, self.condition), self._both(mask, self.mask)
        if e.masks and any(isinstance(i, Checked) for i in e.index):
            saved = self.condition, self.mask, self._values
            self._values = {}
            self._active(self._both(condition, self.condition), self._both(mask, self.mask))
            place = self.place(buffer, e.index, e)
            self.condition, self.mask, self._values = saved
        else:
            place = self.place(buffer, e.index, e)
        return self.read(buffer, place, condition, mask, e.other if e.masks else 0)

    def _both(self, a: Value | None, c: Value | None) -> Value | None:
        return c if a is None or a is c else a if c is None else self.b.and_(a, c)

    def read(self, buffer: Buffer, place, condition: Value | None, mask: Value | None, other) -> Value:
        """Load from a place; inactive lanes give `other` without touching memory."""
        b, dtype = self.b, buffer.dtype
        pointers, k = place
        elem, size = scalar.memory(dtype), dtype.size
        label, private = buffer.name, buffer.space == "register"
        one, wide = ty(elem), ty(elem, self.width)
        if isinstance(pointers, Value) and k == 0:
            if mask is not None and condition is None and mask.ref[0] != "<":
                condition = self._any(mask)
            p = self._safe(buffer, pointers, condition)
            v = scalar.from_memory(b, b.load(one, p, size, label, private), dtype)
            return self._or_other(v, condition, mask, other, dtype)
        if isinstance(pointers, Value) and abs(k) == 1 and (k == 1 or mask is None):
            p = self._safe(buffer, pointers, condition)
            if k < 0:
                p = b.offset(p, elem, 1 - self.width)
            if mask is not None and buffer.space != "register":
                default = scalar.to_memory(b, scalar.constant(b, other, dtype, self.width), dtype)
                v = scalar.from_memory(b, b.masked_load(p, mask, default, size, label), dtype)
                return self._or_other(v, condition, None, other, dtype)
            v = b.load(wide, p, size, label, private)
            if k < 0:
                v = b.shuffle(v, None, range(self.width - 1, -1, -1))
            return self._or_other(scalar.from_memory(b, v, dtype), condition, mask, other, dtype)
        lanes, active = [], self._lane_values(mask)
        default = scalar.to_memory(b, scalar.constant(b, other, dtype), dtype)
        for i in range(self.width):
            if active[i] is False:
                lanes.append(default)
                continue
            p = pointers[i] if isinstance(pointers, list) else b.offset(pointers, elem, i * k)
            c = self._both(None if active[i] is True else active[i], condition)
            x = b.load(one, self._safe(buffer, p, c), size, label, private)
            lanes.append(x if c is None else b.select(c, x, default))
        return scalar.from_memory(b, b.gather(lanes), dtype)

    def _safe(self, buffer: Buffer, p: Value, condition: Value | None) -> Value:
        """An address that may be read even where the condition fails: the buffer's first element."""
        if condition is None or buffer.space == "register":
            return p
        return self.b.select(condition, p, self.pointer(buffer))

    def _or_other(self, v: Value, condition, mask, other, dtype) -> Value:
        default = scalar.constant(self.b, other, dtype)
        if mask is not None:
            v = self.b.select(mask, v, default)
        return v if condition is None else self.b.select(condition, v, default)


def _depth(term: tuple[Value, int]) -> int:
    return term[0].depth


def _depends(e: Expr, axis: str) -> bool:
    """Does the value of an expression differ from lane to lane?"""
    for x in walk_expr(e):
        if isinstance(x, Load):
            if any(isinstance(i, Affine) and i.coef(axis) for i in x.index) or any(m.coef(axis) for m, _ in x.masks):
                return True
        elif isinstance(x, AxisValue) and x.index.coef(axis):
            return True
    return False
