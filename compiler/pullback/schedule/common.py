"""What several CPU schedules do the same way: dealing outer loops to blocks, cutting a loop into vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..codegen.target import Target
from ..kernel.kernel import A, Kernel, Loop, Stmt, Store, exprs, subst, walk_expr
from .nest import extents_of, memory, stride
from .sinking import expand, sink
from .steps import bind, on_loops, split


def work(stmts: Iterable[Stmt]) -> int:
    """Element steps that statements take: stores, times the loops around them."""
    n = 0
    for s in stmts:
        if isinstance(s, Store):
            n += 1
        elif isinstance(s, Loop):
            n += (s.extent if isinstance(s.extent, int) else 16) * work(s.body)
        elif hasattr(s, "body"):
            n += work(s.body)
    return n


def deal(kernel: Kernel, axes: list[str], weight: int, block: int) -> Kernel:
    """Bind the perfectly nested outer `axes` to blocks, but keep so many of the inner iterations together that
    a block has about `block` steps of work (an iteration has `weight`).  The tail is a range of its own."""
    extents = extents_of(kernel)
    room = max(1, block // max(weight, 1))
    left = list(axes)
    while left and extents[left[-1]] <= room:
        room //= max(extents[left[-1]], 1)
        left.pop()
    if not left:
        return kernel
    last = left[-1]
    if room > 1:
        n = extents[last]
        even = -(-n // -(-n // room))  # as even as can be; without a tail that is code of its own if that is near
        room = next((r for r in range(room, room // 2, -1) if n % r == 0), even)
        outer = f"{last}_b"
        kernel = split(kernel, last, room, outer, last)
        for a in reversed(left[:-1]):
            kernel = sink(kernel, a, past=(outer,))
        left[-1] = outer
    return bind(kernel, **dict.fromkeys(left, "block"))


def blocks_of(kernel: Kernel, axis: str, size: int) -> Kernel:
    """The outermost axis in blocks of exactly `size`.  Also where there is only one block its number stays in the
    indices, so that kernels of different lengths have the same content and share code."""
    outer = f"{axis}_s"

    def f(s: Loop) -> tuple[Stmt, ...]:
        inner = replace(s, extent=size, body=subst(s.body, {axis: A(outer) * size + A(axis)}))
        return (Loop(outer, s.extent // size, s.role, (inner,), "block"),)

    return on_loops(kernel, axis, f)


def vectorise(kernel: Kernel, axis: str, lanes: int, unroll: int, past: bool = False) -> Kernel:
    """axis -> groups of `unroll` vectors of `lanes`, each on its own place; the rest is masked.

    `past`: sink each group below the loops inside (reductions then run over `unroll` vectors at a time).
    """
    group = f"{axis}_g"
    kernel = split(kernel, axis, lanes * unroll, group, axis)
    if past:
        kernel = sink(kernel, axis)
    kernel = split(kernel, axis, lanes, f"{axis}_u", axis, tail="mask")
    kernel = expand(kernel, axis)
    return bind(kernel, **{f"{axis}_u": "unroll", axis: "vector"})


def lanes_of(kernel: Kernel, stmts: Iterable[Stmt], target: Target) -> int:
    """Lanes of a vector of the widest type that these statements compute with."""
    bits = 0
    buffers = kernel.buffers
    for s in _stores(stmts):
        bits = max(bits, buffers[s.buffer].dtype.compute.bits)
        for e in exprs(s):
            for x in walk_expr(e):
                bits = max(bits, x.dtype.compute.bits)
    return target.lanes(max(bits, 8))


def _stores(stmts):
    for s in stmts:
        if isinstance(s, Store):
            yield s
        elif hasattr(s, "body"):
            yield from _stores(s.body)


def lane_price(kernel: Kernel, stmts: Iterable[Stmt], axis: str, extent: int, lanes: int) -> float:
    """Cycles for one vector of accesses along an axis, per useful lane; compare with `scalar_price`."""
    total = 0.0
    for x in memory(kernel, stmts):
        s = stride(kernel, x, axis)
        if s == 0:
            total += 0.25 if not isinstance(x, Store) else 2 * lanes
        elif s == 1:
            total += 1 if not isinstance(x, Store) else 1.5
        elif s == -1:
            total += 2
        else:
            total += lanes * (1.5 if not isinstance(x, Store) else 3.0)
    vectors = -(-extent // lanes)
    return total * vectors / max(extent, 1)
