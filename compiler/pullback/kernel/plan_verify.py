"""Checks a plan: every argument in its base, nothing overwritten while somebody needs it, state only after commit.

A broken rule is a bug of the memory planner or of fusion.  Byte ranges are compared first; where they overlap
(interleaved columns, say) the exact bytes decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import VerifyError
from .alias import can_alias
from .content import with_blocks
from .kernel import Buffer, Checked, Kernel, Load, exprs, stores, walk_expr
from .plan import (
    ARENA,
    CONSTANTS,
    FIRST_ARGUMENT,
    MAX_LOOPS,
    STATE,
    Allocation,
    Argument,
    Call,
    FunctionPlan,
    Plan,
    Repeat,
)


@dataclass(eq=False, slots=True)
class _Use:
    """One argument of one call: which bytes of which base, over all iterations of the loops around."""

    call: Call
    argument: Argument
    buffer: Buffer
    reads: bool
    writes: bool
    first: int
    last: int
    """One past the last byte."""


@dataclass(frozen=True, slots=True)
class _Info:
    reads: frozenset[str]
    writes: frozenset[str]
    checks: bool


@dataclass(frozen=True, slots=True)
class _Form:
    """A kernel with a call's number of blocks; for each parameter: bytes, whether it is read, whether written."""

    kernel: Kernel
    checks: bool
    params: list[tuple[Buffer, int, bool, bool]]


def _info(kernel: Kernel) -> _Info:
    reads: set[str] = set()
    writes: set[str] = set()
    checks = False
    for s in stores(kernel.body):
        writes.add(s.buffer)
        for e in exprs(s):
            for x in walk_expr(e):
                checks |= isinstance(x, Checked)
                if isinstance(x, Load):
                    reads.add(x.buffer)
    return _Info(frozenset(reads), frozenset(writes), checks)


def verify_plan(plan: Plan) -> None:
    """Raise `VerifyError`, which names the function and the launch, if a rule is broken."""
    infos = {key: _info(k) for key, k in plan.kernels.items()}
    slots = sorted(
        (s.offset, s.offset + _span(s.type.shape, s.strides) * s.type.dtype.size, s.name) for s in plan.state
    )
    for (_, end, name), (start, _, other) in pairwise(slots):
        if start < end:
            raise VerifyError(f"plan: states {name} and {other} overlap at byte {start}")
    if slots and (slots[0][0] < 0 or max(s[1] for s in slots) > plan.state_bytes):
        raise VerifyError(f"plan: the states take {max(s[1] for s in slots)} bytes, the plan says {plan.state_bytes}")
    for f in plan.functions:
        _Function(plan, f, infos).run()


