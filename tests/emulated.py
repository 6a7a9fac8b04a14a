"""Compiled GPU kernels and plans on the emulator: what tests compare with the evaluators, bit for bit.

A plan runs here as a runtime would run it on a device: the bases in device memory, one launch for each call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from simt.emulator import Emulator, Module, TensorMap, device_array

from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.ptx import (
    STATUS_WORDS,
    call_number,
    emit_kernel,
    gpu_target,
    launch_shape,
    loop_symbol,
    module,
    plan_module,
    shared_bytes,
    symbol,
    tensor_maps,
)
from pullback.codegen.target import Target
from pullback.config import Options
from pullback.driver import Build
from pullback.graph.program import Program
from pullback.kernel.content import with_blocks
from pullback.kernel.evaluate import evaluate_plan
from pullback.kernel.interpret import decode, encode, memory_type
from pullback.kernel.kernel import Kernel
from pullback.kernel.plan import MAX_LOOPS, Call, Launch, Plan, Step

ORDERS = ("forward", "reverse", "random:7")
"""The orders in which threads and blocks run."""
SEED_BYTES = 64
"""The seed lies first in the state, on a cache line of its own."""


def load(kernels: dict[str, Kernel], target: Target) -> Module:
    """One module of scheduled kernels, for this machine."""
    return Emulator().load(module([emit_kernel(key, k, target) for key, k in kernels.items()], target))


def run_kernel(
    loaded: Module, key: str, kernel: Kernel, target: Target, arrays: dict[str, np.ndarray], order: str = "forward"
) -> tuple[dict[str, np.ndarray], list[int]]:
    """(name -> every array that is stored to, the status record)."""
    loaded.emulator = loaded.emulator.with_order(order)
    memory = {}
    for p in kernel.params:
        memory[p.name] = x = device_array(max(p.size, 1), memory_type(p.dtype))
        x.view(np.uint8)[...] = 0xFF
        if p.name in arrays:
            _view(x, p)[...] = encode(np.reshape(arrays[p.name], p.shape), p.dtype)
    status = device_array(STATUS_WORDS, np.int64)
    blocks, threads = launch_shape(kernel)
    if blocks:
        arguments = [*memory.values(), status, 0, *encoded_maps(kernel, list(memory.values()))]
        loaded.launch(symbol(key, target), blocks, threads, arguments, shared_bytes(kernel))
    results = {p.name: decode(_view(memory[p.name], p), p.dtype).astype(p.dtype.numpy) for p in kernel.params}
    return {n: x for n, x in results.items() if n in kernel.outputs}, status.tolist()


def encoded_maps(kernel: Kernel, parameters: Sequence[np.ndarray]) -> list[TensorMap]:
    """The kernel's tensor maps over the memory of its parameters."""
    maps = []
    for m in tensor_maps(kernel):
        memory = np.asarray(parameters[m["parameter"]]).view(np.uint8)[m["offset"] :]
        elements = memory[: memory.size // m["strides"][-1] * m["strides"][-1]].view(_ELEMENTS[m["dtype"]])
        view = np.lib.stride_tricks.as_strided(elements, m["shape"], m["strides"])
        maps.append(TensorMap(view, m["box"], m["swizzle"], m["dtype"] == "tf32"))
    return maps


_ELEMENTS = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "tf32": np.float32}


def _view(flat: np.ndarray, b) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(flat, b.shape, [s * flat.itemsize for s in b.step])


