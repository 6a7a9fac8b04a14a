"""Programs on NVIDIA GPUs: `rt.load("m.so", device="cuda")`.

Needs NVIDIA's package cuda-bindings and its driver; PTX is assembled by the driver.  State stays on the device, and a
whole step is one CUDA graph (`cuda_graph.py`), which never changes: counters, seed and run-time scalars are state.

Results lie where the inputs lie.  With numpy arrays a call waits for its results.  If any input is an array on the
GPU (PyTorch, JAX, CuPy, `DeviceArray`; nothing is copied), the call returns at once with `DeviceArray`s, and the next
step can be queued.  A failed check is raised by the call that failed or, if that returned at once, by the next call or
the next reading of anything; the steps that were queued behind it have not changed state.
"""

from __future__ import annotations

import os
import zlib

import numpy as np

from .arrays import is_on_gpu, numpy_dtype
from .cuda_arrays import DeviceArray, Foreign, foreign
from .cuda_context import Context
from .cuda_driver import Device, choose
from .cuda_graph import check_steps
from .errors import ArgumentError, ArtifactError, StateError
from .format import CONSTANTS_SECTION, PTX_SECTION, Array, Manifest, StateEntry, array_size
from .format import Function as Entry
from .function import Binding
from .program import INIT, Program
from .sections import read_section
from .state import State


class CudaProgram(Program):
    """A program on a GPU; everything but threads is as for one on the processor."""

    def __init__(self, path: str | os.PathLike, seed: int = 0, device: int = 0, arrays: str | None = None):
        self._read(path)
        if arrays not in (None, "device"):
            raise ValueError(f"arrays must be None or 'device', got {arrays!r}")
        if not self.manifest.gpus:
            levels = ", ".join(x.cpu for x in self.manifest.levels)
            raise ArtifactError(f"{self.path}: holds no code for GPUs ({levels} only): build with --target cuda")
        self._arrays, gpu_device = arrays, Device(device)
        self.device = f"cuda:{device}"
        try:
            self.gpu = choose(self.manifest.gpus, gpu_device, self.path)
            check_steps(self.gpu, self.manifest, self.path)
            text = self._section(PTX_SECTION + self.gpu.name)
            try:
                text = zlib.decompress(text)
            except zlib.error as e:
                raise ArtifactError(f"{self.path}: the code for {self.gpu.name} is damaged ({e})") from None
            constants = self._section(CONSTANTS_SECTION)
        except (ArtifactError, RuntimeError):
            gpu_device.release()
            raise
        self.context = Context(self.path, self.manifest, self.gpu, gpu_device, text, constants)
        self._start(DeviceState(self.manifest, self.context), seed)

    def _section(self, name: str) -> bytes:
        return read_section(self.path, name)[1]

    def _binding(self, number: int, entry: Entry) -> Binding:
        return CudaBinding(self.context, self.manifest, number, entry, self._arrays)

    def _initialise(self, seed: int) -> None:
        number = next((i for i, f in enumerate(self.manifest.functions) if f.name == INIT), None)
        with self.context.use() as c:
            for s in self.manifest.state:
                if s.kind == "seed":
                    c.write(c.memory + s.offset, np.array([seed], np.uint64))
            if number is not None:
                c.run(number)
            c.wait()

    def put(self, array) -> DeviceArray:
        """A copy of an array on the program's GPU: an input that needs no copy any more."""
        array = np.array(array, order="C", copy=None)
        names = {numpy_dtype(n): n for n in ("f64", "f32", "f16", "i64", "i32", "i8", "u32", "u8", "bool")}
        dtype = "bf16" if array.dtype.name == "bfloat16" else names.get(array.dtype)
        if dtype is None:
            raise ArgumentError(f"put: an array of {array.dtype} has no place in a program")
        with self.context.use() as c:
            block = c.allocate(array.nbytes)
            c.send(block.address, array.reshape(-1).view(np.uint8))
        return DeviceArray(self.context, block.address, dtype, array.shape, block)

    def synchronize(self) -> None:
        """Wait until all steps are done; raises what went wrong in them."""
        with self.context.use() as c:
            c.wait()

    @property
    def device_bytes(self) -> int:
        """The device memory that the program needs, for everything but its code."""
        return self.context.layout.end

    @property
    def threads(self) -> int:
        """A GPU's steps do not use the processor's threads."""
        return 1

    @threads.setter
    def threads(self, count: int | None) -> None:
        raise ValueError(f"threads={count!r} is for device='cpu', but the device is {self.device!r}")

    def close(self) -> None:
        """Give the device's memory back.  State and arrays on the device are gone."""
        self.context.close()


