"""Regions -> the plan: launches, loops, and a place for every byte.

State is laid out once for the whole program; each function gets an arena of its own need (the runtime takes the
largest).  Kernels are scheduled here, once for each distinct kernel, and named by their content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..errors import BuildError
from ..graph.program import Function, Program
from ..kernel.content import content_key
from ..kernel.kernel import Kernel
from ..kernel.plan import (
    ARENA,
    CONSTANTS,
    FIRST_ARGUMENT,
    MAX_LOOPS,
    STATE,
    Allocation,
    Argument,
    Call,
    FunctionPlan,
    Launch,
    Plan,
    Repeat,
    StateSlot,
    Step,
)
from ..kernel.work import work
from .groups import LoopPiece, Piece, Region, Value
from .memory import Lifetime, aligned, pack
from .order import Located, Storage, Target, copy_kernel, order, root

PORTIONS = 24
"""A launch is dealt out in about this many portions of about equal time: enough to balance at hardly any cost."""
SHORTEST = 1000.0
"""Nanoseconds: a portion is not cut below this, and a launch of less than two portions runs on one worker."""


def state_layout(program: Program) -> tuple[tuple[StateSlot, ...], int]:
    """Every state at a cache line of its own, in the order of the program, C-contiguous."""
    slots, at = [], 0
    for s in program.states.values():
        strides, n = [], 1
        for d in reversed(s.type.shape):
            strides.append(n)
            n *= max(d, 1)
        slots.append(StateSlot(s.name, s.type, at, tuple(reversed(strides))))
        at = aligned(at + s.type.nbytes)
    return tuple(slots), at


@dataclass
class _Constants:
    """The artifact's read-only data: equal constants are kept once."""

    data: bytearray = field(default_factory=bytearray)
    offsets: dict[bytes, int] = field(default_factory=dict)

    def place(self, content: bytes) -> int:
        if content not in self.offsets:
            self.data.extend(bytes(aligned(len(self.data)) - len(self.data)))
            self.offsets[content] = len(self.data)
            self.data.extend(content)
        return self.offsets[content]


class Kernels:
    """Scheduled kernels by content; equal kernels, also of different functions, are one.

    `get` gives (key, blocks, bytes of scratch, estimated nanoseconds of a block) of an unscheduled kernel."""

    def __init__(
        self,
        schedule: Callable[[Kernel], Kernel],
        scratch: Callable[[Kernel], int],
        in_loops: Callable[[Kernel], Kernel] | None = None,
    ):
        self.schedule, self.scratch, self.in_loops = schedule, scratch, in_loops
        self.by_key: dict[str, Kernel] = {}
        self._seen: dict[tuple[int, bool], tuple[Kernel, tuple[str, int, int, float]]] = {}
        self._by_content: dict[tuple[str, bool], tuple[str, int, int, float]] = {}

    def get(self, kernel: Kernel, looped: bool = False) -> tuple[str, int, int, float]:
        """`looped`: it is launched within a loop of the plan, for which there may be a schedule of its own."""
        looped = looped and self.in_loops is not None
        hit = self._seen.get((id(kernel), looped))
        if hit is None:
            unscheduled = content_key(kernel), looped
            found = self._by_content.get(unscheduled)
            if found is None:
                k = self.in_loops(kernel) if looped else self.schedule(kernel)
                key = content_key(k)
                self.by_key.setdefault(key, k)
                found = self._by_content[unscheduled] = (key, k.blocks, self.scratch(k), work(k) / max(k.blocks, 1))
            hit = self._seen[id(kernel), looped] = (kernel, found)
        return hit[1]


def make_plan(program: Program, regions: dict[int, Region], kernels: Kernels) -> Plan:
    """`regions[i]`: the lowered graph of `program.functions[i]`."""
    slots, state_bytes = state_layout(program)
    by_name = {s.name: s for s in slots}
    constants = _Constants()
    functions = tuple(
        _FunctionPlanner(f, regions[i], by_name, constants, kernels).plan() for i, f in enumerate(program.functions)
    )
    return Plan(kernels.by_key, functions, slots, state_bytes, bytes(constants.data))


@dataclass
class _Launched:
    """A launch whose arguments still wait for the arena's offsets."""

    pieces: list[tuple[Piece, tuple[Located, ...]]]


