"""The double of NVIDIA's driver (`cuda_double.py`): how its functions are made, memory, streams and events."""

from __future__ import annotations

import ctypes
import functools
import random
import threading
from collections.abc import Callable, Mapping
from enum import IntEnum

import numpy as np
from simt.emulator import Emulator, Module, device_array

CUresult = IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0, "CUDA_ERROR_INVALID_VALUE": 1, "CUDA_ERROR_OUT_OF_MEMORY": 2,
        "CUDA_ERROR_NOT_INITIALIZED": 3, "CUDA_ERROR_NO_DEVICE": 100, "CUDA_ERROR_INVALID_DEVICE": 101,
        "CUDA_ERROR_INVALID_CONTEXT": 201, "CUDA_ERROR_NO_BINARY_FOR_GPU": 209, "CUDA_ERROR_INVALID_PTX": 218,
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": 222, "CUDA_ERROR_INVALID_HANDLE": 400, "CUDA_ERROR_NOT_FOUND": 500,
        "CUDA_ERROR_NOT_READY": 600, "CUDA_ERROR_ILLEGAL_ADDRESS": 700, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": 803,
    },
)  # fmt: skip
R = CUresult


class Failure(Exception):
    """Ends a call with an error code."""


def require(condition: object, code: CUresult = R.CUDA_ERROR_INVALID_VALUE) -> None:
    if not condition:
        raise Failure(code)


class Handle:
    """What the driver gives out; `alive` until it is destroyed."""

    def __init__(self, number: int, **fields):
        self.number, self.alive = number, True
        self.__dict__.update(fields)

    def __int__(self) -> int:
        return self.number

    def getPtr(self) -> int:
        return self.memory.ctypes.data


class CUDA_KERNEL_NODE_PARAMS:
    func = None
    gridDimX = gridDimY = gridDimZ = blockDimX = blockDimY = blockDimZ = sharedMemBytes = 0
    kernelParams = 0


class CUDA_MEMCPY3D:
    srcMemoryType = srcDevice = dstMemoryType = dstHost = WidthInBytes = Height = Depth = 0


class _Stream:
    """Operations that are still to come; `done` of all that ever came are done."""

    def __init__(self):
        self.waiting: list[Callable[[], None]] = []
        self.done = 0

    def add(self, operation: Callable[[], None]) -> None:
        self.waiting.append(operation)

    def run(self, until: int | None = None) -> None:
        while self.waiting and (until is None or self.done < until):
            operation = self.waiting.pop(0)
            self.done += 1
            operation()


@functools.cache
def module(text: str, order: str, check: bool) -> Module:
    return Emulator(order, check).load(text)


def driver_call(f):
    """A function of the driver: recorded, and failures become its first result."""

    @functools.wraps(f)
    def call(self, *args):
        with self.lock:
            return locked(self, *args)

    def locked(self, *args):
        self.calls.append((f.__name__, args))
        try:
            if f.__name__ not in ("cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"):
                require(self.initialised, R.CUDA_ERROR_NOT_INITIALIZED)
            if f.__name__ in self.failures:
                raise Failure(self.failures[f.__name__])
            out = f(self, *args)
        except Failure as e:
            return e.args[0], *[None] * f.results
        return R.CUDA_SUCCESS, *(out if isinstance(out, tuple) else () if out is None else (out,))

    returns = f.__annotations__["return"]
    f.results = 0 if returns == "None" else 2 if returns.startswith("tuple") else 1
    return call


