"""Reading a nest: what the schedules ask of an unscheduled kernel of IR 2 before they choose."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from ..errors import ScheduleError
from ..kernel.concurrent import Roles
from ..kernel.kernel import (
    Affine,
    Apply,
    Buffer,
    Expr,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    exprs,
    loads,
    map_stmts,
    read,
    stores,
    subst,
    walk,
    walk_expr,
    written,
)
from ..kernel.scalars import SCALARS
from .masks import peel_masked, tighten
from .staging import accesses, fuse, map_accesses


def outer_chain(kernel: Kernel) -> tuple[list[Loop], tuple[Stmt, ...]]:
    """The perfectly nested parallel loops at the top, and what they hold."""
    chain: list[Loop] = []
    stmts = kernel.body
    while len(stmts) == 1 and isinstance(stmts[0], Loop) and stmts[0].role == "parallel":
        chain.append(stmts[0])
        stmts = stmts[0].body
    return chain, stmts


def chain_of(s: Stmt, role: str) -> tuple[list[Loop], tuple[Stmt, ...]]:
    """The perfectly nested loops of one role that begin at s, and what they hold."""
    chain: list[Loop] = []
    stmts: tuple[Stmt, ...] = (s,)
    while len(stmts) == 1 and isinstance(stmts[0], Loop) and stmts[0].role == role:
        chain.append(stmts[0])
        stmts = stmts[0].body
    return chain, stmts


def stride(kernel: Kernel, x: Load | Store, axis: str) -> int | None:
    """Elements from one access to the next along an axis; None where a checked index moves with it."""
    r = 0
    for i, s in zip(x.index, kernel.buffers[x.buffer].step, strict=True):
        if isinstance(i, Affine):
            r += i.coef(axis) * s
        elif any(axis in a.axes for e in walk_expr(i) if isinstance(e, Load) for a in e.index if isinstance(a, Affine)):
            return None
    return r


def cost(e: Expr) -> int:
    """Roughly the cycles of an expression on a vector, each node once."""
    seen: set[int] = set()
    total = 0
    for x in walk_expr(e):
        if id(x) not in seen:
            seen.add(id(x))
            total += SCALARS[x.fn].cost if isinstance(x, Apply) else 0
    return total


def order_axes(kernel: Kernel, names: Iterable[str]) -> Kernel:
    """Permute the perfectly nested parallel loops at the top into the order of `names` (all of them)."""
    chain, inner = outer_chain(kernel)
    by_name = {s.axis: s for s in chain}
    names = list(names)
    if sorted(names) != sorted(by_name) or any(not isinstance(s.extent, int) for s in chain):
        raise ScheduleError(f"{kernel.name}: {names} are not its outer axes {list(by_name)}")
    body = inner
    for n in reversed(names):
        body = (replace(by_name[n], body=body),)
    return replace(kernel, body=body)


def rename(kernel: Kernel, names: dict[str, str]) -> Kernel:
    """Give axes other names everywhere (all at once)."""
    env = {a: Affine.of(b) for a, b in names.items()}

    def go(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return tuple(
            replace(s, axis=names.get(s.axis, s.axis), body=go(s.body)) if isinstance(s, Loop) else s for s in stmts
        )

    return replace(kernel, body=go(subst(kernel.body, env)))


def fuse_chain(kernel: Kernel, axes: list[str], fixed: Collection[str] = ()) -> tuple[Kernel, list[str]]:
    """Fuse neighbours of directly nested loops wherever every access allows; the names that are left.

    A fused axis has the name of its outer part; the buffers `fixed` keep their shapes.
    """
    left = list(axes)
    n = len(left) - 2
    while n >= 0:
        a, b = left[n], left[n + 1]
        if (fused := _try_fuse(kernel, a, b, fixed)) is not None:
            kernel = fused
            del left[n + 1]
        n -= 1
    return kernel, left


def _try_fuse(kernel: Kernel, outer: str, inner: str, fixed: Collection[str]) -> Kernel | None:
    extents = extents_of(kernel)
    for x in accesses(kernel):  # a quick look at the strides before `fuse` does the whole check
        a, b = stride(kernel, x, outer), stride(kernel, x, inner)
        if a is None or b is None or a != b * extents[inner]:
            return None
    try:
        fused = fuse(kernel, outer, inner, outer)
    except ScheduleError:
        return None
    changed = {b.name for b, c in zip(kernel.params, fused.params, strict=True) if b is not c}
    return fused if changed.isdisjoint(fixed) else None


def memory(kernel: Kernel, stmts: Iterable[Stmt]) -> list[Store | Load]:
    """The accesses to global buffers in these statements."""
    params = {b.name for b in kernel.params}
    out: list[Store | Load] = []
    for s in stores(stmts):
        if s.buffer in params:
            out.append(s)
        out += (x for e in exprs(s) for x in loads(e) if x.buffer in params)
    return out


def extents_of(kernel: Kernel) -> dict[str, int]:
    """axis -> extent of its longest loop (constant extents only)."""
    out: dict[str, int] = {}
    for s in walk(kernel.body):
        if isinstance(s, Loop) and isinstance(s.extent, int):
            out[s.axis] = max(out.get(s.axis, 0), s.extent)
    return out


def whole_chunks(kernel: Kernel) -> Kernel:
    """Where masks cut the last chunk of an outer axis short (chunk * size + row < n), give that chunk a nest of
    its own with shorter loops, so that no other needs masks.  The nests stay independent of each other."""
    chain, body = outer_chain(kernel)
    inner = {s.axis for s in walk(body) if isinstance(s, Loop)}
    for s in chain:
        masks = (m for t in stores(body) for m, _ in t.masks)
        if isinstance(s.extent, int) and any(m.coef(s.axis) and not inner.isdisjoint(m.axes) for m in masks):
            first = order_axes(kernel, [s.axis, *(t.axis for t in chain if t is not s)])
            peeled = peel_masked(first, s.axis)
            if len(peeled.body) == 2:
                return tighten(peeled)
    return kernel


def split_parts(kernel: Kernel) -> tuple[list[Kernel], set[str]]:
    """One kernel for each outermost statement, with the same params; and the params that several share, whose
    shapes must stay."""
    uses = [written((s,)) | read((s,)) for s in kernel.body]
    shared = {b.name for b in kernel.params if sum(b.name in u for u in uses) > 1}
    parts = [
        replace(kernel, locals=tuple(b for b in kernel.locals if b.name in u), body=(s,))
        for s, u in zip(kernel.body, uses, strict=True)
    ]
    return parts, shared


def _renamed_token(s: Stmt, names: dict[str, str]) -> Stmt:
    """Of a range among others; there blocks do not come in groups."""
    if isinstance(s, Roles):
        return replace(s, blocks=1)
    return replace(s, token=names.get(s.token, s.token)) if hasattr(s, "token") else s


def join_parts(kernel: Kernel, parts: list[Kernel]) -> Kernel:
    """The parts of `split_parts` again as one kernel; local buffers get names of their own."""
    shapes: dict[str, Buffer] = {b.name: b for b in kernel.params}
    locals_: list[Buffer] = []
    taken = set(shapes)
    body: list[Stmt] = []
    for part in parts:
        used = written(part.body) | read(part.body)
        names: dict[str, str] = {}
        for b in part.locals:
            name = next(n for n in (b.name, *(f"{b.name}_{i}" for i in range(len(taken) + 1))) if n not in taken)
            taken.add(name)
            names[b.name] = name
            locals_.append(replace(b, name=name))
        for b in part.params:
            if b.name in used:
                shapes[b.name] = b
        stmts = map_accesses(part.body, lambda x, names=names: replace(x, buffer=names.get(x.buffer, x.buffer)))
        stmts = map_stmts(stmts, lambda s, names=names: (_renamed_token(s, names),))
        if not all(isinstance(s, Loop) and s.binding == "block" for s in stmts):
            stmts = (Loop("part", 1, "parallel", stmts, "block"),)  # the whole part is one block
        body += stmts
    return Kernel(kernel.name, tuple(shapes[b.name] for b in kernel.params), tuple(locals_), tuple(body))