class DeviceState(State):
    """State on a GPU.  Reading gives a copy, which is read-only: to change a state, assign to its name."""

    def __init__(self, manifest: Manifest, context: Context):
        super().__init__(manifest, None)
        self._context = context

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entry(name)
        with self._context.use() as c:
            c.wait()
            array = self.view(entry, c.read(c.memory + entry.offset, self._span(entry)), 0)
        array.flags.writeable = False
        return array

    def _span(self, entry: StateEntry) -> int:
        """The bytes from the first element of a state to the end of its last."""
        if 0 in entry.shape:
            return 0
        last = sum((n - 1) * s for n, s in zip(entry.shape, entry.strides, strict=True))
        return (last + 1) * numpy_dtype(entry.dtype).itemsize

    def __setitem__(self, name: str, value) -> None:
        if is_on_gpu(value):
            entry, what = self.entry(name), f"state {name!r}"
            with self._context.use() as c:
                value = foreign(value, c, what)
                if value.shape != entry.shape or value.dtype != entry.dtype or not _is_dense(value, entry):
                    raise StateError(
                        f"{what}: expected a contiguous {entry.dtype}{list(entry.shape)} on the GPU, got "
                        f"{value.dtype}{list(value.shape)}; other arrays are copied from the host"
                    )
                c.wait()
                c.copy(c.memory + entry.offset, value.address, self._span(entry))
                c.keep(value)
            return
        super().__setitem__(name, value)

    def write(self, entry: StateEntry, array: np.ndarray) -> None:
        with self._context.use() as c:
            c.wait()
            span = c.read(c.memory + entry.offset, self._span(entry))  # what lies between strided elements stays
            self.view(entry, span, 0)[...] = array
            c.write(c.memory + entry.offset, span)


def _is_dense(value: Foreign, entry: StateEntry) -> bool:
    dense, n = [], 1
    for d in reversed(entry.shape):
        dense.append(n)
        n *= d
    same = all(s == d or k == 1 for s, d, k in zip(entry.strides, reversed(dense), entry.shape, strict=True))
    return same and value.contiguous


class CudaBinding(Binding):
    """An entry point of a program on a GPU."""

    def __init__(self, context: Context, manifest: Manifest, number: int, entry: Entry, arrays: str | None):
        super().__init__(manifest, number, entry)
        self.context, self.arrays = context, arrays

    def array(self, value, what: str):
        if isinstance(value, DeviceArray) and value._context is self.context:
            return value
        if is_on_gpu(value):
            with self.context.use() as c:
                return foreign(value, c, what)
        if self.arrays == "device":
            raise ArgumentError(
                f"{what}: expected an array on {self.context.device}, got {type(value).__name__} in host memory: the "
                "program was loaded with arrays='device'; program.put(x) copies one there"
            )
        return super().array(value, what)

    def convert(self, array, argument: Array, what: str):
        if isinstance(array, np.ndarray):
            return super().convert(array, argument, what)
        if array.dtype != argument.dtype:
            raise ArgumentError(
                f"{what}: expected {argument.dtype}, got {array.dtype} (arrays on a GPU are not converted)"
            )
        if not getattr(array, "contiguous", True):
            raise ArgumentError(f"{what}: expected a C-contiguous array, got another order on the GPU")
        return array

    def pad(self, array, argument: Array):
        if isinstance(array, np.ndarray):
            return super().pad(array, argument)
        with self.context.use() as c:
            block = c.allocate(array_size(argument))
            row, done, end = array.nbytes // array.shape[0], array.nbytes, array_size(argument)
            c.copy(block.address, array.address, done)
            last = done - row
            while done < end:  # twice as many rows each time
                count = min(done - last, end - done)
                c.copy(block.address + done, block.address + last, count)
                done += count
            c.keep(array)
        return DeviceArray(self.context, block.address, argument.dtype, argument.shape, block)

    def run(self, inputs: list, cut: int | None = None) -> object:
        on_device = self.arrays == "device" or not all(isinstance(x, np.ndarray) for x in inputs)
        with self.context.use() as c:
            c.check()
            c.feed(self.number, inputs)
            blocks = c.place(self.number, on_device)
            c.run(self.number)
            if on_device:
                c.take(self.number, blocks)
                pairs = zip(blocks, self.entry.results, strict=True)
                results = [DeviceArray(c, x.address, a.dtype, a.shape, x) for x, a in pairs]
                c.keep(inputs)
                for stream in {x.stream for x in inputs if isinstance(x, Foreign)}:
                    c.let_wait(stream)  # before the library writes to what the step reads
            else:
                pairs = zip(c.fetch(self.number), self.entry.results, strict=True)
                results = [x.view(numpy_dtype(a.dtype)).reshape(a.shape).copy() for x, a in pairs]
        if on_device and cut is not None:
            results, cut = [x.first(cut) for x in results], None
        return self.finish(results, cut)