class _Function:
    def __init__(self, plan: Plan, function: FunctionPlan, infos: dict[str, _Info]):
        self.plan, self.function, self.infos = plan, function, infos
        f = function
        self.sizes = [f.arena, plan.state_bytes, len(plan.constants)]
        self.sizes += [t.nbytes for t in (*f.inputs, *f.outputs)]
        self.readonly = {CONSTANTS, *range(FIRST_ARGUMENT, FIRST_ARGUMENT + len(f.inputs))}
        self.aliases: dict[tuple[str, str, str], bool] = {}
        self.forms: dict[tuple[str, int], _Form] = {}
        self.at = 0
        self.alive: dict[int, list[Allocation]] = defaultdict(list)  # offset -> the buffers alive at this launch
        self.begins: dict[int, list[Allocation]] = defaultdict(list)
        self.ends: dict[int, list[Allocation]] = defaultdict(list)
        for a in f.allocations:
            if a.first <= a.last:
                self.begins[a.first].append(a)
        self.written: set[str] = set()

    def fail(self, reason: str, call: Call | None = None) -> VerifyError:
        where = f" launch {self.at}" + (f", {call.label or call.kernel} at {call.loc}" if call else "")
        return VerifyError(f"plan of {self.function.name}:{where}: {reason}")

    def run(self) -> None:
        f = self.function
        self.allocations()
        for i, step in enumerate(f.steps):
            for launch, counts in _launches(step, ()):
                self.pass_time()
                uses = [u for c in launch.calls for u in self.call(c, counts, i)]
                self.independent(uses)
                self.at += 1

    def pass_time(self) -> None:
        """Buffers begin and end: `alive` at this launch."""
        for a in self.ends.pop(self.at - 1, ()):
            self.alive[a.offset].remove(a)
        for a in self.begins.pop(self.at, ()):
            self.alive[a.offset].append(a)
            self.ends[a.last].append(a)

    def allocations(self) -> None:
        """Buffers that are alive together do not share bytes (one may end in the launch where another begins:
        then that launch is in place, which `call` checks)."""
        f = self.function
        live: list = []
        for a in sorted(f.allocations, key=lambda a: a.offset):
            if a.offset < 0 or a.offset + a.nbytes > f.arena:
                raise self.fail(f"buffer {a.name} ends at {a.offset + a.nbytes}, the arena has {f.arena} bytes")
            live = [b for b in live if b.offset + b.nbytes > a.offset]
            for b in live:
                if a.nbytes and b.nbytes and a.first < b.last and b.first < a.last:
                    raise self.fail(f"buffers {a.name} and {b.name} are alive together and share bytes at {a.offset}")
            live.append(a)

    def call(self, call: Call, counts: tuple[int, ...], step: int) -> list[_Use]:
        kernel = self.plan.kernels.get(call.kernel)
        if kernel is None:
            raise self.fail(f"no kernel {call.kernel}", call)
        if len(call.arguments) != len(kernel.params):
            raise self.fail(f"{len(kernel.params)} parameters, {len(call.arguments)} arguments", call)
        form = self.form(kernel, call)
        early = step < self.function.commit
        if form.checks and not early:
            raise self.fail("a check after the commit point", call)
        uses = []
        for a, (b, nbytes, reads, writes) in zip(call.arguments, form.params, strict=True):
            if not 0 <= a.base < len(self.sizes):
                raise self.fail(f"{b.name}: no base {a.base}", call)
            first, last = a.offset, a.offset + nbytes
            if a.strides:
                if len(a.strides) > min(len(counts), MAX_LOOPS):
                    raise self.fail(f"{b.name} has {len(a.strides)} strides in {len(counts)} loops", call)
                moves = [s * (n - 1) for s, n in zip(a.strides, counts, strict=False)]
                first += sum([min(m, 0) for m in moves])
                last += sum([max(m, 0) for m in moves])
            if first < 0 or last > self.sizes[a.base]:
                raise self.fail(
                    f"{b.name} takes bytes {first} to {last} of base {a.base}, which has {self.sizes[a.base]}", call
                )
            use = _Use(call, a, b, reads, writes, first, last)
            if writes and a.base in self.readonly:
                raise self.fail(f"writes {b.name}, which lies in read-only base {a.base}", call)
            if writes and a.base == STATE and early:
                raise self.fail(f"writes state ({b.name}) before the commit point", call)
            uses.append(use)
        for u in uses:
            if u.argument.base == ARENA and u.last > u.first:
                self.allocated(u)
        self.in_place(form.kernel, uses)
        return uses

    def form(self, kernel: Kernel, call: Call) -> _Form:
        """Kernels that differ in their number of blocks only share their code: this call's own form."""
        key = (call.kernel, call.blocks)
        if key not in self.forms:
            sized, info = with_blocks(kernel, call.blocks), self.infos[call.kernel]
            if sized.blocks != call.blocks:
                raise self.fail(f"the kernel has {kernel.blocks} blocks, the call says {call.blocks}", call)
            params = [(b, b.size * b.dtype.size, b.name in info.reads, b.name in info.writes) for b in sized.params]
            self.forms[key] = _Form(sized, info.checks, params)
        return self.forms[key]

    def allocated(self, u: _Use) -> None:
        """The bytes belong to one buffer that is alive here and was written before it is read."""
        if not self.function.allocations:
            return
        inside = [a for a in self.alive.get(u.first, ()) if u.last <= a.offset + a.nbytes]
        if not inside:  # not the whole buffer
            holders = [a for there in self.alive.values() for a in there]
            inside = [a for a in holders if a.offset <= u.first and u.last <= a.offset + a.nbytes]
        if not inside:
            raise self.fail(f"{u.buffer.name} takes bytes {u.first} to {u.last}: no one buffer alive here", u.call)
        if u.reads and not u.writes and not any(a.name in self.written for a in inside):
            raise self.fail(f"{u.buffer.name} reads {inside[0].name}, which nothing has written", u.call)
        if u.writes:
            self.written.update(a.name for a in inside)

    def in_place(self, kernel: Kernel, uses: Sequence[_Use]) -> None:
        for i, u in enumerate(uses):
            for v in uses[:i]:
                apart = u.argument.base != v.argument.base or u.last <= v.first or v.last <= u.first
                if apart or not (u.writes or v.writes) or not _overlap(u, v):
                    continue
                source, target = (v, u) if u.writes else (u, v)
                key = (kernel.name, source.buffer.name, target.buffer.name)
                legal = source.argument == target.argument and not (source.writes and target.writes)
                if legal and key not in self.aliases:
                    self.aliases[key] = can_alias(kernel, *key[1:])
                if not legal or not self.aliases[key]:
                    raise self.fail(
                        f"{source.buffer.name} and {target.buffer.name} share memory, "
                        f"and blocks do not read exactly what they write",
                        u.call,
                    )

    def independent(self, uses: Sequence[_Use]) -> None:
        """The calls of one launch run at the same time."""
        reading: list[_Use] = []  # uses that began before this one; those that ended may still be there
        writing: list[_Use] = []
        for u in sorted((u for u in uses if u.last > u.first), key=lambda u: (u.argument.base, u.first)):
            base, start = u.argument.base, u.first
            writing = [v for v in writing if v.last > start and v.argument.base == base]
            if u.writes:
                reading = [v for v in reading if v.last > start and v.argument.base == base]
            for v in (*writing, *reading) if u.writes else writing:
                if v.call is not u.call and _overlap(u, v):
                    raise self.fail(
                        f"calls of one launch meet: {v.call.label or v.call.kernel} ({v.buffer.name}) and "
                        f"{u.call.label or u.call.kernel} ({u.buffer.name})",
                        u.call,
                    )
            (writing if u.writes else reading).append(u)


