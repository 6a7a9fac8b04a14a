"""Scatter-adds for GPUs: kernel -> kernel on IR 2, before the schedule of maps.

A scatter-add clears a tensor, then adds updates to where the data say, in order.  Its only parallel axes are the
others.  Here the destinations go in ranges, which become one more: each thread reads all indices, in order, and adds
what belongs to its range.  So the order of every sum stays, and no two threads write one element.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from math import prod

from ..errors import ScheduleError
from ..kernel.kernel import (
    A,
    Affine,
    AxisValue,
    Buffer,
    Checked,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Stmt,
    Store,
    apply,
    map_expr,
    subst,
    walk,
)
from .gpu_limits import GpuLimits
from .nest import chain_of, outer_chain

AHEAD = 8
"""Indices that a thread reads at a time."""


def ranges(kernel: Kernel, fixed: Collection[str], limits: GpuLimits) -> Kernel:
    """Destinations in ranges, if the nest is a scatter-add (`ScheduleError` where not)."""
    chain, body = outer_chain(kernel) if len(kernel.body) == 1 else ([], kernel.body)
    clear, steps, store = _parts(kernel, body)
    y = kernel.buffers[store.buffer]
    d = next(n for n, i in enumerate(store.index) if isinstance(i, Checked))
    others = prod(s.extent for s in chain if isinstance(s.extent, int))
    count = _divisor(y.shape[d], max(2, limits.scatter // max(others, 1)))
    if count < 2 or y.name in fixed or y.strides:
        raise ScheduleError(f"{kernel.name}: the destinations cannot be cut")
    size, axis = y.shape[d] // count, "range"
    check: Checked = store.index[d]
    low = A(axis) * size

    # What is cleared: row v of this range.
    v = clear.body[0].index[d]
    cleared = replace(clear.body[0], index=_cut(clear.body[0].index, d, A(axis), v))
    start = replace(clear, extent=size, body=(cleared,))

    # What is added: the index is checked by every thread, and used by the one whose range it is in.
    *around, last = steps
    n = last.extent
    seen = Buffer("seen", (AHEAD,), check.dtype, "register")

    def add(k: Affine, index: Expr) -> tuple[Stmt, ...]:
        at = AxisValue(low, check.dtype)
        here = apply("sub", replace(check, value=index), at)
        mine = apply("ge", here, Const(0, check.dtype))
        mine = apply("and", mine, apply("lt", here, Const(size, check.dtype)))
        zero = Const(0, check.dtype)
        place = Checked(apply("select", mine, here, zero, dtype=check.dtype), size, check.site)
        inner = _cut(store.index, d, A(axis), place)
        value = map_expr(store.value, lambda e: replace(e, index=inner) if _own(e, store) else e)
        return subst((replace(store, index=inner, value=value, where=mine),), {last.axis: k})

    whole, rest = divmod(n, AHEAD)
    added: tuple[Stmt, ...] = ()
    if whole:
        block, one = f"{last.axis}_b", f"{last.axis}_u"
        k = A(block) * AHEAD + A(one)
        look = subst((Store("seen", (A(one),), check.value),), {last.axis: k})
        use = add(k, Load("seen", (A(one),), check.dtype))
        both = (Loop(one, AHEAD, "parallel", look, "unroll"), Loop(one, AHEAD, "ordered", use, "unroll"))
        added += (Loop(block, whole, "ordered", both),)
    if rest:
        added += (Loop(last.axis, rest, "ordered", add(A(last.axis) + whole * AHEAD, check.value)),)
    for s in reversed(around):
        added = (replace(s, body=added),)
    inner: tuple[Stmt, ...] = (start, *added)
    for s in reversed(chain):
        inner = (replace(s, body=inner),)
    shaped = replace(y, shape=(*y.shape[:d], count, size, *y.shape[d + 1 :]))
    params = tuple(shaped if p.name == y.name else p for p in kernel.params)
    locals_ = (*kernel.locals, seen) if whole else kernel.locals
    return Kernel(kernel.name, params, locals_, (Loop(axis, count, "parallel", inner),))


def _parts(kernel: Kernel, body: tuple[Stmt, ...]) -> tuple[Loop, list[Loop], Store]:
    """(the loop that clears, the loops over the indices, what they store)."""
    if len(body) == 2 and isinstance(body[0], Loop) and isinstance(body[1], Loop):
        clear, steps = body[0], body[1]
        chain, inner = chain_of(steps, "ordered")
        flat = len(clear.body) == 1 and isinstance(clear.body[0], Store) and clear.role == "parallel"
        if chain and flat and len(inner) == 1 and isinstance(store := inner[0], Store):
            checks = [i for i in store.index if isinstance(i, Checked)]
            taken = any(isinstance(s, Loop) and s.axis == "range" for s in walk(kernel.body))
            same = clear.body[0].buffer == store.buffer and isinstance(clear.body[0].value, Const)
            signed = len(checks) == 1 and checks[0].dtype.kind == "i"
            plain = not store.masks and store.where is None and all(isinstance(s.extent, int) for s in (clear, *chain))
            if same and signed and plain and not taken:
                return clear, chain, store
    raise ScheduleError(f"{kernel.name}: no scatter-add")


def _own(e: Expr, store: Store) -> bool:
    return isinstance(e, Load) and e.buffer == store.buffer


def _cut(index: tuple[Index, ...], d: int, which: Affine, place: Index) -> tuple[Index, ...]:
    return (*index[:d], which, place, *index[d + 1 :])


def _divisor(n: int, most: int) -> int:
    return next((k for k in range(min(most, n), 1, -1) if n % k == 0), 1)
