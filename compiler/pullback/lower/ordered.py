"""Nests whose iterations have an order or a data-dependent target: cumulative sums, sorting, scatter.

Part of `nests.py`: a group of one such node in, the statements of its kernel out.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ScriptError
from ..graph.graph import Node
from ..graph.types import bool_, i32, i64
from ..kernel.kernel import A, Affine, AxisValue, Buffer, Checked, Const, Expr, Index, Load, Loop, Stmt, Store, apply
from ..ops.indexing import ScatterAdd
from ..ops.ordered import ArgSort, CumSum, Sort
from .rows import cast, nest
from .summation import next_power

if TYPE_CHECKING:
    from .nests import Writer

Pair = tuple[Buffer, Buffer]
"""Keys and the positions that they came from."""

SORT_LIMIT = 8192
"""A sort's stages are written out, so axes stay small."""


def _around(w: Writer, shape: tuple[int, ...], axis: int) -> tuple[list[tuple[str, int, str]], list[Affine]]:
    """Parallel loops over all axes but one, and the whole index (that axis at 0)."""
    index = [Affine() if d == axis else w.loop_index(f"i{d}", n) for d, n in enumerate(shape)]
    return [(f"i{d}", n, "parallel") for d, n in enumerate(shape) if d != axis and n != 1], index


def _target(w: Writer, node: Node) -> Buffer:
    b = w.outputs["node", node] = Buffer(f"y{len(w.outputs)}", node.shape, node.dtype)
    return b


def cumulative_sum(w: Writer, node: Node) -> list[Stmt]:
    """acc = 0; for k in order: acc += x[k]; y[k] = acc."""
    axis, n = node.op.axis, node.shape[node.op.axis]
    loops, index = _around(w, node.shape, axis)
    index[axis] = A("k") * -1 + (n - 1) if node.op.reverse else A("k")
    y, dtype = _target(w, node), node.dtype.compute
    acc = w.local("acc", (), dtype)
    here = Load(acc.name, (), dtype)
    x = cast(w.expr(node.inputs[0], tuple(index)), dtype)
    body = [
        Store(acc.name, (), apply("add", here, x)),
        Store(y.name, tuple(index), cast(here, node.dtype)),
    ]
    zero = Const(0.0 if dtype.is_float else 0, dtype)
    return nest(loops, [Store(acc.name, (), zero), Loop("k", n, "ordered", tuple(body))])


def _key(e: Expr, descending: bool) -> Expr:
    """An integer that is less where the element stands before: NaN counts as the greatest and equals itself."""
    if e.dtype.is_float:
        t = i64 if e.dtype.bits == 64 else i32
        most, bits = np.iinfo(t.numpy).max, apply("bitcast", apply("add", e, Const(0.0, e.dtype)), dtype=t)  # -0 as 0
        negative = apply("shr", bits, Const(t.bits - 1, t))
        key = apply("xor", bits, apply("and", negative, Const(most, t)))
        key = apply("select", apply("isnan", e, dtype=bool_), Const(most, t), key)
    else:
        key = cast(e, e.dtype if e.dtype.bits >= 32 else i32)
    return apply("not", key) if descending else key


