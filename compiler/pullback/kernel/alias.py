"""May an output of a kernel lie where one of its inputs lies?  What in-place updates and arena reuse ask.

Yes if both have one shape, layout and type, and no load of the input comes after a store of the output to the
same element: iterations of the loops around both never meet, and within one iteration the load comes first.
A kernel whose two parameters were given the same memory must then be rewritten with `merge_params`: code
generation tells LLVM that different parameters do not alias.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import PullbackError
from .bounds import Range, apart, interval
from .kernel import Expr, Kernel, Load, Loop, Stmt, Store, Tile, exprs, loads, map_stmts, map_store

_Path = tuple[tuple[Loop, int], ...]
"""The loops around a statement with their largest extents, outermost first."""


def can_alias(kernel: Kernel, a: str, b: str) -> bool:
    """Whether output parameter `b` may be the same memory as input parameter `a`."""
    params = {p.name: p for p in kernel.params}
    x, y = params.get(a), params.get(b)
    if x is None or y is None or a == b:
        return False
    if (x.shape, x.step, x.dtype) != (y.shape, y.step, y.dtype):
        return False
    reads, writes = [], []
    for at, (s, path) in enumerate(_statements(kernel.body, ())):
        for e in exprs(s):
            for v in loads(e):
                if v.buffer == b:
                    return False
                if v.buffer == a:
                    reads.append((at, v.index, path))
        if s.buffer == a:
            return False
        if s.buffer == b:
            writes.append((at, s.index, path))
    return bool(writes) and all(_before(r, w, y.step) for r in reads for w in writes)


def _before(read, write, steps: Sequence[int]) -> bool:
    """Each load of an element comes before any store to it."""
    (at, index, path), (then, target, other) = read, write
    common = 0
    while common < min(len(path), len(other)) and path[common][0] is other[common][0]:
        common += 1
    for level in range(common):
        loop, extent = path[level]
        inner: dict[str, Range] = {}
        for p in (path, other):
            for s, n in p[level + 1 :]:
                inner[s.axis] = (0, max(n - 1, inner.get(s.axis, (0, 0))[1]))
        if extent > 1 and not apart(loop.axis, extent, target, index, inner, steps):
            return False
    return at <= then


def _statements(stmts: Sequence[Stmt], path: _Path) -> Iterator[tuple[Store, _Path]]:
    for s in stmts:
        if isinstance(s, Loop):
            extent = s.extent
            if not isinstance(extent, int):
                extent = interval(extent, {p.axis: (0, n - 1) for p, n in path})[1]
            if extent > 0:
                yield from _statements(s.body, (*path, (s, extent)))
        elif isinstance(s, Tile):
            yield from _statements(s.body, path)
        elif isinstance(s, Store):
            yield s, path


def merge_params(kernel: Kernel, a: str, b: str) -> Kernel:
    """The kernel with one in-out parameter, `b` in its place, for both; `a` is gone from the parameters."""
    if not can_alias(kernel, a, b):
        raise PullbackError(f"kernel {kernel.name}: {a} and {b} cannot share memory")

    def moved(e: Expr) -> Expr:
        return replace(e, buffer=b) if isinstance(e, Load) and e.buffer == a else e

    def statement(s: Stmt) -> tuple[Stmt, ...]:
        return (map_store(s, moved),) if isinstance(s, Store) else (s,)

    params = tuple(p for p in kernel.params if p.name != a)
    return replace(kernel, params=params, body=map_stmts(kernel.body, statement))
