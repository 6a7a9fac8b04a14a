"""A plan -> the tables that the native module interprets: programs, calls, arguments, types, as bytes.

`codegen/native_layout.py` has the layout.  All offsets are relative to the start of the tables, so only kernels'
addresses need the loader.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..codegen.native_layout import MOST_PORTIONS, Entry, Header, Op, Row
from ..errors import BuildError
from ..graph.program import SEED
from ..graph.types import TensorType
from ..kernel.plan import MAX_LOOPS, FunctionPlan, Launch, Plan, Repeat, Step

NUMPY_KIND = {
    "f64": "f",
    "f32": "f",
    "f16": "f",
    "i64": "i",
    "i32": "i",
    "i8": "i",
    "u32": "u",
    "u8": "u",
    "bool": "b",
    "bf16": "u",
}
"""numpy's kind by element type; the runtime passes bf16 as 16-bit integers, for numpy has no kind for it."""


@dataclass(frozen=True)
class Tables:
    """`kernels[i]` is the kernel that number i in the tables means; `launches[f]` the launches of function f."""

    data: bytes
    kernels: tuple[str, ...]
    launches: tuple[tuple[Launch, ...], ...]


def pack_tables(plan: Plan) -> Tables:
    return _Packer(plan).pack()


def plan_scratch(plan: Plan) -> int:
    """Bytes of scratch for each worker."""
    return -(-max((f.scratch for f in plan.functions), default=0) // 64) * 64


def plan_arena(plan: Plan) -> int:
    return max((f.arena for f in plan.functions), default=0)


class _Packer:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.out = bytearray(Header.SIZE + Entry.SIZE * len(plan.functions))
        self.kernels = {key: i for i, key in enumerate(plan.kernels)}

    def pack(self) -> Tables:
        plan, launches = self.plan, []
        rows = bytearray()
        for f in plan.functions:
            types = self._types((*f.inputs, *f.outputs))
            found: list[Launch] = []
            program = self._program(f, found)
            rows += struct.pack("<4q", program, len(f.inputs), len(f.inputs) + len(f.outputs), types)
            launches.append(tuple(found))
        init = next((i for i, f in enumerate(plan.functions) if f.name == "init"), -1)
        seed = next((s.offset for s in plan.state if s.name == SEED), -1)
        head = struct.pack(
            "<7q", len(plan.functions), Header.SIZE, plan.state_bytes, plan_arena(plan), plan_scratch(plan), seed, init
        )
        self.out[: len(head)] = head
        self.out[Header.SIZE : Header.SIZE + len(rows)] = rows
        return Tables(bytes(self.out), tuple(self.kernels), tuple(launches))

    def _append(self, data: bytes) -> int:
        self.out += bytes(-len(self.out) % 64)
        at = len(self.out)
        self.out += data
        return at

    def _types(self, types: tuple[TensorType, ...]) -> int:
        shapes = [self._append(struct.pack(f"<{t.ndim}q", *t.shape)) for t in types]
        rows = [
            struct.pack("<4q", ord(NUMPY_KIND.get(t.dtype.name, "\0")), t.dtype.size, t.ndim, shape)
            for t, shape in zip(types, shapes, strict=True)
        ]
        return self._append(b"".join(rows))

    def _program(self, f: FunctionPlan, found: list[Launch]) -> int:
        """The rows of a function.  Targets of loops are patched when the program's own offset is known."""
        rows: list[list[int]] = []
        for i, step in enumerate(f.steps):
            if i == f.commit:
                rows.append([Op.COMMIT])
            self._step(step, 0, rows, found)
        rows.append([Op.FINISH])
        self.out += bytes(-len(self.out) % 64)
        start = len(self.out)
        for row in rows:
            if row[0] == Op.NEXT:
                row[5] = start + row[5] * Row.SIZE
        return self._append(b"".join(struct.pack("<8q", *row, *[0] * (8 - len(row))) for row in rows))

    def _step(self, step: Step, depth: int, rows: list[list[int]], found: list[Launch]) -> None:
        if isinstance(step, Launch):
            number = len(found)
            found.append(step)
            calls, portions = self._calls(step)
            if portions:
                rows.append([Op.LAUNCH, calls, len(step.calls), portions, step.chunk, number])
            return
        if depth >= MAX_LOOPS:
            raise BuildError(f"scans are nested more than {MAX_LOOPS} deep")
        before = len(found)
        if step.count == 0:
            _number(step, found)
            return
        first, end, by = (step.count - 1, -1, -1) if step.reverse else (0, step.count, 1)
        rows.append([Op.LOOP, depth, first])
        body = len(rows)
        for inner in step.body:
            self._step(inner, depth + 1, rows, found)
        if len(found) > before:
            rows.append([Op.NEXT, depth, 0, by, end, body])
        else:
            rows.pop()

    def _calls(self, launch: Launch) -> tuple[int, int]:
        """The calls of a launch: their offset, and all portions."""
        rows, first = bytearray(), 0
        for call in launch.calls:
            packed = bytearray()
            for a in call.arguments:
                packed += struct.pack("<6q", a.base, a.offset, *a.strides, *[0] * (MAX_LOOPS - len(a.strides)))
            kernel, arguments = self.kernels[call.kernel], self._append(bytes(packed))
            rows += struct.pack("<6q", kernel, arguments, first, call.portions, call.grain, call.blocks)
            first += call.portions
        if first > MOST_PORTIONS and first > launch.chunk:
            raise BuildError(f"{launch.calls[0].loc}: a launch of {first} portions is too large")
        return self._append(bytes(rows)), first


def _number(step: Step, found: list[Launch]) -> None:
    """Launches that never run keep their numbers all the same."""
    if isinstance(step, Repeat):
        for inner in step.body:
            _number(inner, found)
    else:
        found.append(step)
