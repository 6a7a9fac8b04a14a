"""Arithmetic of `builder.py`: floating point, integers, comparison, selection, conversion.

An operation takes scalars and vectors alike: a scalar operand is splatted to the lanes of the others, and a Python
number becomes a constant of the other operand's type.  Operations on numbers that a processor lacks (fma on x86-64-v2,
half precision there) are spelled out (`exact.py`), so no call to a library ever remains.
"""

from __future__ import annotations

from . import exact
from .instructions import Instructions
from .values import I32, Value, ty


class Arithmetic(Instructions):
    """Operations on numbers: pure instructions."""

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
