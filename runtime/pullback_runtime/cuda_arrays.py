"""Arrays on a GPU: what a step returns (`DeviceArray`), and those of other libraries, used where they lie.

They speak `__cuda_array_interface__` (version 3) and DLPack in both directions, so PyTorch, JAX, CuPy and Numba take
them and give them without copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import dlpack
from .arrays import device_of, numpy_dtype
from .cuda_context import DEFAULT_STREAM
from .errors import ArgumentError, DeviceError
from .format import ITEM_SIZE

if TYPE_CHECKING:
    from .cuda_context import Block, Context

_DTYPES = {
    "<f8": "f64", "<f4": "f32", "<f2": "f16", "<i8": "i64", "<i4": "i32", "|i1": "i8", "<u4": "u32", "|u1": "u8",
    "|b1": "bool",
}  # fmt: skip
_TYPESTR = {v: k for k, v in _DTYPES.items()} | {"bf16": "<V2"}


class DeviceArray:
    """An array in a GPU's memory, C-contiguous, written by a step or by `Program.put`; the memory is its own.

    `np.asarray(x)`, `x.numpy()` and `float(x)` wait for the device and copy; `torch.from_dlpack(x)` does not copy.
    Reading raises what went wrong in the steps so far (`CheckError`, ...).
    """

    def __init__(self, context: Context, address: int, dtype: str, shape: tuple[int, ...], owner: Block):
        self._context, self.address, self.dtype, self.shape, self._owner = context, address, dtype, shape, owner

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        with self._context.use() as c:
            c.wait()
            data = c.read(self.address, self.nbytes)
        return data.view(numpy_dtype(self.dtype)).reshape(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on a GPU cannot be a numpy array without a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def item(self):
        return self.numpy().item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def first(self, rows: int) -> DeviceArray:
        """The first rows, in the same memory."""
        return DeviceArray(self._context, self.address, self.dtype, (rows, *self.shape[1:]), self._owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        self._owner.streams.add(DEFAULT_STREAM)
        return {
            "shape": self.shape,
            "typestr": _TYPESTR[self.dtype],
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": int(self._context.stream),
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._context.device.number

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None) -> object:
        """`stream`: the consumer's, which will wait for ours (None and 1: the default one; -1: it does so itself)."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("copies and other devices: use numpy() or the consumer's own")
        self._owner.streams.add(stream if stream and stream > 0 else DEFAULT_STREAM)
        if stream != -1:
            with self._context.use() as c:
                c.let_wait(stream or DEFAULT_STREAM)
        return dlpack.capsule(self.address, self.__dlpack_device__(), self.dtype, self.shape, self)

    def __repr__(self) -> str:
        return f"<{self.dtype}{list(self.shape)} on cuda:{self._context.device.number}>"


@dataclass
class Foreign:
    """Another library's array on a GPU.  `owner` keeps its memory alive; `stream` is where the library's next work on
    it may be."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    contiguous: bool
    owner: object
    stream: int = DEFAULT_STREAM

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


def foreign(value: object, context: Context, what: str) -> Foreign:
    """An array on the GPU of `context`, whose stream waits for the array's; `what` is for messages."""
    where = device_of(value)
    if where is not None and where[1] != context.device.number:
        raise ArgumentError(f"{what}: lies on cuda:{where[1]}, but the program on {context.device}")
    if where is not None:
        stream = int(context.stream)
        try:
            array = dlpack.consume(value.__dlpack__(stream=stream))
        except (BufferError, RuntimeError, TypeError, ValueError) as e:
            raise ArgumentError(f"{what}: {type(value).__name__} does not give its memory: {e}") from None
        contiguous = array.strides is None or _contiguous(array.shape, array.strides)
        return Foreign(array.address, array.dtype, array.shape, contiguous, array)
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ArgumentError(f"{what}: masked arrays are not taken")
    text = interface["typestr"]
    dtype, shape, strides = _DTYPES.get(text, text), tuple(interface["shape"]), interface.get("strides")
    item = ITEM_SIZE.get(dtype, 1)
    contiguous = strides is None or _contiguous(shape, tuple(s // item for s in strides))
    stream = interface.get("stream", DEFAULT_STREAM)  # before version 3 nothing was said about it
    if stream is not None:
        try:
            context.wait_for(stream)
        except DeviceError as e:
            raise ArgumentError(f"{what}: its stream {stream} cannot be waited for: {e}") from None
    return Foreign(interface["data"][0], dtype, shape, contiguous, value, stream or DEFAULT_STREAM)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and s != expected and 0 not in shape:
            return False
        expected *= n
    return True
