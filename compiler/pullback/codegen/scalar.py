"""The scalar functions of `kernel/scalars.py` on typed LLVM values: one lane or many, the same bits.

In registers a bool is an i1, and bf16 and f16 are f32: arithmetic runs in f32 and is rounded at casts and
stores, as `kernel/evaluate.py` does.  In memory they are an i8 and 16 bits.
Transcendentals come from `math.py`.
"""

from __future__ import annotations

from ..graph.types import DType, bf16, f16
from . import exact, math
from .builder import Builder, Value, ty

_REGISTER = {"f64": "double", "f32": "float", "bf16": "float", "f16": "float", "bool": "i1"}
_MEMORY = {"f64": "double", "f32": "float", "bf16": "i16", "f16": "half", "bool": "i8"}

_MEMORY_ONLY = ("bf16", "f16", "bool")

LEAST = 2.0**-126
"""The least normal f32."""

_FLOAT_COMPARE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_COMPARE = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}


def register(dtype: DType) -> str:
    """The LLVM element that holds a value of this type in registers."""
    return _REGISTER.get(dtype.name) or f"i{dtype.bits}"


def memory(dtype: DType) -> str:
    """The LLVM element that holds it in memory."""
    return _MEMORY.get(dtype.name) or f"i{dtype.bits}"


def constant(b: Builder, number: float | int | bool, dtype: DType, lanes: int = 1) -> Value:
    """A number of this type, rounded to it."""
    if dtype in (bf16, f16):
        number = float(dtype.round(number))
    return b.const(ty(register(dtype), lanes), number)


def from_memory(b: Builder, v: Value, dtype: DType) -> Value:
    """What a loaded element means."""
    if dtype.name not in _MEMORY_ONLY:
        return v
    if dtype.kind == "b":
        return b.icmp("ne", v, 0)
    if dtype.name == "bf16":
        wide = b.bitcast(b.shl(b.zext(v, "i32"), 16), "float")
        b.halves[wide.ref] = v
        return wide
    return b.fpext(v, "float") if b.target.has_f16 else _half_to_float(b, b.bitcast(v, "i16"))


def to_memory(b: Builder, v: Value, dtype: DType) -> Value:
    """The element to store, rounded to the type."""
    if dtype.name not in _MEMORY_ONLY:
        return v
    if dtype.kind == "b":
        return b.zext(v, "i8")
    if dtype.name == "bf16":
        v = rounded(b, v, dtype)
        return b.halves.get(v.ref) or b.itrunc(b.lshr(b.bitcast(v, "i32"), 16), "i16")
    return b.fptrunc(v, "half") if b.target.has_f16 else b.bitcast(_float_to_half(b, v), "half")


def rounded(b: Builder, v: Value, dtype: DType) -> Value:
    """An f32 rounded to bf16 or f16, still as an f32; other types as they are."""
    if dtype.name == "bf16":
        if v.ref in b.halves:
            return v
        if b.target.is_gpu:
            return from_memory(b, b.float_to_bf16(v), dtype)
        n = b.bitcast(v, "i32")
        n = b.and_(b.add(n, b.add(b.and_(b.lshr(n, 16), 1), 0x7FFF)), -65536)
        r = b.select(b.fcmp("uno", v, v), b.like(v, float("nan")), b.bitcast(n, "float"))
        b.halves[r.ref] = None
        return r
    if dtype.name == "f16":
        return from_memory(b, to_memory(b, v, dtype), dtype)
    return v


def _half_to_float(b: Builder, h: Value) -> Value:
    """Without F16C: shift exponent and mantissa into place, rescale by a multiplication (subnormals too)."""
    h = b.zext(h, "i32")
    em = b.and_(h, 0x7FFF)
    shifted = b.shl(em, 13)
    finite = b.bitcast(b.fmul(b.bitcast(shifted, "float"), 2.0**112), "i32")
    bits = b.select(b.icmp("ugt", em, 0x7BFF), b.or_(shifted, 0x7F800000), finite)
    return b.bitcast(b.or_(bits, b.shl(b.and_(h, 0x8000), 16)), "float")


