"""Plans as text: what is launched, on which bytes, for which line of the script; and back.

The totals (launches, bytes read and written) are what fusion is judged by.  `traffic` counts each byte of a
parameter once per call, as a cache that is large enough for one kernel's reuse would see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import prod

from ..errors import PullbackError
from ..graph.graph import Loc
from ..graph.types import TensorType
from .kernel import Affine, Buffer, Index, Kernel, Loop, Store, Tile, exprs, loads
from .plan import (
    ARENA,
    CONSTANTS,
    FIRST_ARGUMENT,
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
from .text import Parser, parse_kernel, print_kernel

_BASES = {ARENA: "arena", STATE: "state", CONSTANTS: "constants"}


# ---- bytes moved ----------------------------------------------------------------------------------------
def traffic(kernel: Kernel) -> dict[str, tuple[int, int]]:
    """parameter -> (bytes read, bytes written): the distinct elements that a whole launch touches, at most
    the buffer's size; a gathered table counts the elements that the indices can name."""
    buffers = {b.name: b for b in kernel.params}
    counts: dict[str, list[dict]] = {b: [{}, {}] for b in buffers}

    def visit(stmts, extents: dict[str, int]) -> None:
        for s in stmts:
            if isinstance(s, Loop):
                extent = s.extent if isinstance(s.extent, int) else _most(s.extent, extents)
                visit(s.body, extents | {s.axis: extent})
            elif isinstance(s, Tile):
                visit(s.body, extents)
            elif isinstance(s, Store):
                if s.buffer in buffers:
                    counts[s.buffer][1][s.index] = _touched(s.index, extents)
                for e in exprs(s):
                    for x in loads(e):
                        if x.buffer in buffers:
                            counts[x.buffer][0][x.index] = _touched(x.index, extents)

    visit(kernel.body, {})
    return {
        name: tuple(min(sum(c.values()), prod(b.shape)) * b.dtype.size for c in counts[name])
        for name, b in buffers.items()
    }


def _touched(index: Sequence[Index], extents: dict[str, int]) -> int:
    axes: set[str] = set()
    for i in index:
        parts = [i] if isinstance(i, Affine) else [a for x in loads(i) for a in x.index if isinstance(a, Affine)]
        axes |= {a for p in parts for a in p.axes}
    return prod(extents.get(a, 1) for a in axes)


def _most(a: Affine, extents: dict[str, int]) -> int:
    return a.const + sum(max(c * (extents.get(n, 1) - 1), 0) for n, c in a.terms)


def totals(plan: Plan, function: FunctionPlan) -> tuple[int, int, int]:
    """(launches, bytes read, bytes written) of one call of the function; loops count every iteration."""
    each = {key: traffic(k) for key, k in plan.kernels.items()}

    def count(steps: Sequence[Step]) -> tuple[int, int, int]:
        n = r = w = 0
        for s in steps:
            if isinstance(s, Repeat):
                a, b, c = count(s.body)
                n, r, w = n + a * s.count, r + b * s.count, w + c * s.count
            else:
                moved = [m for c in s.calls for m in each[c.kernel].values()]
                n, r, w = n + 1, r + sum(m[0] for m in moved), w + sum(m[1] for m in moved)
        return n, r, w

    return count(function.steps)


# ---- printing -------------------------------------------------------------------------------------------
def print_plan(plan: Plan, kernels: bool = True) -> str:
    """The whole plan; with the text of its kernels unless told otherwise."""
    lines = [f"plan state {plan.state_bytes} bytes, constants {len(plan.constants)} bytes"]
    lines += [f"  {_name(s.name)}: {s.type} at {s.offset} strides{_tuple(s.strides)}" for s in plan.state]
    for f in plan.functions:
        lines += ["", *print_function(plan, f)]
    if kernels:
        for key, k in plan.kernels.items():
            lines += ["", f"# {key}", print_kernel(k).rstrip()]
    return "\n".join(lines) + "\n"


