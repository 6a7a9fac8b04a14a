"""Nests whose iterations have an order or a data-dependent target: cumulative sums, sorting, scatter.

Part of `nests.py`: a group of one such node in, the statements of its kernel out.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ..errors import ScriptError
from ..graph.graph import Node
from ..graph.types import i32
from ..kernel.kernel import A, Affine, AxisValue, Buffer, Checked, Const, Expr, Load, Loop, Stmt, Store, apply
from ..ops.indexing import ScatterAdd
from ..ops.ordered import ArgSort, CumSum, Sort
from .rows import cast, nest

if TYPE_CHECKING:
    from .nests import Writer

SORT_LIMIT = 8192
"""Sorting counts, for each element, how many stand before it: n * n comparisons, so axes stay small."""


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


def _before(a: Expr, b: Expr, descending: bool) -> tuple[Expr, Expr]:
    """(a stands before b, a equals b) in a sort; NaN counts as the greatest and equals itself."""
    if descending:
        a, b = b, a
    less, same = apply("lt", a, b), apply("eq", a, b)
    if a.dtype.is_float:
        nan_a, nan_b = apply("isnan", a, dtype=less.dtype), apply("isnan", b, dtype=less.dtype)
        less = apply("or", less, apply("and", nan_b, apply("not", nan_a)))
        same = apply("or", same, apply("and", nan_a, nan_b))
    return less, same


def sort(w: Writer, node: Node) -> list[Stmt]:
    """An element's place is how many stand before it: stable, and without branches."""
    axis, n = node.op.axis, node.shape[node.op.axis]
    if n > SORT_LIMIT:
        raise ScriptError(f"{node.op.name}: expected an axis of at most {SORT_LIMIT} elements, got {n}", node.loc)
    loops, index = _around(w, node.shape, axis)
    y = _target(w, node)
    rank = w.local("acc", (), i32)
    here = Load(rank.name, (), i32)

    def element(at: Affine) -> Expr:
        e = w.expr(node.inputs[0], (*index[:axis], at, *index[axis + 1 :]))
        return cast(e, e.dtype.compute)

    m, k = A("m"), A("k")
    before, same = _before(element(k), element(m), node.op.descending)
    earlier = apply("lt", AxisValue(k, i32), AxisValue(m, i32))
    counts = apply("or", before, apply("and", same, earlier))
    step = apply("add", here, apply("cast", counts, dtype=i32))
    place = Checked(here, n, 0)
    if isinstance(node.op, ArgSort):
        value: Expr = AxisValue(m, node.dtype)
    else:
        value = w.expr(node.inputs[0], (*index[:axis], m, *index[axis + 1 :]))
    body = [
        Store(rank.name, (), Const(0, i32)),
        Loop("k", n, "reduce", (Store(rank.name, (), step),)),
        Store(y.name, (*index[:axis], place, *index[axis + 1 :]), value),
    ]
    w.sites[node] = 0
    return nest(loops, [Loop("m", n, "ordered", tuple(body))])


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
