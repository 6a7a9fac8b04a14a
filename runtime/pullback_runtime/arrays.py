"""What callers pass -> the arrays that compiled code reads: any array library, lists, scalars; safe conversions."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from .errors import ArgumentError

if TYPE_CHECKING:
    from .dlpack import Imported

_NUMPY = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "i8": np.int8,
    "u32": np.uint32, "u8": np.uint8, "bool": np.bool_,
}  # fmt: skip
_KINDS = {"f": "floating point", "i": "integer", "u": "unsigned integer", "b": "bool", "c": "complex"}


def numpy_dtype(name: str) -> np.dtype:
    """numpy's type of an element type.  bf16 needs the package ml_dtypes."""
    if name == "bf16":
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("bf16 arrays need the package ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_NUMPY[name])


_GPU = (2, 13)
"""DLPack's kinds of CUDA's devices: plain and managed memory."""


def device_of(value: object) -> tuple[int, int] | None:
    """DLPack's kind and number of the device that an array lies on; None if it does not say."""
    if hasattr(value, "__dlpack_device__"):
        with contextlib.suppress(BufferError, RuntimeError, TypeError, ValueError):
            kind, number = value.__dlpack_device__()
            return int(kind), int(number)
    return None


def is_on_gpu(value: object) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return False
    where = device_of(value)
    if where is None:  # libraries without DLPack; torch's meta tensors have one, which does not say where they are
        return not hasattr(value, "__dlpack_device__") and hasattr(type(value), "__cuda_array_interface__")
    return where[0] in _GPU


def as_array(value, what: str) -> np.ndarray:
    """`value` as a numpy array, without a copy if it is one or speaks DLPack (torch, jax, ...).

    what: "train: input 'x'", for messages.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic) and not is_on_gpu(value):
        # Read-only memory and types that numpy lacks are refused by some exporters.
        with contextlib.suppress(BufferError, RuntimeError, TypeError, ValueError):
            return np.from_dlpack(value)
    reason = ""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, BufferError) as e:
        array, reason = np.array(None), f" ({e})"
    if array.dtype == object:
        if hasattr(value, "__dlpack__") and (bfloat16 := _bfloat16(value, what)) is not None:
            return bfloat16
        if is_on_gpu(value):
            how = "load the program with device='cuda', or copy the array to the host"
            raise ArgumentError(f"{what}: expected an array in host memory, got one on a GPU: {how}")
        raise ArgumentError(f"{what}: expected an array, got {type(value).__name__}{reason}")
    return array


class _Memory:
    """Memory of another library as numpy understands it, 16 bits an element; its arrays keep it alive."""

    def __init__(self, given: Imported):
        self.given = given
        strides = None if given.strides is None else tuple(2 * s for s in given.strides)
        place = {"data": (given.address, True), "shape": given.shape, "strides": strides}
        self.__array_interface__ = {"version": 3, "typestr": "<u2", **place}


def _bfloat16(value, what: str) -> np.ndarray | None:
    """A bf16 array of another library (torch) in host memory, without a copy; None if it is something else."""
    from .dlpack import CPU, consume

    try:
        given = consume(value.__dlpack__())
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None
    if given.dtype != "bf16" or given.device[0] != CPU:
        return None
    try:
        return np.asarray(_Memory(given)).view(numpy_dtype("bf16"))
    except ImportError as e:
        raise ImportError(f"{what}: {e}") from None


def is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.kind == "V" and dtype.name == "bfloat16"


def convert(array: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """`array` with exactly the element type `dtype`, C-contiguous, aligned, in native byte order.

    Floats become other floats if none becomes infinite, integers other integers if every value fits, integers and
    bools become floats.  Everything else is refused: it would lose what the caller meant.
    """
    target = numpy_dtype(dtype)
    if array.dtype != target:
        kind = "f" if is_bfloat16(array.dtype) else array.dtype.kind
        wanted = "f" if dtype == "bf16" else target.kind
        if kind in "iu" and wanted in "iu":
            _check_range(array, target, what)
        elif not ((kind in "fiub" and wanted == "f") or (kind == "b" and wanted in "iu")):
            raise ArgumentError(
                f"{what}: expected {dtype}, got {array.dtype} "
                f"({_KINDS.get(kind, 'other')} data is not converted to {_KINDS[wanted]})"
            )
        with np.errstate(over="ignore"):
            given, array = array, array.astype(target)
        if wanted == "f":
            _check_finite(given, array, dtype, what)
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = array.copy(order="C")
    return array


def _check_range(array: np.ndarray, target: np.dtype, what: str) -> None:
    info = np.iinfo(target)
    if array.size == 0 or (np.iinfo(array.dtype).min >= info.min and np.iinfo(array.dtype).max <= info.max):
        return
    low, high = int(array.min()), int(array.max())
    if low < info.min or high > info.max:
        wrong = low if low < info.min else high
        raise ArgumentError(f"{what}: value {wrong} does not fit into {target} ({info.min} to {info.max})")


def _check_finite(given: np.ndarray, converted: np.ndarray, dtype: str, what: str) -> None:
    infinite = np.isinf(converted)
    if infinite.any() and (lost := infinite & np.isfinite(given)).any():
        raise ArgumentError(f"{what}: value {given[lost][0]} does not fit into {dtype}: it would become infinite")


def raw(array: np.ndarray) -> np.ndarray:
    """The array as compiled code is given it: bf16 as 16-bit integers, for numpy has no kind of its own for it."""
    return array.view(np.uint16) if is_bfloat16(array.dtype) else array