class EmulatedPlan:
    """The functions of a plan on one emulated device.  `state`: its bytes, changed in place."""

    def __init__(self, plan: Plan, target: Target, order: str = "forward"):
        self.plan, self.target, self.order = plan, target, order
        self.loaded = Emulator().load(plan_module(plan, target))
        self.state = device_array(max(plan.state_bytes, 1), np.uint8)
        self.constants = device_array(max(len(plan.constants), 1), np.uint8)
        self.constants[: len(plan.constants)] = np.frombuffer(plan.constants, np.uint8)

    def call(self, name: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One step; `status` afterwards says whether a check failed."""
        self.loaded.emulator = self.loaded.emulator.with_order(self.order)
        f = next(f for f in self.plan.functions if f.name == name)
        arena = device_array(max(f.arena, 1), np.uint8)
        arena[...] = 0xFF
        outputs = [device_array(max(t.nbytes, 1), np.uint8) for t in f.outputs]
        bases = [arena, self.state, self.constants]
        for x, t in zip(inputs, f.inputs, strict=True):
            raw = np.ascontiguousarray(encode(x, t.dtype)).reshape(-1).view(np.uint8)
            base = device_array(max(raw.size, 1), np.uint8)
            base[: raw.size] = raw
            bases.append(base)
        self.status = device_array(STATUS_WORDS, np.int64)
        self.counters = device_array(MAX_LOOPS, np.int64)
        self.number = 0
        for i, step in enumerate(f.steps):
            self._run(step, 0, [*bases, *outputs], i >= f.commit)
        return [
            decode(b[: t.nbytes].view(memory_type(t.dtype)), t.dtype).astype(t.dtype.numpy).reshape(t.shape)
            for b, t in zip(outputs, f.outputs, strict=True)
        ]

    def _run(self, step: Step, depth: int, bases: list[np.ndarray], committed: bool) -> None:
        if isinstance(step, Launch):
            for c in step.calls:
                self._launch(c, depth, bases, committed)
            return
        for i in reversed(range(step.count)) if step.reverse else range(step.count):
            for inner in step.body:
                self.counters[depth] = i
                self._run(inner, depth + 1, bases, committed)
        self.counters[depth] = 0

    def _launch(self, c: Call, depth: int, bases: list[np.ndarray], committed: bool) -> None:
        kernel = with_blocks(self.plan.kernels[c.kernel], c.blocks)
        if not c.blocks:
            return
        arguments = []
        for a, p in zip(c.arguments, kernel.params, strict=True):
            end = a.offset + max(p.size, 1) * p.dtype.size
            moved = any(a.strides)  # then the whole base: where it ends up depends on the counters
            arguments.append(bases[a.base][a.offset : None if moved else end])
        maps = encoded_maps(kernel, arguments)
        arguments += [self.status, call_number(self.number, committed)]
        self.number += 1
        name = symbol(c.kernel, self.target)
        if depth:
            strides = device_array(MAX_LOOPS * max(len(c.arguments), 1), np.int64)
            for i, a in enumerate(c.arguments):
                strides[MAX_LOOPS * i : MAX_LOOPS * i + len(a.strides)] = a.strides
            arguments += [self.counters, strides]
            name = loop_symbol(c.kernel, self.target)
        self.loaded.launch(name, c.blocks, launch_shape(kernel)[1], [*arguments, *maps], shared_bytes(kernel))


# ---- programs on both machines ------------------------------------------------------------------------------
def gpu_build(program: Program, gpu: str = "sm_90", **options) -> Build:
    return Build(program, Options(target="cpu,cuda", gpu=gpu, **options))


def started(build: Build, order: str = "forward", gpu: str = "sm_90") -> EmulatedPlan:
    """A device with the initial state of seed 0."""
    device = EmulatedPlan(build.plans[gpu], gpu_target(gpu), order)
    device.state[...] = 0xFF
    device.state[:SEED_BYTES] = 0
    device.call("init", [])
    return device


Calls = Sequence[tuple[str, Sequence[np.ndarray]]]
"""(function, its arguments), one after the other on the same state."""


def follow(build: Build, calls: Calls, orders: Sequence[str] = ORDERS) -> list[list[np.ndarray]]:
    """Calls on the device and by the evaluator of the CPU's plan: outputs and every byte of state agree, from the
    initial state on.  Returns the outputs."""
    cpu = build.plans[build.targets[0].isa]
    wanted, state = [], np.full(cpu.state_bytes, 0xFF, np.uint8)
    state[:SEED_BYTES] = 0
    evaluate_plan(cpu, "init", state, [], functions=numpy_functions())
    first = state.copy()
    for name, arrays in calls:
        outputs = evaluate_plan(cpu, name, state, list(arrays), functions=numpy_functions())
        wanted.append((outputs, state.copy()))
    for order in orders:
        device = started(build, order)
        assert np.array_equal(device.state[: len(first)], first), f"initial state, {order}"
        for (name, arrays), (outputs, after) in zip(calls, wanted, strict=True):
            got = device.call(name, arrays)
            assert not any(device.status)
            for a, b in zip(got, outputs, strict=True):
                assert same_bits(a, b), f"{name}, {order}"
            assert np.array_equal(device.state[: len(after)], after), f"state after {name}, {order}"
    return [outputs for outputs, _ in wanted]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, but every NaN alike."""
    return a.shape == b.shape and a.dtype == b.dtype and bits(a) == bits(b)


def bits(x: np.ndarray) -> bytes:
    """Every NaN alike."""
    return np.where(x != x, np.zeros((), x.dtype), x).tobytes() + (x != x).tobytes()
