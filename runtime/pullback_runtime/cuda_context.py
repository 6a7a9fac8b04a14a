"""The memory and the stream of a program on a GPU, and the lock that its callers hold.

One piece of device memory holds everything that a program needs, laid out before the first step:

    state | constants | status, zeros | arena | inputs | results

Its size is known from the manifest, so whether it fits is known at once.  Inputs and results of the functions share
their places, for one step runs at a time.  The host's side is pinned: two places for inputs, so that the next step's
can be written while the last one's are still on their way, one for results, one for the status record.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .cuda_driver import NOT_READY, OUT_OF_MEMORY, Device, Kernels
from .cuda_graph import FIRST_ARGUMENT, Graph, locate
from .errors import DeviceError, DeviceMemoryError
from .format import Gpu, Manifest, array_size
from .function import failure

DEFAULT_STREAM = 1
"""The one that waits for all others and that all others wait for, but for those made otherwise (as ours)."""

_ALIGN = 256
_STATUS = 64
_SLOTS = 2
_LARGE = 64 << 10
"""Bytes of a result from which changing the addresses in the graph's nodes costs less than a copy."""


def _up(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a program's device memory, in bytes; `inputs[f]`, `results[f]` of function f."""

    constants: int
    status: int
    zeros: int
    arena: int
    inputs: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    input_start: int
    result_start: int
    end: int

    @classmethod
    def of(cls, manifest: Manifest, gpu: Gpu, constant_bytes: int) -> Layout:
        constants = _up(manifest.state_bytes)
        status = constants + _up(constant_bytes)
        parameters = max((len(c) - 2 for f in gpu.steps for s in f for c in _calls(s)), default=0)
        arena = status + _up(_STATUS + 32 * max(parameters, 1))
        input_start = arena + _up(gpu.arena)
        places = [_places([array_size(a) for a in f.arguments], input_start) for f in manifest.functions]
        result_start = max((end for _, end in places), default=input_start)
        ends = [_places([array_size(a) for a in f.results], result_start) for f in manifest.functions]
        end = max((end for _, end in ends), default=result_start)
        inputs, results = (tuple(p for p, _ in x) for x in (places, ends))
        return cls(constants, status, status + _STATUS, arena, inputs, results, input_start, result_start, end)

    def describe(self, manifest: Manifest) -> str:
        return (
            f"{manifest.state_bytes} for state, {self.input_start - self.arena} for the arena, "
            f"{self.end - self.input_start} for inputs and results"
        )


def _calls(step: list) -> Iterator[list]:
    if step[0] == "launch":
        yield from step[1:]
    else:
        for s in step[3:]:
            yield from _calls(s)


def _places(sizes: list[int], at: int) -> tuple[tuple[int, ...], int]:
    out = []
    for n in sizes:
        out.append(at)
        at += _up(n)
    return tuple(out), at


class Block:
    """Device memory of one array; it goes back to its context when nobody uses it any more.  `streams`: those of other
    libraries that may still read it then."""

    def __init__(self, context: Context, address: int, size: int):
        self.context, self.address, self.size = context, address, size
        self.streams: set[int] = set()

    def __del__(self) -> None:
        self.context.spare.setdefault(self.size, []).append((self.address, self.streams))


class Context:
    """Everything on the device.  Functions refer to their context, not to their program."""

    def __init__(self, path: str, manifest: Manifest, gpu: Gpu, device: Device, text: bytes, constants: bytes):
        self.path, self.manifest, self.gpu, self.device, self.driver = path, manifest, gpu, device, device.driver
        self.lock, self.pid, self.is_open = threading.RLock(), os.getpid(), False
        self.graphs: dict[int, Graph] = {}
        self.spare: dict[int, list[tuple[int, set[int]]]] = {}
        self.blocks: list[int] = []
        self.in_flight: deque[tuple[object, object]] = deque()
        self.events: list[object] = []
        self.idle: list[object] = []
        self.layout = Layout.of(manifest, gpu, len(constants))
        with device.current():
            try:
                self._open(text, constants)
            except DeviceError:
                self._free()
                raise
        self.is_open = True

    # ---- opening and closing -----------------------------------------------------------------------------
    def _open(self, text: bytes, constants: bytes) -> None:
        driver, api, layout = self.driver, self.driver.api, self.layout
        self.memory = self.stream = self.kernels = None
        self.pinned: list[int] = []
        self._check_room(0)
        self.kernels = Kernels(self.device, text, self.gpu, self.path)
        self._check_room(self.kernels.local_bytes() * self.device.threads)
        self.memory = int(driver("cuMemAlloc", layout.end))
        self.stream = driver("cuStreamCreate", api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.order = self._event()
        results = layout.end - layout.result_start
        self.input_bytes = layout.result_start - layout.input_start
        self.status = self._pin(32).view(np.int64)
        self.results = self._pin(results)
        self.slots = [self._pin(self.input_bytes) for _ in range(_SLOTS)]
        self.sent = [self._event() for _ in range(_SLOTS)]
        self.busy = [False] * _SLOTS
        self.slot = 0
        driver("cuMemsetD8Async", self.memory, 0, layout.end, self.stream)
        if constants:
            driver("cuMemcpyHtoDAsync", self.memory + layout.constants, constants, len(constants), self.stream)
        driver("cuStreamSynchronize", self.stream)

    def _check_room(self, local: int) -> None:
        """`local`: what the threads of kernels have for themselves; the driver allocates it at their first launch."""
        (free, total), needed = self.driver("cuMemGetInfo"), self.layout.end + local
        if needed > free:
            parts = self.layout.describe(self.manifest) + (f", {local} for threads" if local else "")
            raise DeviceMemoryError(
                f"{self.path}: needs {needed} bytes of device memory ({parts}), but {self.device} has {free} free of "
                f"{total}"
            )

    def _pin(self, size: int) -> np.ndarray:
        """Page-locked host memory, zeroed."""
        address = int(self.driver("cuMemHostAlloc", max(size, 64), 0))
        self.pinned.append(address)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 64)).from_address(address))[:size]
        memory[...] = 0
        return memory

    def close(self) -> None:
        """Give everything back; arrays that steps returned go with it."""
        with self.lock:
            if self.is_open and self.pid == os.getpid():
                self.is_open = False
                with self.device.current():
                    self._free()

    def _free(self) -> None:
        """Also after half an opening, or when the device is lost: then the driver refuses, and that is all right."""
        driver = self.driver
        if self.stream is not None:
            driver.try_("cuStreamSynchronize", self.stream)
        for graph in self.graphs.values():
            graph.destroy()
        self.graphs.clear()
        if self.kernels is not None:
            self.kernels.unload()
        for address in (*self.blocks, *([] if self.memory is None else [self.memory])):
            driver.try_("cuMemFree", address)
        for address in self.pinned:
            driver.try_("cuMemFreeHost", address)
        for event in self.events:
            driver.try_("cuEventDestroy", event)
        if self.stream is not None:
            driver.try_("cuStreamDestroy", self.stream)
        self.device.release()

    def __del__(self) -> None:
        if getattr(self, "is_open", False) and not sys.is_finalizing():
            self.close()

    def use(self) -> Context:
        """`with context.use() as c:` has the lock, and the device's context is the thread's."""
        return self

    def __enter__(self) -> Context:
        if self.pid != os.getpid():
            raise DeviceError(f"{self.path}: a GPU cannot be used after fork: load the program in the child")
        self.lock.acquire()
        try:
            if not self.is_open:
                raise DeviceError(f"{self.path}: the program is closed")
            self.driver("cuCtxPushCurrent", self.device.context)
        except DeviceError:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        try:
            self.driver("cuCtxPopCurrent")
        finally:
            self.lock.release()

    # ---- order -------------------------------------------------------------------------------------------
    def _event(self) -> object:
        event = self.driver("cuEventCreate", self.driver.api.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self.events.append(event)
        return event

    def wait_for(self, stream: int) -> None:
        """What is queued from now on comes after what another stream has in it now."""
        self.driver("cuEventRecord", self.order, stream)
        self.driver("cuStreamWaitEvent", self.stream, self.order, 0)

    def let_wait(self, stream: int) -> None:
        """The other way round."""
        self.driver("cuEventRecord", self.order, self.stream)
        self.driver("cuStreamWaitEvent", stream, self.order, 0)

    def keep(self, used: object) -> None:
        """Keep arrays alive until what is queued now is done."""
        while self.in_flight and self.driver.try_("cuEventQuery", self.in_flight[0][0])[0] != NOT_READY:
            self.idle.append(self.in_flight.popleft()[0])
        event = self.idle.pop() if self.idle else self._event()
        self.driver("cuEventRecord", event, self.stream)
        self.in_flight.append((event, used))

    def wait(self) -> None:
        """Until all steps are done; raises what went wrong in them."""
        self.driver("cuStreamSynchronize", self.stream)
        self.idle += [event for event, _ in self.in_flight]
        self.in_flight.clear()
        self.busy = [False] * _SLOTS
        self.check()

    def check(self) -> None:
        """Raise the first failed check of the steps that are done.  Until this is called, no step writes state."""
        if not self.status[0]:
            return
        self.driver("cuStreamSynchronize", self.stream)
        number, site, value, _ = self.status.tolist()
        self.driver("cuMemsetD8Async", self.memory + self.layout.status, 0, _STATUS, self.stream)
        self.driver("cuStreamSynchronize", self.stream)
        self.status[...] = 0
        function, launch, call = locate(self.gpu, number - 1)
        name = self.manifest.functions[function].name
        raise failure(name, self.gpu.call(function, launch, call), site, value)

    # ---- steps -------------------------------------------------------------------------------------------
    def graph(self, number: int) -> Graph:
        """The graph of a function, built when it is first asked for."""
        if number not in self.graphs:
            at, places = self.memory, self.layout
            offsets = (places.arena, 0, places.constants, *places.inputs[number], *places.results[number])
            name = f"{self.path}: {self.manifest.functions[number].name}"
            bases = [at + o for o in offsets]
            host = self.status.ctypes.data
            made = Graph(self.kernels, number, name, bases, at + places.status, at + places.zeros, host)
            self.graphs[number] = made
        return self.graphs[number]

    def feed(self, number: int, inputs: list) -> None:
        """Queue the way of a step's inputs to where its graph reads them."""
        graph, places, slot = self.graph(number), self.layout.inputs[number], self.slots[self.slot]
        if self.busy[self.slot]:
            self.driver("cuEventSynchronize", self.sent[self.slot])
        staged: list[tuple[int, int]] = []
        for i, (x, place) in enumerate(zip(inputs, places, strict=True)):
            home = self.memory + place
            if not isinstance(x, np.ndarray):
                if x.address % 16 and x.nbytes:
                    self.driver("cuMemcpyDtoDAsync", home, x.address, x.nbytes, self.stream)
                elif x.nbytes:
                    home = x.address
            elif x.nbytes:
                start = place - self.layout.input_start
                slot[start : start + x.nbytes] = x.reshape(-1).view(np.uint8)
                staged.append((start, start + x.nbytes))
            graph.move(FIRST_ARGUMENT + i, home)
        if staged and len(staged) == len(inputs):  # they lie side by side
            staged = [(staged[0][0], staged[-1][1])]
        for start, end in staged:
            target = self.memory + self.layout.input_start + start
            self.driver("cuMemcpyHtoDAsync", target, slot.ctypes.data + start, end - start, self.stream)
        if staged:
            self.busy[self.slot] = True
            self.driver("cuEventRecord", self.sent[self.slot], self.stream)
            self.slot = (self.slot + 1) % _SLOTS

    def place(self, number: int, on_device: bool) -> list[Block]:
        """Memory for a step's results that stay on the device; large ones are written there at once."""
        graph, function, places = self.graph(number), self.manifest.functions[number], self.layout.results[number]
        blocks = [self.allocate(array_size(a)) for a in function.results] if on_device else []
        for i, (a, place) in enumerate(zip(function.results, places, strict=True)):
            there = on_device and array_size(a) >= _LARGE
            base = FIRST_ARGUMENT + len(function.arguments) + i
            graph.move(base, blocks[i].address if there else self.memory + place)
        return blocks

    def take(self, number: int, blocks: list[Block]) -> None:
        """Queue copies of the other results, which the next step will overwrite."""
        for a, b, place in zip(
            self.manifest.functions[number].results, blocks, self.layout.results[number], strict=True
        ):
            if array_size(a) < _LARGE:
                self.copy(b.address, self.memory + place, array_size(a))

    def fetch(self, number: int) -> list[np.ndarray]:
        """The results of a step, as bytes on the host (until the next step), when it and all before it are done."""
        sizes, start = [array_size(a) for a in self.manifest.functions[number].results], self.layout.result_start
        spans = [(p - start, p - start + n) for p, n in zip(self.layout.results[number], sizes, strict=True)]
        if spans and spans[-1][1]:
            self.driver("cuMemcpyDtoHAsync", self.results.ctypes.data, self.memory + start, spans[-1][1], self.stream)
        self.wait()
        return [self.results[a:b] for a, b in spans]

    def run(self, number: int) -> None:
        self.graph(number).launch(self.stream)

    # ---- memory ------------------------------------------------------------------------------------------
    def read(self, address: int, nbytes: int) -> np.ndarray:
        """Bytes of the device, when all that is queued is done."""
        out = np.empty(nbytes, np.uint8)
        self.driver("cuStreamSynchronize", self.stream)
        if nbytes:
            self.driver("cuMemcpyDtoH", out.ctypes.data, address, nbytes)
        return out

    def write(self, address: int, data: np.ndarray) -> None:
        """Bytes to the device, after all that is queued."""
        if data.nbytes:
            self.driver("cuMemcpyHtoDAsync", address, data.ctypes.data, data.nbytes, self.stream)
            self.driver("cuStreamSynchronize", self.stream)

    def send(self, address: int, data: np.ndarray) -> None:
        """The same without waiting, but for page-locked memory: of other memory the driver makes a copy at once."""
        if data.nbytes:
            kind = self.driver.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
            unknown, *_ = self.driver.try_("cuPointerGetAttribute", kind, data.ctypes.data)
            self.driver("cuMemcpyHtoDAsync", address, data.ctypes.data, data.nbytes, self.stream)
            if not unknown:
                self.driver("cuStreamSynchronize", self.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy within the device."""
        if nbytes:
            self.driver("cuMemcpyDtoDAsync", target, source, nbytes, self.stream)

    def allocate(self, nbytes: int) -> Block:
        """Memory for an array, used before if there is any of its size."""
        size = max(-(-nbytes // 512) * 512, 512)
        spare = self.spare.get(size)
        if spare:
            address, streams = spare.pop()
            if streams - {DEFAULT_STREAM}:  # they may be gone by now, so they cannot be named any more
                self.driver("cuCtxSynchronize")
            elif streams:
                self.wait_for(DEFAULT_STREAM)
            return Block(self, address, size)
        code, address = self.driver.try_("cuMemAlloc", size)
        if code == OUT_OF_MEMORY:
            self.driver("cuStreamSynchronize", self.stream)
            for addresses in self.spare.values():
                while addresses:
                    address, _ = addresses.pop()
                    self.blocks.remove(address)
                    self.driver("cuMemFree", address)
            code, address = self.driver.try_("cuMemAlloc", size)
        if code:
            free, _ = self.driver("cuMemGetInfo")
            error = self.driver.error("cuMemAlloc", code)
            raise type(error)(
                f"{self.path}: {size} bytes for an array on {self.device}, which has {free} free: {error}"
            )
        self.blocks.append(int(address))
        return Block(self, int(address), size)