def _float_to_half(b: Builder, v: Value) -> Value:
    """Without F16C, to nearest even; an addition aligns the mantissa of subnormal results."""
    bits = b.bitcast(v, "i32")
    f = b.and_(bits, 0x7FFFFFFF)
    normal = b.lshr(b.add(b.add(f, b.and_(b.lshr(f, 13), 1)), ((15 - 127) << 23) + 0xFFF), 13)
    small = b.sub(b.bitcast(b.fadd(b.bitcast(f, "float"), 0.5), "i32"), 126 << 23)
    h = b.select(b.icmp("ult", f, 113 << 23), small, normal)
    huge = b.select(b.icmp("ugt", f, 0x7F800000), b.like(f, 0x7E00), b.like(f, 0x7C00))
    h = b.select(b.icmp("uge", f, (127 + 16) << 23), huge, h)
    return b.itrunc(b.or_(h, b.and_(b.lshr(bits, 16), 0x8000)), "i16")


# ---- apply --------------------------------------------------------------------------------------------------
def apply(b: Builder, fn: str, args: list[Value], dtypes: list[DType], out: DType) -> Value:
    """One scalar function; `dtypes` are the arguments' types, `out` the result's."""
    if fn == "cast":
        return cast(b, args[0], dtypes[0], out)
    if fn == "bitcast":
        v = to_memory(b, args[0], dtypes[0])
        return from_memory(b, b.bitcast(v, memory(out)), out)
    if fn == "select":
        return b.select(*args)
    kind = dtypes[0].kind
    if fn in _FLOAT_COMPARE:
        if kind == "f":
            return b.fcmp(_FLOAT_COMPARE[fn], *args)
        signed = "s" if kind == "i" else "u"
        return b.icmp(signed + fn if fn in _COMPARE else fn, *args)
    if kind == "f":
        table = _FLOAT.get(fn)
        if table is None:
            return math.emit(b, fn, args)
        return table(b, *args)
    if kind == "b":
        return _BOOL[fn](b, *args)
    return _INTEGER[fn](b, kind == "i", *args)


def cast(b: Builder, v: Value, source: DType, out: DType) -> Value:
    """To another type: floats round to nearest even; float to integer truncates and saturates, NaN
    to 0; integers wrap; bool is `!= 0`."""
    if source == out and out.compute == out:
        return v
    if out.kind == "b":
        return b.fcmp("une", v, 0.0) if source.kind == "f" else b.icmp("ne", v, 0)
    t = register(out)
    if out.kind == "f":
        if source.kind == "f":
            if source.bits == 64:
                if out.name == "f16":  # twice rounded is wrong; odd first is right
                    return rounded(b, exact.double_to_half(b, v), out)
                v = b.fptrunc(v, "float")
            return b.fpext(v, "double") if out.bits == 64 else rounded(b, v, out)
        if source.kind == "b":
            return b.select(v, b.const(ty(t, v.ty.lanes), 1.0), b.const(ty(t, v.ty.lanes), 0.0))
        return rounded(b, b.sitofp(v, t) if source.kind == "i" else b.uitofp(v, t), out)
    if source.kind == "f":
        r = ty(t, v.ty.lanes)
        name = "fptosi.sat" if out.kind == "i" else "fptoui.sat"
        return b.intrinsic(name, v, result=r, mangle=f".{r.mangled}.{v.ty.mangled}")
    bits = v.ty.bits
    if bits >= out.bits:
        return b.itrunc(v, t)
    return b.sext(v, t) if source.kind == "i" else b.zext(v, t)


# ---- floats -------------------------------------------------------------------------------------------------
def _sign(b: Builder, x: Value) -> Value:
    one = b.select(b.fcmp("olt", x, 0.0), b.like(x, -1.0), b.like(x, 0.0))
    one = b.select(b.fcmp("ogt", x, 0.0), b.like(x, 1.0), one)
    return b.select(b.fcmp("uno", x, x), x, one)


def _fmod(b: Builder, x: Value, y: Value) -> Value:
    """x - trunc(x / y) * y without rounding, while the quotient has less than 52 bits."""
    q = b.trunc(b.fdiv(x, y))
    r = b.fma(b.fneg(q), y, x)
    wrong = b.and_(b.fcmp("one", r, 0.0), b.xor(b.fcmp("olt", r, 0.0), b.fcmp("olt", x, 0.0)))  # q one too large
    r = b.select(wrong, b.fadd(r, b.copysign(b.fabs(y), x)), r)
    infinite = b.and_(b.fcmp("oeq", b.fabs(y), float("inf")), b.fcmp("one", b.fabs(x), float("inf")))
    return b.select(infinite, x, b.copysign(r, x))


