"""A double of `cuda.bindings.driver`, NVIDIA's driver in Python: what the runtime calls, without a GPU.

    double = Double(kernels={ptx: llvm}, name="Double", capability=(9, 0))
    before = double.install()

It checks arguments as the driver's documentation says (current context, sizes, alignment, freed and foreign handles,
graphs' nodes), records every call in `calls`, and runs kernels on the emulator (`tests/simt`), from the LLVM IR that
the PTX was made of.  Streams are lazy: what is queued happens as late as the program allows, and the nodes of a graph
run in a random order that their edges allow, so a missing wait or edge gives wrong numbers.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from enum import IntEnum

import numpy as np
from cuda_double_base import CUDA_KERNEL_NODE_PARAMS, Base, Failure, Handle, R, driver_call, module, require
from simt.emulator import TensorMap

from pullback_runtime import cuda_driver


class Double(Base):
    CUtensorMapDataType = IntEnum(
        "CUtensorMapDataType",
        {f"CU_TENSOR_MAP_DATA_TYPE_{n}": k for n, k in zip(("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16"), range(6, 10))}
        | {"CU_TENSOR_MAP_DATA_TYPE_TFLOAT32": 11},
    )
    CUtensorMapSwizzle = IntEnum(
        "CUtensorMapSwizzle", {f"CU_TENSOR_MAP_SWIZZLE_{n}": k for k, n in enumerate(("NONE", "32B", "64B", "128B"))}
    )
    CUtensorMapInterleave = IntEnum("CUtensorMapInterleave", {"CU_TENSOR_MAP_INTERLEAVE_NONE": 0})
    CUtensorMapL2promotion = IntEnum("CUtensorMapL2promotion", {"CU_TENSOR_MAP_L2_PROMOTION_L2_256B": 3})
    CUtensorMapFloatOOBfill = IntEnum("CUtensorMapFloatOOBfill", {"CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE": 0})
    cuuint32_t = cuuint64_t = staticmethod(int)

    # ---- modules -------------------------------------------------------------------------------------------
    def install(self) -> str:
        """From now on the runtime finds this double in the place of `cuda.bindings.driver`; the name of what was there.
        That module itself stays what it is: other packages import it too."""
        before, cuda_driver.BINDINGS = cuda_driver.BINDINGS, f"double {id(self)} of cuda.bindings.driver"
        sys.modules[cuda_driver.BINDINGS] = self
        return before

    def uninstall(self, before: str) -> None:
        del sys.modules[cuda_driver.BINDINGS]
        cuda_driver.BINDINGS = before

    @driver_call
    def cuModuleLoadDataEx(self, image, numOptions, options, optionValues) -> Handle:
        self._current()
        require(numOptions == len(options) == len(optionValues))
        given = dict(zip(options, optionValues))
        require(image.endswith(b"\0") and image.count(b"\0") == 1)  # the driver reads to the first zero
        text = image[:-1].decode()
        version = [int(n) for n in re.search(r"^\.version (\d+)\.(\d+)$", text, re.M).groups()]
        chip = re.search(r"^\.target sm_(\d+)(\d)(a?)", text, re.M)
        needs = version[0] + 4, version[1]
        require(needs <= (self.version // 1000, self.version % 1000 // 10), R.CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
        made_for = int(chip[1]), int(chip[2])
        fits = made_for == self.capability if chip[3] else made_for <= self.capability
        require(fits, R.CUDA_ERROR_NO_BINARY_FOR_GPU)
        if text not in self.kernels:
            log = given[self.CUjit_option.CU_JIT_ERROR_LOG_BUFFER]
            room = given[self.CUjit_option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
            log[: len(self.log)] = self.log[: room - 1].encode()
            raise Failure(R.CUDA_ERROR_INVALID_PTX)
        llvm = self.kernels[text]
        heads = re.findall(r"^define ptx_kernel .*?@([\w.$]+)\((.*)$", llvm, re.M)
        maps = {name: parameters.count("byval([128 x i8])") for name, parameters in heads}
        return self._new(module=module(llvm, self.order, self.check), text=text, maps=maps)

    @driver_call
    def cuModuleUnload(self, hmod) -> None:
        self._current()
        self._destroy(hmod, "module")

    @driver_call
    def cuModuleGetFunction(self, hmod, name) -> Handle:
        handle = self._alive(hmod, "module")
        require(name.decode() in handle.module.kernels, R.CUDA_ERROR_NOT_FOUND)
        assert f".entry {name.decode()}(" in handle.text
        return self._new(owner=handle, function=name.decode(), shared=48 << 10)

    @driver_call
    def cuFuncGetAttribute(self, attrib, hfunc) -> int:
        require(attrib == self.CUfunction_attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
        self._alive(hfunc, "function")
        return self.local_bytes

    @driver_call
    def cuFuncSetAttribute(self, hfunc, attrib, value) -> None:
        require(attrib == 8 and 0 <= value <= 227 << 10)
        self._alive(hfunc, "function").shared = value

    @driver_call
    def cuTensorMapEncodeTiled(
        self, tensorDataType, tensorRank, globalAddress, globalDim, globalStrides, boxDim, elementStrides, interleave,
        swizzle, l2Promotion, oobFill,
    ) -> Handle:  # fmt: skip
        shape, strides, box = ([int(n) for n in x][::-1] for x in (globalDim, globalStrides, boxDim))
        item = {6: np.uint16, 7: np.float32, 8: np.float64, 9: np.uint16, 11: np.float32}[tensorDataType]
        item = np.dtype(np.float16 if tensorDataType == 6 else item)
        require(tensorRank == len(shape) == len(box) == len(strides) + 1 and interleave == oobFill == 0)
        memory = self._memory(globalAddress)
        memory = memory[: memory.nbytes // item.itemsize * item.itemsize].view(item)
        view = np.lib.stride_tricks.as_strided(memory, shape, [*strides, item.itemsize])
        try:
            made = TensorMap(view, box, {0: 0, 1: 32, 2: 64, 3: 128}[swizzle], tensorDataType == 11)
        except ValueError:
            raise Failure(R.CUDA_ERROR_INVALID_VALUE) from None
        handle = self._new(tensor_map=made)
        handle.memory = np.full(128 // 8, handle.number, np.int64)  # what the kernel's parameter holds
        return handle

    # ---- graphs --------------------------------------------------------------------------------------------
    @driver_call
    def cuGraphCreate(self, flags) -> Handle:
        require(flags == 0)
        return self._new(nodes=[])

    def _node(self, graph, dependencies, count, operation) -> Handle:
        graph = self._alive(graph, "nodes")
        dependencies = dependencies or []
        require(count == len(dependencies))
        require(all(d in graph.nodes for d in dependencies))
        require(len({int(d) for d in dependencies}) == count)
        node = self._new(after=list(dependencies), operation=operation, graph=graph)
        graph.nodes.append(node)
        return node

    def _launch(self, p: CUDA_KERNEL_NODE_PARAMS) -> Callable[[], None]:
        """A kernel with its arguments as they are now."""
        handle = self._alive(p.func, "function")
        require(handle.owner.alive, R.CUDA_ERROR_INVALID_HANDLE)
        module, name = handle.owner.module, handle.function
        kernel = module.kernels[name]
        grid, block = (p.gridDimX, p.gridDimY, p.gridDimZ), (p.blockDimX, p.blockDimY, p.blockDimZ)
        require(all(n > 0 for n in (*grid, *block)) and np.prod(block) <= 1024 and max(grid[1:]) < 1 << 16)
        require(tuple(kernel.block) == block or not kernel.block)
        require(p.sharedMemBytes <= handle.shared)
        pointers = (ctypes.c_uint64 * len(kernel.params)).from_address(p.kernelParams)
        values = [ctypes.c_int64.from_address(a).value for a in pointers]
        shared, maps = p.sharedMemBytes, handle.owner.maps[name]
        first_map = len(values) - maps

        def run() -> None:
            arguments = [
                self._memory(v) if t.startswith("ptr") else v for v, t in zip(values, kernel.params[:first_map])
            ]
            arguments += [self._alive(v, "tensor_map").tensor_map for v in values[first_map:]]
            module.launch(name, grid, block, arguments, shared_bytes=shared)

        return run

    def _memory(self, address: int) -> np.ndarray:
        """All memory from an address on to the end of what was allocated with it."""
        for start, a in self.arrays.items():
            if start <= address <= start + a.nbytes:
                return a[address - start :]
        raise AssertionError(f"a kernel is given {address:#x}, which is no memory of the device")

    @driver_call
    def cuGraphAddKernelNode(self, hGraph, dependencies, numDependencies, nodeParams) -> Handle:
        return self._node(hGraph, dependencies, numDependencies, self._launch(nodeParams))

    @driver_call
    def cuGraphAddEmptyNode(self, hGraph, dependencies, numDependencies) -> Handle:
        return self._node(hGraph, dependencies, numDependencies, lambda: None)

    @driver_call
    def cuGraphAddMemcpyNode(self, hGraph, dependencies, numDependencies, copyParams, ctx) -> Handle:
        p, kinds = copyParams, self.CUmemorytype
        self._alive(ctx, "context")
        require(p.WidthInBytes > 0 and p.Height == p.Depth == 1)
        require(p.srcMemoryType == kinds.CU_MEMORYTYPE_DEVICE and p.dstMemoryType == kinds.CU_MEMORYTYPE_HOST)
        source, (target, _) = self._device(p.srcDevice, p.WidthInBytes), self._host(p.dstHost, p.WidthInBytes)
        return self._node(hGraph, dependencies, numDependencies, lambda: np.copyto(target, source))

    @driver_call
    def cuGraphInstantiate(self, hGraph, flags) -> Handle:
        self._current()
        graph = self._alive(hGraph, "nodes")
        return self._new(plan=[(n, [int(d) for d in n.after]) for n in graph.nodes], moved={}, of=graph)

    @driver_call
    def cuGraphExecKernelNodeSetParams(self, hGraphExec, hNode, nodeParams) -> None:
        graph, node = self._alive(hGraphExec, "plan"), self._alive(hNode, "operation")
        require(any(n is node for n, _ in graph.plan) and graph.of.alive)
        graph.moved[node.number] = self._launch(nodeParams)

    @driver_call
    def cuGraphLaunch(self, hGraphExec, hStream) -> None:
        graph = self._alive(hGraphExec, "plan")
        left = [(n.number, graph.moved.get(n.number, n.operation), list(after)) for n, after in graph.plan]

        def run() -> None:
            done: set[int] = set()
            waiting = list(left)
            while waiting:
                ready = [w for w in waiting if done.issuperset(w[2])]
                chosen = self.random.choice(ready)
                waiting.remove(chosen)
                chosen[1]()
                done.add(chosen[0])

        self._stream(hStream).add(run)

    @driver_call
    def cuGraphExecDestroy(self, hGraphExec) -> None:
        self._destroy(hGraphExec, "plan")

    @driver_call
    def cuGraphDestroy(self, hGraph) -> None:
        self._destroy(hGraph, "nodes")
