"""The array API standard's element-wise functions on tensors.

Operands are tensors, numpy arrays, nested lists or scalars; two operands are promoted to one dtype and
broadcast (`promotion.py`).  Functions of real numbers take integers too, as f32.  Errors: `ShapeError` where
shapes do not broadcast, `DTypeError` where a dtype makes no sense.
"""

from __future__ import annotations

from ..errors import DTypeError
from ..graph.graph import make
from ..graph.types import DType, bool_, f32
from ..ops import elementwise as ew
from ..ops.op import Op
from .promotion import ArrayLike, DTypeLike, cast, dtype_of, fill, is_scalar, promote_types, promoted
from .tensor import ABS, ADD, DIV, MUL, NEG, SUB, Tensor, binary, emit


# ---- functions of one real number ---------------------------------------------------------------------------
def real(x: ArrayLike, op: Op) -> Tensor:
    """A function of real numbers: integers and bools count as f32."""
    (node,) = promoted(x)
    return emit(op, node if node.type.dtype.is_float else cast(node, f32))


def acos(x: ArrayLike) -> Tensor:
    """The angle in [0, pi] (radians) whose cosine is x."""
    return real(x, ew.Acos())


def acosh(x: ArrayLike) -> Tensor:
    """The inverse hyperbolic cosine, for x >= 1."""
    return real(x, ew.Acosh())


def asin(x: ArrayLike) -> Tensor:
    """The angle in [-pi/2, pi/2] (radians) whose sine is x."""
    return real(x, ew.Asin())


def asinh(x: ArrayLike) -> Tensor:
    """The inverse hyperbolic sine."""
    return real(x, ew.Asinh())


def atan(x: ArrayLike) -> Tensor:
    """The angle in [-pi/2, pi/2] (radians) whose tangent is x."""
    return real(x, ew.Atan())


def atanh(x: ArrayLike) -> Tensor:
    """The inverse hyperbolic tangent, for |x| <= 1."""
    return real(x, ew.Atanh())


def cos(x: ArrayLike) -> Tensor:
    """The cosine of x (radians)."""
    return real(x, ew.Cos())


def cosh(x: ArrayLike) -> Tensor:
    """The hyperbolic cosine."""
    return real(x, ew.Cosh())


def erf(x: ArrayLike) -> Tensor:
    """The error function (not in the standard)."""
    return real(x, ew.Erf())


def exp(x: ArrayLike) -> Tensor:
    """e ** x."""
    return real(x, ew.Exp())


def expm1(x: ArrayLike) -> Tensor:
    """e ** x - 1, exact near 0."""
    return real(x, ew.Expm1())


def log(x: ArrayLike) -> Tensor:
    """The natural logarithm: -inf at 0, NaN below."""
    return real(x, ew.Log())


def log10(x: ArrayLike) -> Tensor:
    """The logarithm to base 10."""
    return real(x, ew.Log10())


def log1p(x: ArrayLike) -> Tensor:
    """log(1 + x), exact near 0."""
    return real(x, ew.Log1p())


def log2(x: ArrayLike) -> Tensor:
    """The logarithm to base 2."""
    return real(x, ew.Log2())


def sin(x: ArrayLike) -> Tensor:
    """The sine of x (radians)."""
    return real(x, ew.Sin())


def sinh(x: ArrayLike) -> Tensor:
    """The hyperbolic sine."""
    return real(x, ew.Sinh())


def sqrt(x: ArrayLike) -> Tensor:
    """The square root: NaN below 0."""
    return real(x, ew.Sqrt())


def tan(x: ArrayLike) -> Tensor:
    """The tangent of x (radians)."""
    return real(x, ew.Tan())


def tanh(x: ArrayLike) -> Tensor:
    """The hyperbolic tangent."""
    return real(x, ew.Tanh())


# ---- arithmetic -------------------------------------------------------------------------------------------
def _numbers(name: str, nodes: list) -> list:
    if nodes[0].type.dtype.kind == "b":
        raise DTypeError(f"{name}: expected numbers, got bool (use logical_and, logical_or, logical_not, where)")
    return nodes