def _remainder(b: Builder, x: Value, y: Value) -> Value:
    """As Python's %: the sign of the divisor."""
    x, y = b.together(x, y)
    elem = x.ty.elem
    r = b.fptrunc(_fmod(b, b.fpext(x, "double"), b.fpext(y, "double")), elem)
    other = b.xor(b.fcmp("olt", r, 0.0), b.fcmp("olt", y, 0.0))
    zero = b.fcmp("oeq", r, 0.0)
    return b.select(zero, b.copysign(b.like(r, 0.0), y), b.select(other, b.fadd(r, y), r))


def _nextafter(b: Builder, x: Value, y: Value) -> Value:
    x, y = b.together(x, y)
    bits = f"i{x.ty.bits}"
    n = b.bitcast(x, bits)
    away = b.xor(b.fcmp("ogt", y, x), b.fcmp("olt", x, 0.0))
    stepped = b.add(n, b.select(away, b.like(n, 1), b.like(n, -1)))
    least = b.or_(b.and_(b.bitcast(y, bits), 1 << (x.ty.bits - 1)), 1)
    r = b.bitcast(b.select(b.fcmp("oeq", x, 0.0), least, stepped), x.ty.elem)
    r = b.select(b.fcmp("oeq", x, y), y, r)
    return b.select(b.fcmp("uno", x, y), b.fadd(x, y), r)


def _signbit(b: Builder, x: Value) -> Value:
    return b.icmp("slt", b.bitcast(x, f"i{x.ty.bits}"), 0)


def _flush(b: Builder, x: Value) -> Value:
    """Subnormal numbers as zeros of their sign."""
    return b.select(b.fcmp("olt", b.fabs(x), LEAST), b.copysign(b.like(x, 0.0), x), x)


