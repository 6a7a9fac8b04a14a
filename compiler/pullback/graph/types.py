"""Types of the graph IR: element types and static tensor types.

`DType.numpy` is the array type with which the evaluators hold a value.  bfloat16 has no numpy type
without an extra, so evaluators hold it as float32 and call `DType.round` after every operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import ShapeError


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.  `kind`: 'f' float, 'i' signed, 'u' unsigned, 'b' bool; `bits` in memory."""

    name: str
    kind: str
    bits: int

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def size(self) -> int:
        """Bytes of one element in memory."""
        return max(self.bits // 8, 1)

    @property
    def numpy(self) -> np.dtype:
        """The numpy type that holds a value in the evaluators (bf16: float32)."""
        return _NUMPY[self.name]

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def compute(self) -> DType:
        """The type in which arithmetic on this type is done (bf16 and f16 go through f32)."""
        return f32 if self.kind == "f" and self.bits == 16 else self

    def round(self, array: np.ndarray) -> np.ndarray:
        """`array` with this type's values: cast, and for bf16 rounded to nearest even."""
        if self.name != "bf16":
            return np.asarray(array).astype(self.numpy, copy=False)
        x = np.ascontiguousarray(np.asarray(array, np.float32))
        bits = x.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        out = rounded.astype(np.uint32).view(np.float32)
        return np.where(np.isnan(x), np.float32(np.nan), out).reshape(np.shape(array))

    def __getitem__(self, dims) -> Spec:
        """`f32[batch, 64]`: the specification of one function argument."""
        return Spec(self, dims if isinstance(dims, tuple) else (dims,))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Dim:
    """A named dimension, bound when the program is built (`--dim batch=64`)."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Spec:
    """dtype and shape of a function argument; the shape may hold named dimensions."""

    dtype: DType
    shape: tuple[int | Dim, ...]

    def __post_init__(self):
        for d in self.shape:
            if not isinstance(d, Dim) and (not isinstance(d, int | np.integer) or isinstance(d, bool) or d < 0):
                raise ShapeError(
                    f"{self}: {d!r} is no dimension: expected a size, or a name for one that is bound when the program "
                    'is built: pb.dim("batch")'
                )

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


f64, f32, bf16, f16 = (
    DType("f64", "f", 64),
    DType("f32", "f", 32),
    DType("bf16", "f", 16),
    DType("f16", "f", 16),
)
i64, i32, i8 = DType("i64", "i", 64), DType("i32", "i", 32), DType("i8", "i", 8)
u32, u8 = DType("u32", "u", 32), DType("u8", "u", 8)
bool_ = DType("bool", "b", 8)

DTYPES: dict[str, DType] = {d.name: d for d in (f64, f32, bf16, f16, i64, i32, i8, u8, u32, bool_)}

_NUMPY = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "u32": np.dtype(np.uint32),
    "bool": np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and static shape of one tensor."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.size

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TupleType:
    """The type of a node with several results (scan); `Item` nodes take them apart."""

    items: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


Type = TensorType | TupleType