def add(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 + x2; integers wrap."""
    return binary(ADD, x1, x2)


def subtract(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 - x2; integers wrap."""
    return binary(SUB, x1, x2)


def multiply(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 * x2; integers wrap."""
    return binary(MUL, x1, x2)


def divide(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 / x2; integers count as f32."""
    a, b = promoted(x1, x2)
    if not a.type.dtype.is_float:
        a, b = cast(a, f32), cast(b, f32)
    return emit(DIV, a, b)


def floor_divide(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """The greatest integer not above x1 / x2; integers divided by 0 give 0."""
    return emit(ew.FloorDiv(), *_numbers("floor_divide", promoted(x1, x2)))


def remainder(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 - floor(x1 / x2) * x2, with the sign of x2; integers divided by 0 give 0."""
    return emit(ew.Remainder(), *_numbers("remainder", promoted(x1, x2)))


def pow(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 ** x2.  Small constant exponents become products, square roots and reciprocals."""
    if isinstance(x1, Tensor) and is_scalar(x2) and x1.dtype.kind != "b":
        cheap = _power(x1, x2)
        if cheap is not None:
            return cheap
    return emit(ew.Pow(), *_numbers("pow", promoted(x1, x2)))


def _power(x: Tensor, n) -> Tensor | None:
    """x ** n without the op `pow`, where that is exact to a rounding or two."""
    x = x if x.dtype.is_float or isinstance(n, int) else x.astype(f32)
    if n in (1, 2, 3, 4):
        square = x * x if n > 1 else x
        return {1: x, 2: square, 3: square * x, 4: square * square}[n] if n > 2 else square
    if x.dtype.is_float and n in (0.5, -0.5, -1, -2):
        base = sqrt(x) if n in (0.5, -0.5) else x * x if n == -2 else x
        return base if n > 0 else 1.0 / base
    return None


def abs(x: ArrayLike) -> Tensor:
    """|x|."""
    return emit(ABS, *_numbers("abs", promoted(x)))


def negative(x: ArrayLike) -> Tensor:
    """-x."""
    return emit(NEG, *_numbers("negative", promoted(x)))


def positive(x: ArrayLike) -> Tensor:
    """x itself."""
    return Tensor(*_numbers("positive", promoted(x)))


def reciprocal(x: ArrayLike) -> Tensor:
    """1 / x."""
    return divide(1.0, x)


def square(x: ArrayLike) -> Tensor:
    """x * x."""
    (node,) = _numbers("square", promoted(x))
    return emit(MUL, node, node)


def sign(x: ArrayLike) -> Tensor:
    """-1, 0 or 1 with the sign of x; NaN of NaN."""
    return emit(ew.Sign(), *_numbers("sign", promoted(x)))


def maximum(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """The greater one; NaN if either is NaN."""
    return emit(ew.Maximum(), *promoted(x1, x2))


def minimum(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """The smaller one; NaN if either is NaN."""
    return emit(ew.Minimum(), *promoted(x1, x2))


def clip(x: ArrayLike, min: ArrayLike | None = None, max: ArrayLike | None = None) -> Tensor:
    """x kept within min..max (scalars or tensors, None for no bound), in the dtype of x.

    The derivative is 1 from min to max, both included, and 0 outside.
    """
    from .searching import where

    (node,) = _numbers("clip", promoted(x))
    result = x = Tensor(node)
    for bound, beyond in ((min, less), (max, greater)):
        if bound is not None:
            if isinstance(bound, Tensor):
                bound = bound.astype(promote_types(bound.dtype, x.dtype) if x.dtype.is_float else x.dtype)
            result = where(beyond(x, bound), bound, result)
    return result if result.dtype == x.dtype else result.astype(x.dtype)


def _reals(op: Op, x1, x2) -> Tensor:
    """A function of two real numbers."""
    a, b = promoted(x1, x2)
    return emit(op, a, b) if a.type.dtype.is_float else emit(op, cast(a, f32), cast(b, f32))


def atan2(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """The angle in [-pi, pi] (radians) of the point (x2, x1)."""
    return _reals(ew.Atan2(), x1, x2)


def copysign(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """|x1| with the sign of x2."""
    return _reals(ew.CopySign(), x1, x2)


def nextafter(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """The next number after x1 in the direction of x2."""
    return _reals(ew.NextAfter(), x1, x2)


def hypot(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """sqrt(x1 ** 2 + x2 ** 2) without overflow on the way."""
    from .searching import where

    a, b = abs(x1), abs(x2)
    high, low = maximum(a, b), minimum(a, b)
    high = high if high.dtype.is_float else high.astype(f32)
    scale = where((high == 0) | isinf(high), 1.0, high)
    result = scale * sqrt(square(high / scale) + square(low / scale))
    return where(isinf(a) | isinf(b), float("inf"), result)


def logaddexp(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """log(exp(x1) + exp(x2)) without overflow on the way."""
    from .searching import where

    high, low = maximum(x1, x2), minimum(x1, x2)
    return high + log1p(exp(where(high == low, 0.0, low - high)))


# ---- rounding and tests -----------------------------------------------------------------------------------
def _rounded(x, op: Op) -> Tensor:
    (node,) = _numbers(op.name, promoted(x))
    return emit(op, node) if node.type.dtype.is_float else Tensor(node)


def ceil(x: ArrayLike) -> Tensor:
    """The smallest integer not below x; integers stay as they are."""
    return _rounded(x, ew.Ceil())


def floor(x: ArrayLike) -> Tensor:
    """The greatest integer not above x; integers stay as they are."""
    return _rounded(x, ew.Floor())


def round(x: ArrayLike) -> Tensor:
    """The nearest integer, ties to even; integers stay as they are."""
    return _rounded(x, ew.Round())


def trunc(x: ArrayLike) -> Tensor:
    """The next integer towards 0; integers stay as they are."""
    return _rounded(x, ew.Trunc())


def _float_test(x, op: Op, otherwise: bool) -> Tensor:
    """A test that integers and bools answer with a constant."""
    (node,) = promoted(x)
    return emit(op, node) if node.type.dtype.is_float else Tensor(fill(otherwise, bool_, node.type.shape))


def isfinite(x: ArrayLike) -> Tensor:
    """Whether x is neither NaN nor an infinity, as bool."""
    return _float_test(x, ew.IsFinite(), True)


def isinf(x: ArrayLike) -> Tensor:
    """Whether x is an infinity, as bool."""
    return _float_test(x, ew.IsInf(), False)


def isnan(x: ArrayLike) -> Tensor:
    """Whether x is NaN, as bool."""
    return _float_test(x, ew.IsNan(), False)


def signbit(x: ArrayLike) -> Tensor:
    """Whether the sign bit is set (that of -0.0 too), as bool."""
    (node,) = promoted(x)
    return emit(ew.SignBit(), node) if node.type.dtype.is_float else Tensor(node) < 0


# ---- comparisons ------------------------------------------------------------------------------------------


def equal(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 == x2, as bool."""
    return binary(ew.Eq(), x1, x2)


def not_equal(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 != x2, as bool."""
    return binary(ew.Ne(), x1, x2)


def less(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 < x2, as bool."""
    return binary(ew.Lt(), x1, x2)


def less_equal(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 <= x2, as bool."""
    return binary(ew.Le(), x1, x2)


def greater(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 > x2, as bool."""
    return binary(ew.Gt(), x1, x2)


def greater_equal(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 >= x2, as bool."""
    return binary(ew.Ge(), x1, x2)


# ---- logic and bits ---------------------------------------------------------------------------------------
def _logical(op: Op, *operands) -> Tensor:
    """On truth values: anything but 0 is true."""
    nodes = [_truth(x) for x in operands]
    return emit(op, *promoted(*nodes))


def _truth(x) -> Tensor:
    (node,) = promoted(x)
    return Tensor(cast(node, bool_))


def logical_and(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """Whether both are true (not 0), as bool."""
    return _logical(ew.And(), x1, x2)


def logical_or(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """Whether at least one is true (not 0), as bool."""
    return _logical(ew.Or(), x1, x2)


def logical_xor(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """Whether exactly one is true (not 0), as bool."""
    return _logical(ew.Xor(), x1, x2)


def logical_not(x: ArrayLike) -> Tensor:
    """Whether x is false (0), as bool."""
    return _logical(ew.Not(), x)


def bitwise_and(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """Bit by bit and, of integers or bools."""
    return binary(ew.And(), x1, x2)


def bitwise_or(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """Bit by bit or, of integers or bools."""
    return binary(ew.Or(), x1, x2)


def bitwise_xor(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """Bit by bit exclusive or, of integers or bools."""
    return binary(ew.Xor(), x1, x2)


def bitwise_invert(x: ArrayLike) -> Tensor:
    """Bit by bit not, of integers or bools."""
    return emit(ew.Not(), *promoted(x))


def bitwise_left_shift(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 shifted left by x2 bits; 0 where x2 is not within the width."""
    return binary(ew.Shl(), x1, x2)


def bitwise_right_shift(x1: ArrayLike, x2: ArrayLike) -> Tensor:
    """x1 shifted right by x2 bits, keeping the sign."""
    return binary(ew.Shr(), x1, x2)


# ---- conversion -------------------------------------------------------------------------------------------
def astype(x: ArrayLike, dtype: DTypeLike) -> Tensor:
    """The values as `dtype`: float to integer truncates and saturates (NaN: 0), integers wrap, bool is `!= 0`."""
    target: DType = dtype_of(dtype)
    if isinstance(x, Tensor):
        node = x.node
        return x if node.type.dtype is target else Tensor(make(ew.Cast(target), node))
    (node,) = promoted(x)
    return Tensor(cast(node, target))


def bitcast(x: ArrayLike, dtype: DTypeLike) -> Tensor:
    """The same bits as another dtype of the same width (not in the standard)."""
    (node,) = promoted(x)
    return emit(ew.Bitcast(dtype_of(dtype)), node)