def _launches(step, counts: tuple[int, ...]) -> Iterator[tuple]:
    if isinstance(step, Repeat):
        for s in step.body:
            yield from _launches(s, (*counts, step.count))
    else:
        yield step, counts


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0


def _overlap(u: _Use, v: _Use) -> bool:
    """Do two arguments share a byte (in the same iteration, where both move alike)?"""
    a, b = u.argument, v.argument
    if a.base != b.base or u.last <= v.first or v.last <= u.first:
        return False
    if a.strides == b.strides:  # compare one iteration
        ends = [(x.argument.offset, x.argument.offset + x.buffer.size * x.buffer.dtype.size) for x in (u, v)]
        if ends[0][1] <= ends[1][0] or ends[1][1] <= ends[0][0]:
            return False
        if not u.buffer.strides and not v.buffer.strides:
            return True
        start = min(e[0] for e in ends)
        touched = np.zeros((2, max(e[1] for e in ends) - start), np.bool_)
        for row, x, (offset, _) in zip(touched, (u, v), ends, strict=True):
            index = np.array(offset - start)
            for n, s in zip(x.buffer.shape, x.buffer.step, strict=True):
                index = np.add.outer(index, np.arange(n) * s * x.buffer.dtype.size)
            for byte in range(x.buffer.dtype.size):
                row[index + byte] = True
        return bool((touched[0] & touched[1]).any())
    return True
