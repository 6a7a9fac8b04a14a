"""Translates a kernel to Python over flat numpy memory: what `evaluate.py` runs.  Kernel IR in, a callable out.

A kernel becomes Python source over flat arrays: one statement per expression node, one loop per axis.
Values have the exact type of the IR: f32 arithmetic rounds after each operation, `fma` once, integers wrap,
bf16 and f16 compute in f32 and round at casts and stores.  Locals start as poison (NaN; a large negative
integer) and are poison again in each iteration of the innermost parallel loop that holds all their uses;
stores with `other='any'` write poison outside of their masks.  Every access that interval arithmetic cannot
prove inside its buffer is checked, dimension by dimension.

Asynchronous stores go through a queue of groups: an element is poison from its store to the wait that covers it.
Roles and tokens: `coroutines.py`.

A loop whose iterations provably touch different elements runs in lockstep: its axis is then an array
instead of a number, and numpy does the rest.  The generated text is the same in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from ..errors import PullbackError
from ..graph.types import DType
from .bounds import may_meet
from .concurrent import Arrive, Await, Copy, Roles
from .coroutines import in_order, translate
from .kernel import (
    Affine,
    AxisValue,
    Buffer,
    Checked,
    Commit,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    Tile,
    Wait,
    exprs,
    loads,
    stores,
    walk,
    written,
)
from .scalars import SCALARS
from .verify_tiles import upper_half

MAX_LANES = 1 << 16
"""Loops run in lockstep up to this many iterations together."""
MAX_PRIVATE = 1 << 22
"""Elements that one local may take when it is copied for every lane."""


class CheckFailed(PullbackError):
    """A `Checked` index lay outside of its bound: what a compiled step reports as its status."""

    def __init__(self, kernel: str, site: int, value: int, bound: int):
        self.kernel, self.site, self.value, self.bound = kernel, site, value, bound
        super().__init__(f"kernel {kernel}: check {site} failed: index {value} is not in 0 <= index < {bound}")


class OutOfBounds(PullbackError):
    """A kernel touched memory outside of a buffer: a bug of lowering or of a schedule step."""

    def __init__(self, kernel: str, buffer: str, index: tuple[int, ...], shape: tuple[int, ...]):
        self.kernel, self.buffer, self.index = kernel, buffer, index
        super().__init__(f"kernel {kernel}: {buffer}{list(index)} is outside of its shape {list(shape)}")


# ---- memory ---------------------------------------------------------------------------------------------
def memory_type(dtype: DType) -> np.dtype:
    """The numpy type of one element in memory (bf16: its 16 bits)."""
    return np.dtype(np.uint16) if dtype.name == "bf16" else dtype.numpy


def encode(array, dtype: DType) -> np.ndarray:
    """Values as they lie in memory."""
    if dtype.name != "bf16":
        return np.asarray(array).astype(dtype.numpy, copy=False)
    return (dtype.round(array).view(np.uint32) >> 16).astype(np.uint16)


def decode(raw, dtype: DType) -> np.ndarray:
    """Memory as values of the type that computes (bf16 and f16: float32)."""
    if dtype.name == "bf16":
        return (np.asarray(raw).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(raw).astype(dtype.compute.numpy, copy=False)


def poison(dtype: DType):
    """What nobody may read: NaN, or an integer that is outside of every bound."""
    if dtype.name == "bf16":
        return np.uint16(0x7FC0)
    if dtype.kind == "f":
        return dtype.numpy.type(np.nan)
    if dtype.kind == "b":
        return np.True_
    info = np.iinfo(dtype.numpy)
    return dtype.numpy.type(info.min // 2 - 7 if info.min else info.max - 7)


# ---- what the generated text calls ----------------------------------------------------------------------
def _cast(x, source: DType, target: DType):
    """Round, truncate or wrap as the types say; float to integer saturates and takes NaN to 0."""
    x = np.asarray(x)
    if target.kind == "f":
        return target.round(x).astype(target.compute.numpy, copy=False)[()]
    if source.kind == "f" and target.is_integer:
        info = np.iinfo(target.numpy)
        high = x >= -float(info.min) if info.min else x >= 2.0**target.bits
        low = x < info.min
        plain = np.where(high | low | np.isnan(x), 0, x).astype(target.numpy)
        return np.where(high, info.max, np.where(low, info.min, plain)).astype(target.numpy)[()]
    return x.astype(target.numpy)[()]


def _bitcast(x, target: DType):
    return np.asarray(x).view(target.numpy)[()]


def _guard(kernel: str, buffer: str, index: tuple, shape: tuple[int, ...], mask=True) -> None:
    """Raise where an index leaves its buffer and the mask holds."""
    for i, n in zip(index, shape, strict=True):
        bad = ((np.asarray(i) < 0) | (np.asarray(i) >= n)) & mask
        if bad.any():
            lane = tuple(np.argwhere(bad)[0])
            at = (np.broadcast_to(j, np.broadcast_shapes(np.shape(j), bad.shape)) for j in index)
            raise OutOfBounds(kernel, buffer, tuple(int(j[(..., *lane)].flat[0]) for j in at), shape)


def _check(kernel: str, value, bound: int, site: int, mask=True):
    bad = ((np.asarray(value) < 0) | (np.asarray(value) >= bound)) & mask
    if bad.any():
        raise CheckFailed(kernel, site, int(np.broadcast_to(value, bad.shape)[bad].flat[0]), bound)
    return np.where(mask, value, 0).astype(np.asarray(value).dtype)[()]


def _load(memory, flat, mask, other):
    """Lanes where the mask fails give `other` and touch nothing."""
    return np.where(mask, memory[np.where(mask, flat, 0)] if memory.size else other, other).astype(memory.dtype)


def _store(memory, flat, mask, value) -> None:
    """Lanes where the mask fails keep what is there."""
    flat, mask, value = np.broadcast_arrays(flat, mask, value)
    memory[flat[mask]] = value[mask]


class Flight:
    """Asynchronous stores on their way to memory: the group that is open, then those that `commit` closed."""

    def __init__(self):
        self.open: list[tuple] = []
        self.groups: list[list[tuple]] = []

    def store(self, memory, flat, mask, value, gone) -> None:
        flat, mask, value = np.broadcast_arrays(flat, mask, value)
        memory[flat[mask]] = gone
        self.open.append((memory, flat[mask], value[mask]))

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, pending: int) -> None:
        while len(self.groups) > pending:
            for memory, flat, value in self.groups.pop(0):
                memory[flat] = value


_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip


class Evaluator:
    """One kernel, translated once; call it on flat memory arrays, one for each parameter.

    `functions`: scalar functions on floats that take the place of those in `scalars.py`.
    """

    def __init__(self, kernel: Kernel, lockstep: bool = True, functions: Mapping[str, Callable] | None = None):
        self.kernel, self.lockstep, self.functions = kernel, lockstep, functions or {}
        self.buffers = kernel.buffers
        self.names = {b: f"m{i}" for i, b in enumerate(self.buffers)}
        self.axes: dict[str, str] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.lanes: dict[str, int] = {}  # axes in lockstep and their extents, outermost first
        self.private: dict[str, dict[str, int]] = {b.name: {} for b in kernel.locals}  # local -> axis -> stride
        self.copies = {b.name: 1 for b in kernel.locals}
        self.uses = _uses(kernel)
        self.lines: list[str] = []
        self.temporaries = 0
        self.globals: dict[str, object] = {
            "np": np, "_guard": _guard, "_check": _check, "_load": _load, "_store": _store, "_cast": _cast,
            "_bitcast": _bitcast, "_encode": encode, "_decode": decode,
        }  # fmt: skip
        for s in kernel.body:
            self._stmt(s, 1)
        self.source = "\n".join([f"def run({', '.join(self.names.values())}):", *self.lines, "    return None"])
        exec(compile(self.source, f"<kernel {kernel.name}>", "exec"), self.globals)

    def __call__(self, *memory: np.ndarray) -> None:
        """Run on the memory of the parameters, in place."""
        local = [
            np.full(b.size * self.copies[b.name], poison(b.dtype), memory_type(b.dtype)) for b in self.kernel.locals
        ]
        self.globals["_flight"] = Flight()
        with np.errstate(all="ignore"):
            self.globals["run"](*memory, *local)

    # ---- statements
    def _line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def _stmt(self, s: Stmt, depth: int) -> None:
        if isinstance(s, Store):
            self._store(s, depth)
        elif isinstance(s, Loop):
            self._loop(s, depth)
        elif isinstance(s, Roles | Copy | Arrive | Await):
            translate(self, s, depth)
        elif isinstance(s, Tile):
            for c in s.body:
                self._stmt(c, depth)
                if s.name == "fold":
                    self._stmt(upper_half(c), depth)
        elif isinstance(s, Commit):
            self._line(depth, "_flight.commit()")
        elif isinstance(s, Wait):
            self._line(depth, f"_flight.wait({s.pending})")

    def _loop(self, s: Loop, depth: int) -> None:
        name = self.axes.setdefault(s.axis, f"a{len(self.axes)}")
        high = s.extent if isinstance(s.extent, int) else self._interval(s.extent)[1]
        outer = self.ranges.get(s.axis)
        self.ranges[s.axis] = (0, max(high - 1, 0))
        inside = self._dying(s) if s.role == "parallel" else []
        if self._independent(s, inside):
            shape = f".reshape({s.extent}{', 1' * len(self.lanes)})" if self.lanes else ""
            self._line(depth, f"{name} = np.arange({s.extent}){shape}")
            self.lanes[s.axis] = s.extent
            for b in inside:
                self.private[b][s.axis] = self.copies[b] * self.buffers[b].size
                self.copies[b] *= s.extent
            self._body(s, inside, depth)
            del self.lanes[s.axis]
            for b in inside:
                del self.private[b][s.axis]
        else:
            extent = s.extent if isinstance(s.extent, int) else self._affine(s.extent)
            self._line(depth, f"for {name} in range({extent}):")
            self._body(s, inside, depth + 1)
        if outer is not None:
            self.ranges[s.axis] = outer

    def _body(self, s: Loop, inside: list[str], depth: int) -> None:
        inner = set().union(*(self._dying(c) for c in walk(s.body) if isinstance(c, Loop) and c.role == "parallel"))
        for b in inside:
            if b not in inner:
                self._line(depth, f"{self.names[b]}.fill({poison(self.buffers[b].dtype)!s})".replace("nan", "np.nan"))
        for c in s.body:
            self._stmt(c, depth)
        if not s.body:
            self._line(depth, "pass")

    def _dying(self, s: Loop) -> list[str]:
        """The locals that are used in this loop and nowhere else: no value outlives an iteration."""
        used = _count(s.body)
        return [b.name for b in self.kernel.locals if used.get(b.name) and used[b.name] == self.uses[b.name]]

    def _independent(self, s: Loop, private: list[str]) -> bool:
        """Different iterations touch different elements."""
        lanes = prod(self.lanes.values())
        if not self.lockstep or not isinstance(s.extent, int) or s.extent * lanes > MAX_LANES or s.extent < 2:
            return False
        if in_order(s.body):
            return False
        loops = [c for c in walk(s.body) if isinstance(c, Loop)]
        inner: dict[str, tuple[int, int]] = {}
        for c in loops:
            if not isinstance(c.extent, int) or c.axis == s.axis:
                return False
            inner[c.axis] = (0, max(c.extent - 1, inner.get(c.axis, (0, 0))[1]))
        if any(self.buffers[b].size * self.copies[b] * s.extent > MAX_PRIVATE for b in private):
            return False
        shared = written(s.body) - set(private)
        seen: dict[str, list[tuple[Index, ...]]] = {b: [] for b in shared}
        for x in stores(s.body):
            if x.buffer in shared:
                seen[x.buffer].append(x.index)
            for e in exprs(x):
                for v in loads(e):
                    if v.buffer in shared:
                        seen[v.buffer].append(v.index)
        return all(
            _no_overlap(self.buffers[b]) and not may_meet(s.axis, s.extent, accesses, (), inner, self.buffers[b].step)
            for b, accesses in seen.items()
        )

    def _store(self, s: Store, depth: int) -> None:
        memo: dict[int, tuple[str, bool]] = {}
        b = self.buffers[s.buffer]
        mask, lanes = self._masks(s.masks)
        value, _ = self._expr(s.value, depth, memo)
        if b.dtype.bits == 16:
            value = f"_encode({value}, {self._object(b.dtype)})"
        index = [self._index(i, depth, memo, mask) for i in s.index]
        self._bounds(b, s.index, index, depth, mask if s.other == "keep" else None)
        target, flat = self.names[s.buffer], self._flat(b, index)
        if s.where is not None:
            predicate, w = self._expr(s.where, depth, memo)
            if mask is not None and s.other != "keep":
                raise PullbackError(f"kernel {self.kernel.name}: a store to {s.buffer} has both `where` and `other`")
            mask, lanes = (predicate, w) if mask is None else (f"({mask}) & {predicate}", lanes or w)
        if s.asynchronous:
            gone = self._object(poison(b.dtype))
            return self._line(depth, f"_flight.store({target}, {flat}, {mask or True}, {value}, {gone})")
        if mask is None:
            return self._line(depth, f"{target}[{flat}] = {value}")
        if lanes:
            self._line(depth, f"_store({target}, {flat}, {mask}, {value})")
        else:
            self._line(depth, f"if {mask}: {target}[{flat}] = {value}")
        if s.other != "keep":
            other = self._object(poison(b.dtype) if s.other == "any" else encode(s.other, b.dtype)[()])
            if lanes:
                self._line(depth, f"_store({target}, {flat}, ~({mask}), {other})")
            else:
                self._line(depth, f"if not ({mask}): {target}[{flat}] = {other}")

    # ---- expressions: text, and whether it is an array over lanes
    def _expr(self, e: Expr, depth: int, memo: dict[int, tuple[str, bool]]) -> tuple[str, bool]:
        found = memo.get(id(e))
        if found is None:
            text, wide = self._fresh(e, depth, memo)
            name = f"t{self.temporaries}"
            self.temporaries += 1
            self._line(depth, f"{name} = {text}")
            found = memo[id(e)] = (name, wide)
        return found

    def _fresh(self, e: Expr, depth: int, memo) -> tuple[str, bool]:
        if isinstance(e, Const):
            return self._object(e.dtype.round(e.value).astype(e.dtype.compute.numpy)[()]), False
        if isinstance(e, AxisValue):
            text, wide = self._affine(e.index), self._wide(e.index)
            return f"np.asarray({text}).astype(np.{e.dtype.compute.numpy})[()]", wide
        if isinstance(e, Checked):
            value, wide = self._expr(e.value, depth, memo)
            return f"_check({self.kernel.name!r}, {value}, {e.bound}, {e.site})", wide
        if isinstance(e, Load):
            return self._read(e, depth, memo)
        args = [self._expr(a, depth, memo) for a in e.args]
        wide = any(w for _, w in args)
        a = [t for t, _ in args]
        if e.fn in _OPERATORS:
            return f"{a[0]} {_OPERATORS[e.fn]} {a[1]}", wide
        if e.fn == "select" and not args[0][1]:
            return f"{a[1]} if {a[0]} else {a[2]}", wide
        if e.fn == "cast":
            return f"_cast({a[0]}, {self._object(e.args[0].dtype)}, {self._object(e.dtype)})", wide
        if e.fn == "bitcast":
            return f"_bitcast({a[0]}, {self._object(e.dtype)})", wide
        function = self.functions.get(e.fn) if e.dtype.is_float else None
        return f"{self._object(function or SCALARS[e.fn].evaluate)}({', '.join(a)})", wide

    def _read(self, e: Load, depth: int, memo) -> tuple[str, bool]:
        b = self.buffers[e.buffer]
        mask, lanes = self._masks(e.masks)
        index = [self._index(i, depth, memo, mask) for i in e.index]
        self._bounds(b, e.index, index, depth, mask)
        flat = self._flat(b, index)
        wide = lanes or any(w for _, w in index) or bool(self.private.get(b.name))
        text = f"{self.names[e.buffer]}[{flat}]"
        if mask is not None:
            other = self._object(encode(e.other, b.dtype)[()])
            if lanes:
                text = f"_load({self.names[e.buffer]}, {flat}, {mask}, {other})"
            else:
                text = f"{text} if {mask} else {other}"
        return (f"_decode({text}, {self._object(b.dtype)})[()]" if b.dtype.bits == 16 else text), wide

    def _index(self, i: Index, depth: int, memo, mask: str | None) -> tuple[str, bool]:
        if isinstance(i, Affine):
            return self._affine(i), self._wide(i)
        value, wide = self._expr(i.value, depth, memo)
        tail = "" if mask is None else f", {mask}"
        return f"_check({self.kernel.name!r}, {value}, {i.bound}, {i.site}{tail}).astype(np.int64)", wide

    def _bounds(self, b: Buffer, index: Sequence[Index], texts, depth: int, mask: str | None) -> None:
        for i, n in zip(index, b.shape, strict=True):
            low, high = self._interval(i) if isinstance(i, Affine) else (0, i.bound - 1)
            if low < 0 or high >= n:
                tail = "" if mask is None else f", {mask}"
                where = f"{self.kernel.name!r}, {b.name!r}"
                self._line(depth, f"_guard({where}, ({', '.join(t for t, _ in texts)},), {b.shape}{tail})")
                return

    def _flat(self, b: Buffer, index: list[tuple[str, bool]]) -> str:
        terms = [t if s == 1 else f"({t})*{s}" for (t, _), s in zip(index, b.step, strict=True) if s and t != "0"]
        terms += [f"{self.axes[a]}*{s}" for a, s in self.private.get(b.name, {}).items()]
        return " + ".join(terms) or "0"

    def _masks(self, masks) -> tuple[str | None, bool]:
        if not masks:
            return None, False
        return " & ".join(f"({self._affine(m)} < {n})" for m, n in masks), any(self._wide(m) for m, _ in masks)

    def _affine(self, a: Affine) -> str:
        terms = [self.axes[n] if c == 1 else f"{self.axes[n]}*{c}" for n, c in a.terms]
        return " + ".join(terms + ([str(a.const)] if a.const or not terms else []))

    def _wide(self, a: Affine) -> bool:
        return any(n in self.lanes for n, _ in a.terms)

    def _interval(self, a: Affine) -> tuple[int, int]:
        low = high = a.const
        for n, c in a.terms:
            ends = (c * self.ranges[n][0], c * self.ranges[n][1])
            low, high = low + min(ends), high + max(ends)
        return low, high

    def _object(self, value) -> str:
        """A name in the generated text for a Python object."""
        name = f"o{id(value)}"
        self.globals[name] = value  # holding it also keeps its id its own
        return name


def _no_overlap(b: Buffer) -> bool:
    """Different indices are different elements (no zero or interleaved strides)."""
    need = 1
    for s, n in sorted((s, n) for s, n in zip(b.step, b.shape, strict=True) if n > 1):
        if s < need:
            return False
        need = s * (n - 1) + need
    return True


def _count(body: Sequence[Stmt]) -> dict[str, int]:
    """buffer -> how many accesses these statements hold."""
    n: dict[str, int] = {}
    for s in stores(body):
        n[s.buffer] = n.get(s.buffer, 0) + 1
        for e in exprs(s):
            for x in loads(e):
                n[x.buffer] = n.get(x.buffer, 0) + 1
    return n


def _uses(kernel: Kernel) -> dict[str, int]:
    return {b.name: 0 for b in kernel.locals} | _count(kernel.body)
