"""Reductions as nests: stages over rows, chunks of columns, and groups that share rows.

The order of the additions is that of `summation.py`.  Part of `nests.py`: groups of kind `rows` in, the statements of
their kernels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np

from ..graph.graph import Node
from ..graph.types import DType
from ..kernel.kernel import A, Affine, AxisValue, Buffer, Const, Expr, Load, Loop, Mask, Stmt, Store, Tile, apply
from ..ops.reduction import Arg
from .summation import LANES, column_chunks, form, next_power, partial_shape, reduced_extents, row_chunks

if TYPE_CHECKING:
    from .nests import Writer


# ---- scalars --------------------------------------------------------------------------------------------
def cast(e: Expr, dtype: DType) -> Expr:
    return e if e.dtype == dtype else apply("cast", e, dtype=dtype)


def identity(combine: str, dtype: DType) -> Const:
    """The combiner's neutral element: infinities of floats, the extremes of integers."""
    if combine in ("add", "mul"):
        value = 0.0 if combine == "add" else 1.0
    elif dtype.is_float:
        value = -np.inf if combine == "maximum" else np.inf
    elif dtype.kind == "b":
        value = combine == "minimum"
    else:
        info = np.iinfo(dtype.numpy)
        value = info.min if combine == "maximum" else info.max
    return Const(float(value) if dtype.is_float else bool(value) if dtype.kind == "b" else int(value), dtype)


@dataclass(frozen=True, slots=True)
class Accumulator:
    """Buffers that hold the running result: one, or value and position of an extreme."""

    node: Node
    buffers: tuple[Buffer, ...]

    @staticmethod
    def make(w: Writer, node: Node, shape: tuple[int, ...], space: str = "register") -> Accumulator:
        value = w.local("p", shape, node.inputs[0].dtype.compute, space)
        if isinstance(node.op, Arg):
            return Accumulator(node, (value, w.local("q", shape, node.dtype, space)))
        return Accumulator(node, (value,))

    def init(self, index: tuple[Affine, ...]) -> list[Stmt]:
        value = self.buffers[0]
        out: list[Stmt] = [Store(value.name, index, identity(self.node.op.combine, value.dtype))]
        out += [Store(b.name, index, Const(-1, b.dtype)) for b in self.buffers[1:]]
        return out

    def at(self, index: tuple[Affine, ...]) -> tuple[Load, ...]:
        return tuple(Load(b.name, index, b.dtype) for b in self.buffers)

    def step(self, index: tuple[Affine, ...], new: tuple[Expr, ...], masks: tuple[Mask, ...] = ()) -> list[Stmt]:
        """Take one more result in.  Of equal extremes the first position wins, and NaN beats numbers."""
        old, op = self.at(index), self.node.op
        if len(old) == 1:
            return [Store(self.buffers[0].name, index, apply(op.combine, old[0], new[0]), masks)]
        (x, i), (y, j) = old, new
        # -1 is "nothing yet": everything beats it, and it beats nothing.
        better = apply("gt" if op.combine == "maximum" else "lt", y, x)
        same = apply("eq", y, x)
        if x.dtype.is_float:
            nan, was = apply("isnan", y, dtype=better.dtype), apply("isnan", x, dtype=better.dtype)
            better = apply("or", better, apply("and", nan, apply("not", was)))
            same = apply("or", same, apply("and", nan, was))
        earlier = apply("or", apply("lt", j, i), apply("lt", i, Const(0, i.dtype)))
        valid = apply("ge", j, Const(0, j.dtype))
        better = apply("and", valid, apply("or", better, apply("and", same, earlier)))
        position = Store(self.buffers[1].name, index, apply("select", better, j, i), masks)
        return [position, Store(self.buffers[0].name, index, apply(op.combine, x, y), masks)]

    def result(self, index: tuple[Affine, ...]) -> Expr:
        return cast(self.at(index)[-1], self.node.dtype)

    def value(self, x: Expr, position: Affine) -> tuple[Expr, ...]:
        """What one element contributes."""
        x = cast(x, self.buffers[0].dtype)
        return (x,) if len(self.buffers) == 1 else (x, AxisValue(position, self.buffers[1].dtype))


