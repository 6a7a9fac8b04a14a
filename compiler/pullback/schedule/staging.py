"""Schedule steps that move data: pure functions kernel -> kernel on IR 2.

pack copies what an operand reads into a dense local buffer; carry keeps part of a buffer in registers while
a loop runs; spill hands a value on through memory; fuse makes one axis of two; tensorise names an intrinsic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import ScheduleError
from ..kernel.kernel import (
    A,
    Affine,
    Buffer,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    Tile,
    exprs,
    loads,
    map_stmts,
    map_store,
    stores,
    subst,
    walk,
    walk_expr,
    written,
)
from .steps import constant_extent, fresh, on_loops

Operand = Callable[[Store], Expr | None]
"""Picks the expression of a store that a step is about; None where the store has no such."""


# ---- accesses -------------------------------------------------------------------------------------------
def accesses(kernel: Kernel) -> list[Store | Load]:
    out: list[Store | Load] = []
    for s in stores(kernel.body):
        out.append(s)
        out += (x for e in exprs(s) for x in loads(e))
    return out


def map_accesses(stmts: tuple[Stmt, ...], f: Callable) -> tuple[Stmt, ...]:
    """Apply f to every store's own address and every load (f gets and gives Store | Load)."""

    def one(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store):
            return (s,)
        return (f(map_store(s, lambda e: f(e) if isinstance(e, Load) else e)),)

    return map_stmts(stmts, one)


def axes_in(e: Expr) -> set[str]:
    """The axes that an expression moves with: its loads, their masks, axis values."""
    out: set[str] = set()
    for x in walk_expr(e):
        if isinstance(x, Load):
            for i in x.index:
                if isinstance(i, Affine):
                    out.update(n for n, _ in i.terms)
            for m, _ in x.masks:
                out.update(n for n, _ in m.terms)
        elif hasattr(x, "index"):
            out.update(n for n, _ in x.index.terms)
    return out


# ---- fuse -----------------------------------------------------------------------------------------------
def fuse(kernel: Kernel, outer: str, inner: str, name: str) -> Kernel:
    """`outer` directly around `inner` -> one axis, where every access walks the two as one stretch.

    Dimensions that the two axes walk apart are merged, so that no index leaves its dimension.  A param then
    has fewer dimensions over the same memory.
    """
    fresh(kernel, *{name} - {outer, inner})
    extent = 0

    def join(s: Loop) -> tuple[Stmt, ...]:
        nonlocal extent
        t = s.body[0]
        if len(s.body) != 1 or not isinstance(t, Loop) or t.axis != inner or t.role != s.role:
            raise ScheduleError(f"{kernel.name}: '{inner}' is not directly inside of '{outer}'")
        n = constant_extent(t)
        if extent not in (0, n):
            raise ScheduleError(f"{kernel.name}: copies of '{inner}' have different extents")
        extent = n
        return (Loop(name, constant_extent(s) * n, s.role, t.body, s.binding),)

    joined = on_loops(kernel, outer, join)
    merge = _merges(kernel, outer, inner, extent)

    def affine(a: Affine, what: str) -> Affine:
        c = a.coef(inner)
        if a.coef(outer) != c * extent:
            raise ScheduleError(f"{kernel.name}: '{what}' does not walk '{outer}', '{inner}' as one stretch")
        if not c:
            return a
        rest = tuple(t for t in a.terms if t[0] not in (outer, inner))
        return Affine(a.const, tuple(sorted((*rest, (name, c)))))

    def access(x: Store | Load):
        index: list[Index] = []
        for d, i in enumerate(x.index):
            if (x.buffer, d - 1) in merge:
                index[-1] = index[-1] * merge[x.buffer, d - 1] + i
            else:
                index.append(i)
        return replace(
            x,
            index=tuple(affine(i, x.buffer) if isinstance(i, Affine) else i for i in index),
            masks=tuple((affine(m, "a mask"), b) for m, b in x.masks),
        )

    def leaf(e):
        if isinstance(e, Load):
            return access(e)
        return replace(e, index=affine(e.index, "an axis value")) if hasattr(e, "index") else e

    def one(s: Stmt) -> tuple[Stmt, ...]:
        return (access(map_store(s, leaf)),) if isinstance(s, Store) else (s,)

    def shrink(b: Buffer) -> Buffer:
        shape, step = [], []
        for d, (n, c) in enumerate(zip(b.shape, b.step, strict=True)):
            if (b.name, d - 1) in merge:
                shape[-1] *= n
                step[-1] = c
            else:
                shape.append(n)
                step.append(c)
        return replace(b, shape=tuple(shape), strides=tuple(step) if b.strides else ())

    touched = {b for b, _ in merge}
    return replace(
        kernel,
        params=tuple(shrink(b) if b.name in touched else b for b in kernel.params),
        locals=tuple(shrink(b) if b.name in touched else b for b in kernel.locals),
        body=map_stmts(joined.body, one),
    )


