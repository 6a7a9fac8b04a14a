"""Rewrite rules of `simplify` for element-wise ops: node in, simpler node or None out.

Every rule keeps the bits, NaN, infinities and signed zeros included (only NaN's own sign and payload are not
looked at).  So x + 0.0 stays (it turns -0.0 into 0.0) while x - 0.0 goes, x * 0.0 stays, and a division by
a constant becomes a multiplication only where the reciprocal is exact.  The exception is `pow` with a small
integer exponent, where products are at least as exact.
"""

from __future__ import annotations

from math import copysign, frexp, isfinite

from ..graph.graph import Node
from ..graph.types import DType
from ..ops import elementwise as E
from ..ops.leaf import Fill
from .rules import Builder, Rule, fill_value, same_but_ones

ADD, SUB, MUL, DIV, NEG, NOT = E.Add(), E.Sub(), E.Mul(), E.Div(), E.Neg(), E.Not()


def _operand(node: Node, name: str) -> Node | None:
    """x where node is `name`(x)."""
    return node.inputs[0] if node.op.name == name else None


def _is_zero(value: float | int | None, sign: float) -> bool:
    """An integer zero, or the floating-point zero of this sign."""
    return value is not None and value == 0 and (not isinstance(value, float) or copysign(1.0, value) == sign)


# ---- sums ------------------------------------------------------------------------------------------------
def add(b: Builder, n: Node) -> Node | None:
    """Constants go right; -0.0 + x = x; x + -y = x - y, through a broadcast too."""
    x, y = n.inputs
    if x.op.name == "fill":
        return b.make(ADD, y, x)
    if _is_zero(fill_value(y), -1.0):
        return x
    if (z := _operand(y, "neg")) is not None:
        return b.make(SUB, x, z)
    if (z := _operand(x, "neg")) is not None:
        return b.make(SUB, y, z)
    for u, v in ((x, y), (y, x)):
        if v.op.name == "broadcast" and (z := _operand(v.inputs[0], "neg")) is not None and b.uses(v) == 1:
            return b.make(SUB, u, b.make(v.op, z))
    return None


def sub(b: Builder, n: Node) -> Node | None:
    """x - 0.0 = x; x - -y = x + y; -0.0 - x = -x."""
    x, y = n.inputs
    if _is_zero(fill_value(y), 1.0):
        return x
    if (z := _operand(y, "neg")) is not None:
        return b.make(ADD, x, z)
    if _is_zero(fill_value(x), -1.0):
        return b.make(NEG, y)
    if x is y and not n.type.dtype.is_float:
        return b.fill(0, n)
    return None


def neg(b: Builder, n: Node) -> Node | None:
    """--x = x; -(x * c) = x * -c, and likewise for a division."""
    (x,) = n.inputs
    if x.op.name == "neg":
        return x.inputs[0]
    if x.op.name in ("mul", "div") and n.type.dtype.is_float and b.uses(x) == 1:
        c = fill_value(x.inputs[1])
        if c is not None:
            return b.make(x.op, x.inputs[0], b.fill(-c, n))
        if x.op.name == "div" and (c := fill_value(x.inputs[0])) is not None:
            return b.make(DIV, b.fill(-c, n), x.inputs[1])
    return None


def abs_(b: Builder, n: Node) -> Node | None:
    """|-x| = |x|; ||x|| = |x|."""
    (x,) = n.inputs
    if x.op.name == "abs":
        return x
    return b.make(n.op, x.inputs[0]) if x.op.name == "neg" and n.type.dtype.is_float else None