def nest(loops: Sequence[tuple[str, int, str]], body: list[Stmt]) -> list[Stmt]:
    """Loops (axis, extent, role), outermost first, around a body."""
    for axis, n, role in reversed(loops):
        body = [Loop(axis, n, role, tuple(body))]
    return body


# ---- stages -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Strided:
    """The loops of row reductions over the same extents: outer axes, then k (steps of W) and l (W partials)."""

    extents: tuple[int, ...]
    width: int
    index: tuple[Affine, ...]
    loops: tuple[tuple[str, int, str], ...]
    lane: tuple[Affine, ...]
    masks: tuple[Mask, ...]

    @staticmethod
    def of(w: Writer, extents: Sequence[int], bound: int | None = None, start: Affine | None = None) -> Strided:
        """`bound`, `start`: the last axis is a chunk that begins at `start` of an axis of `bound` elements."""
        *outer, n = extents
        width = min(LANES, next_power(n))
        index, loops = [], []
        for d, m in enumerate(outer):
            index.append(w.loop_index(f"o{d}", m))
            loops += [(f"o{d}", m, "reduce")] if m != 1 else []
        steps = ceil(n / width)
        lane = w.loop_index("l", width)
        at = w.loop_index("k", steps) * width + lane
        loops += ([("k", steps, "reduce")] if steps > 1 else []) + ([("l", width, "parallel")] if width > 1 else [])
        masks = [(at, n)] if n % width else []
        if start is not None:
            at = at + start
            masks += [(at, bound)] if bound % n else []
        return Strided(tuple(extents), width, (*index, at), tuple(loops), (lane,), tuple(masks))

    def flat(self) -> Affine:
        """The position along the last axis."""
        return self.index[-1]


def fold(accumulators: list[Accumulator], width: int) -> list[Stmt]:
    """p[l] += p[l + h] for h = W / 2 .. 1."""
    loops, h = [], width // 2
    while h:
        axis = f"h{h}"
        body: list[Stmt] = []
        for acc in accumulators:
            body += acc.step((A(axis),), acc.at((A(axis) + h,)))
        loops.append(Loop(axis, h, "parallel", tuple(body)))
        h //= 2
    return [Tile("fold", tuple(loops))] if loops else []


Source = Callable[[Node], tuple[Expr, Affine]]


def reduce_rows(w: Writer, nodes: list[Node], loops: Strided, source: Source) -> list[Stmt]:
    """A stage: row reductions over the same extents.  `source(node)`: its element, and the element's position."""
    accumulators = [Accumulator.make(w, n, (loops.width,)) for n in nodes]
    out = nest([t for t in loops.loops if t[0] == "l"], [s for a in accumulators for s in a.init(loops.lane)])
    with w.inside(loops.index, loops.extents, loops.masks) as body:
        for acc in accumulators:
            body += acc.step(loops.lane, acc.value(*source(acc.node)), (*loops.masks, *w.masks))
    out = w.take_hoisted() + out + nest(loops.loops, w.split_shared(body)) + fold(accumulators, loops.width)
    for acc in accumulators:
        scalar = w.local("s", (), acc.node.dtype)
        out.append(Store(scalar.name, (), acc.result((A(0),))))
        w.values[acc.node] = Load(scalar.name, (), scalar.dtype)
    return out


def input_index(node: Node, kept: Sequence[Affine], reduced: Sequence[Affine]) -> tuple[Affine, ...]:
    """The index of a reduction's input from those of the kept and of the reduced axes."""
    kept, reduced = iter(kept), iter(reduced)
    return tuple(next(reduced) if d in node.op.axes else next(kept) for d in range(node.inputs[0].type.ndim))


