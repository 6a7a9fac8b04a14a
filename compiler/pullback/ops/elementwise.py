"""Element-wise ops: one class per scalar function of `kernel/scalars.py`, of the same name.

Inputs have equal shapes and, but for `Select`, equal dtypes: the DSL broadcasts and promotes beforehand.
A class says its derivative; meaning, cost and allowed types come from the scalar table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.types import DType, TensorType, bool_
from ..kernel.kernel import apply
from ..kernel.scalars import SCALARS
from . import rules as F
from .op import Elementwise, register

_KINDS = {"f": "float", "i": "signed integer", "u": "unsigned integer", "b": "bool"}


@dataclass(frozen=True)
class Scalar(Elementwise):
    """What the entry of the scalar table says.  No attributes: all instances of a class are equal."""

    name = ""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.name in SCALARS:
            cls.entry = SCALARS[cls.name]
            cls.cost = cls.entry.cost

    def __eq__(self, other):
        return self.__class__ is other.__class__

    def __hash__(self):
        return hash(self.__class__)

    def infer(self, first, *rest):
        entry = self.entry
        if 1 + len(rest) != entry.arity:
            raise ShapeError(f"{self.name}: expected {entry.arity} arguments, got {1 + len(rest)}")
        if first.dtype.kind not in entry.kinds:
            expected = ", ".join(_KINDS[k] for k in entry.kinds)
            raise DTypeError(f"{self.name}: expected {expected}, got {first.dtype}")
        for t in rest:
            _same_shape(self.name, first, t)
            if t.dtype is not first.dtype and t.dtype != first.dtype:
                raise DTypeError(f"{self.name}: expected two tensors of one type, got {first.dtype} and {t.dtype}")
        return first if entry.result == "same" else TensorType(bool_, first.shape)

    def evaluate(self, *arrays):
        with np.errstate(all="ignore"):
            return self.entry.evaluate(*arrays)

    def scalar(self, *args):
        return apply(self.name, *args, dtype=bool_ if self.entry.result == "bool" else args[-1].dtype)


def _same_shape(name: str, a: TensorType, b: TensorType) -> None:
    if a.shape != b.shape:
        raise ShapeError(f"{name}: expected equal shapes, got {list(a.shape)} and {list(b.shape)}")


class Flat(Scalar):
    """Zero derivative everywhere (comparisons, rounding, bits)."""

    def partials(self, out, *inputs):
        return (None,) * len(inputs)


# ---- arithmetic -------------------------------------------------------------------------------------------
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


# ---- powers, exponentials, logarithms ----------------------------------------------------------------------
@register
class Sqrt(Scalar):
    """The square root; NaN below 0."""

    name = "sqrt"

    def partials(self, out, x):
        return (0.5 / out,)


@register
class Exp(Scalar):
    """e ** x."""

    name = "exp"

    def partials(self, out, x):
        return (out,)


@register
class Expm1(Scalar):
    """e ** x - 1, exact near 0."""

    name = "expm1"

    def partials(self, out, x):
        return (out + 1.0,)


@register
class Log(Scalar):
    """The natural logarithm."""

    name = "log"

    def partials(self, out, x):
        return (1.0 / x,)

    def vjp(self, out, inputs, ct):
        return (ct / inputs[0],)


@register
class Log1p(Scalar):
    """log(1 + x), exact near 0."""

    name = "log1p"

    def partials(self, out, x):
        return (1.0 / (x + 1.0),)


@register
class Log2(Scalar):
    """The logarithm to base 2."""

    name = "log2"

    def partials(self, out, x):
        return (1.0 / (x * math.log(2.0)),)


@register
class Log10(Scalar):
    """The logarithm to base 10."""

    name = "log10"

    def partials(self, out, x):
        return (1.0 / (x * math.log(10.0)),)


# ---- trigonometric and hyperbolic --------------------------------------------------------------------------
@register
class Sin(Scalar):
    """sin x (radians)."""

    name = "sin"

    def partials(self, out, x):
        return (F.cos(x),)


@register
class Cos(Scalar):
    """cos x (radians)."""

    name = "cos"

    def partials(self, out, x):
        return (-F.sin(x),)


@register
class Tan(Scalar):
    """tan x (radians)."""

    name = "tan"

    def partials(self, out, x):
        return (1.0 + out * out,)


@register
class Asin(Scalar):
    """The angle in [-pi/2, pi/2] whose sine is x."""

    name = "asin"

    def partials(self, out, x):
        return (1.0 / F.sqrt((1.0 - x) * (1.0 + x)),)


@register
class Acos(Scalar):
    """The angle in [0, pi] whose cosine is x."""

    name = "acos"

    def partials(self, out, x):
        return (-1.0 / F.sqrt((1.0 - x) * (1.0 + x)),)


@register
class Atan(Scalar):
    """The angle in [-pi/2, pi/2] whose tangent is x."""

    name = "atan"

    def partials(self, out, x):
        return (1.0 / (1.0 + x * x),)


@register
class Sinh(Scalar):
    """The hyperbolic sine."""

    name = "sinh"

    def partials(self, out, x):
        return (F.cosh(x),)


@register
class Cosh(Scalar):
    """The hyperbolic cosine."""

    name = "cosh"

    def partials(self, out, x):
        return (F.sinh(x),)


@register
class Tanh(Scalar):
    """The hyperbolic tangent."""

    name = "tanh"

    def partials(self, out, x):
        return (1.0 - out * out,)


@register
class Asinh(Scalar):
    """The inverse of sinh."""

    name = "asinh"

    def partials(self, out, x):
        return (1.0 / F.sqrt(x * x + 1.0),)


@register
class Acosh(Scalar):
    """The inverse of cosh, for x >= 1."""

    name = "acosh"

    def partials(self, out, x):
        return (1.0 / F.sqrt((x - 1.0) * (x + 1.0)),)


@register
class Atanh(Scalar):
    """The inverse of tanh, for |x| <= 1."""

    name = "atanh"

    def partials(self, out, x):
        return (1.0 / ((1.0 - x) * (1.0 + x)),)


@register
class Erf(Scalar):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""

    name = "erf"

    def partials(self, out, x):
        return (F.exp(-(x * x)) * (2.0 / math.sqrt(math.pi)),)


# ---- rounding and tests ------------------------------------------------------------------------------------
@register
class Floor(Flat):
    """The greatest integer not above x."""

    name = "floor"


@register
class Ceil(Flat):
    """The smallest integer not below x."""

    name = "ceil"


@register
class Trunc(Flat):
    """The next integer towards 0."""

    name = "trunc"


@register
class Round(Flat):
    """The nearest integer, ties to even."""

    name = "round"


@register
class SignBit(Flat):
    """Whether the sign bit is set (-0.0 and negative NaN included)."""

    name = "signbit"


@register
class IsNan(Flat):
    """Whether x is NaN."""

    name = "isnan"


@register
class IsInf(Flat):
    """Whether x is an infinity."""

    name = "isinf"


@register
class IsFinite(Flat):
    """Whether x is neither NaN nor an infinity."""

    name = "isfinite"


@register
class Lt(Flat):
    """a < b."""

    name = "lt"


@register
class Le(Flat):
    """a <= b."""

    name = "le"


@register
class Gt(Flat):
    """a > b."""

    name = "gt"


@register
class Ge(Flat):
    """a >= b."""

    name = "ge"


@register
class Eq(Flat):
    """a == b."""

    name = "eq"


@register
class Ne(Flat):
    """a != b."""

    name = "ne"


# ---- bits --------------------------------------------------------------------------------------------------
@register
class And(Flat):
    """Bitwise (bool: logical) and."""

    name = "and"


@register
class Or(Flat):
    """Bitwise (bool: logical) or."""

    name = "or"


@register
class Xor(Flat):
    """Bitwise (bool: logical) exclusive or."""

    name = "xor"


@register
class Not(Flat):
    """Bitwise (bool: logical) not."""

    name = "not"


@register
class Shl(Flat):
    """a << b; 0 where b is negative or not below the width."""

    name = "shl"


@register
class Shr(Flat):
    """a >> b, with the sign; all sign where b is negative or not below the width."""

    name = "shr"


@register
class MulHi(Flat):
    """The upper 32 bits of the 64-bit product of two u32."""

    name = "mulhi"

    def infer(self, a, b):
        if a.dtype.name != "u32":
            raise DTypeError(f"mulhi: expected u32, got {a.dtype}")
        return super().infer(a, b)


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
        _same_shape("select", condition, a)
        _same_shape("select", a, b)
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