# ---- products --------------------------------------------------------------------------------------------
def mul(b: Builder, n: Node) -> Node | None:
    """Constants go right; x * 1 = x; x * -1 = -x; integer x * 0 = 0; signs cancel or move out."""
    x, y = n.inputs
    if x.op.name == "fill":
        return b.make(MUL, y, x)
    c = fill_value(y)
    if c is not None:
        if c == 1:
            return x
        if c == 0 and not n.type.dtype.is_float:
            return y
        if n.type.dtype.is_float:
            if c == -1:
                return b.make(NEG, x)
            if x.op.name == "neg":
                return b.make(MUL, x.inputs[0], b.fill(-c, n))
        return None
    if not n.type.dtype.is_float:
        return None
    u, v = _operand(x, "neg"), _operand(y, "neg")
    if u is not None and v is not None:
        return b.make(MUL, u, v)
    if u is not None and b.uses(x) == 1:
        return b.make(NEG, b.make(MUL, u, y))
    if v is not None and b.uses(y) == 1:
        return b.make(NEG, b.make(MUL, x, v))
    return None


def div(b: Builder, n: Node) -> Node | None:
    """x / 1 = x; x / 2^k = x * 2^-k; signs cancel or go into the constant."""
    x, y = n.inputs
    c = fill_value(y)
    if c is not None:
        if c == 1:
            return x
        if (r := _exact_reciprocal(c, n.type.dtype)) is not None:
            return b.make(MUL, x, b.fill(r, n))
        return b.make(DIV, x.inputs[0], b.fill(-c, n)) if x.op.name == "neg" else None
    if y.op.name == "neg":
        if x.op.name == "neg":
            return b.make(DIV, x.inputs[0], y.inputs[0])
        if (c := fill_value(x)) is not None:
            return b.make(DIV, b.fill(-c, n), y.inputs[0])
    return None


def _exact_reciprocal(value: float, dtype: DType) -> float | None:
    """1 / value where both are powers of two and normal numbers of every float type but f16 (there: of f16)."""
    if not isfinite(value) or value == 0:
        return None
    mantissa, exponent = frexp(value)
    reach = 14 if dtype.name == "f16" else 126
    return 1.0 / value if abs(mantissa) == 0.5 and abs(exponent - 1) <= reach else None


def pow_(b: Builder, n: Node) -> Node | None:
    """Small integer exponents: x^0 = 1 (of NaN too), x^1 = x, x^2 = x * x, x^3, x^-1."""
    x, y = n.inputs
    c = fill_value(y)
    if c == 0:
        return b.fill(type(c)(1), n)
    if c == 1:
        return x
    if c == 2:
        return b.make(MUL, x, x)
    if c == 3:
        return b.make(MUL, b.make(MUL, x, x), x)
    if c == -1 and n.type.dtype.is_float:
        return b.make(DIV, b.fill(1.0, n), x)
    return None


# ---- choices and logic -----------------------------------------------------------------------------------
def same_operands(b: Builder, n: Node) -> Node | None:
    """max(x, x) = x."""
    return n.inputs[0] if n.inputs[0] is n.inputs[1] else None


def select(b: Builder, n: Node) -> Node | None:
    """A constant condition, equal branches, a negated condition, the same choice made twice."""
    c, x, y = n.inputs
    value = fill_value(c)
    if value is not None:
        return x if value else y
    if x is y or _same_fill(x, y):
        return x
    if c.op.name == "not":
        return b.make(n.op, c.inputs[0], y, x)
    if x.op.name == "select" and x.inputs[0] is c:
        return b.make(n.op, c, x.inputs[1], y)
    if y.op.name == "select" and y.inputs[0] is c:
        return b.make(n.op, c, x, y.inputs[2])
    return None


def _same_fill(x: Node, y: Node) -> bool:
    return type(x.op) is Fill and x.op == y.op


def logic(b: Builder, n: Node) -> Node | None:
    """Constants go right; neutral and absorbing constants; x & x = x."""
    x, y = n.inputs
    name = n.op.name
    if x.op.name == "fill" and y.op.name != "fill":
        return b.make(n.op, y, x)
    if x is y:
        return x if name != "xor" else b.fill(False if n.type.dtype.kind == "b" else 0, n)
    c = fill_value(y)
    if c is None:
        return None
    if c == 0:
        return y if name == "and" else x
    ones = c is True or c == -1 or (n.type.dtype.kind == "u" and c == 2**n.type.dtype.bits - 1)
    if ones:
        return {"and": x, "or": y}[name] if name != "xor" else b.make(NOT, x)
    return None


