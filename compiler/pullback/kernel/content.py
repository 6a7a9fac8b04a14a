"""The content of a kernel: a key that is equal for kernels that may share code.

Names of axes and buffers do not count (they are numbered in the order in which they appear), nor do the
kernel's name and its check sites' places in the script.  The extent of the outermost block loop, and with it the
dimensions along which it moves, do not count where nothing but addresses depends on it: the code runs blocks
`lo <= b < hi` of any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float
from dataclasses import replace
from hashlib import blake2b

from ..graph.types import f32
from .bounds import interval
from .concurrent import Arrive, Await, Copy, Role, words
from .kernel import (
    Affine,
    Apply,
    AxisValue,
    Buffer,
    Checked,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    exprs,
    loads,
    stores,
    walk,
    walk_expr,
)


def content_key(kernel: Kernel) -> str:
    """24 hexadecimal digits."""
    return blake2b(content(kernel).encode(), digest_size=12).hexdigest()


def content(kernel: Kernel) -> str:
    """The canonical text behind the key."""
    return _Writer(kernel).text()


def free_block(kernel: Kernel) -> Loop | None:
    """The outermost block loop, if its extent is no part of the code: its axis moves addresses (and integers that
    count elements, which wrap) and nothing else."""
    s = kernel.body[0] if len(kernel.body) == 1 else None
    if not isinstance(s, Loop) or s.binding != "block":
        return None
    for t in walk(s.body):
        if isinstance(t, Copy):
            return None  # tensor maps are made for all of a parameter
        if isinstance(t, Loop) and isinstance(t.extent, Affine) and t.extent.coef(s.axis):
            return None
        if isinstance(t, Store):
            masks = list(t.masks)
            for e in exprs(t):
                for x in walk_expr(e):
                    if isinstance(x, AxisValue) and x.index.coef(s.axis) and not x.dtype.is_integer:
                        return None
                    if isinstance(x, Load):
                        masks += x.masks
            if any(m.coef(s.axis) for m, _ in masks):
                return None
    local = {b.name for b in kernel.locals}
    accesses = [(x.buffer, x.index) for t in stores(s.body) for x in (t, *(v for e in exprs(t) for v in loads(e)))]
    if any(b in local and any(isinstance(i, Affine) and i.coef(s.axis) for i in index) for b, index in accesses):
        return None
    return s


def moved_by(kernel: Kernel, loop: Loop | None) -> set[tuple[str, int]]:
    """The dimensions of buffers that a loop's axis moves along."""
    if loop is None:
        return set()
    accesses = (x for t in stores(kernel.body) for x in (t, *(v for e in exprs(t) for v in loads(e))))
    return {
        (x.buffer, d) for x in accesses for d, i in enumerate(x.index) if isinstance(i, Affine) and i.coef(loop.axis)
    }


def with_blocks(kernel: Kernel, blocks: int) -> Kernel:
    """The kernel as a call with another number of blocks means it: the outermost extent and, with it, the shapes."""
    loop = free_block(kernel)
    if loop is None or blocks == kernel.blocks:
        return kernel
    extent = blocks * loop.extent // kernel.blocks
    ranges = {loop.axis: (0, extent - 1)}
    needed: dict[str, list[int]] = {b.name: list(b.shape) for b in kernel.params}
    for t in walk(loop.body):
        if isinstance(t, Loop):
            n = t.extent if isinstance(t.extent, int) else interval(t.extent, ranges)[1]
            ranges[t.axis] = (0, max(n - 1, ranges.get(t.axis, (0, 0))[1]))
    for t in stores(loop.body):
        for x in (t, *(v for e in exprs(t) for v in loads(e))):
            for d, i in enumerate(x.index):
                if x.buffer in needed and isinstance(i, Affine) and i.coef(loop.axis):
                    last = interval(i, ranges)[1] + 1
                    known = needed[x.buffer][d]
                    needed[x.buffer][d] = last if known == kernel.buffers[x.buffer].shape[d] else max(known, last)
    params = tuple(replace(b, shape=tuple(needed[b.name]), strides=b.step) for b in kernel.params)
    return replace(kernel, params=params, body=(replace(loop, extent=extent),))