def print_function(plan: Plan, f: FunctionPlan) -> list[str]:
    """One function: buffers of the arena, then its launches in order."""
    each = {key: traffic(k) for key, k in plan.kernels.items()}
    signature = f"({', '.join(map(str, f.inputs))}) -> ({', '.join(map(str, f.outputs))})"
    launches, reads, writes = totals(plan, f)
    lines = [
        f"function {_name(f.name)} {signature}",
        f"  # {launches} launches, {reads} bytes read, {writes} bytes written",
        f"  arena {f.arena} scratch {f.scratch} commit {f.commit}",
    ]
    for a in f.allocations:
        lines.append(
            f"  buffer {_name(a.name)}: {a.type} at {a.offset} bytes {a.nbytes} steps {a.first} {a.last} {_loc(a.loc)}"
        )

    def show(steps: Sequence[Step], depth: int) -> None:
        pad = "  " * depth
        for i, s in enumerate(steps):
            if depth == 1 and i == f.commit:
                lines.append("  # commit: nothing fails below")
            if isinstance(s, Repeat):
                lines.append(f"{pad}repeat {s.count}{' reverse' if s.reverse else ''}")
                show(s.body, depth + 1)
                continue
            lines.append(f"{pad}launch chunk {s.chunk}")
            for c in s.calls:
                moved = each[c.kernel].values()
                arguments = ", ".join(_argument(a, len(f.inputs)) for a in c.arguments)
                extra = f" grain {c.grain}" if c.grain != 1 else ""
                extra += f' label "{c.label}"' if c.label else ""
                extra += f" sites({', '.join(map(_quote, c.sites))})" if c.sites else ""
                lines.append(f"{pad}  {_name(c.kernel)}({arguments}) blocks {c.blocks}{extra} {_loc(c.loc)}")
                lines.append(f"{pad}    # reads {sum(m[0] for m in moved)}, writes {sum(m[1] for m in moved)} bytes")

    show(f.steps, 1)
    return lines


def _quote(s: str) -> str:
    return '"' + s.replace('"', "'") + '"'


def _name(s: str) -> str:
    return s if re.fullmatch(r"[A-Za-z_][\w.]*", s) else _quote(s)


def _tuple(t: Sequence[int]) -> str:
    return f"({', '.join(map(str, t))})"


def _loc(loc: Loc) -> str:
    function = f" in {_quote(loc.function)}" if loc.function else ""
    return f"at {_quote(loc.file)}:{loc.line}{function}" + (" gradient" if loc.gradient else "")


def _argument(a: Argument, inputs: int) -> str:
    n = a.base - FIRST_ARGUMENT
    base = _BASES.get(a.base) or (f"input{n}" if n < inputs else f"output{n - inputs}")
    return f"{base}+{a.offset}" + (f" by {_tuple(a.strides)}" if a.strides else "")


# ---- parsing --------------------------------------------------------------------------------------------
def parse_plan(text: str, constants: bytes = b"") -> Plan:
    """The plan that `print_plan` printed with its kernels.  The bytes of the constants are not in the text."""
    parts = text.split("\n# ")
    kernels = {}
    for part in parts[1:]:
        key, body = part.split("\n", 1)
        kernels[key.strip()] = parse_kernel(body)
    lines = [_PlanParser(line, i, {}) for i, line in enumerate(parts[0].splitlines(), 1)]
    rest = iter([p for p in lines if p.tokens and not p.line.lstrip().startswith("#")])
    p = next(rest, None)
    if p is None:
        raise PullbackError("expected a plan, got no text")
    p.need("plan")
    state_bytes = p.field("state")
    state, functions = [], []
    p = next(rest, None)
    while p is not None and not p.peek("function"):
        name = p.title()
        p.need(":")
        state.append(StateSlot(name, p.type(), p.field("at"), p.numbers("strides")))
        p = next(rest, None)
    while p is not None:
        function, p = _function(p, rest)
        functions.append(function)
    return Plan(kernels, tuple(functions), tuple(state), state_bytes, constants)


