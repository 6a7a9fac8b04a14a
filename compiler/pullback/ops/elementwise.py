"""Element-wise ops: one class per scalar function of `kernel/scalars.py`, of the same name.

Inputs have equal shapes and, but for `Select`, equal dtypes: the DSL broadcasts and promotes beforehand.
A class says its derivative; meaning, cost and allowed types come from the scalar table.  Here are arithmetic,
selection and conversion; the others are in `functions.py` and `predicates.py`, and all can be had from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DTypeError
from ..graph.types import DType, TensorType
from ..kernel.kernel import apply
from . import rules as F
from .functions import (
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atanh,
    Cos,
    Cosh,
    Erf,
    Exp,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    Sin,
    Sinh,
    Sqrt,
    Tan,
    Tanh,
)
from .op import Elementwise, register
from .predicates import (
    And,
    Ceil,
    Eq,
    Floor,
    Ge,
    Gt,
    IsFinite,
    IsInf,
    IsNan,
    Le,
    Lt,
    MulHi,
    Ne,
    Not,
    Or,
    Round,
    Shl,
    Shr,
    SignBit,
    Trunc,
    Xor,
)
from .scalar import Flat, Scalar, same_shape

__all__ = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atan2",
    "Atanh",
    "Bitcast",
    "Cast",
    "Ceil",
    "CopySign",
    "Cos",
    "Cosh",
    "Div",
    "Eq",
    "Erf",
    "Exp",
    "Expm1",
    "Flat",
    "Floor",
    "FloorDiv",
    "Ge",
    "Gt",
    "IsFinite",
    "IsInf",
    "IsNan",
    "Le",
    "Log",
    "Log1p",
    "Log2",
    "Log10",
    "Lt",
    "Maximum",
    "Minimum",
    "Mul",
    "MulHi",
    "Ne",
    "Neg",
    "NextAfter",
    "Not",
    "Or",
    "Pow",
    "Remainder",
    "Round",
    "Scalar",
    "Select",
    "Shl",
    "Shr",
    "Sign",
    "SignBit",
    "Sin",
    "Sinh",
    "Sqrt",
    "StopGradient",
    "Sub",
    "Tan",
    "Tanh",
    "Trunc",
    "Xor",
    "cast_array",
]


# ---- arithmetic --------------------------------------------------------------------------------------------
@register
class Add(Scalar):
    """a + b."""

    name = "add"

    def partials(self, out, a, b):
        return 1.0, 1.0


@register
class Sub(Scalar):
    """a - b."""

    name = "sub"

    def partials(self, out, a, b):
        return 1.0, -1.0

    def jvp(self, out, inputs, tangents):
        ta, tb = tangents
        if tb is None:
            return ta
        return -tb if ta is None else ta - tb

    def vjp(self, out, inputs, ct):
        return ct, -ct


@register
class Mul(Scalar):
    """a * b."""

    name = "mul"

    def partials(self, out, a, b):
        return b, a


@register
class Div(Scalar):
    """a / b of floats."""

    name = "div"

    def partials(self, out, a, b):
        return 1.0 / b, -out / b

    def vjp(self, out, inputs, ct):
        to_a = ct / inputs[1]
        return to_a, -(to_a * out)


@register
class Neg(Scalar):
    """-x."""

    name = "neg"

    def partials(self, out, x):
        return (-1.0,)

    def jvp(self, out, inputs, tangents):
        return None if tangents[0] is None else -tangents[0]

    def vjp(self, out, inputs, ct):
        return (-ct,)


@register
class Abs(Scalar):
    """|x|; the derivative at 0 is 0."""

    name = "abs"

    def partials(self, out, x):
        return (F.sign(x),)


@register
class Sign(Flat):
    """-1, 0 or 1; NaN of NaN."""

    name = "sign"


def _share(a_wins, tie, out):
    """How much of the cotangent the first of two competitors gets; equals share it."""
    return F.where(a_wins, 1.0, F.where(tie, F.full_like(out, 0.5), 0.0))


@register
class Maximum(Scalar):
    """The greater; NaN if either is NaN.  Equal inputs share the cotangent."""

    name = "maximum"

    def partials(self, out, a, b):
        return _share(a > b, a == b, out), _share(b > a, a == b, out)


@register
class Minimum(Scalar):
    """The smaller; NaN if either is NaN.  Equal inputs share the cotangent."""

    name = "minimum"

    def partials(self, out, a, b):
        return _share(a < b, a == b, out), _share(b < a, a == b, out)


@register
class FloorDiv(Flat):
    """floor(a / b); integers: 0 where b is 0."""

    name = "floordiv"


@register
class Remainder(Scalar):
    """a - floor(a / b) * b, of the sign of b; integers: 0 where b is 0."""

    name = "remainder"

    def partials(self, out, a, b):
        return 1.0, -F.floor(a / b)


@register
class Pow(Scalar):
    """a ** b."""

    name = "pow"

    def partials(self, out, a, b):
        # At b = 0 the power below would be 0 * a ** -1, which is NaN at a = 0.
        by_base = F.where(b == 0, 0.0, b * F.pow(a, F.where(b == 0, 1.0, b - 1)))
        return by_base, out * F.log(F.where(a == 0, 1.0, a))


@register
class Atan2(Scalar):
    """The angle of the point (b, a)."""

    name = "atan2"

    def partials(self, out, a, b):
        r2 = a * a + b * b
        return b / r2, -a / r2


@register
class CopySign(Scalar):
    """|a| with the sign of b."""

    name = "copysign"

    def partials(self, out, a, b):
        return F.where(F.signbit(a) == F.signbit(b), F.ones_like(out), -1.0), None


@register
class NextAfter(Scalar):
    """The next number after a towards b."""

    name = "nextafter"

    def partials(self, out, a, b):
        return 1.0, None


# ---- selection and conversion ------------------------------------------------------------------------------
@register
class Select(Scalar):
    """a where the condition (bool) holds, else b."""

    name = "select"

    def infer(self, condition, a, b):
        if condition.dtype.kind != "b":
            raise DTypeError(f"select: expected a bool condition, got {condition.dtype}")
        if a.dtype != b.dtype:
            raise DTypeError(f"select: expected two tensors of one type, got {a.dtype} and {b.dtype}")
        same_shape("select", condition, a)
        same_shape("select", a, b)
        return a

    def partials(self, out, condition, a, b):
        chosen = condition.astype(out.dtype)
        return None, chosen, 1.0 - chosen

    # A choice rather than a product: an infinite (co)tangent of the branch not taken must not make a NaN.
    def jvp(self, out, inputs, tangents):
        condition, (_, ta, tb) = inputs[0], tangents
        if ta is None and tb is None:
            return None
        return F.where(condition, 0.0 if ta is None else ta, 0.0 if tb is None else tb)

    def vjp(self, out, inputs, ct):
        return None, F.where(inputs[0], ct, 0.0), F.where(inputs[0], 0.0, ct)


def cast_array(array: np.ndarray, dtype: DType) -> np.ndarray:
    """Values in another type: float to integer truncates and saturates (NaN: 0), integers wrap."""
    array = np.asarray(array)
    if dtype.kind == "b":
        return array != 0
    if not (dtype.is_integer and array.dtype.kind == "f"):
        with np.errstate(all="ignore"):
            return dtype.round(array)
    info = np.iinfo(dtype.numpy)
    with np.errstate(all="ignore"):
        wide = np.trunc(np.nan_to_num(array.astype(np.float64), nan=0.0))
        inside = np.where((wide > info.min) & (wide < info.max), wide, 0).astype(dtype.numpy)
    low, high = dtype.numpy.type(info.min), dtype.numpy.type(info.max)
    return np.where(wide <= info.min, low, np.where(wide >= info.max, high, inside))


@register
@dataclass(frozen=True)
class Cast(Elementwise):
    """The value in another type: float to integer truncates and saturates (NaN: 0), integers wrap."""

    name = "cast"
    dtype: DType

    def infer(self, x):
        return TensorType(self.dtype, x.shape)

    def evaluate(self, x):
        return cast_array(x, self.dtype)

    def scalar(self, x):
        return apply("cast", x, dtype=self.dtype)

    def partials(self, out, x):
        return (1.0 if x.dtype.is_float and out.dtype.is_float else None,)

    def jvp(self, out, inputs, tangents):
        t = tangents[0]
        return t.astype(self.dtype) if t is not None and self.dtype.is_float else None

    def vjp(self, out, inputs, ct):
        dtype = inputs[0].dtype
        return (ct.astype(dtype) if dtype.is_float else None,)


@register
@dataclass(frozen=True)
class Bitcast(Elementwise):
    """The same bits as another type of the same width."""

    name = "bitcast"
    dtype: DType

    def infer(self, x):
        if x.dtype.bits != self.dtype.bits or "b" in (x.dtype.kind, self.dtype.kind):
            raise DTypeError(f"bitcast: expected a number type of {self.dtype.bits} bits, got {x.dtype}")
        if "bf16" in (x.dtype.name, self.dtype.name):
            raise DTypeError("bitcast: bf16 is not supported")
        return TensorType(self.dtype, x.shape)

    def evaluate(self, x):
        return np.ascontiguousarray(x).view(self.dtype.numpy).reshape(np.shape(x))

    def scalar(self, x):
        return apply("bitcast", x, dtype=self.dtype)

    def partials(self, out, x):
        return (None,)


@register
@dataclass(frozen=True)
class StopGradient(Elementwise):
    """The value itself, constant to derivatives."""

    name = "stop_gradient"

    def infer(self, x):
        return x

    def evaluate(self, x):
        return x

    def scalar(self, x):
        return x

    def partials(self, out, x):
        return (None,)
