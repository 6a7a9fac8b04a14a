"""A typed builder of LLVM IR text: what the emitter and `math.py` write through.

In: calls with typed values; out: the lines of one function.  Text is some 15 times cheaper to make than
llvmlite's objects.  Three properties make the text good enough that LLVM needs no optimiser but SROA:

* pure instructions are *value-numbered*: each is placed once, in the outermost scope where its operands
  exist, which is common subexpression elimination and loop-invariant code motion in one;
* loads are not hoisted (but for private arrays, which SROA turns into registers), but shared while nothing was
  stored to their buffer;
* loops test at the bottom.

An operation takes scalars and vectors alike: a scalar operand is splatted to the lanes of the others, and
a Python number becomes a constant of the other operand's type.  Operations on numbers that a processor
lacks (fma on x86-64-v2, half precision there) are spelled out here, so no call to a library ever remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from . import exact
from .target import Target
from .values import DOUBLE, FLOAT, HALF, I1, I8, I16, I32, I64, PTR, Type, Value, literal, ty

__all__ = ["DOUBLE", "FLOAT", "HALF", "I1", "I8", "I16", "I32", "I64", "PTR", "Builder", "Type", "Value", "ty"]


class _Scope:
    __slots__ = ("lines", "memo")

    def __init__(self):
        self.lines: list[str] = []
        self.memo: dict = {}


class Builder:
    """Builds one function.  `target` decides how fma and half precision are spelled."""

    def __init__(self, target: Target):
        self.target = target
        self.scopes = [_Scope()]
        self.allocas: list[str] = []
        self.block = "entry"
        self.known: list[str] = []  # conditions that hold here
        self.halves: dict[str, Value | None] = {}  # floats that bf16 holds, and where they lie as 16 bits
        self._count = 0
        self._epoch: dict[str, int] = {}  # buffer -> how often it was stored to
        self._floor: dict[str, int] = {}  # buffer -> the innermost scope that stores to it

    # ---- values and constants ----------------------------------------------------------------------------
    def const(self, type: Type, number: float | int | bool) -> Value:
        """A number in every lane."""
        key = (type, number, number.__class__, str(number) if number == 0 else "")  # 0.0 == -0.0 == False
        memo = self.scopes[0].memo
        v = memo.get(key)
        if v is None:
            text = literal.__wrapped__(type.elem, number)
            if type.lanes > 1:
                text = f"splat ({type.elem} {text})"
            v = memo[key] = Value(text, type, 0, number)
        return v

    def like(self, x: Value, number: float | int | bool) -> Value:
        """A number in every lane, of x's type."""
        return self.const(x.ty, number)

    def constants(self, elem: str, numbers: Sequence[float | int | bool]) -> Value:
        """A vector of these numbers (a scalar if there is one)."""
        t = ty(elem, len(numbers))
        if all(n == numbers[0] for n in numbers):
            return self.const(t, numbers[0])
        return Value("<" + ", ".join(f"{elem} {literal.__wrapped__(elem, n)}" for n in numbers) + ">", t)

    def poison(self, type: Type) -> Value:
        return Value("poison", type)

    def name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def pure(self, type: Type, text: str, depth: int) -> Value:
        """An instruction without effects whose operands exist at `depth`: placed there, once."""
        scope = self.scopes[depth]
        v = scope.memo.get(text)
        if v is None:
            self._count = n = self._count + 1
            v = scope.memo[text] = Value(f"%v{n}", type, depth)
            scope.lines.append(f"  %v{n} = {text}")
        return v

    def here(self, type: Type, text: str) -> Value:
        """An instruction that must stay where it is."""
        v = Value(self.name(), type, len(self.scopes) - 1)
        self.scopes[-1].lines.append(f"  {v.ref} = {text}")
        return v

    def line(self, text: str) -> None:
        """An instruction without a result, here."""
        self.scopes[-1].lines.append("  " + text)

    def label(self, name: str) -> None:
        """A block begins here; what ended the one before is a line of its own."""
        self.scopes[-1].lines.append(f"{name}:")
        self.block = name

    def together(self, *args: Value | float | int | bool) -> list[Value]:
        """The operands of one operation: numbers become constants, scalars are splatted to the lanes of the rest."""
        widest = None
        for a in args:
            if a.__class__ is Value and (widest is None or a.ty.lanes > widest.lanes):
                widest = a.ty
        return [
            self.const(widest, a)
            if a.__class__ is not Value
            else a
            if a.ty.lanes == widest.lanes
            else self.splat(a, widest.lanes)
            for a in args
        ]

    def _binary(self, op: str, a, b) -> Value:
        if a.__class__ is not Value or b.__class__ is not Value or a.ty is not b.ty:
            a, b = self.together(a, b)
        return self.pure(a.ty, f"{op} {a.ty.text} {a.ref}, {b.ref}", a.depth if a.depth > b.depth else b.depth)

    def _convert(self, op: str, a: Value, elem: str) -> Value:
        t = ty(elem, a.ty.lanes)
        return a if t is a.ty else self.pure(t, f"{op} {a.ty.text} {a.ref} to {t.text}", a.depth)

    def intrinsic(self, name: str, *args: Value, result: Type | None = None, mangle: str | None = None) -> Value:
        """A pure intrinsic, overloaded on its first operand's type unless `mangle` says otherwise."""
        r = result or args[0].ty
        suffix = "." + args[0].ty.mangled if mangle is None else mangle
        operands = ", ".join([f"{a.ty.text} {a.ref}" for a in args])
        return self.pure(r, f"call {r.text} @llvm.{name}{suffix}({operands})", max([a.depth for a in args]))

    # ---- floating point ----------------------------------------------------------------------------------
    def fadd(self, a, b) -> Value:
        return self._binary("fadd", a, b)

    def fsub(self, a, b) -> Value:
        return self._binary("fsub", a, b)

    def fmul(self, a, b) -> Value:
        return self._binary("fmul", a, b)

    def fdiv(self, a, b) -> Value:
        return self._binary("fdiv", a, b)

    def fneg(self, a: Value) -> Value:
        return self.pure(a.ty, f"fneg {a.ty.text} {a.ref}", a.depth)

    def fabs(self, a: Value) -> Value:
        return self.intrinsic("fabs", a)

    def copysign(self, a, b) -> Value:
        return self.intrinsic("copysign", *self.together(a, b))

    def sqrt(self, a: Value) -> Value:
        return self.intrinsic("sqrt", a)

    def floor(self, a: Value) -> Value:
        return self.intrinsic("floor", a)

    def ceil(self, a: Value) -> Value:
        return self.intrinsic("ceil", a)

    def trunc(self, a: Value) -> Value:
        """Towards zero."""
        return self.intrinsic("trunc", a)

    def rint(self, a: Value) -> Value:
        """To the nearest, halves to even."""
        return self.intrinsic("roundeven", a)

    def fma(self, a, b, c) -> Value:
        """a * b + c, rounded once, on every target."""
        a, b, c = self.together(a, b, c)
        if self.target.has_fma:
            t, depth = a.ty, max(a.depth, b.depth, c.depth)
            text = f"call {t.text} @llvm.fma.{t.mangled}({t.text} {a.ref}, {t.text} {b.ref}, {t.text} {c.ref})"
            return self.pure(t, text, depth)
        return exact.fma_f32(self, a, b, c) if a.ty.elem == "float" else exact.fma_f64(self, a, b, c)

    def scale(self, a: Value, n: Value) -> Value:
        """a * 2^n, rounded once.  n is a float that is integral; its magnitude at most 252 (f64: 2044)."""
        lanes, bits = a.ty.lanes, a.ty.bits
        if not self.target.has_scalef or lanes * bits > self.target.vector_bits:
            return exact.scale(self, a, n)
        width = max(lanes, 128 // bits)
        t = ty(a.ty.elem, width)
        if lanes < width:  # the narrowest instruction has four lanes (two of f64)
            a, n = (self.shuffle(self.splat(v, 2) if lanes == 1 else v, None, [0, 1, 0, 1][:width]) for v in (a, n))
        full = self.const(ty(f"i{max(8, width)}"), -1)
        rounding = [self.const(I32, 4)] if width * bits == 512 else []  # as the machine's state says
        name = f"x86.avx512.mask.scalef.p{'s' if bits == 32 else 'd'}.{width * bits}"
        r = self.intrinsic(name, a, n, self.const(t, 0.0), full, *rounding, mangle="")
        return r if lanes == width else self.extract(r, 0) if lanes == 1 else self.shuffle(r, None, range(lanes))

    def fmaximum(self, a, b) -> Value:
        """The larger; NaN if either is (one max and one blend on x86)."""
        a, b = self.together(a, b)
        return self.select(self.fcmp("uno", a, a), a, self.select(self.fcmp("ogt", a, b), a, b))

    def fminimum(self, a, b) -> Value:
        """The smaller; NaN if either is."""
        a, b = self.together(a, b)
        return self.select(self.fcmp("uno", a, a), a, self.select(self.fcmp("olt", a, b), a, b))

    # ---- integers ----------------------------------------------------------------------------------------
    def add(self, a, b) -> Value:
        if b.__class__ is int and b == 0:
            return a
        return self._binary("add", a, b)

    def sub(self, a, b) -> Value:
        return self._binary("sub", a, b)

    def mul(self, a, b) -> Value:
        if b.__class__ is int and b == 1:
            return a
        return self._binary("mul", a, b)

    def sdiv(self, a, b) -> Value:
        """Towards zero.  The divisor must be non-zero and must not overflow, in dead code too: this is hoisted."""
        return self._binary("sdiv", a, b)

    def udiv(self, a, b) -> Value:
        return self._binary("udiv", a, b)

    def urem(self, a, b) -> Value:
        return self._binary("urem", a, b)

    def and_(self, a, b) -> Value:
        return self._binary("and", a, b)

    def or_(self, a, b) -> Value:
        return self._binary("or", a, b)

    def xor(self, a, b) -> Value:
        return self._binary("xor", a, b)

    def not_(self, a: Value) -> Value:
        return self._binary("xor", a, True if a.ty.elem == "i1" else -1)

    def shl(self, a, b) -> Value:
        """The amount must be less than the width."""
        return self._binary("shl", a, b)

    def lshr(self, a, b) -> Value:
        return self._binary("lshr", a, b)

    def ashr(self, a, b) -> Value:
        return self._binary("ashr", a, b)

    def smin(self, a, b) -> Value:
        return self.intrinsic("smin", *self.together(a, b))

    def smax(self, a, b) -> Value:
        return self.intrinsic("smax", *self.together(a, b))

    # ---- comparison, selection, conversion ----------------------------------------------------------------
    def _compare(self, op: str, a, b) -> Value:
        if a.__class__ is not Value or b.__class__ is not Value or a.ty is not b.ty:
            a, b = self.together(a, b)
        return self.pure(ty("i1", a.ty.lanes), f"{op} {a.ty.text} {a.ref}, {b.ref}", max(a.depth, b.depth))

    def fcmp(self, predicate: str, a, b) -> Value:
        """`olt`, `ole`, `ogt`, `oge`, `oeq`, `one`, `ord` are false for NaN, `ult` .. `une`, `uno` true."""
        return self._compare(f"fcmp {predicate}", a, b)

    def icmp(self, predicate: str, a, b) -> Value:
        """`eq`, `ne`, signed `slt` .. `sge`, unsigned `ult` .. `uge`."""
        return self._compare(f"icmp {predicate}", a, b)

    def select(self, c: Value, a, b) -> Value:
        """Lane by lane a where c, else b.  (A scalar c chooses between whole vectors.)"""
        if c.const is not None:
            a, b = self.together(a, b)
            return a if c.const else b
        a, b = self.together(a, b)
        if c.ty.lanes > a.ty.lanes:
            a, b = self.splat(a, c.ty.lanes), self.splat(b, c.ty.lanes)
        if a is b:
            return a
        t = a.ty.text
        text = f"select {c.ty.text} {c.ref}, {t} {a.ref}, {t} {b.ref}"
        return self.pure(a.ty, text, max(c.depth, a.depth, b.depth))

    def bitcast(self, a: Value, elem: str) -> Value:
        """The same bits as another element type of the same width."""
        return self._convert("bitcast", a, elem)

    def fpext(self, a: Value, elem: str) -> Value:
        return self._convert("fpext", a, elem)

    def fptrunc(self, a: Value, elem: str) -> Value:
        return self._convert("fptrunc", a, elem)

    def float_to_bf16(self, a: Value) -> Value:
        """The 16 bits of the nearest bf16, for processors that have an instruction for it.

        A scalar is cast as a vector of one: where only the sign of `bitcast bfloat to i16` is used, LLVM 22 aborts
        (x86) or takes the sign before rounding (NVPTX), which a NaN loses.
        """
        t = ty("i16", a.ty.lanes)
        narrow = t.text.replace("i16", "bfloat")
        r = self.pure(t, f"fptrunc {a.ty.text} {a.ref} to {narrow}", a.depth)
        if a.ty.lanes > 1:
            return self.pure(t, f"bitcast {narrow} {r.ref} to {t.text}", a.depth)
        one = self.pure(t, f"insertelement <1 x bfloat> poison, bfloat {r.ref}, i64 0", a.depth)
        bits = self.pure(t, f"bitcast <1 x bfloat> {one.ref} to <1 x i16>", a.depth)
        return self.pure(t, f"extractelement <1 x i16> {bits.ref}, i64 0", a.depth)

    def fptosi(self, a: Value, elem: str) -> Value:
        """Towards zero; out of range (and NaN) some integer, as the processor gives it: never undefined."""
        r = self._convert("fptosi", a, elem)
        return self.pure(r.ty, f"freeze {r.ty.text} {r.ref}", r.depth)

    def sitofp(self, a: Value, elem: str) -> Value:
        return self._convert("sitofp", a, elem)

    def uitofp(self, a: Value, elem: str) -> Value:
        return self._convert("uitofp", a, elem)

    def sext(self, a: Value, elem: str) -> Value:
        return self._convert("sext", a, elem)

    def zext(self, a: Value, elem: str) -> Value:
        return self._convert("zext", a, elem)

    def itrunc(self, a: Value, elem: str) -> Value:
        """The low bits of an integer."""
        return self._convert("trunc", a, elem)

    # ---- vectors -----------------------------------------------------------------------------------------
    def splat(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == a.ty.lanes:
            return a
        t = ty(a.ty.elem, lanes)
        if a.const is not None:
            return self.const(t, a.const)
        one = self.pure(t, f"insertelement {t.text} poison, {a.ty.text} {a.ref}, i64 0", a.depth)
        text = f"shufflevector {t.text} {one.ref}, {t.text} poison, <{lanes} x i32> zeroinitializer"
        return self.pure(t, text, a.depth)

    def extract(self, v: Value, lane: int | Value) -> Value:
        """One lane (a scalar is its own)."""
        if v.ty.lanes == 1:
            return v
        t = ty(v.ty.elem)
        if v.const is not None:
            return self.const(t, v.const)
        if isinstance(lane, Value):
            return self.pure(t, f"extractelement {v} , {lane}", max(v.depth, lane.depth))
        return self.pure(t, f"extractelement {v.ty.text} {v.ref}, i64 {lane}", v.depth)

    def insert(self, v: Value, x: Value, lane: int) -> Value:
        text = f"insertelement {v.ty.text} {v.ref}, {x.ty.text} {x.ref}, i64 {lane}"
        return self.pure(v.ty, text, max(v.depth, x.depth))

    def gather(self, lanes: Sequence[Value]) -> Value:
        """A vector of scalars."""
        if len(lanes) == 1:
            return lanes[0]
        if all(x is lanes[0] for x in lanes):
            return self.splat(lanes[0], len(lanes))
        v = self.poison(ty(lanes[0].ty.elem, len(lanes)))
        for i, x in enumerate(lanes):
            v = self.insert(v, x, i)
        return v

    def shuffle(self, a: Value, b: Value | None, lanes: Iterable[int]) -> Value:
        """Lanes of a (0 ..) and b (a's width ..); negative: nobody reads this lane."""
        lanes = tuple(lanes)
        t = a.ty.text
        mask = ", ".join(["i32 poison" if i < 0 else f"i32 {i}" for i in lanes])
        other, depth = ("poison", a.depth) if b is None else (b.ref, max(a.depth, b.depth))
        text = f"shufflevector {t} {a.ref}, {t} {other}, <{len(lanes)} x i32> <{mask}>"
        return self.pure(ty(a.ty.elem, len(lanes)), text, depth)

    # ---- memory ------------------------------------------------------------------------------------------
    def alloca(self, elem: str, count: int, align: int = 64) -> Value:
        """An array in the entry block; with constant indices SROA turns it into registers."""
        v = Value(self.name(), PTR)
        self.allocas.append(f"  {v.ref} = alloca [{count} x {elem}], align {align}")
        return v

    def offset(self, p: Value, elem: str, index: Value | int) -> Value:
        """The address of an element."""
        if index.__class__ is int:
            return p if index == 0 else self.pure(p.ty, f"getelementptr {elem}, ptr {p.ref}, i64 {index}", p.depth)
        return self.pure(p.ty, f"getelementptr {elem}, ptr {p.ref}, i64 {index.ref}", max(p.depth, index.depth))

    def recall(self, key) -> bool:
        """Was this remembered in a scope around?"""
        return any(key in scope.memo for scope in self.scopes)

    def remember(self, key) -> None:
        """Note that something has been done in this scope, for all that follows in it."""
        self.scopes[-1].memo[key] = True

    def touch(self, buffers: Iterable[str]) -> None:
        """Something was or will be stored to these in this scope: loads before are not shared with loads after."""
        for b in buffers:
            self._epoch[b] = self._epoch.get(b, 0) + 1
            self._floor[b] = len(self.scopes) - 1

    def read(self, type: Type, text: str, depth: int, buffer: str, private: bool = False) -> Value:
        """An instruction that reads `buffer` with operands of `depth`.

        From private memory (which cannot fault) it is placed as far out as nothing is stored to the buffer;
        else it stays here.
        """
        key = (text, self._epoch.get(buffer, 0))
        if private:
            depth = min(max(depth, self._floor.get(buffer, 0)), len(self.scopes) - 1)
            scope = self.scopes[depth]
            v = scope.memo.get(key)
            if v is None:
                v = scope.memo[key] = Value(self.name(), type, depth)
                scope.lines.append(f"  {v.ref} = {text}")
            return v
        for scope in reversed(self.scopes):
            if key in scope.memo:
                return scope.memo[key]
        v = self.scopes[-1].memo[key] = self.here(type, text)
        return v

    def load(self, type: Type, p: Value, align: int, buffer: str = "", private: bool = False) -> Value:
        return self.read(type, f"load {type.text}, ptr {p.ref}, align {align}", p.depth, buffer, private)

    def store(self, x: Value, p: Value, align: int, buffer: str = "") -> None:
        self.line(f"store {x.ty.text} {x.ref}, ptr {p.ref}, align {align}")
        self.touch((buffer,))

    def masked_load(self, p: Value, mask: Value, default: Value, align: int, buffer: str = "") -> Value:
        t = default.ty
        text = f"call {t.text} @llvm.masked.load.{t.mangled}.p0(ptr align {align} {p.ref}, {mask}, {default})"
        return self.read(t, text, max(p.depth, mask.depth), buffer)

    def masked_store(self, x: Value, p: Value, mask: Value, align: int, buffer: str = "") -> None:
        active = [i for i, lane in enumerate(mask.ref[1:-1].split(", ")) if lane == "i1 true"]
        if mask.ref[0] == "<" and len(active) == 1:
            # LLVM 22 turns a truncation and a store of one lane into a store of the wide element.
            return self.store(self.extract(x, active[0]), self.offset(p, x.ty.elem, active[0]), align, buffer)
        self.line(f"call void @llvm.masked.store.{x.ty.mangled}.p0({x}, ptr align {align} {p.ref}, {mask})")
        self.touch((buffer,))

    # ---- control -----------------------------------------------------------------------------------------
    @contextmanager
    def loop(self, lo: int | Value, hi: int | Value, touched: Iterable[str] = ()) -> Iterator[Value]:
        """for lo <= i < hi (i64), tested at the bottom; `touched`: the buffers stored to inside."""
        touched = tuple(touched)
        self._count += 1
        head, exit, before = f"loop{self._count}", f"done{self._count}", self.block
        enter = f"  br label %{head}"
        if not (isinstance(lo, int) and isinstance(hi, int)):
            c = self.icmp("slt", *self.together(lo, hi))
            enter = f"  br i1 {c.ref}, label %{head}, label %{exit}"
        scope = _Scope()
        self.scopes.append(scope)
        self.touch(touched)
        i = Value(self.name(), I64, len(self.scopes) - 1)
        scope.lines += [enter, f"{head}:", ""]
        self.block = head
        yield i
        lo, hi = (x.ref if isinstance(x, Value) else x for x in (lo, hi))
        following = self.here(I64, f"add nuw nsw i64 {i.ref}, 1")
        c = self.here(I1, f"icmp slt i64 {following.ref}, {hi}")
        scope.lines[2] = f"  {i.ref} = phi i64 [{lo}, %{before}], [{following.ref}, %{self.block}]"
        scope.lines += [f"  br i1 {c.ref}, label %{head}, label %{exit}", f"{exit}:"]
        self._leave(exit)
        self.touch(touched)

    @contextmanager
    def when(self, condition: Value | None) -> Iterator[None]:
        """If the (scalar) condition holds; None: always."""
        if condition is None or condition.const is True:
            yield
            return
        self._count += 1
        then, exit = f"then{self._count}", f"end{self._count}"
        self.scopes.append(_Scope())
        self.scopes[-1].lines += [f"  br i1 {condition.ref}, label %{then}, label %{exit}", f"{then}:"]
        self.block = then
        self.known.append(condition.ref)
        yield
        self.known.pop()
        self.scopes[-1].lines += [f"  br label %{exit}", f"{exit}:"]
        self._leave(exit)

    def _leave(self, block: str) -> None:
        inner = self.scopes.pop()
        self.scopes[-1].lines += inner.lines
        self.block = block

    @property
    def lines(self) -> list[str]:
        """The function's body so far."""
        return ["entry:", *self.allocas, *self.scopes[0].lines]
