"""Tensor maps: what `cuTensorMapEncodeTiled` makes on a GPU, in an encoding of our own, with the driver's rules."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_MAGIC = 0x50424D54
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}


class TensorMap:
    """Boxes of a numpy array, for `cp.async.bulk.tensor`.

    `box` has the array's order (slowest first), as its shape; coordinates in the kernel are fastest first.
    `swizzle`: 0, 32, 64 or 128 bytes.  The array must be contiguous along its last axis.
    `tf32`: f32 is rounded to 10 bits of mantissa on its way.
    """

    def __init__(self, array: np.ndarray, box: Sequence[int], swizzle: int = 0, tf32: bool = False):
        self.array, self.box, self.swizzle, self.tf32 = array, tuple(box), swizzle, tf32
        rank, item = array.ndim, array.itemsize
        if not 1 <= rank <= 5 or len(self.box) != rank:
            raise ValueError(f"a tensor map of {rank} dimensions (1 to 5) with a box of {len(self.box)}")
        if swizzle not in SWIZZLES:
            raise ValueError(f"swizzle {swizzle}: expected {', '.join(map(str, SWIZZLES))}")
        if any(not 1 <= b <= 256 for b in self.box):
            raise ValueError(f"box {self.box}: every side must be 1 to 256")
        inner = self.box[-1] * item
        if inner % 16 or (swizzle and inner > swizzle):
            raise ValueError(
                f"rows of the box have {inner} bytes: a multiple of 16 is needed, at most {swizzle or inner}"
            )
        if tf32 and array.dtype != np.float32:
            raise ValueError(f"tf32 of {array.dtype}: expected float32")
        if array.strides[-1] != item or any(s % 16 or s <= 0 for s in array.strides[:-1]):
            raise ValueError(f"strides {array.strides}: the last must be {item}, the others multiples of 16")

    def encode(self, address: int) -> np.ndarray:
        """The 128 bytes, 64-byte aligned, for an array that lies at `address`."""
        if address % 16:
            raise ValueError(f"a tensor map of memory at {address:#x}: must be a multiple of 16")
        a = self.array
        dims, strides, box = a.shape[::-1], a.strides[::-1][1:], self.box[::-1]
        head = struct.pack("<IIIIQ", a.ndim, a.itemsize, SWIZZLES[self.swizzle], _MAGIC, address)
        body = struct.pack("<5q4q5HH", *_fill(dims, 5), *_fill(strides, 4), *_fill(box, 5), self.tf32)
        room = np.zeros(192, np.uint8)
        out = room[-room.ctypes.data % 64 :][:128]
        out[: len(head) + len(body)] = np.frombuffer(head + body, np.uint8)
        return out


def _fill(values: Sequence[int], count: int) -> list[int]:
    return [*values, *[0] * (count - len(values))]