class _PlanParser(Parser):
    def __init__(self, line: str, number: int, buffers: dict[str, Buffer]):
        pieces = line.split('"')  # what stands between quotes is one token
        super().__init__("", number, buffers)
        self.line = line
        for i, piece in enumerate(pieces):
            self.tokens += [("string", piece)] if i % 2 else Parser(piece, number, buffers).tokens
        self.indent = len(line) - len(line.lstrip())

    def field(self, name: str) -> int:
        self.need(name)
        return self.integer()

    def numbers(self, name: str) -> tuple[int, ...]:
        self.need(name)
        self.need("(")
        return tuple(self.list(")", self.integer))

    def title(self) -> str:
        """A name, in quotes where it is no plain word."""
        return self.kind(
            "string" if (self.tokens[self.at][0] if self.at < len(self.tokens) else "") == "string" else "name",
            "a name",
        )

    def type(self) -> TensorType:
        dtype = self.dtype()
        self.need("[")
        return TensorType(dtype, tuple(self.list("]", self.integer)))

    def loc(self) -> Loc:
        self.need("at")
        file = self.kind("string", "a file")
        self.need(":")
        line = self.integer()
        function = self.kind("string", "a function") if self.take("in") else ""
        return Loc(file, line, function, self.take("gradient"))

    def argument(self, inputs: int) -> Argument:
        name = self.kind("name", "a base")
        bases = {n: b for b, n in _BASES.items()}
        if name in bases:
            base = bases[name]
        else:
            kind, n = name.rstrip("0123456789"), int(name.lstrip("inputo"))
            base = FIRST_ARGUMENT + n + (inputs if kind == "output" else 0)
        self.need("+")
        offset = self.integer()
        return Argument(base, offset, self.numbers("by") if self.peek("by") else ())


def _function(p: _PlanParser, rest: Iterator[_PlanParser]) -> tuple[FunctionPlan, _PlanParser | None]:
    p.need("function")
    name = p.title()
    p.need("(")
    inputs = tuple(p.list(")", p.type))
    p.need("->")
    p.need("(")
    outputs = tuple(p.list(")", p.type))
    p = next(rest)
    arena, scratch, commit = p.field("arena"), p.field("scratch"), p.field("commit")
    allocations = []
    p = next(rest, None)
    while p is not None and p.take("buffer"):
        title = p.title()
        p.need(":")
        type_ = p.type()
        numbers = p.field("at"), p.field("bytes"), p.field("steps"), p.integer()
        allocations.append(Allocation(title, type_, *numbers, p.loc()))
        p = next(rest, None)
    steps, p = _steps(p, rest, 0, len(inputs))
    return FunctionPlan(name, inputs, outputs, steps, commit, arena, scratch, tuple(allocations)), p


def _steps(p: _PlanParser | None, rest, outside: int, inputs: int) -> tuple[tuple[Step, ...], _PlanParser | None]:
    out: list[Step] = []
    while p is not None and p.indent > outside:
        indent = p.indent
        if p.take("repeat"):
            count, reverse = p.integer(), p.take("reverse")
            body, p = _steps(next(rest, None), rest, indent, inputs)
            out.append(Repeat(count, body, reverse))
            continue
        p.need("launch")
        chunk, calls = p.field("chunk"), []
        p = next(rest, None)
        while p is not None and p.indent > indent:
            calls.append(_call(p, inputs))
            p = next(rest, None)
        out.append(Launch(tuple(calls), chunk))
    return tuple(out), p


def _call(p: _PlanParser, inputs: int) -> Call:
    kernel = p.title()
    p.need("(")
    arguments = tuple(p.list(")", lambda: p.argument(inputs)))
    blocks = p.field("blocks")
    grain = p.integer() if p.take("grain") else 1
    label = p.kind("string") if p.take("label") else ""
    sites: tuple[str, ...] = ()
    if p.take("sites"):
        p.need("(")
        sites = tuple(p.list(")", lambda: p.kind("string")))
    return Call(kernel, arguments, blocks, p.loc(), label, sites, grain)