_NEGATED = {"eq": E.Ne(), "ne": E.Eq()}
_NEGATED_ORDER = {"lt": E.Ge(), "le": E.Gt(), "gt": E.Le(), "ge": E.Lt()}


def not_(b: Builder, n: Node) -> Node | None:
    """not not x = x; a negated comparison (orders only where there is no NaN)."""
    (x,) = n.inputs
    if x.op.name == "not":
        return x.inputs[0]
    negated = _NEGATED.get(x.op.name)
    if negated is None and x.op.name in _NEGATED_ORDER and not x.inputs[0].type.dtype.is_float:
        negated = _NEGATED_ORDER[x.op.name]
    return None if negated is None else b.make(negated, *x.inputs)


def shift(b: Builder, n: Node) -> Node | None:
    """A shift by nothing."""
    return n.inputs[0] if fill_value(n.inputs[1]) == 0 else None


# ---- conversions -----------------------------------------------------------------------------------------
def _holds_all_of(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is one of `wide`."""
    if narrow.kind == "b" or narrow == wide:
        return True
    if narrow.is_float:
        return wide.is_float and wide.bits > narrow.bits
    if wide.is_float:
        return narrow.bits - (narrow.kind == "i") <= {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}[wide.name]
    if wide.kind == "b" or (narrow.kind == "i" and wide.kind == "u"):
        return False
    return wide.bits > narrow.bits


def cast(b: Builder, n: Node) -> Node | None:
    """A cast to the type it has; a lossless widening before another cast."""
    (x,) = n.inputs
    if x.type.dtype == n.type.dtype:
        return x
    if x.op.name != "cast":
        return None
    source, middle, target = x.inputs[0].type.dtype, x.type.dtype, n.type.dtype
    if source.is_integer and middle.is_float and target.is_integer:  # floats saturate, integers wrap
        return None
    return b.make(n.op, x.inputs[0]) if _holds_all_of(middle, source) else None


def stop_gradient(b: Builder, n: Node) -> Node | None:
    """Derivatives are taken before passes run, so nothing is left to stop."""
    return n.inputs[0]


# ---- movement after work ---------------------------------------------------------------------------------
def work_first(b: Builder, n: Node) -> Node | None:
    """f(broadcast x, broadcast y, constant) = broadcast f(x, y, constant): the work is done once per element of x.

    Likewise for a reshape that only adds axes of size 1 (keepdims), so that it can meet its inverse.
    """
    over: Node | None = None
    for x in n.inputs:
        if x.op.name in ("broadcast", "reshape"):
            if over is None:
                over = x
            elif x.op != over.op or x.inputs[0].type.shape != over.inputs[0].type.shape:
                return None
        elif x.op.name != "fill":
            return None
    if over is None:
        return None
    shape = over.inputs[0].type.shape
    if over.op.name == "broadcast":
        if over.inputs[0].type.size >= n.type.size:
            return None
    elif len(shape) >= n.type.ndim or not same_but_ones(shape, n.type.shape):
        return None
    inputs = [b.fill_node(x.op.value, x.type.dtype, shape) if x.op.name == "fill" else x.inputs[0] for x in n.inputs]
    return b.make(over.op, b.make(n.op, *inputs))


RULES: dict[str, Rule] = {
    "add": add,
    "sub": sub,
    "neg": neg,
    "abs": abs_,
    "mul": mul,
    "div": div,
    "pow": pow_,
    "maximum": same_operands,
    "minimum": same_operands,
    "select": select,
    "and": logic,
    "or": logic,
    "xor": logic,
    "not": not_,
    "shl": shift,
    "shr": shift,
    "cast": cast,
    "stop_gradient": stop_gradient,
}
"""op name -> its rule; `work_first` is for all element-wise ops besides."""