def _fma_ftz(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """Whether the result is less than the least normal number shows in one that is 2^32 times as large (or infinite,
    or NaN from an infinite factor: then the sum was not small, or is exact)."""
    if b.target.is_gpu:
        x, y, z = b.together(x, y, z)
        lanes = [[b.extract(v, i) for v in (x, y, z)] for i in range(x.ty.lanes)]
        return b.gather([b.intrinsic("nvvm.fma.rn.ftz.f", *l, mangle="") for l in lanes])
    x, y, z = (_flush(b, v) for v in (x, y, z))
    large = b.fma(b.fmul(x, 2.0**32), y, b.fmul(z, 2.0**32))
    r = b.fma(x, y, z)
    return b.select(b.fcmp("olt", b.fabs(large), LEAST * 2.0**32), b.copysign(b.like(r, 0.0), r), r)


def _tf32(b: Builder, x: Value) -> Value:
    n = b.bitcast(x, "i32")
    return b.select(b.fcmp("uno", x, x), x, b.bitcast(b.and_(b.add(n, 0x1000), -0x2000), "float"))


_FLOAT = {
    "add": Builder.fadd,
    "sub": Builder.fsub,
    "mul": Builder.fmul,
    "div": Builder.fdiv,
    "fma": Builder.fma,
    "fma_ftz": _fma_ftz,
    "tf32": _tf32,
    "neg": Builder.fneg,
    "abs": Builder.fabs,
    "sign": _sign,
    "maximum": Builder.fmaximum,
    "minimum": Builder.fminimum,
    "floordiv": lambda b, x, y: b.floor(b.fdiv(x, y)),
    "remainder": _remainder,
    "copysign": Builder.copysign,
    "nextafter": _nextafter,
    "sqrt": Builder.sqrt,
    "floor": Builder.floor,
    "ceil": Builder.ceil,
    "trunc": Builder.trunc,
    "round": Builder.rint,
    "signbit": _signbit,
    "isnan": lambda b, x: b.fcmp("uno", x, x),
    "isinf": lambda b, x: b.fcmp("oeq", b.fabs(x), float("inf")),
    "isfinite": lambda b, x: b.fcmp("one", b.fabs(x), float("inf")),
}


# ---- integers -----------------------------------------------------------------------------------------------
def _divide(b: Builder, signed: bool, x: Value, y: Value) -> tuple[Value, Value]:
    """Floored quotient and remainder; 0 for a zero divisor, wrapping for the least integer by -1.

    The division itself may run for lanes and in places where nobody wants it, so its divisor is always safe.
    """
    x, y = b.together(x, y)
    zero = b.const(ty("i1", y.ty.lanes), y.const == 0) if y.const is not None else b.icmp("eq", y, 0)
    if not signed:
        safe = b.select(zero, b.like(y, 1), y)
        q = b.udiv(x, safe)
        r = b.sub(x, b.mul(q, safe))
        return b.select(zero, b.like(x, 0), q), b.select(zero, b.like(x, 0), r)
    minus = b.const(ty("i1", y.ty.lanes), y.const == -1) if y.const is not None else b.icmp("eq", y, -1)
    safe = b.select(minus, b.like(y, 1), b.select(zero, b.like(y, 1), y))
    q = b.sdiv(x, safe)
    r = b.sub(x, b.mul(q, safe))
    down = b.and_(b.icmp("ne", r, 0), b.icmp("slt", b.xor(r, safe), 0))
    q = b.select(down, b.sub(q, 1), q)
    r = b.select(down, b.add(r, safe), r)
    q = b.select(minus, b.sub(b.like(x, 0), x), q)
    return b.select(zero, b.like(x, 0), q), b.select(zero, b.like(x, 0), r)


def _shift(right: bool):
    def shift(b: Builder, signed: bool, x: Value, n: Value) -> Value:
        x, n = b.together(x, n)
        width = x.ty.bits
        if n.const is not None:
            inside = b.const(ty("i1", n.ty.lanes), 0 <= n.const < width)
        else:
            inside = b.icmp("ult", n, width)
        safe = b.select(inside, n, b.like(n, 0))
        r = (b.ashr if signed else b.lshr)(x, safe) if right else b.shl(x, safe)
        return b.select(inside, r, b.ashr(x, width - 1) if right and signed else b.like(x, 0))

    return shift


def _power(b: Builder, signed: bool, x: Value, n: Value) -> Value:
    """By repeated squaring, wrapping; a negative exponent gives the integer part of the inverse, and 0 for 0."""
    x, n = b.together(x, n)
    r, square = b.like(x, 1), x
    steps = max(n.const, 0).bit_length() if n.const is not None else n.ty.bits - signed
    for i in range(steps):
        if n.const is not None:
            r = b.mul(r, square) if n.const >> i & 1 else r
        else:
            r = b.select(b.icmp("ne", b.and_(n, 1 << i), 0), b.mul(r, square), r)
        square = b.mul(square, square)
    if not signed or (n.const is not None and n.const >= 0):
        return r
    zero, one = b.like(x, 0), b.like(x, 1)
    of_minus_one = b.select(b.icmp("ne", b.and_(n, 1), 0), b.like(x, -1), one)
    inverse = b.select(b.icmp("eq", x, 1), one, b.select(b.icmp("eq", x, -1), of_minus_one, zero))
    return b.select(b.icmp("slt", n, 0), inverse, r)


def _int_sign(b: Builder, signed: bool, x: Value) -> Value:
    positive = b.select(b.icmp("ne", x, 0), b.like(x, 1), b.like(x, 0))
    return b.select(b.icmp("slt", x, 0), b.like(x, -1), positive) if signed else positive


def _mulhi(b: Builder, signed: bool, x: Value, y: Value) -> Value:
    return b.itrunc(b.lshr(b.mul(b.zext(x, "i64"), b.zext(y, "i64")), 32), "i32")


def _extreme(name: str):
    return lambda b, signed, x, y: b.intrinsic(("s" if signed else "u") + name, *b.together(x, y))


_INTEGER = {
    "add": lambda b, s, x, y: b.add(x, y),
    "sub": lambda b, s, x, y: b.sub(x, y),
    "mul": lambda b, s, x, y: b.mul(x, y),
    "neg": lambda b, s, x: b.sub(b.like(x, 0), x),
    "abs": lambda b, s, x: b.select(b.icmp("slt", x, 0), b.sub(b.like(x, 0), x), x) if s else x,
    "sign": _int_sign,
    "maximum": _extreme("max"),
    "minimum": _extreme("min"),
    "floordiv": lambda b, s, x, y: _divide(b, s, x, y)[0],
    "remainder": lambda b, s, x, y: _divide(b, s, x, y)[1],
    "pow": _power,
    "and": lambda b, s, x, y: b.and_(x, y),
    "or": lambda b, s, x, y: b.or_(x, y),
    "xor": lambda b, s, x, y: b.xor(x, y),
    "not": lambda b, s, x: b.not_(x),
    "shl": _shift(False),
    "shr": _shift(True),
    "mulhi": _mulhi,
}

_BOOL = {
    "maximum": Builder.or_,
    "minimum": Builder.and_,
    "and": Builder.and_,
    "or": Builder.or_,
    "xor": Builder.xor,
    "not": Builder.not_,
}
