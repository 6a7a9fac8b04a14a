"""A function's steps -> one CUDA graph: kernel nodes with constant arguments, built node by node.

Loops (scan) are unrolled with resolved addresses.  A launch depends on the one before; calls within it do not depend
on each other.  The last node copies the status record to the host.  Nothing in a graph changes between steps, but for
the addresses of inputs that lie on the device already: the nodes that read one are told where it is now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .cuda_driver import Driver, Kernels
from .errors import ArtifactError, DeviceError
from .format import Gpu, GpuKernel, Manifest, array_size

FIRST_ARGUMENT = 3
"""Bases before are the arena, the state and the constants."""

MAX_NODES = 200_000
"""Launches of one step: a CUDA graph needs about a kilobyte of device memory for each."""

MAX_EDGES = 32
"""Between two launches; more go through an empty node."""

ALIGNMENT = 16
"""What kernels may expect of the addresses of their parameters; `_loop` kernels expect whole elements only."""

COMMITTED = 1 << 32
"""In the number of a call: it comes after the first write to state, so it does nothing if a check has failed."""


@dataclass(frozen=True, slots=True)
class Node:
    """One launch of a kernel; `places` are (base, offset) of its parameters, `call` is its last argument."""

    kernel: int
    blocks: int
    places: tuple[tuple[int, int], ...]
    call: int
    in_loop: bool

    @property
    def aligned(self) -> bool:
        return all(offset % ALIGNMENT == 0 for _, offset in self.places)


def call_count(gpu: Gpu, function: int) -> int:
    return sum(map(len, gpu.launches[function]))


def locate(gpu: Gpu, number: int) -> tuple[int, int, int]:
    """(function, launch, call) of a call by its number in the program."""
    for f, launches in enumerate(gpu.launches):
        for l, calls in enumerate(launches):
            if number < len(calls):
                return f, l, number
            number -= len(calls)
    raise DeviceError(f"a check failed in call {number}, which does not exist")


def levels(gpu: Gpu, function: int) -> Iterator[list[Node]]:
    """The launches of a step in order, loops unrolled; the calls of one do not depend on each other."""
    first = sum(call_count(gpu, f) for f in range(function))
    for i, step in enumerate(gpu.steps[function]):
        yield from _unrolled(step, first, COMMITTED if i >= gpu.commits[function] else 0, ())
        first += _calls(step)


def _calls(step: list) -> int:
    return len(step) - 1 if step[0] == "launch" else sum(map(_calls, step[3:]))


def _unrolled(step: list, first: int, committed: int, counters: tuple[int, ...]) -> Iterator[list[Node]]:
    if step[0] == "launch":
        nodes = [
            Node(
                kernel,
                blocks,
                tuple((base, offset + sum(map(int.__mul__, counters, s))) for base, offset, *s in places),
                (first + i) | committed,
                bool(counters),
            )
            for i, (kernel, blocks, *places) in enumerate(step[1:])
            if blocks
        ]
        if nodes:
            yield nodes
        return
    _, count, reverse, *body = step
    for k in reversed(range(count)) if reverse else range(count):
        at = first
        for inner in body:
            yield from _unrolled(inner, at, committed, (*counters, k))
            at += _calls(inner)


# ---- damaged files ------------------------------------------------------------------------------------------
def check_steps(gpu: Gpu, manifest: Manifest, path: str) -> None:
    """Refuse steps that no plan could have: what they refer to must exist."""
    try:
        for f, steps, launches in zip(manifest.functions, gpu.steps, gpu.launches, strict=True):
            sizes = [gpu.arena, manifest.state_bytes, None, *map(array_size, (*f.arguments, *f.results))]
            found = [count for s in steps for count in _step_calls(s, len(gpu.kernels), sizes, 0)]
            if found != [len(calls) for calls in launches]:
                raise ValueError(f"the launches of {f.name} are not those that it names")
        if any(not 0 < k.threads <= 1024 for k in gpu.kernels):
            raise ValueError("a kernel with another number of threads than a block can have")
    except (TypeError, ValueError, IndexError, AttributeError) as e:
        raise ArtifactError(f"{path}: the manifest is damaged (GPU {gpu.name}: {e})") from None


def _step_calls(step: list, kernels: int, sizes: list, depth: int) -> Iterator[int]:
    """How many calls each launch of a step has."""
    kind, *rest = step
    if kind == "repeat" and depth < 4:
        count, reverse, *body = rest
        if natural(count) > 1 << 40 or not isinstance(reverse, bool):
            raise ValueError(f"a loop of {count!r}, {reverse!r}")
        for s in body:
            yield from _step_calls(s, kernels, sizes, depth + 1)
        return
    if kind != "launch":
        raise ValueError(f"a step of kind {kind!r} in {depth} loops")
    for kernel, blocks, *places in rest:
        if not natural(kernel) < kernels or natural(blocks) >= 1 << 31:
            raise ValueError(f"a call of kernel {kernel} with {blocks} blocks")
        for base, offset, *strides in places:
            size = sizes[natural(base)]
            if (size is not None and natural(offset) > size) or len(strides) > depth or not all(map(_is_int, strides)):
                raise ValueError(f"a parameter at {offset} of base {base}")
    yield len(rest)


def _is_int(x) -> bool:
    return isinstance(x, int)


def natural(x) -> int:
    if not isinstance(x, int) or x < 0:
        raise ValueError(f"expected a number >= 0, got {x!r}")
    return x


# ---- graphs -------------------------------------------------------------------------------------------------
class Graph:
    """The executable graph of one function.

    `bases`: addresses of the arena, the state, the constants, the inputs and the outputs.  `status`: where the record
    of failed checks lies; `zeros`: 32 zero bytes for each parameter of a kernel; `host_status`: pinned memory.
    """

    def __init__(
        self, kernels: Kernels, function: int, name: str, bases: list[int], status: int, zeros: int, host_status: int
    ):
        self.driver, self.kernels, self.bases = kernels.driver, kernels, list(bases)
        self.name, self.status, self.zeros = name, status, zeros
        self.params = self.driver.api.CUDA_KERNEL_NODE_PARAMS()
        self.readers: dict[int, list[tuple[object, Node, np.ndarray]]] = {}
        self.launches: list[tuple[Node, np.ndarray]] = []
        self.graph = self.driver("cuGraphCreate", 0)
        last, count, self.kept = [], 0, []
        for nodes in levels(kernels.gpu, function):
            count += len(nodes)
            if count > MAX_NODES:
                raise DeviceError(f"{name}: its loops unroll to more than {MAX_NODES} launches, too many for a graph")
            if len(last) * len(nodes) > MAX_EDGES:
                last = [self.driver("cuGraphAddEmptyNode", self.graph, last, len(last))]
            last = [self._add(n, last) for n in nodes]
        self.nodes = count
        self._add_status_copy(host_status, last)
        self.exec = self.driver("cuGraphInstantiate", self.graph, 0)

    def _add(self, node: Node, after: list) -> object:
        values = self._arguments(node)
        self._describe(node, values)
        handle = self.driver("cuGraphAddKernelNode", self.graph, after, len(after), self.params)
        self.launches.append((node, values))
        for base in {b for b, _ in node.places if b >= FIRST_ARGUMENT}:
            self.readers.setdefault(base, []).append((handle, node, values))
        return handle

    def _arguments(self, node: Node) -> np.ndarray:
        """The values of a node's arguments, eight bytes each (tensor maps: 128)."""
        values = [self.bases[base] + offset for base, offset in node.places]
        values += [self.status, node.call]
        if self._loops(node):
            values += [self.zeros, self.zeros]
        return np.array(values, np.uint64)

    def _loops(self, node: Node) -> bool:
        """Is it the kernel's other form that is launched?"""
        return node.in_loop and not node.aligned

    def _describe(self, node: Node, values: np.ndarray) -> None:
        """Set `params` to a launch; the driver copies the arguments, so they need to live for the next call only."""
        kernel, p = self.kernels.gpu.kernels[node.kernel], self.params
        symbol = kernel.symbol + "_loop" if self._loops(node) else kernel.symbol
        pointers = values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
        if kernel.maps:
            maps = [tensor_map(self.driver, kernel, i, values) for i in range(len(kernel.maps))]
            pointers = np.concatenate([pointers, np.array([m.getPtr() for m in maps], np.uint64)])
            self.kept = maps
        self.pointers = pointers
        p.func = self.kernels.function(symbol, kernel.shared)
        p.gridDimX, p.gridDimY, p.gridDimZ = node.blocks, 1, 1
        p.blockDimX, p.blockDimY, p.blockDimZ = kernel.threads, 1, 1
        p.sharedMemBytes = kernel.shared
        p.kernelParams = pointers.ctypes.data

    def _add_status_copy(self, host: int, after: list) -> None:
        api = self.driver.api
        copy = api.CUDA_MEMCPY3D()
        copy.srcMemoryType, copy.srcDevice = api.CUmemorytype.CU_MEMORYTYPE_DEVICE, self.status
        copy.dstMemoryType, copy.dstHost = api.CUmemorytype.CU_MEMORYTYPE_HOST, host
        copy.WidthInBytes, copy.Height, copy.Depth = 32, 1, 1
        context = self.driver("cuCtxGetCurrent")
        self.driver("cuGraphAddMemcpyNode", self.graph, after, len(after), copy, context)

    def move(self, base: int, address: int) -> None:
        """From now on an input or output lies at `address`."""
        if self.bases[base] == address:
            return
        self.bases[base] = address
        for handle, node, values in self.readers.get(base, ()):
            for i, (b, offset) in enumerate(node.places):
                if b == base:
                    values[i] = address + offset
            self._describe(node, values)
            self.driver("cuGraphExecKernelNodeSetParams", self.exec, handle, self.params)

    def launch(self, stream) -> None:
        self.driver("cuGraphLaunch", self.exec, stream)

    def repeated(self, number: int, times: int) -> object:
        """An executable graph of one of `launches`, over and over: for profiles.  It is the caller's to destroy."""
        graph, last = self.driver("cuGraphCreate", 0), []
        self._describe(*self.launches[number])
        for _ in range(times):
            last = [self.driver("cuGraphAddKernelNode", graph, last, len(last), self.params)]
        made = self.driver("cuGraphInstantiate", graph, 0)
        self.driver("cuGraphDestroy", graph)
        return made

    def destroy(self) -> None:
        self.driver.try_("cuGraphExecDestroy", self.exec)
        self.driver.try_("cuGraphDestroy", self.graph)