def element_reduction(w: Writer, node: Node, index: tuple[Affine, ...]) -> list[Stmt]:
    """In order, into one accumulator, for one element of the result: a short column, or the chunks of a long one."""
    chunked = form(node) == "column"
    extents = column_chunks(reduced_extents(node)).shape if chunked else reduced_extents(node)
    names = [f"c{w.unique()}" for _ in extents]
    at = tuple(w.loop_index(a, n) for a, n in zip(names, extents, strict=True))
    acc = Accumulator.make(w, node, ())
    x = w.partial(node, (*at, *index)) if chunked else w.expr(node.inputs[0], input_index(node, index, at))
    body = w.split_shared(acc.step((), acc.value(x, at[-1])))
    loops = [(a, n, "reduce") for a, n in zip(names, extents, strict=True) if n != 1]
    w.values[node] = acc.result(())
    return [*acc.init(()), *nest(loops, body)]


def long_partials(w: Writer, node: Node) -> tuple[list[Stmt], list[tuple[str, int, str]]]:
    """The chunks of long rows: (statements for one chunk, parallel loops around them)."""
    chunks = row_chunks(reduced_extents(node))
    shape = partial_shape(node)
    names = [f"i{d}" for d in range(len(shape))]
    at = tuple(w.loop_index(a, n) for a, n in zip(names, shape, strict=True))
    kept, outer, chunk = at[: len(node.shape)], at[len(node.shape) : -1], at[-1]
    n, size = chunks.extents[chunks.axis], chunks.size
    inside = chunks.extents[chunks.axis + 1 :]
    masks: tuple[Mask, ...] = ()
    if inside:  # the cut axis is an outer one
        loops = Strided.of(w, (size, *inside))
        along = chunk * size + loops.index[0]
        reduced = (*outer, along, *loops.index[1:])
        masks = ((along, n),) if n % size else ()
    else:
        loops = Strided.of(w, (size,), n, chunk * size)
        reduced = (*outer, *loops.index)
    w.masks = masks
    stage = reduce_rows(
        w, [node], loops, lambda r: (w.expr(r.inputs[0], input_index(r, kept, reduced), loops.masks), loops.flat())
    )
    w.masks = ()
    target = w.partial_output(node)
    stage.append(Store(target.name, at, cast(w.values.pop(node), target.dtype)))
    return stage, [(a, m, "parallel") for a, m in zip(names, shape, strict=True) if m != 1]


def row_group(w: Writer) -> list[Stmt]:
    """Stages in the order of what they need, then the outputs and the chunks of column sums."""
    group = w.group
    chunks = column_chunks(group.rows) if group.sinks else None
    names, index, role = [], [], []
    for d, n in enumerate(group.rows):
        names.append(f"i{d}")
        index.append(w.loop_index(f"i{d}", n))
        role.append("reduce" if chunks and d > chunks.axis else "parallel")
    outer = [(a, n, r) for a, n, r in zip(names, group.rows, role, strict=True) if n != 1]
    if chunks is None:
        w.index = tuple(index)
        return nest(outer, stages(w) + final(w))

    # Rows go in chunks: an outer part of them is parallel, the rest is added in order.
    d, n, size = chunks.axis, group.rows[chunks.axis], chunks.size
    chunk, row = w.loop_index("c", chunks.count), w.loop_index("r", size)
    index[d] = along = chunk * size + row
    w.index, w.masks = tuple(index), (((along, n),) if n % size else ())
    around = [t for t in outer if t[2] == "parallel" and t[0] != f"i{d}"]
    around += [("c", chunks.count, "parallel")] if chunks.count > 1 else []
    rows = ([("r", size, "reduce")] if size > 1 else []) + [t for t in outer if t[2] == "reduce"]
    chunk_index = (*index[:d], chunk)
    shapes = {inner_extents(w, v) for v in group.outputs} | {s.shape for s in group.sinks}
    if not group.staged and len(shapes) == 1:
        # No stage needs whole rows: columns outside, so that the sums stay in registers.
        before, body, after = sums(w, shapes.pop(), chunk_index, False)
        columns = [t for t in w.loops if t[1] != 1]
        return nest(around + columns, [*before, *nest(rows, body), *after])
    body = stages(w)
    before, after = [], []
    for shape in sorted(shapes):
        b, m, a = sums(w, shape, chunk_index, True)
        loops = [t for t in w.loops if t[1] != 1]
        before += nest(loops, b) if b else []
        body += w.take_hoisted() + nest(loops, m)
        after += nest(loops, a) if a else []
    return nest(around, [*before, *nest(rows, body), *after])