def _merges(kernel: Kernel, outer: str, inner: str, extent: int) -> dict[tuple[str, int], int]:
    """Dimensions (d, d+1) of buffers that must become one for `fuse`, with the size of the inner one."""
    out: dict[tuple[str, int], int] = {}
    buffers = kernel.buffers
    for x in accesses(kernel):
        for d, i in enumerate(x.index):
            if not isinstance(i, Affine) or i.coef(outer) == i.coef(inner) * extent:
                continue
            b = buffers[x.buffer]
            at = d if i.coef(outer) else d - 1  # outer in d, inner in d + 1
            if at < 0 or at + 1 >= len(b.shape) or b.step[at] != b.step[at + 1] * b.shape[at + 1]:
                raise ScheduleError(f"{kernel.name}: '{x.buffer}' does not walk '{outer}', '{inner}' as one stretch")
            out[x.buffer, at] = b.shape[at + 1]
    if out:  # every access to a merged pair must be affine
        for x in accesses(kernel):
            for d, i in enumerate(x.index):
                if not isinstance(i, Affine) and ((x.buffer, d) in out or (x.buffer, d - 1) in out):
                    raise ScheduleError(f"{kernel.name}: '{x.buffer}' has a checked index where '{outer}' runs")
    return out


# ---- pack -----------------------------------------------------------------------------------------------
def pack(
    kernel: Kernel,
    operand: Operand,
    axes: tuple[str, ...],
    at: str,
    dst: str,
    pad: tuple[str, int] = ("", 0),
    space: str = "local",
    mirror: str = "",
) -> Kernel:
    """Evaluate an operand over `axes` (dimensions of `dst`, in any order: a transposition) in the loop `at`,
    before its first use, and read the copy instead.  The copy's axes are `<axis>_<dst>`.  pad=(axis, n): n
    elements of room between one index of that axis and the next, against cache conflicts.  `mirror`: this axis lies
    in `dst` from its last element to the first.

    The operand may be any expression; it may not read what the loop writes later, and inside of `at` it may
    move with `axes` only.  Where peeled copies inside of `at` have operands of their own, each gets a buffer
    (`dst`, `dst2`, ...).
    """
    shapes: list[list[int]] = []
    names = {a: f"{a}_{dst}" for a in axes}
    fresh(kernel, *names.values())
    dtype = None

    def f(s: Loop) -> tuple[Stmt, ...]:
        nonlocal dtype
        body = s.body
        found = list(dict.fromkeys(e for t in stores(body) if (e := operand(t)) is not None))
        for n, e in enumerate(found):
            dtype = e.dtype
            body = one(body, e, n)
        return (replace(s, body=body),) if found else (s,)

    def one(body: tuple[Stmt, ...], e: Expr, n: int) -> tuple[Stmt, ...]:
        def uses(stmts) -> bool:
            return any(operand(u) == e for u in stores(stmts))

        inside: dict[str, int] = {}
        for t in walk(body):
            if isinstance(t, Loop) and uses(t.body):
                inside[t.axis] = max(inside.get(t.axis, 0), constant_extent(t))
        if moves := axes_in(e) & set(inside) - set(axes):
            raise ScheduleError(f"{kernel.name}: the operand also moves with '{min(moves)}' inside of '{at}'")
        if missing := set(axes) - set(inside):
            raise ScheduleError(f"{kernel.name}: no loop over '{min(missing)}' inside of '{at}'")
        first = next(i for i, t in enumerate(body) if uses((t,)))
        if changed := {x.buffer for x in loads(e)} & written(body[first:]):
            raise ScheduleError(f"{kernel.name}: '{min(changed)}' changes inside of '{at}'")
        if n == len(shapes):
            shapes.append([0] * len(axes))
        shapes[n] = list(map(max, shapes[n], (inside[a] for a in axes)))
        name = dst if n == 0 else f"{dst}{n + 1}"
        index = tuple(A(a) * -1 + (inside[a] - 1) if a == mirror else A(a) for a in axes)
        copy: tuple[Stmt, ...] = (Store(name, index, e),)
        copy = subst(copy, {a: A(b) for a, b in names.items()})
        for a in reversed(axes):
            copy = (Loop(names[a], inside[a], "parallel", copy),)
        use = Load(name, index, e.dtype)

        def swap(t: Stmt) -> tuple[Stmt, ...]:
            if not isinstance(t, Store) or operand(t) != e:
                return (t,)
            return (map_store(t, lambda x: use if x == e else x),)

        return body[:first] + copy + map_stmts(body[first:], swap)

    kernel = on_loops(kernel, at, f)
    if dtype is None:
        raise ScheduleError(f"{kernel.name}: no operand to pack at '{at}'")
    packed = []
    for n, shape in enumerate(shapes):
        strides, step = [], 1
        for a, size in zip(reversed(axes), reversed(shape), strict=True):
            step += pad[1] if a == pad[0] else 0
            strides.append(step)
            step *= size
        name = dst if n == 0 else f"{dst}{n + 1}"
        packed.append(Buffer(name, tuple(shape), dtype, space, tuple(reversed(strides)) if pad[1] else ()))
    return replace(kernel, locals=(*kernel.locals, *packed))


