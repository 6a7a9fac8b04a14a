"""DLPack's C structures through ctypes: arrays on a GPU to and from other libraries, without copies.

Source: dlpack.h, version 0.8 (`DLManagedTensor`); the Python side is of the array API standard (`__dlpack__`).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from dataclasses import dataclass

CPU, CUDA = 1, 2
"""Kinds of devices."""

_TYPES = {
    "f64": (2, 64), "f32": (2, 32), "f16": (2, 16), "bf16": (4, 16), "i64": (0, 64), "i32": (0, 32), "i8": (0, 8),
    "u32": (1, 32), "u8": (1, 8), "bool": (6, 8),
}  # fmt: skip
"""Element type -> (code, bits)"""
_NAMES = {v: k for k, v in _TYPES.items()}
_CODES = {0: "int", 1: "uint", 2: "float", 3: "opaque", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("manager", c_void_p), ("deleter", _Deleter)]

_api = ctypes.PyDLL(None)
_new, _pointer, _is_valid, _rename = (
    getattr(_api, f"PyCapsule_{n}") for n in ("New", "GetPointer", "IsValid", "SetName")
)
_new.restype, _new.argtypes = ctypes.py_object, (c_void_p, c_char_p, c_void_p)
_pointer.restype, _pointer.argtypes = c_void_p, (ctypes.py_object, c_char_p)
_is_valid.argtypes = _rename.argtypes = (ctypes.py_object, c_char_p)
_NAME, _USED = b"dltensor", b"used_dltensor"


@_Deleter
def _delete(managed) -> None:
    """Drop the reference that an exported structure holds: to what must live as long as it."""
    ctypes.pythonapi.Py_DecRef(ctypes.cast(managed.contents.manager, ctypes.py_object))


def capsule(address: int, device: tuple[int, int], dtype: str, shape: tuple[int, ...], owner: object) -> object:
    """A capsule over contiguous memory, which `owner` keeps alive until the consumer lets it go.

    It has no destructor, so `owner` stays if nobody consumes it: a destructor may be called while an exception is on
    its way, when Python code cannot run.
    """
    code, bits = _TYPES[dtype]
    managed, sizes = _Managed(), (c_int64 * max(len(shape), 1))(*shape)
    managed.tensor = _Tensor(address, *device, len(shape), code, bits, 1, sizes, None, 0)
    managed.deleter = _delete
    kept = managed, sizes, owner
    managed.manager = id(kept)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    return _new(ctypes.addressof(managed), _NAME, None)


@dataclass
class Imported:
    """What a consumed capsule holds; its memory lives as long as this does.  `strides` are elements."""

    address: int
    device: tuple[int, int]
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    managed: object

    def __del__(self) -> None:
        if self.managed.contents.deleter:
            self.managed.contents.deleter(self.managed)


def consume(given: object) -> Imported:
    """Take over the array of a capsule; ValueError if it is none."""
    if not _is_valid(given, _NAME):
        raise ValueError("not a DLPack capsule that is still to be consumed")
    managed = ctypes.cast(_pointer(given, _NAME), POINTER(_Managed))
    _rename(given, _USED)
    t = managed.contents.tensor
    dtype = _NAMES.get((t.code, t.bits)) if t.lanes == 1 else None
    return Imported(
        (t.data or 0) + t.byte_offset,
        (t.device_type, t.device_id),
        dtype or f"{_CODES.get(t.code, 'type')}{t.bits}" + (f"x{t.lanes}" if t.lanes != 1 else ""),
        tuple(t.shape[: t.ndim]),
        tuple(t.strides[: t.ndim]) if t.strides else None,
        managed,
    )
