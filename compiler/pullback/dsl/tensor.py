"""`Tensor`: what model scripts compute with, a handle on one node of the graph IR.

Operators and methods make nodes; nothing is computed.  Python that needs a value (an `if` on a tensor) cannot
be traced and raises `TraceError` at the script's line.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from ..errors import TraceError, UnknownAttribute
from ..graph.graph import Node, current_loc, make
from ..graph.types import DType
from ..ops import elementwise as ew
from ..ops import rules as xp  # the array functions, looked up when used
from ..ops.op import Op
from .instead import FUNCTIONS, METHODS
from .promotion import ArrayLike, Axes, DTypeLike, fill, promoted

ADD, SUB, MUL, DIV, NEG, ABS = ew.Add(), ew.Sub(), ew.Mul(), ew.Div(), ew.Neg(), ew.Abs()


class Tensor:
    """A value in a traced program: dtype and static shape, known now; elements, known when it runs."""

    __slots__ = ("node",)
    __array_ufunc__ = None  # numpy arrays leave operators to this class

    def __init__(self, node: Node):
        self.node = node

    # ---- what is known -----------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.type.shape

    @property
    def dtype(self) -> DType:
        return self.node.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.node.type.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.node.type.size

    def __repr__(self) -> str:
        return f"Tensor({self.node.type})"

    def __len__(self) -> int:
        if not self.shape:
            raise TraceError("a 0-d tensor has no length")
        return self.shape[0]

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> NoReturn:
        """Only for what is not there."""
        kind = type(self).__name__
        instead = METHODS.get(name)
        if instead is None and hasattr(xp, name) and not name.startswith("_"):
            instead = f"pb.{name}(x)"
        instead = instead or FUNCTIONS.get(name)
        if instead is None:
            raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
        raise UnknownAttribute(f"a {kind} has no {name!r}; use {instead}")

    def __format__(self, spec: str) -> str:
        if spec:
            raise TraceError(
                f"{self} cannot be formatted as {spec!r} while the program is built, its value is not known: "
                'use pb.debug_print("{:' + spec + '}", x) or return it'
            )
        return str(self)

    # ---- what is not -------------------------------------------------------------------------------------
    def _no_value(self, what: str) -> NoReturn:
        raise TraceError(
            f"{what} of {self} is not known while the program is built. Python's `if`, `while`, `and`, `or`, `not` "
            "and conversions cannot depend on a tensor's elements: use where(condition, a, b), logical_and, "
            "scan, or return the tensor and look at it outside of the function"
        )

    def __bool__(self) -> bool:
        self._no_value("the truth value")

    def __int__(self) -> int:
        self._no_value("the int value")

    def __float__(self) -> float:
        self._no_value("the float value")

    def __complex__(self) -> complex:
        self._no_value("the complex value")

    def __index__(self) -> int:
        self._no_value("the value (as a size, range or Python index)")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self._no_value("the numpy array")

    def __array_function__(self, func, types, args, kwargs) -> NoReturn:
        name = func.__name__
        instead = f"pb.{name}" if hasattr(xp, name) else FUNCTIONS.get(name, METHODS["numpy"])
        raise TraceError(f"numpy's functions do not take tensors; use {instead}")

    def __contains__(self, x) -> bool:
        self._no_value("membership in the elements")

    def item(self) -> NoReturn:
        """A tensor has no value while the program is built: raises `TraceError`."""
        self._no_value("item()")

    def tolist(self) -> NoReturn:
        """A tensor has no value while the program is built: raises `TraceError`."""
        self._no_value("tolist()")

    def __setitem__(self, key, value) -> NoReturn:
        raise TraceError("tensors cannot be changed in place: use where(mask, value, x), concat or a new tensor")

    # ---- indexing ----------------------------------------------------------------------------------------
    def __getitem__(self, key) -> Tensor:
        """Integers, slices, ..., None and integer tensors; see `dsl/indexing.py`."""
        from .indexing import getitem

        return getitem(self, key)

    def __iter__(self):
        if not self.shape:
            raise TraceError("a 0-d tensor cannot be iterated over")
        return iter([self[i] for i in range(self.shape[0])])

    # ---- arithmetic --------------------------------------------------------------------------------------
    def __add__(self, other):
        return binary(ADD, self, other)

    def __radd__(self, other):
        return binary(ADD, other, self)

    def __sub__(self, other):
        return binary(SUB, self, other)

    def __rsub__(self, other):
        return binary(SUB, other, self)

    def __mul__(self, other):
        return binary(MUL, self, other)

    def __rmul__(self, other):
        return binary(MUL, other, self)

    def __truediv__(self, other):
        return xp.divide(self, other)

    def __rtruediv__(self, other):
        return xp.divide(other, self)

    def __floordiv__(self, other):
        return xp.floor_divide(self, other)

    def __rfloordiv__(self, other):
        return xp.floor_divide(other, self)

    def __mod__(self, other):
        return xp.remainder(self, other)

    def __rmod__(self, other):
        return xp.remainder(other, self)

    def __pow__(self, other):
        return xp.pow(self, other)

    def __rpow__(self, other):
        return xp.pow(other, self)

    def __matmul__(self, other):
        return xp.matmul(self, other)

    def __rmatmul__(self, other):
        return xp.matmul(other, self)

    def __neg__(self):
        return emit(NEG, self.node)

    def __pos__(self):
        return self

    def __abs__(self):
        return xp.abs(self)

    # ---- comparisons and bits ----------------------------------------------------------------------------
    def __eq__(self, other):
        return xp.equal(self, other)

    def __ne__(self, other):
        return xp.not_equal(self, other)

    def __lt__(self, other):
        return xp.less(self, other)

    def __le__(self, other):
        return xp.less_equal(self, other)

    def __gt__(self, other):
        return xp.greater(self, other)

    def __ge__(self, other):
        return xp.greater_equal(self, other)

    def __and__(self, other):
        return xp.bitwise_and(self, other)

    def __rand__(self, other):
        return xp.bitwise_and(other, self)

    def __or__(self, other):
        return xp.bitwise_or(self, other)

    def __ror__(self, other):
        return xp.bitwise_or(other, self)

    def __xor__(self, other):
        return xp.bitwise_xor(self, other)

    def __rxor__(self, other):
        return xp.bitwise_xor(other, self)

    def __lshift__(self, other):
        return xp.bitwise_left_shift(self, other)

    def __rlshift__(self, other):
        return xp.bitwise_left_shift(other, self)

    def __rshift__(self, other):
        return xp.bitwise_right_shift(self, other)

    def __rrshift__(self, other):
        return xp.bitwise_right_shift(other, self)

    def __invert__(self):
        return xp.bitwise_invert(self)

    # ---- methods -----------------------------------------------------------------------------------------
    @property
    def T(self) -> Tensor:
        """The transpose of a matrix."""
        if self.ndim != 2:
            raise xp.ShapeError(f"T: expected 2 axes, got {list(self.shape)}; use mT or permute_dims")
        return xp.matrix_transpose(self)

    @property
    def mT(self) -> Tensor:
        """The transpose of the last two axes."""
        return xp.matrix_transpose(self)

    def astype(self, dtype: DTypeLike) -> Tensor:
        """The values in another dtype."""
        return xp.astype(self, dtype)

    def reshape(self, *shape) -> Tensor:
        """The elements in another shape; one size may be -1."""
        return xp.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def flatten(self) -> Tensor:
        """The elements as one axis."""
        return xp.reshape(self, (-1,))

    def permute(self, *axes) -> Tensor:
        """Axis d of the result is axis `axes[d]`."""
        return xp.permute_dims(self, axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes)

    def squeeze(self, axis: Axes) -> Tensor:
        """Without axes of size 1."""
        return xp.squeeze(self, axis)

    def sum(self, axis: Axes = None, *, dtype: DTypeLike | None = None, keepdims: bool = False) -> Tensor:
        """See `array.sum`."""
        return xp.sum(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Axes = None, *, dtype: DTypeLike | None = None, keepdims: bool = False) -> Tensor:
        """See `array.prod`."""
        return xp.prod(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """See `array.mean`."""
        return xp.mean(self, axis=axis, keepdims=keepdims)

    def var(self, axis: Axes = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
        """See `array.var`."""
        return xp.var(self, axis=axis, correction=correction, keepdims=keepdims)

    def std(self, axis: Axes = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
        """See `array.std`."""
        return xp.std(self, axis=axis, correction=correction, keepdims=keepdims)

    def max(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """See `array.max`."""
        return xp.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """See `array.min`."""
        return xp.min(self, axis=axis, keepdims=keepdims)

    def any(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """See `array.any`."""
        return xp.any(self, axis=axis, keepdims=keepdims)

    def all(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """See `array.all`."""
        return xp.all(self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """See `array.argmax`."""
        return xp.argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """See `array.argmin`."""
        return xp.argmin(self, axis=axis, keepdims=keepdims)


def emit(op: Op, *nodes: Node) -> Tensor:
    """A tensor over a new node."""
    return Tensor(make(op, *nodes))


def binary(op: Op, a: ArrayLike, b: ArrayLike) -> Tensor:
    """An element-wise op on two operands, promoted and broadcast where they differ."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        x, y = a.node, b.node
        if x.type.dtype is y.type.dtype and x.type.shape == y.type.shape:
            return Tensor(make(op, x, y))
    elif type(a) is float or type(b) is float:  # the usual constants, the quick way
        x = getattr(b if type(a) is float else a, "node", None)
        if x is not None and x.type.dtype.is_float:
            loc = current_loc()
            y = fill(a if type(a) is float else b, x.type.dtype, x.type.shape, loc)
            return Tensor(make(op, *((y, x) if type(a) is float else (x, y)), loc=loc))
    return Tensor(make(op, *promoted(a, b)))
