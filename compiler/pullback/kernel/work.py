"""How long a kernel may take: what the plan needs to deal out blocks in portions of about equal time."""

from __future__ import annotations

from .kernel import Apply, Kernel, Loop, Stmt, Store, Tile, exprs, walk_expr
from .scalars import SCALARS

NANOSECONDS = 0.018
"""For one element of a vectorised multiply-add on a core with AVX-512; the rest in proportion (`Scalar.cost`)."""

_TRIANGLE = 16  # taken for an extent that depends on outer axes


def work(kernel: Kernel) -> float:
    """Estimated nanoseconds of all blocks together."""
    return NANOSECONDS * _operations(kernel.body)


def _operations(stmts: tuple[Stmt, ...]) -> float:
    total = 0.0
    for s in stmts:
        if isinstance(s, Loop):
            total += (s.extent if isinstance(s.extent, int) else _TRIANGLE) * _operations(s.body)
        elif isinstance(s, Tile):
            total += _operations(s.body)
        elif isinstance(s, Store):
            applied = sum(SCALARS[e.fn].cost for x in exprs(s) for e in walk_expr(x) if isinstance(e, Apply))
            total += max(applied, 1)
    return total