def stages(w: Writer) -> list[Stmt]:
    """The row reductions of a group, those of one level and the same extents in the same loops."""
    out: list[Stmt] = []
    by_stage: dict[tuple, list[Node]] = {}
    for node in w.group.staged:
        extents = reduced_extents(node)
        if form(node) == "long":
            extents = row_chunks(extents).shape
        by_stage.setdefault((w.level[node], extents), []).append(node)
    for (_, extents), nodes in sorted(by_stage.items(), key=lambda t: t[0][0]):
        loops = Strided.of(w, extents)

        def source(node: Node, loops: Strided = loops) -> tuple[Expr, Affine]:
            if form(node) == "long":
                return w.partial(node, (*w.index, *loops.index), loops.masks), loops.flat()
            at = input_index(node, w.index, loops.index)
            return w.expr(node.inputs[0], at, loops.masks), loops.flat()

        out += reduce_rows(w, nodes, loops, source)
    return out


def inner_extents(w: Writer, v: Node) -> tuple[int, ...]:
    """The extents of an output's axes that are not shared."""
    return tuple(n for n, r in zip(v.shape, w.group.dims[v], strict=True) if r < 0)


def output_index(w: Writer, v: Node, inner: Sequence[Affine]) -> tuple[Affine, ...]:
    inner = iter(inner)
    return tuple(next(inner) if r < 0 else w.index[r] for r in w.group.dims[v])


def inner_loops(w: Writer, shape: tuple[int, ...]) -> tuple[Affine, ...]:
    """Axes over what is not shared; `w.loops` holds their loops."""
    w.loops = [(f"j{d}", n, "parallel") for d, n in enumerate(shape)]
    return tuple(w.loop_index(a, n) for a, n, _ in w.loops)


def final(w: Writer) -> list[Stmt]:
    """The stores of the outputs, those of equal inner extents in the same loops."""
    out: list[Stmt] = []
    for shape in sorted({inner_extents(w, v) for v in w.group.outputs}, key=lambda s: (prod(s), s)):
        inner = inner_loops(w, shape)
        loops = [t for t in w.loops if t[1] != 1]
        with w.inside(inner if loops else (), shape if loops else ()) as body:
            for v in w.group.outputs:
                if inner_extents(w, v) == shape:
                    body.append(w.output(v, output_index(w, v, inner)))
        out += w.take_hoisted() + nest(loops, w.split_shared(body))
    return out


def sums(
    w: Writer, shape: tuple[int, ...], chunk: tuple[Affine, ...], in_memory: bool
) -> tuple[list[Stmt], list[Stmt], list[Stmt]]:
    """Outputs and column sums over the same columns: (before the rows, for each row, after the rows).

    `in_memory`: the accumulators are arrays over the columns, because rows are outside of the columns.
    """
    inner = inner_loops(w, shape)
    where = (shape, "local") if in_memory else ((), "register")
    accumulators = [Accumulator.make(w, s, *where) for s in w.group.sinks if s.shape == shape]
    at = inner if in_memory else ()
    before = [s for acc in accumulators for s in acc.init(at)]
    with w.inside(at, shape if in_memory else ()) as body:
        for v in w.group.outputs:
            if inner_extents(w, v) == shape:
                body.append(w.output(v, output_index(w, v, inner)))
        for acc in accumulators:
            x = w.expr(acc.node.inputs[0], input_index(acc.node, inner, w.index))
            body += acc.step(at, acc.value(x, inner[0] if inner else A(0)), w.masks)
    after: list[Stmt] = []
    for acc in accumulators:
        target = w.partial_output(acc.node)
        after.append(Store(target.name, (*chunk, *inner), acc.at(at)[0]))
    return before, w.split_shared(body), after