def sort(w: Writer, node: Node) -> list[Stmt]:
    """Batcher's bitonic sorting network on pairs of key and position; no two are equal, so it is stable.  Its stages,
    log2(n) (log2(n) + 1) / 2, are n / 2 independent comparisons each, from one copy of the pairs to the other."""
    axis, n = node.op.axis, node.shape[node.op.axis]
    if n > SORT_LIMIT:
        raise ScriptError(f"{node.op.name}: expected an axis of at most {SORT_LIMIT} elements, got {n}", node.loc)
    loops, index = _around(w, node.shape, axis)
    y, x = _target(w, node), node.inputs[0]

    def at(i: Index) -> tuple[Index, ...]:
        return (*index[:axis], i, *index[axis + 1 :])

    size, j = next_power(n), A("j")
    element = w.expr(x, at(j))
    key = _key(cast(element, x.dtype.compute), node.op.descending)
    types = (("key", key.dtype), ("place", i32))
    (keys, places), other = ([w.local(name, (size,), t, "local") for name, t in types] for _ in range(2))
    fill = [Store(keys.name, (j,), key), Store(places.name, (j,), AxisValue(j, i32))]
    if isinstance(node.op, Sort):
        values = w.local("value", (size,), x.dtype, "local")
        fill.append(Store(values.name, (j,), element))
    body = nest([("j", n, "parallel")], fill)
    end, most = A("e") + n, Const(int(np.iinfo(key.dtype.numpy).max), key.dtype)
    rest = [Store(keys.name, (end,), most), Store(places.name, (end,), AxisValue(end, i32))]
    body += nest([("e", size - n, "parallel")], rest) if size > n else []
    merged = 1
    while merged < size:
        for apart in (merged >> k for k in range(merged.bit_length())):
            body += _stage((keys, places), other, merged, apart)
            (keys, places), other = other, (keys, places)
        merged *= 2
    place = Load(places.name, (j,), i32)
    if isinstance(node.op, Sort):
        result: Expr = Load(values.name, (Checked(place, size, 0),), x.dtype)
        w.sites[node] = 0
    else:
        result = place
    return nest(loops, [*body, *nest([("j", n, "parallel")], [Store(y.name, at(j), result)])])


def _stage(source: Pair, target: Pair, merged: int, apart: int) -> list[Stmt]:
    """Of every two pairs of key and position that lie `apart` the lesser goes first: in every other block of twice
    `merged` elements last, so that the next blocks rise and then fall."""
    block = 2 * merged
    blocks = source[0].size // block
    # A name says the extent, so that schedules treat the loops of all stages alike; what is innermost has its own.
    names = "bhpq" if apart > 1 else "bhoq"
    steps = ((blocks // 2, 2 * block), (min(blocks, 2), block), (merged // apart, 2 * apart), (apart, 1))
    loops = [(f"{name}{n}", n, step) for name, (n, step) in zip(names, steps, strict=True) if n > 1]
    first = sum((A(axis) * step for axis, _, step in loops), Affine())
    second = first + apart
    (a, b), (i, j) = ([Load(x.name, (k,), x.dtype) for k in (first, second)] for x in source)
    later = apply("or", apply("lt", b, a), apply("and", apply("eq", a, b), apply("lt", j, i)))
    if blocks > 1:
        later = apply("xor", later, apply("eq", AxisValue(A("h2"), i32), Const(1, i32)))
    out = []
    for x, low, high in zip(target, (a, i), (b, j), strict=True):
        out.append(Store(x.name, (first,), apply("select", later, high, low)))
        out.append(Store(x.name, (second,), apply("select", later, low, high)))
    return nest([(axis, n, "parallel") for axis, n, _ in loops], out)


def scatter_add(w: Writer, node: Node) -> list[Stmt]:
    """Zeros, then the updates in the order of the indices; parallel over all other axes."""
    op, (indices, updates) = node.op, node.inputs
    axis, end = op.axis, op.axis + indices.type.ndim
    y = _target(w, node)
    loops, index = _around(w, node.shape, axis)
    before, after = tuple(index[:axis]), tuple(index[axis + 1 :])
    zero = Const(0.0 if node.dtype.is_float else 0, node.dtype)
    clear = nest([("v", op.size, "parallel")], [Store(y.name, (*before, A("v"), *after), zero)])
    names = [f"k{d}" for d in range(indices.type.ndim)]
    at = tuple(w.loop_index(a, n) for a, n in zip(names, indices.shape, strict=True))
    place = (*before, w.checked(node, w.expr(indices, at), op.size), *after)
    old = Load(y.name, place, node.dtype)
    compute = node.dtype.compute
    new = apply("add", cast(old, compute), cast(w.expr(updates, (*before, *at, *after)), compute))
    steps = [(a, n, "ordered") for a, n in zip(names, indices.shape, strict=True) if n != 1]
    assert updates.shape[axis:end] == indices.shape
    if not prod(indices.shape):
        return nest(loops, clear)
    return nest(loops, [*clear, *nest(steps, [Store(y.name, place, cast(new, node.dtype))])])


NESTS = {CumSum: cumulative_sum, Sort: sort, ArgSort: sort, ScatterAdd: scatter_add}
"""op class -> its nest."""
