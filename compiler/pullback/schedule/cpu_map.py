"""The CPU schedule of maps and of columns: kernel -> kernel on IR 2.

A *map* is a nest of parallel loops around stores.  A *column* kernel also has loops inside that run in order
(sums over the leading axis, cumulative sums): they stay in order, and the vectorised axis runs over columns.
Axes that lie next to each other everywhere become one; the axis that most accesses walk element by element is
vectorised; transposed loads go through a tile in registers.  Everything else runs in serial, in blocks.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from ..codegen.target import Target
from ..errors import ScheduleError
from ..kernel.kernel import Kernel, Load, Loop, Stmt, Store, loads, stores, walk
from .common import blocks_of, deal, lane_price, lanes_of, vectorise, work
from .limits import DEFAULT, Limits
from .nest import cost, extents_of, fuse_chain, memory, order_axes, outer_chain, stride
from .sinking import sink
from .staging import pack, tensorise
from .steps import bind, split, tidy


def schedule_map(kernel: Kernel, target: Target, fixed: Collection[str] = (), limits: Limits = DEFAULT) -> Kernel:
    """Any nest whose parallel loops are all on the outside (others inside stay serial).  The buffers `fixed`
    keep their shapes."""
    chain, body = outer_chain(kernel)
    if not chain or any(not isinstance(s.extent, int) for s in chain):
        return kernel
    kernel, axes = fuse_chain(kernel, [s.axis for s in chain], fixed)
    _, body = outer_chain(kernel)
    extents, inner = extents_of(kernel), work(body)
    lanes = lanes_of(kernel, body, target)
    column = any(isinstance(s, Loop) for s in body)
    v = _vector_axis(kernel, body, axes, extents, lanes)
    if v is None:
        return tidy(deal(kernel, axes, inner, limits.block))
    axes = [a for a in axes if a != v] + [v]
    kernel = order_axes(kernel, axes)
    if not column and (u := _transposed_axis(kernel, axes, extents, lanes)):
        try:
            return _through_tiles(kernel, axes, u, lanes, limits.block)
        except ScheduleError:  # two views of one buffer: gather instead
            pass

    vectors = -(-extents[v] // lanes)
    if column:  # wide enough for whole cache lines and several adders, but some blocks
        outer = prod(extents[a] for a in axes[:-1])
        few = vectors * lanes * inner * outer >= 4 * limits.block and outer < 4
        unroll = min(2 * limits.group, max(1, vectors // 4) if few else vectors)
    else:
        heavy = sum(cost(s.value) for s in stores(body))
        unroll = min(limits.group if heavy <= limits.light else 1, vectors)
    if not column and len(axes) == 1 and extents[v] % limits.flat == 0:
        kernel = blocks_of(kernel, v, limits.flat)
        unroll = unroll if limits.flat % (lanes * unroll) == 0 else 1
        return tidy(vectorise(kernel, v, lanes, unroll), keep=f"{v}_s")
    group = lanes * unroll
    stretch = max(group, limits.block // max(inner, 1) // group * group)  # of v, for one block
    if extents[v] > stretch:
        kernel = split(kernel, v, stretch, f"{v}_s", v)
        for a in reversed(axes[:-1]):
            kernel = sink(kernel, a, past=(f"{v}_s",))
        axes = [f"{v}_s", *axes[:-1]]
    else:
        stretch, axes = extents[v], axes[:-1]
    kernel = deal(kernel, axes, inner * stretch, limits.block)
    return tidy(vectorise(kernel, v, lanes, unroll, past=column))


def _vector_axis(kernel: Kernel, body, axes: list[str], extents: dict[str, int], lanes: int) -> str | None:
    """The axis along which vectors are cheapest; None where scalars are cheaper still."""
    axes = [a for a in axes if not any(_moves(s, a) for s in walk(body))]
    arithmetic = sum(cost(s.value) + 1 for s in stores(body))
    prices = {
        a: lane_price(kernel, body, a, extents[a], lanes) + arithmetic * -(-extents[a] // lanes) / extents[a]
        for a in axes
        if extents[a] > 1
    }
    best = min(prices, key=lambda a: (prices[a], -extents[a]), default=None)
    scalar = len(memory(kernel, body)) + arithmetic
    return best if best is not None and prices[best] < scalar else None


def _moves(s: Stmt, axis: str) -> bool:
    return isinstance(s, Loop) and not isinstance(s.extent, int) and s.extent.coef(axis) != 0


def walks_columns(kernel: Kernel) -> bool:
    """Is there an outer axis along which every access stands still or walks element by element?"""
    chain, body = outer_chain(kernel)
    return any(
        all(stride(kernel, x, s.axis) in (0, 1) for x in memory(kernel, body))
        and any(stride(kernel, x, s.axis) == 1 for x in memory(kernel, body) if isinstance(x, Store))
        for s in chain
        if isinstance(s.extent, int) and s.extent >= 8 and not any(_moves(t, s.axis) for t in walk(body))
    )


# ---- transposition --------------------------------------------------------------------------------------
def _transposed(kernel: Kernel, axes: list[str]) -> dict[Load, str]:
    """Plain loads that walk another axis than the last one element by element."""
    out: dict[Load, str] = {}
    v = axes[-1]
    for s in stores(kernel.body):
        for x in loads(s.value):
            if stride(kernel, x, v) not in (0, 1, -1, None) and not x.masks:
                for a in axes[:-1]:
                    if stride(kernel, x, a) == 1:
                        out[x] = a
    return out


def _transposed_axis(kernel: Kernel, axes: list[str], extents: dict[str, int], lanes: int) -> str | None:
    found = _transposed(kernel, axes)
    for x, a in found.items():
        if x.dtype.bits == 32 and min(extents[a], extents[axes[-1]]) >= lanes // 2:
            return a
    return None


def _through_tiles(kernel: Kernel, axes: list[str], u: str, lanes: int, block: int) -> Kernel:
    """u and v (the last axis) in square tiles; loads along u are transposed into a tile first."""
    v = axes[-1]
    others = [a for a in axes if a not in (u, v)]
    kernel = order_axes(kernel, [*others, u, v])
    crossed = [x for x, a in _transposed(kernel, axes).items() if a == u and x.dtype.bits == 32]
    body = outer_chain(kernel)[1]
    copy = len(body) == 1 and isinstance(body[0], Store) and body[0].value in crossed and body[0].where is None
    n = extents_of(kernel)
    wide = lanes * max(1, block // (lanes * max(n[v], 1)))  # rows of u that one block takes
    kernel = split(kernel, u, min(wide, max(lanes, -(-n[u] // 4 // lanes) * lanes)), f"{u}_b", u)
    for a in reversed(others):
        kernel = sink(kernel, a, past=(f"{u}_b",))
    kernel = split(kernel, u, lanes, f"{u}_t", u)
    kernel = split(kernel, v, lanes, f"{v}_t", v)
    kernel = sink(kernel, u, past=(f"{v}_t",))
    kernel = bind(kernel, **{f"{u}_b": "block"}, **dict.fromkeys(others, "block"))
    if copy:
        return tidy(tensorise(kernel, (u, v), "transpose"))
    for i, x in enumerate(crossed):
        kernel = _pack_tile(kernel, x, u, v, f"tile{i}")
    return tidy(vectorise(kernel, v, lanes, 1))


def _pack_tile(kernel: Kernel, x: Load, u: str, v: str, dst: str) -> Kernel:
    def operand(s: Store) -> Load | None:
        """The load of the same buffer that walks u; were there several, `pack` would refuse."""
        for y in loads(s.value):
            if y.buffer == x.buffer and stride(kernel, y, u) == 1 and stride(kernel, y, v) != 1:
                return y
        return None

    kernel = pack(kernel, operand, (u, v), f"{v}_t", dst)
    return tensorise(kernel, (f"{u}_{dst}", f"{v}_{dst}"), "transpose")
