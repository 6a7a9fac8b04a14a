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
from .concurrent import Copy, box
from .kernel import Affine, Expr, Index, Kernel, Load, Loop, Stmt, Store, Tile, exprs, loads, map_stmts, map_store, walk

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
    if any(isinstance(s, Copy) and box(s)[2].buffer == a for s in walk(kernel.body)):
        return False  # on its way while other roles write
    reads, writes = [], []
    for at, (s, path) in enumerate(_statements(kernel.body, ())):
        for e in exprs(s):
            for v in loads(e):
                if v.buffer == b:
                    return False
                if v.buffer == a:
                    reads.append((at, v.index, path))
        if s.buffer == a or (s.asynchronous and isinstance(s.value, Load) and s.value.buffer == a):
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
    if not common and path and other and path[0][0].role == other[0][0].role == "parallel":
        # two nests side by side may become blocks that run at the same time
        return any(p > last or first > q for (p, q), (first, last) in _boxes(index, path, target, other))
    for level in range(common):
        loop, extent = path[level]
        inner: dict[str, Range] = {}
        for p in (path, other):
            for s, n in p[level + 1 :]:
                inner[s.axis] = (0, max(n - 1, inner.get(s.axis, (0, 0))[1]))
        if extent > 1 and not apart(loop.axis, extent, target, index, inner, steps):
            return False
    return at <= then or _differ(index, target, path, other, common)


def _differ(a: Sequence[Index], b: Sequence[Index], path: _Path, other: _Path, common: int) -> bool:
    """Two accesses in one iteration of the common loops are never of the same element."""
    shared = {s.axis: (0, n - 1) for s, n in path[:common]}
    own = [{s.axis: (0, n - 1) for s, n in p[common:]} for p in (path, other)]
    for i, j in zip(a, b, strict=True):
        if isinstance(i, Affine) and isinstance(j, Affine):
            parts = [[t for t in x.terms if t[0] not in shared] for x in (i, j)]
            low, high = interval(Affine(0, tuple(parts[0])), own[0])
            first, last = interval(Affine(0, tuple(parts[1])), own[1])
            same = (i - Affine(0, tuple(parts[0]))) - (j - Affine(0, tuple(parts[1])))
            p, q = interval(same, shared)
            if low + p > last or high + q < first:
                return True
    return False


def _boxes(a: Sequence[Index], path: _Path, b: Sequence[Index], other: _Path) -> list[tuple[Range, Range]]:
    return list(zip(_where(a, path), _where(b, other), strict=True))


def _where(index: Sequence[Index], path: _Path) -> list[Range]:
    ranges = {s.axis: (0, n - 1) for s, n in path}
    return [interval(i, ranges) if isinstance(i, Affine) else (0, i.bound - 1) for i in index]


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