class _FunctionPlanner:
    def __init__(self, function: Function, region: Region, state, constants: _Constants, kernels: Kernels):
        self.function, self.region, self.state, self.kernels = function, region, state, kernels
        self.constants = constants
        self.arena: list[Storage] = []
        self.clock = 0  # launches in program order
        self.scratch = 0

    def plan(self) -> FunctionPlan:
        f, region = self.function, self.region
        located: dict[Value, Located] = {}
        n_args, n_results = len(f.arguments), len(region.outputs) - len(f.writes)
        old_state: dict[str, Value] = {}
        for k, v in enumerate(region.inputs):
            if k < n_args:
                located[root(v)] = Located(Storage(FIRST_ARGUMENT + k, 0, v))
            else:
                name = f.reads[k - n_args]
                old_state[name] = v
                located[root(v)] = Located(Storage(STATE, self.state[name].offset, v))
        targets = [
            Target(v, Located(Storage(FIRST_ARGUMENT + n_args + k, 0, v)))
            for k, v in enumerate(region.outputs[:n_results])
        ] + [
            Target(v, Located(Storage(STATE, self.state[name].offset, v)), old_state.get(name), state=True)
            for name, v in zip(f.writes, region.outputs[n_results:], strict=True)
        ]
        steps, commit = self._region(region, located, targets, depth=0)
        sizes = [Lifetime(s.value.type.nbytes, s.first, s.last) for s in self.arena]
        offsets, total = pack(sizes)
        for s, offset in zip(self.arena, offsets, strict=True):
            s.offset = offset
        return FunctionPlan(
            f.name,
            tuple(a.type for a in f.arguments),
            tuple(v.type for v in region.outputs[:n_results]),
            tuple(self._finish(s, False) for s in steps),
            commit,
            total,
            self.scratch,
            tuple(
                Allocation(s.value.name, s.value.type, s.offset, s.value.type.nbytes, s.first, s.last, s.value.loc)
                for s in self.arena
            ),
        )

    def _region(self, region: Region, located: dict[Value, Located], targets: list[Target], depth: int):
        """Order and locate one region; returns its steps and the number of steps before the first state write."""
        ordered = order(region, targets)
        located.update(ordered.located)
        steps: list[object] = []
        commit = None
        for generation in ordered.generations:
            pieces = [p for p in generation if isinstance(p, Piece)]
            if commit is None and any(id(p) in ordered.commits for p in generation):
                commit = len(steps)
            if pieces:
                steps.append(_Launched([(p, self._locate(p, located)) for p in pieces]))
                self.clock += 1
            for p in generation:
                if isinstance(p, LoopPiece):
                    steps += self._loop(p, located, depth)
        return steps, len(steps) if commit is None else commit

    def _locate(self, piece: Piece, located: dict[Value, Located]) -> tuple[Located, ...]:
        where = []
        for v in piece.arguments:
            at = self._place(v, located)
            at.storage.touch(self.clock)
            where.append(at)
        return tuple(where)

    def _place(self, v: Value, located: dict[Value, Located]) -> Located:
        r = root(v)
        at = located.get(r)
        if at is None:
            if r.source is not None and r.source.op.name == "constant":
                at = Located(Storage(CONSTANTS, self.constants.place(r.source.op.data), r))
            else:
                at = Located(Storage(ARENA, 0, r))
                self.arena.append(at.storage)
            located[r] = at
        return at

    def _loop(self, loop: LoopPiece, located: dict[Value, Located], depth: int) -> list[object]:
        """A scan: carries in place, stacked values by strides; zero iterations leave the initial carries."""
        if depth >= MAX_LOOPS:
            raise BuildError(f"scans nested more than {MAX_LOOPS} deep")
        inner: dict[Value, Located] = {}
        start, around = self.clock, []

        def bind(outer: Value) -> Located:
            at = self._place(outer, located)
            around.append(at.storage)
            at.storage.touch(start)
            return Located(at.storage, at.strides + (0,) * (depth - len(at.strides)))

        for outer, v in loop.constants:
            inner[root(v)] = Located(bind(outer).storage, (*bind(outer).strides, 0))
        for outer, v in loop.stacked_in:
            at = bind(outer)
            inner[root(v)] = Located(at.storage, (*at.strides, v.type.nbytes))
        targets, entry = [], []
        for initial, v, new, final in loop.carries:
            at = bind(final)
            here = Located(at.storage, (*at.strides, 0))
            inner[root(v)] = here
            targets.append(Target(new, here, v))
            first = Piece(copy_kernel(v.type), (initial, final), initial.loc, "carry", (), ())
            entry.append((first, (self._place(initial, located), at)))
            bind(initial)
        for new, outer in loop.stacked_out:
            at = bind(outer)
            targets.append(Target(new, Located(at.storage, (*at.strides, new.type.nbytes))))
        steps: list[object] = []
        if entry:
            steps.append(_Launched(entry))
            self.clock += 1
        if not loop.count:
            return steps
        body, _ = self._region(loop.body, inner, targets, depth + 1)
        for s in around:  # also after the last launch of an iteration, for the next one
            s.touch(self.clock)
        steps.append((loop, body))
        return steps

    def _finish(self, step, looped: bool) -> Step:
        if isinstance(step, tuple):
            loop, body = step
            return Repeat(loop.count, tuple(self._finish(s, True) for s in body), loop.reverse)
        found = []
        for piece, where in step.pieces:
            key, blocks, scratch, time = self.kernels.get(piece.kernel, looped)
            self.scratch = max(self.scratch, scratch)
            arguments = tuple(Argument(at.storage.base, at.storage.offset, at.strides) for at in where)
            outs = piece.kernel.outputs
            updates = any(
                a.base == STATE and b.name in outs for a, b in zip(arguments, piece.kernel.params, strict=True)
            )
            found.append((time, updates, Call(key, arguments, blocks, piece.loc, piece.label, piece.sites)))
        return deal_out(found)


def deal_out(calls: list[tuple[float, bool, Call]]) -> Launch:
    """The launch of (nanoseconds of a block, does it update state, call), cut into portions of about equal time.

    The longest come first, except that updates of state come last.  Workers take portions from both ends: so one
    computes while another moves memory, and state stays with the same one for the most part."""
    total = sum(time * c.blocks for time, _, c in calls)
    portion = max(SHORTEST, total / PORTIONS)
    cut = []
    for time, updates, c in calls:
        grain = max(1, min(c.blocks, round(portion / time))) if time else max(1, c.blocks)
        portions = -(-c.blocks // grain)
        if portions > 1:  # an even number of them, so that few are shared evenly
            grain = -(-c.blocks // (portions + portions % 2))
        cut.append((updates, -grain * time, replace(c, grain=grain)))
    cut.sort(key=lambda x: x[:2])
    ordered = tuple(c for _, _, c in cut)
    return Launch(ordered, chunk=1 if total >= 2 * SHORTEST else max(1, sum(c.portions for c in ordered)))