class Base:
    CUresult = CUresult
    CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY3D = CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY3D
    CUdevice_attribute = IntEnum(
        "CUdevice_attribute",
        {
            "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 16,
            "CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR": 39,
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
        },
    )
    CUjit_option = IntEnum(
        "CUjit_option",
        {"CU_JIT_ERROR_LOG_BUFFER": 5, "CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES": 6, "CU_JIT_GENERATE_LINE_INFO": 13},
    )
    CUstream_flags = IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
    CUevent_flags = IntEnum("CUevent_flags", {"CU_EVENT_DISABLE_TIMING": 2})
    CUmemorytype = IntEnum("CUmemorytype", {"CU_MEMORYTYPE_HOST": 1, "CU_MEMORYTYPE_DEVICE": 2})
    CUpointer_attribute = IntEnum("CUpointer_attribute", {"CU_POINTER_ATTRIBUTE_MEMORY_TYPE": 2})
    CUfunction_attribute = IntEnum(
        "CUfunction_attribute",
        {"CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES": 3, "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": 8},
    )

    def __init__(
        self,
        kernels: Mapping[str, str],
        name: str = "NVIDIA Double",
        capability: tuple[int, int] = (9, 0),
        memory: int = 1 << 30,
        version: int = 13000,
        devices: int = 1,
        order: str = "forward",
        check: bool = True,
    ):
        self.kernels, self.name, self.capability, self.memory = dict(kernels), name, capability, memory
        self.version, self.devices, self.order, self.check = version, devices, order, check
        self.calls: list[tuple[str, tuple]] = []
        self.failures: dict[str, CUresult] = {}
        """Functions that fail, and how: for tests."""
        self.local_bytes = 0
        """Local memory of each thread of every kernel."""
        self.initialised = False
        self.log = "ptxas application ptx input, line 1; fatal   : Parsing error near 'x': syntax error"
        self.arrays: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams = {1: _Stream(), 2: _Stream()}
        self.handles: dict[int, Handle] = {}
        self.retained = 0
        self.local, self.lock = threading.local(), threading.RLock()
        self.random = random.Random(0)

    # ---- handles -----------------------------------------------------------------------------------------
    def _new(self, **fields) -> Handle:
        handle = Handle(0x1000 + 16 * len(self.handles), **fields)
        self.handles[handle.number] = handle
        return handle

    def _alive(self, handle, field: str) -> Handle:
        """A handle that has not been destroyed, of the kind that has `field`."""
        found = self.handles.get(int(handle))
        require(found and found.alive and hasattr(found, field), R.CUDA_ERROR_INVALID_HANDLE)
        return found

    def _destroy(self, handle, field: str) -> None:
        self._alive(handle, field).alive = False

    def _stack(self) -> list:
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        return self.local.stack

    def _current(self) -> None:
        require(self._stack() and self._stack()[-1].alive, R.CUDA_ERROR_INVALID_CONTEXT)

    def _stream(self, stream) -> _Stream:
        self._current()
        if int(stream) in self.streams:
            return self.streams[int(stream)]
        return self._alive(stream, "stream").stream

    # ---- the driver, devices, contexts ---------------------------------------------------------------------
    @driver_call
    def cuInit(self, Flags) -> None:
        require(Flags == 0)
        require(self.devices, R.CUDA_ERROR_NO_DEVICE)
        self.initialised = True

    @driver_call
    def cuDriverGetVersion(self) -> int:
        return self.version

    @driver_call
    def cuGetErrorName(self, error) -> bytes:
        return R(error).name.encode()

    @driver_call
    def cuGetErrorString(self, error) -> bytes:
        return R(error).name[len("CUDA_ERROR_") :].lower().replace("_", " ").encode()

    @driver_call
    def cuDeviceGetCount(self) -> int:
        return self.devices

    @driver_call
    def cuDeviceGet(self, ordinal) -> Handle:
        require(0 <= ordinal < self.devices, R.CUDA_ERROR_INVALID_DEVICE)
        return self._new(device=ordinal)

    @driver_call
    def cuDeviceGetName(self, length, dev) -> bytes:
        self._alive(dev, "device")
        return self.name.encode().ljust(length, b"\0")

    @driver_call
    def cuDeviceGetAttribute(self, attrib, dev) -> int:
        self._alive(dev, "device")
        return {16: 132, 39: 2048, 75: self.capability[0], 76: self.capability[1]}[attrib]

    @driver_call
    def cuDevicePrimaryCtxRetain(self, dev) -> Handle:
        self._alive(dev, "device")
        self.retained += 1
        return self._new(context=True)

    @driver_call
    def cuDevicePrimaryCtxRelease(self, dev) -> None:
        self._alive(dev, "device")
        require(self.retained, R.CUDA_ERROR_INVALID_CONTEXT)
        self.retained -= 1

    @driver_call
    def cuCtxPushCurrent(self, ctx) -> None:
        self._stack().append(self._alive(ctx, "context"))

    @driver_call
    def cuCtxPopCurrent(self) -> Handle:
        self._current()
        return self._stack().pop()

    @driver_call
    def cuCtxGetCurrent(self) -> Handle:
        self._current()
        return self._stack()[-1]

    @driver_call
    def cuCtxSynchronize(self) -> None:
        self._current()
        self._drain()

    # ---- memory --------------------------------------------------------------------------------------------
    @driver_call
    def cuMemGetInfo(self) -> tuple[int, int]:
        self._current()
        return self.memory - sum(a.nbytes for a in self.arrays.values()), self.memory

    @driver_call
    def cuMemAlloc(self, bytesize) -> Handle:
        self._current()
        require(bytesize > 0)
        used = sum(a.nbytes for a in self.arrays.values())
        require(used + bytesize <= self.memory, R.CUDA_ERROR_OUT_OF_MEMORY)
        array = device_array(bytesize, np.uint8)  # its address is a multiple of 256
        array[...] = 0xA5
        self.arrays[array.ctypes.data] = array
        return Handle(array.ctypes.data)

    @driver_call
    def cuMemFree(self, dptr) -> None:
        self._current()
        require(int(dptr) in self.arrays)
        self._drain()
        del self.arrays[int(dptr)]

    @driver_call
    def cuMemHostAlloc(self, bytesize, Flags) -> int:
        self._current()
        require(bytesize > 0)
        array = np.full(bytesize, 0xA5, np.uint8)
        self.pinned[array.ctypes.data] = array
        return array.ctypes.data

    @driver_call
    def cuMemFreeHost(self, p) -> None:
        self._current()
        require(p in self.pinned)
        self._drain()
        del self.pinned[p]

    def _within(self, arrays: dict[int, np.ndarray], address: int, count: int) -> np.ndarray | None:
        for start, a in arrays.items():
            if start <= address and address + count <= start + a.nbytes:
                return a[address - start : address - start + count]
        return None

    def _device(self, address, count: int) -> np.ndarray:
        found = self._within(self.arrays, int(address), count)
        require(found is not None)
        return found

    def _host(self, source, count: int) -> tuple[np.ndarray, bool]:
        """(bytes, are they pinned?)"""
        if not isinstance(source, int):
            data = np.frombuffer(source, np.uint8)
            require(data.nbytes >= count)
            return data[:count], False
        found = self._within(self.pinned, source, count)
        if found is not None:
            return found, True
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(source)), False

    def _drain(self) -> None:
        for s in [*self.streams.values(), *(h.stream for h in self.handles.values() if hasattr(h, "stream"))]:
            s.run()

    @driver_call
    def cuPointerGetAttribute(self, attribute, ptr) -> int:
        self._current()
        require(attribute == self.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
        if self._within(self.arrays, ptr, 1) is not None:
            return self.CUmemorytype.CU_MEMORYTYPE_DEVICE
        require(self._within(self.pinned, ptr, 1) is not None)
        return self.CUmemorytype.CU_MEMORYTYPE_HOST

    @driver_call
    def cuMemcpyHtoDAsync(self, dstDevice, srcHost, ByteCount, hStream) -> None:
        target, stream = self._device(dstDevice, ByteCount), self._stream(hStream)
        data, pinned = self._host(srcHost, ByteCount)
        source = data if pinned else data.copy()  # pageable memory is staged before the call returns
        stream.add(lambda: np.copyto(target, source))

    @driver_call
    def cuMemcpyDtoHAsync(self, dstHost, srcDevice, ByteCount, hStream) -> None:
        source, stream = self._device(srcDevice, ByteCount), self._stream(hStream)
        target, pinned = self._host(dstHost, ByteCount)
        stream.add(lambda: np.copyto(target, source))
        if not pinned:
            stream.run()

    @driver_call
    def cuMemcpyDtoH(self, dstHost, srcDevice, ByteCount) -> None:
        self._current()
        np.copyto(self._host(dstHost, ByteCount)[0], self._device(srcDevice, ByteCount))

    @driver_call
    def cuMemcpyDtoDAsync(self, dstDevice, srcDevice, ByteCount, hStream) -> None:
        target, source = self._device(dstDevice, ByteCount), self._device(srcDevice, ByteCount)
        self._stream(hStream).add(lambda: np.copyto(target, source))

    @driver_call
    def cuMemsetD8Async(self, dstDevice, uc, N, hStream) -> None:
        target = self._device(dstDevice, N)
        require(0 <= uc < 256)
        self._stream(hStream).add(lambda: target.fill(uc))

    # ---- streams and events --------------------------------------------------------------------------------
    @driver_call
    def cuStreamCreate(self, Flags) -> Handle:
        self._current()
        return self._new(stream=_Stream())

    @driver_call
    def cuStreamDestroy(self, hStream) -> None:
        self._current()
        self._alive(hStream, "stream").stream.run()
        self._destroy(hStream, "stream")

    @driver_call
    def cuStreamSynchronize(self, hStream) -> None:
        self._stream(hStream).run()

    @driver_call
    def cuStreamWaitEvent(self, hStream, hEvent, Flags) -> None:
        stream, at = self._stream(hStream), self._alive(hEvent, "at").at
        if at is not None:
            stream.add(lambda: at[0].run(at[1]))

    @driver_call
    def cuEventCreate(self, Flags) -> Handle:
        self._current()
        return self._new(at=None)

    @driver_call
    def cuEventDestroy(self, hEvent) -> None:
        self._destroy(hEvent, "at")

    @driver_call
    def cuEventRecord(self, hEvent, hStream) -> None:
        stream = self._stream(hStream)
        self._alive(hEvent, "at").at = stream, stream.done + len(stream.waiting)

    @driver_call
    def cuEventSynchronize(self, hEvent) -> None:
        at = self._alive(hEvent, "at").at
        if at is not None:
            at[0].run(at[1])

    @driver_call
    def cuEventQuery(self, hEvent) -> None:
        at = self._alive(hEvent, "at").at
        require(at is None or at[0].done >= at[1], R.CUDA_ERROR_NOT_READY)
