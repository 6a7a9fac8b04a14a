"""The plan: launches of kernels over buffers with byte offsets, per compiled function.

Memory has *bases*: 0 the arena, 1 the state, 2 the constants of the artifact, 3.. the function's inputs in
order, then its outputs in order.  An argument is a base, a byte offset, and one byte stride for each loop
around the launch (scan), so nothing is patched at run time: a kernel computes
`bases[base] + offset + sum(counter[level] * strides[level])` at its start.

A launch is one or more *calls* that do not depend on each other: the workers deal out the blocks of all of
them, and the next launch begins when every block is done.  `commit` is the number of steps (at top level)
before the first write to state: everything that can fail, and a stop request, comes before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.graph import Loc
from ..graph.types import TensorType
from .kernel import Kernel

ARENA, STATE, CONSTANTS, FIRST_ARGUMENT = 0, 1, 2, 3
MAX_LOOPS = 4
"""How deep scans may nest in one function."""


@dataclass(frozen=True, slots=True)
class Argument:
    """Where one parameter of a kernel lies: `strides` are bytes per iteration of the loops around, outermost first."""

    base: int
    offset: int
    strides: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel on its arguments.  `sites[k]`: where the kernel's check number k is, and what it looks at.

    `grain`: how many blocks make one portion of work; the last portion may have fewer."""

    kernel: str
    arguments: tuple[Argument, ...]
    blocks: int
    loc: Loc
    label: str = ""
    sites: tuple[str, ...] = ()
    grain: int = 1

    @property
    def portions(self) -> int:
        return -(-self.blocks // self.grain)


@dataclass(frozen=True, slots=True)
class Launch:
    """Independent calls, those with the longest portions first, updates of state last.  `chunk`: how many portions a
    worker claims at a time; a launch of no more portions than that runs on one worker."""

    calls: tuple[Call, ...]
    chunk: int = 1


@dataclass(frozen=True, slots=True)
class Repeat:
    """A loop in the plan (scan): `reverse` counts down."""

    count: int
    body: tuple[Launch | Repeat, ...]
    reverse: bool = False


Step = Launch | Repeat


@dataclass(frozen=True, slots=True)
class Allocation:
    """One buffer of the arena, alive from step `first` to step `last` (launch numbers in program order)."""

    name: str
    type: TensorType
    offset: int
    nbytes: int
    first: int
    last: int
    loc: Loc


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """One compiled entry point.  `inputs`/`outputs` are the types of the caller's arrays, in base order."""

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    steps: tuple[Step, ...]
    commit: int
    arena: int
    scratch: int
    allocations: tuple[Allocation, ...] = ()


@dataclass(frozen=True, slots=True)
class StateSlot:
    """Where one state lies: byte offset and strides in elements of the logical array."""

    name: str
    type: TensorType
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Everything the code generator needs.  Kernels are scheduled, keyed by content."""

    kernels: dict[str, Kernel]
    functions: tuple[FunctionPlan, ...]
    state: tuple[StateSlot, ...]
    state_bytes: int
    constants: bytes = b""
