"""Indices, masks and loads: affine forms of the kernel IR in, addresses and predicates out.

An affine index becomes a chain of address computations, outermost axes first, so that the builder's
value-numbering hoists each as far as it goes.  A mask over lanes becomes a constant, a scalar condition where
all lanes agree, or a vector of i1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from math import gcd

from ..kernel.kernel import Affine, Buffer, Expr, Kernel
from . import scalar
from .builder import I64, Builder, Type, Value, ty


class Access(ABC):
    """Where accesses of one kernel lie.  `pointers`: the address of each buffer that is not in registers."""

    def __init__(self, kernel: Kernel, b: Builder, pointers: Mapping[str, Value]):
        self.kernel, self.b = kernel, b
        self.buffers = kernel.buffers
        self.pointers = dict(pointers)
        self.env: dict[str, int | Value] = {}  # the axes around: a number where a loop is unrolled
        self.extents: dict[str, int | None] = {}
        self.lane: str | None = None  # the axis that runs over lanes
        self.width = 1
        self._flat: dict[int, tuple] = {}  # access -> its flat index
        self._fixed: dict[tuple[str, int], Value] = {}  # addresses that no axis moves

    @abstractmethod
    def expr(self, e: Expr) -> Value:
        """The value of an expression: a scalar if lanes agree by construction, else a vector."""

    def across(self, axis: str | None, width: int) -> None:
        """From now on `axis` runs over the lanes of vectors (None, or one lane: there are none)."""
        self.lane, self.width = (axis, width) if width > 1 else (None, 1)

    # ---- indices -----------------------------------------------------------------------------------------
    def range(self, a: Affine) -> tuple[int | None, int | None]:
        """The least and the largest value over all iterations and lanes (None: not known)."""
        lo = hi = a.const
        for n, k in a.terms:
            v, e = self.env.get(n), self.extents.get(n)
            if v.__class__ is int:
                lo, hi, e = lo + k * v, hi + k * v, self.width if n == self.lane else 1
            elif e is None:
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
        if not terms and not gathers:  # (register arrays, mostly)
            p = self._fixed.get((buffer.name, c))
            if p is None:
                p = self._fixed[buffer.name, c] = b.offset(self.pointer(buffer), elem, c)
            return p, k
        p, lanes = self.pointer(buffer), None
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

    def lane_values(self, mask: Value | None) -> list[Value | bool]:
        """A mask lane by lane, constants as bool."""
        if mask is None or mask.const is True:
            return [True] * self.width
        if mask.ref[0] == "<":
            return [x == "i1 true" for x in mask.ref[1:-1].split(", ")]
        return [self.b.extract(mask, i) for i in range(self.width)]

    def both(self, a: Value | None, c: Value | None) -> Value | None:
        """Both conditions (None: always)."""
        return c if a is None or a is c else a if c is None else self.b.and_(a, c)

    def any(self, mask: Value) -> Value:
        """Is some lane active?"""
        n = mask.ty.lanes
        return self.b.icmp("ne", self.b.pure(ty(f"i{n}"), f"bitcast {mask} to i{n}", mask.depth), 0)

    def alignment(self, buffer: Buffer, x) -> int:
        """Bytes that the address of a vector access is known to be a multiple of."""
        return buffer.dtype.size

    # ---- loads -------------------------------------------------------------------------------------------
    def read(
        self, buffer: Buffer, place, condition: Value | None, mask: Value | None, other, align: int | None = None
    ) -> Value:
        """Load from a place; inactive lanes give `other` (None: nobody reads them) without touching memory."""
        b, dtype = self.b, buffer.dtype
        pointers, k = place
        elem, size = scalar.memory(dtype), dtype.size
        label, private = buffer.name, buffer.space == "register"
        one, wide = ty(elem), ty(elem, self.width)
        if isinstance(pointers, Value) and k == 0:
            if mask is not None and condition is None and mask.ref[0] != "<":
                condition = self.any(mask)
            p = self._safe(buffer, pointers, condition)
            v = scalar.from_memory(b, b.load(one, p, size, label, private), dtype)
            return self._or_other(v, condition, mask, other, dtype)
        if isinstance(pointers, Value) and abs(k) == 1 and (k == 1 or mask is None):
            p = self._safe(buffer, pointers, condition)
            if k < 0:
                p = b.offset(p, elem, 1 - self.width)
            if mask is not None and buffer.space != "register":
                default = self._default(wide, other, dtype)
                v = scalar.from_memory(b, b.masked_load(p, mask, default, size, label), dtype)
                return self._or_other(v, condition, None, other, dtype)
            v = b.load(wide, p, align if align and k > 0 else size, label, private)
            if k < 0:
                v = b.shuffle(v, None, range(self.width - 1, -1, -1))
            return self._or_other(scalar.from_memory(b, v, dtype), condition, mask, other, dtype)
        lanes, active = [], self.lane_values(mask)
        default = self._default(one, other, dtype)
        for i in range(self.width):
            if active[i] is False:
                lanes.append(default)
                continue
            p = pointers[i] if isinstance(pointers, list) else b.offset(pointers, elem, i * k)
            c = self.both(None if active[i] is True else active[i], condition)
            x = b.load(one, self._safe(buffer, p, c), size, label, private)
            lanes.append(x if c is None else b.select(c, x, default))
        return scalar.from_memory(b, b.gather(lanes), dtype)

    def _safe(self, buffer: Buffer, p: Value, condition: Value | None) -> Value:
        """An address that may be read even where the condition fails: the buffer's first element."""
        if condition is None or buffer.space == "register":
            return p
        return self.b.select(condition, p, self.pointer(buffer))

    def _default(self, type: Type, other, dtype) -> Value:
        """What inactive lanes load, as in memory."""
        number = 0 if other is None else other  # (-0.0 is not 0)
        return scalar.to_memory(self.b, scalar.constant(self.b, number, dtype, type.lanes), dtype)

    def _or_other(self, v: Value, condition, mask, other, dtype) -> Value:
        if other is None:
            return v
        default = scalar.constant(self.b, other, dtype)
        if mask is not None:
            v = self.b.select(mask, v, default)
        return v if condition is None else self.b.select(condition, v, default)


def chunks(extent: int, width: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(start, lanes) of the vectors that cover an extent: whole ones, then narrower ones."""
    while start < extent:
        while width > extent - start:
            width //= 2
        yield start, width
        start += width


def _depth(term: tuple[Value, int]) -> int:
    return term[0].depth