class _Writer:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.axes: dict[str, str] = {}
        self.buffers = {b.name: f"b{i}" for i, b in enumerate(kernel.params + kernel.locals)}
        self.out: list[str] = []
        self.done: dict[int, str] = {}
        self.lines: dict[str, str] = {}
        self.free = free_block(kernel)
        self.moved = moved_by(kernel, self.free)

    def text(self) -> str:
        k = self.kernel
        for s in k.body:
            self.stmt(s)
        params = [self.buffer(b) for b in k.params]
        return "\n".join([*params, "|", *(self.buffer(b) for b in k.locals), *self.out])

    def buffer(self, b: Buffer) -> str:
        if b.space == "global":  # only addresses depend on a parameter's shape, and what it may be bound to
            shape = ["*" if (b.name, d) in self.moved else str(n) for d, n in enumerate(b.shape)]
            return f"{b.dtype.name} {','.join(shape)} {','.join(map(str, b.step))}"
        return f"{b.dtype.name} {b.space} {b.shape} {b.strides}"

    def axis(self, name: str) -> str:
        return self.axes.get(name) or self.axes.setdefault(name, f"a{len(self.axes)}")

    def affine(self, a: Affine) -> str:
        if not a.terms:
            return str(a.const)
        terms = sorted((self.axis(n), c) for n, c in a.terms)
        return "+".join([*(f"{n}*{c}" for n, c in terms), str(a.const)])

    def masks(self, masks: Sequence[Mask], other) -> str:
        return ";".join(f"{self.affine(m)}<{b}" for m, b in masks) + f"?{other!r}" if masks else ""

    def index(self, index: Sequence[Index]) -> str:
        return ",".join(self.affine(i) if isinstance(i, Affine) else self.expr(i) for i in index)

    def stmt(self, s: Stmt) -> None:
        if isinstance(s, Store):
            value = self.expr(s.value)
            where = "" if s.where is None else f" where {self.expr(s.where)}"
            at = f"{self.buffers[s.buffer]}[{self.index(s.index)}|{self.masks(s.masks, s.other)}]"
            self.out.append(f"{'async ' if s.asynchronous else ''}{at}={value}{where}")
        elif isinstance(s, Loop):
            extent = s.extent if isinstance(s.extent, int) else self.affine(s.extent)
            self.out.append(f"{s.binding} {s.role} {self.axis(s.axis)}<{'*' if s is self.free else extent}")
            for c in s.body:
                self.stmt(c)
            self.out.append("}")
        elif isinstance(s, Tile | Arrive | Await):
            self.out.append(self.words(s))
            for c in getattr(s, "body", ()):
                self.stmt(c)
            self.out.append("}")
        else:
            self.out.append(repr(s))

    def words(self, s: Tile | Arrive | Await) -> str:
        if not isinstance(s, Copy | Arrive | Await):
            return f"role {s.warps}" if isinstance(s, Role) else words(s)
        phase = self.affine(s.phase) if isinstance(s, Await) else ""
        return f"{type(s).__name__} {self.buffers[s.token]}[{self.index(s.index)}] {phase}"

    def expr(self, e: Expr) -> str:
        """The name of the line that holds the expression; equal parts have one line."""
        done = self.done.get(id(e))
        if done is not None:
            return done
        if isinstance(e, Const):
            value = c_float(e.value).value if e.dtype is f32 else e.value  # what differs after rounding only is equal
            text = f"{value!r}:{e.dtype.name}"
        elif isinstance(e, Load):
            text = f"{self.buffers[e.buffer]}[{self.index(e.index)}|{self.masks(e.masks, e.other)}]"
        elif isinstance(e, Apply):
            text = f"{e.fn}:{e.dtype.name}({','.join([self.expr(a) for a in e.args])})"
        elif isinstance(e, AxisValue):
            text = f"axis:{e.dtype.name}({self.affine(e.index)})"
        else:
            assert isinstance(e, Checked)
            text = f"check({self.expr(e.value)},{e.bound},{e.site})"
        name = self.lines.get(text)
        if name is None:
            name = self.lines[text] = f"t{len(self.lines)}"
            self.out.append(f"{name}={text}")
        self.done[id(e)] = name
        return name