_TENSOR_TYPES = {
    "f64": "FLOAT64", "f32": "FLOAT32", "tf32": "TFLOAT32", "f16": "FLOAT16", "bf16": "BFLOAT16",
}  # fmt: skip


def tensor_map(driver: Driver, kernel: GpuKernel, number: int, values: np.ndarray) -> object:
    """The encoded form of a kernel's tensor map, for the addresses that its parameters have now."""
    m, api = kernel.maps[number], driver.api
    sizes, strides, box = m.shape[::-1], m.strides[::-1][1:], m.box[::-1]
    swizzle = api.CUtensorMapSwizzle
    swizzles = {
        0: swizzle.CU_TENSOR_MAP_SWIZZLE_NONE,
        32: swizzle.CU_TENSOR_MAP_SWIZZLE_32B,
        64: swizzle.CU_TENSOR_MAP_SWIZZLE_64B,
        128: swizzle.CU_TENSOR_MAP_SWIZZLE_128B,
    }
    return driver(
        "cuTensorMapEncodeTiled",
        getattr(api.CUtensorMapDataType, "CU_TENSOR_MAP_DATA_TYPE_" + _TENSOR_TYPES[m.dtype]),
        len(sizes),
        int(values[m.parameter]) + m.offset,
        [api.cuuint64_t(n) for n in sizes],
        [api.cuuint64_t(n) for n in strides],
        [api.cuuint32_t(n) for n in box],
        [api.cuuint32_t(1)] * len(sizes),
        api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles[m.swizzle],
        api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
