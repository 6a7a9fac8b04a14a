"""Runs kernels and plans in numpy, slowly and plainly: the oracle for every schedule.

Kernel IR in, arrays out.  `interpret.py` holds the translation of a kernel; here are the two ways to call
it: on separate arrays, and as the launches of a plan over one arena of bytes, where aliasing is real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from ..errors import PullbackError
from ..graph.types import TensorType
from .content import with_blocks
from .interpret import CheckFailed, Evaluator, OutOfBounds, decode, encode, memory_type, poison
from .kernel import Buffer, Kernel, written
from .plan import FIRST_ARGUMENT, Argument, FunctionPlan, Launch, Plan, StateSlot, Step

__all__ = ["CheckFailed", "OutOfBounds", "evaluate", "evaluate_plan", "pack_state", "unpack_state"]


def evaluate(
    kernel: Kernel,
    arrays: Mapping[str, np.ndarray] | Sequence[np.ndarray | None],
    lockstep: bool = True,
    functions: Mapping[str, Callable] | None = None,
) -> dict[str, np.ndarray]:
    """Run a kernel on arrays, by name or in the order of its parameters; the arrays are not changed.

    A schedule may merge dimensions of a parameter, so only the number of elements must agree.
    Outputs may be missing (or None): they start as poison.  Returns every parameter that the kernel stores
    to, in the shape and numpy type of its buffer (bf16 as float32).  `lockstep=False` runs every loop
    element by element.  With `functions=codegen.numpy_math.numpy_functions()` the elementary functions have
    the bits of compiled code; by default they are numpy's.
    """
    if not isinstance(arrays, Mapping):
        if len(arrays) != len(kernel.params):
            raise PullbackError(f"kernel {kernel.name}: expected {len(kernel.params)} arrays, got {len(arrays)}")
        arrays = {b.name: a for b, a in zip(kernel.params, arrays, strict=True)}
    outputs, memory = written(kernel.body), []
    for b in kernel.params:
        flat = np.full(max(b.size, 1), poison(b.dtype), memory_type(b.dtype))
        given = arrays.get(b.name)
        if given is not None:
            if np.size(given) != prod(b.shape):
                raise PullbackError(f"kernel {kernel.name}: {b.name} is {list(b.shape)}, got {list(np.shape(given))}")
            _view(flat, b)[...] = encode(np.reshape(given, b.shape), b.dtype)
        elif b.name not in outputs:
            raise PullbackError(f"kernel {kernel.name}: no array for {b.name}")
        memory.append(flat)
    Evaluator(kernel, lockstep, functions)(*memory)
    return {
        b.name: decode(_view(m, b), b.dtype).astype(b.dtype.numpy)
        for b, m in zip(kernel.params, memory, strict=True)
        if b.name in outputs
    }


def _view(flat: np.ndarray, b: Buffer) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(flat, b.shape, [s * flat.itemsize for s in b.step])


# ---- plans ----------------------------------------------------------------------------------------------
def evaluate_plan(
    plan: Plan,
    function: FunctionPlan | str,
    state: np.ndarray | None = None,
    inputs: Sequence[np.ndarray] = (),
    lockstep: bool = True,
    functions: Mapping[str, Callable] | None = None,
) -> list[np.ndarray]:
    """Run one function of a plan, launch after launch, and return its outputs.

    `state` is `plan.state_bytes` bytes (uint8; see `pack_state`), changed in place; the arena starts as NaN.
    A failed check raises `CheckFailed`; an argument outside of its base raises `OutOfBounds`.
    """
    if isinstance(function, str):
        function = next(f for f in plan.functions if f.name == function)
    if state is None:
        state = np.full(plan.state_bytes, 0xFF, np.uint8)
    if state.dtype != np.uint8 or state.size < plan.state_bytes:
        raise PullbackError(f"state: expected {plan.state_bytes} bytes, got {state.size} x {state.dtype}")
    if len(inputs) != len(function.inputs):
        raise PullbackError(f"{function.name}: expected {len(function.inputs)} inputs, got {len(inputs)}")
    bases = [np.full(function.arena, 0xFF, np.uint8), state, np.frombuffer(plan.constants, np.uint8)]
    bases += [_bytes(x, t) for x, t in zip(inputs, function.inputs, strict=True)]
    bases += [np.full(t.nbytes, 0xFF, np.uint8) for t in function.outputs]
    compiled: dict[tuple[str, int], Evaluator] = {}

    def evaluator(key: str, blocks: int) -> Evaluator:
        if (key, blocks) not in compiled:
            kernel = with_blocks(plan.kernels[key], blocks)
            compiled[key, blocks] = Evaluator(kernel, lockstep, functions)
        return compiled[key, blocks]

    _run(function.steps, (), bases, evaluator)
    outputs = bases[FIRST_ARGUMENT + len(inputs) :]
    return [
        decode(b.view(memory_type(t.dtype)), t.dtype).astype(t.dtype.numpy).reshape(t.shape)
        for b, t in zip(outputs, function.outputs, strict=True)
    ]


def _run(steps: Sequence[Step], counters: tuple[int, ...], bases, evaluator: Callable[[str, int], Evaluator]) -> None:
    for step in steps:
        if isinstance(step, Launch):
            for call in step.calls:
                run = evaluator(call.kernel, call.blocks)
                pairs = zip(call.arguments, run.kernel.params, strict=True)
                run(*(_argument(a, b, counters, bases, call.kernel) for a, b in pairs))
        else:
            order = range(step.count)
            for i in reversed(order) if step.reverse else order:
                _run(step.body, (*counters, i), bases, evaluator)


def _argument(a: Argument, b: Buffer, counters: tuple[int, ...], bases, kernel: str) -> np.ndarray:
    """The memory of one parameter, a view of its base."""
    start = a.offset + sum(i * s for i, s in zip(counters, a.strides, strict=False))
    end = start + b.size * b.dtype.size
    if start < 0 or end > bases[a.base].size:
        raise PullbackError(
            f"kernel {kernel}: {b.name} takes bytes {start} to {end} of base {a.base}, which has {bases[a.base].size}"
        )
    return bases[a.base][start:end].view(memory_type(b.dtype))


def _bytes(x, t: TensorType) -> np.ndarray:
    if np.shape(x) != t.shape:
        raise PullbackError(f"expected {t}, got {list(np.shape(x))}")
    return np.ascontiguousarray(encode(x, t.dtype)).reshape(-1).view(np.uint8)


def pack_state(plan: Plan, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The bytes of a state from its logical arrays; missing ones are NaN."""
    state = np.full(plan.state_bytes, 0xFF, np.uint8)
    for slot in plan.state:
        if slot.name in arrays:
            _slot(state, slot)[...] = encode(arrays[slot.name], slot.type.dtype)
    return state


def unpack_state(plan: Plan, state: np.ndarray) -> dict[str, np.ndarray]:
    """The logical arrays of a state (copies; bf16 as float32)."""
    return {s.name: decode(_slot(state, s), s.type.dtype).astype(s.type.dtype.numpy) for s in plan.state}


def _slot(state: np.ndarray, slot: StateSlot) -> np.ndarray:
    t = memory_type(slot.type.dtype)
    steps = [s * t.itemsize for s in slot.strides]
    return np.ndarray(slot.type.shape, t, state, slot.offset, steps)