# ---- carry and spill ------------------------------------------------------------------------------------
def carry(kernel: Kernel, buffer: str, axes: tuple[str, ...], at: str, dst: str) -> Kernel:
    """Keep the part of a local buffer that loop `at` walks with `axes` in registers: copied in at the top of
    its body, out at the end.  Every access inside must be to that part, by the same index."""
    shape = [0] * len(axes)
    source = kernel.buffers[buffer]
    if source.space == "global":
        raise ScheduleError(f"{kernel.name}: '{buffer}' is a parameter; only local buffers are carried")

    def f(s: Loop) -> tuple[Stmt, ...]:
        touched = [t for t in stores(s.body) if buffer in {t.buffer, *(x.buffer for e in exprs(t) for x in loads(e))}]
        reads = any(x.buffer == buffer for t in touched for e in exprs(t) for x in loads(e))
        if not reads or not any(t.buffer == buffer for t in touched):
            return (s,)  # only written or only read: nothing to carry
        indices = {t.index for t in touched if t.buffer == buffer}
        indices |= {x.index for t in touched for e in exprs(t) for x in loads(e) if x.buffer == buffer}
        if len(indices) != 1:
            raise ScheduleError(f"{kernel.name}: '{buffer}' is read and written at different places in '{at}'")
        (index,) = indices
        inside = {t.axis: constant_extent(t) for t in walk(s.body) if isinstance(t, Loop)}
        if moves := {n for i in index for n in i.axes} & set(inside) - set(axes):
            raise ScheduleError(f"{kernel.name}: '{buffer}' also moves with '{min(moves)}' inside of '{at}'")
        shape[:] = map(max, shape, (inside[a] for a in axes))
        own = tuple(map(A, axes))

        def copy(to: Store) -> tuple[Stmt, ...]:
            out: tuple[Stmt, ...] = (to,)
            for a in reversed(axes):
                out = (Loop(a, inside[a], "parallel", out),)
            return out

        body = map_accesses(s.body, lambda x: replace(x, buffer=dst, index=own) if x.buffer == buffer else x)
        enter = copy(Store(dst, own, Load(buffer, index, source.dtype)))
        leave = copy(Store(buffer, index, Load(dst, own, source.dtype)))
        return (replace(s, body=enter + body + leave),)

    kernel = on_loops(kernel, at, f)
    return replace(kernel, locals=(*kernel.locals, Buffer(dst, tuple(shape), source.dtype, "register")))


def spill(kernel: Kernel, buffer: str, after: str, dst: str) -> Kernel:
    """What follows the loop `after` reads the scalar `buffer` through `dst`, a copy made there; give `dst` to
    `sink(cut=...)` to let the copy have loops of its own."""
    source = kernel.buffers[buffer]
    if source.shape:
        raise ScheduleError(f"{kernel.name}: only scalars are spilled, '{buffer}' has shape {source.shape}")
    use = Load(dst, (), source.dtype)

    def swap(s: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(s, Store):
            return (s,)
        return (map_store(s, lambda x: use if isinstance(x, Load) and x.buffer == buffer else x),)

    def go(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for n, s in enumerate(stmts):
            if isinstance(s, Loop) and s.axis == after:
                rest = stmts[n + 1 :]
                if buffer in written(rest):
                    raise ScheduleError(f"{kernel.name}: '{buffer}' changes after '{after}'")
                return (*out, s, Store(dst, (), Load(buffer, (), source.dtype)), *map_stmts(rest, swap))
            out.append(replace(s, body=go(s.body)) if isinstance(s, Loop) else s)
        return tuple(out)

    return replace(kernel, body=go(kernel.body), locals=(*kernel.locals, Buffer(dst, (), source.dtype, "local")))


def place(kernel: Kernel, buffer: str, space: str) -> Kernel:
    """Keep a local buffer in registers or in memory."""
    if buffer not in {b.name for b in kernel.locals}:
        raise ScheduleError(f"{kernel.name}: '{buffer}' is not a local buffer")
    return replace(kernel, locals=tuple(replace(b, space=space) if b.name == buffer else b for b in kernel.locals))


# ---- tensorise ------------------------------------------------------------------------------------------
def tensorise(kernel: Kernel, axes: tuple[str, ...], name: str) -> Kernel:
    """Loops nested exactly as `axes` around stores become the intrinsic `name`; the loops stay as its meaning."""
    found = False

    def is_nest(s: Stmt) -> bool:
        for a in axes:
            if not isinstance(s, Loop) or s.axis != a:
                return False
            inner = s.body
            s = s.body[0]
        return all(isinstance(t, Store) for t in inner)

    def f(s: Loop) -> tuple[Stmt, ...]:
        nonlocal found
        if not is_nest(s):
            raise ScheduleError(f"{kernel.name}: '{axes[0]}' is not a nest of {', '.join(axes)}")
        found = True
        return (Tile(name, (s,)),)

    kernel = on_loops(kernel, axes[0], f)
    return kernel
