"""Groups -> kernels: writes one unscheduled loop nest.

In: a `Group` and its `Cone` (the nodes that it computes, and those that it reads from memory).  Out: a `Kernel` whose
loops say what they mean (parallel | reduce | ordered) and whose order of summation is final.  Buffers and axes have
short names in order of appearance, so equal groups give equal kernels:

* `x0, x1, ...` what is read, `y0, ...` what is written; locals: `acc` (contraction), `p`, `q` (partial results),
  `s` (a scalar of the row), `e` (a value kept for later stages), `t` (a shared subexpression);
* `i0, i1, ...` shared axes, `c`, `r` chunks of rows and the rows of a chunk, `j0, ...` axes within a row, `k`, `l`
  steps and lanes of a row reduction, `k0, ...` reduced axes of a contraction, `c0, ...` of a reduction in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod

from ..errors import VerifyError
from ..graph.graph import Node
from ..graph.types import DType, TensorType, i64
from ..kernel.kernel import (
    A,
    Affine,
    Apply,
    AxisValue,
    Buffer,
    Checked,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Mask,
    Stmt,
    Store,
    apply,
    children,
    exprs,
    stores,
)
from .contract import accumulate
from .families import ELEMENTWISE, GATHERS, MOVEMENT, REDUCTIONS
from .groups import Cone, Group
from .ordered import NESTS
from .rows import cast, element_reduction, form, identity, long_partials, nest, row_group
from .summation import partial_shape

SHARED = 64
"""Subexpressions with more nodes than this that are used twice become a local."""
DEAR = 8
"""Values that cost at least this much are kept for later stages instead of being computed again."""
EXACT = frozenset(("cast", "bitcast", "select", "stop_gradient", "neg", "abs"))
"""Element-wise ops that give the same bits in any float type: no detour through f32."""


@dataclass(frozen=True)
class Written:
    """A kernel and what its parameters are: ('node' | 'partial', position in the cone); outputs come last."""

    kernel: Kernel
    parameters: tuple[tuple[str, int], ...]
    sites: tuple[int, ...]
    """For each check the position in the cone of the node that makes it."""


@dataclass(eq=False)
class Writer:
    """The state of writing one kernel."""

    group: Group
    cone: Cone
    inputs: dict[tuple[str, Node], Buffer] = field(default_factory=dict)
    outputs: dict[tuple[str, Node], Buffer] = field(default_factory=dict)
    locals: list[Buffer] = field(default_factory=list)
    index: tuple[Affine, ...] = ()  # of the shared axes
    masks: tuple[Mask, ...] = ()  # that hold for a row
    values: dict[Node, Expr] = field(default_factory=dict)  # staged results
    level: dict[Node, int] = field(default_factory=dict)  # which stage computes a reduction
    loops: list[tuple[str, int, str]] = field(default_factory=list)  # of the last `inner_loops`
    sites: dict[Node, int] = field(default_factory=dict)  # the number of each node's check
    # The loops within a row that are being written (see `inside`):
    inner: tuple[Affine, ...] = ()
    inner_extents: tuple[int, ...] = ()
    inner_masks: tuple[Mask, ...] = ()
    body: list[Stmt] | None = None
    memo: dict = field(default_factory=dict)
    # Values that outlive their loops: scalars of the row; what to keep, what is kept (and where), what grows now.
    hoisted: list[Stmt] = field(default_factory=list)
    scalars: dict = field(default_factory=dict)
    keep: set[Node] = field(default_factory=set)
    kept: dict[Node, tuple[Buffer, tuple[int, ...]]] = field(default_factory=dict)
    growing: dict[Node, tuple[Affine, ...]] = field(default_factory=dict)
    counter: int = 0

    # ---- names
    def unique(self) -> int:
        self.counter += 1
        return self.counter - 1

    def local(self, prefix: str, shape: tuple[int, ...], dtype: DType, space: str = "register") -> Buffer:
        b = Buffer(f"{prefix}{sum(x.name.startswith(prefix) for x in self.locals)}", shape, dtype, space)
        self.locals.append(b)
        return b

    def loop_index(self, axis: str, extent: int) -> Affine:
        """The index of a loop; loops of one iteration are not written."""
        return Affine() if extent == 1 else A(axis)

    def input(self, what: str, node: Node, type_: TensorType) -> Buffer:
        b = self.inputs.get((what, node))
        if b is None:
            b = self.inputs[what, node] = Buffer(f"x{len(self.inputs)}", type_.shape, type_.dtype)
        return b

    # ---- expressions
    def partial(self, node: Node, index: Sequence[Affine], masks: tuple[Mask, ...] = ()) -> Load:
        dtype = node.dtype.compute
        b = self.input("partial", node, TensorType(dtype, partial_shape(node)))
        return Load(b.name, tuple(index), dtype, masks + self.masks)

    def partial_output(self, node: Node) -> Buffer:
        b = Buffer(f"y{len(self.outputs)}", partial_shape(node), node.dtype.compute)
        self.outputs["partial", node] = b
        return b

    def output(self, node: Node, index: tuple[Affine, ...]) -> Store:
        b = Buffer(f"y{len(self.outputs)}", node.shape, node.dtype)
        self.outputs["node", node] = b
        return Store(b.name, index, self.expr(node, index), self.masks)

    def expr(self, node: Node, index: tuple[Index, ...], masks: tuple[Mask, ...] = ()) -> Expr:
        """The element of a node at an index, wherever it comes from; `masks` say where it is needed."""
        staged = self.values.get(node)
        if staged is not None:
            if any(a != b and n != 1 for a, b, n in zip(index, self.index, node.shape, strict=True)):
                raise VerifyError(f"lowering: {node!r} is used outside of its row")
            return staged
        key = (node, index, masks)
        e = self.memo.get(key)
        if e is None:
            e = self.memo[key] = self._expr(node, index, masks)
        return e

    def _expr(self, node: Node, index: tuple[Index, ...], masks: tuple[Mask, ...]) -> Expr:
        if node in self.cone.external:
            return Load(self.input("node", node, node.type).name, index, node.dtype, masks + self.masks)
        if node in self.kept:
            buffer, positions = self.kept[node]
            at = tuple(index[d] for d in positions)
            if self.growing.get(node, at) == at:  # while it grows, only the element at hand is there
                return Load(buffer.name, at, buffer.dtype, masks)
            return self._elementwise(node, index, masks)
        if self.inner and type(node.op) in ELEMENTWISE:
            if self._invariant(index):
                return self._hoist(node, index, masks)
            if node in self.keep and self.body is not None:
                kept = self._keep(node, index) if masks == self.inner_masks else None  # pads need less than a row
                if kept is not None:
                    return kept
        if type(node.op) in ELEMENTWISE:
            return self._elementwise(node, index, masks)
        if type(node.op) in REDUCTIONS:
            if form(node) != "none":
                raise VerifyError(f"lowering: {node!r} is used before it is computed")
            if node.op.axes:
                return identity(node.op.combine, node.dtype)
            return cast(self.expr(node.inputs[0], index, masks), node.dtype)
        return node.op.lower(node, index, self._reader(node, masks))

    def _elementwise(self, node: Node, index: tuple[Index, ...], masks: tuple[Mask, ...]) -> Expr:
        """Arithmetic on 16-bit floats goes through f32 and rounds after every op, fused or not."""
        args = [self.expr(x, index, masks) for x in node.inputs]
        if node.op.name not in EXACT:
            args = [cast(a, a.dtype.compute) for a in args]
        e = node.op.scalar(*args)
        return cast(e, node.dtype)

    def _reader(self, node: Node, masks: tuple[Mask, ...]):
        def read(i: int, index, more: tuple[Mask, ...] = (), other: float | int | bool = 0) -> Expr:
            child = node.inputs[i]
            if i == 0 and type(node.op) in GATHERS:
                index = self._site(node, index, node.op.axis)
            e = self.expr(child, tuple(index), masks + more)
            if not more:
                return e
            if isinstance(e, Load) and e.masks == masks + more + self.masks:
                return replace(e, other=other)
            conditions = [apply("lt", AxisValue(a, i64), Const(bound, i64)) for a, bound in more]
            inside = conditions[0]
            for c in conditions[1:]:
                inside = apply("and", inside, c)
            return apply("select", inside, e, Const(_python(other, e.dtype), e.dtype))

        return read

    def _site(self, node: Node, index, axis: int):
        """Number the check that a gather makes within this kernel."""
        site = self.sites.setdefault(node, len(self.sites))
        return (*index[:axis], replace(index[axis], site=site), *index[axis + 1 :])

    def checked(self, node: Node, value: Expr, bound: int) -> Checked:
        """A checked index made by `node` itself (scatter)."""
        return Checked(value, bound, self.sites.setdefault(node, len(self.sites)))

    # ---- values that outlive their loop
    @contextmanager
    def inside(
        self, inner: Sequence[Affine], extents: Sequence[int], masks: tuple[Mask, ...] = ()
    ) -> Iterator[list[Stmt]]:
        """Write the body of the loops over `inner`, up to `extents`; what does not move with them is hoisted out."""
        moving = [(a, n) for a, n in zip(inner, extents, strict=True) if a.terms]
        self.inner, self.inner_extents = tuple(a for a, _ in moving), tuple(n for _, n in moving)
        self.inner_masks = masks
        self.body, self.memo = [], {}
        yield self.body
        self.growing.clear()
        self.inner, self.body, self.memo = (), None, {}

    def take_hoisted(self) -> list[Stmt]:
        out, self.hoisted = self.hoisted, []
        return out

    def _invariant(self, index: tuple[Index, ...]) -> bool:
        if not all(isinstance(i, Affine) for i in index):
            return False
        moving = {a for i in self.inner for a in i.axes}
        return not any(a in moving for i in index for a in i.axes)

    def _hoist(self, node: Node, index: tuple[Index, ...], masks: tuple[Mask, ...]) -> Expr:
        """A scalar of the row, in a register before the loops."""
        masks = tuple(m for m in masks if self._invariant((m[0],)))
        found = self.scalars.get((node, index, masks))
        if found is not None:
            return found
        inner, body, memo, own = self.inner, self.body, self.memo, self.masks
        self.masks = tuple(m for m in own if self._invariant((m[0],)))
        self.inner, self.body, self.memo = (), None, {}
        e = self._elementwise(node, index, masks)
        self.inner, self.body, self.memo, self.masks = inner, body, memo, own
        if not isinstance(e, Load | Const):
            scalar = self.local("s", (), node.dtype)
            self.hoisted += self.split_shared([Store(scalar.name, (), e)])
            e = Load(scalar.name, (), scalar.dtype)
        self.scalars[node, index, masks] = e
        return e

    def _keep(self, node: Node, index: tuple[Index, ...]) -> Expr | None:
        """Store a dear value of the whole row where it is first computed, if the loops visit each element once."""
        shared = [a for a in self.index if a.terms]
        positions = [d for d, n in enumerate(node.shape) if n != 1 and index[d] not in shared]
        rows = [i for i in index if i in shared]
        if tuple(index[d] for d in positions) != self.inner or len(rows) != len(shared) or len(set(rows)) != len(rows):
            return None
        shape = tuple(node.shape[d] for d in positions)
        if shape != self.inner_extents:  # a slice is visited, and others may read the rest
            return None
        buffer = self.local("e", shape, node.dtype, "local")
        value = self._elementwise(node, index, self.inner_masks)
        at = tuple(index[d] for d in positions)
        self.body.append(Store(buffer.name, at, value, (*self.inner_masks, *self.masks)))
        self.kept[node] = (buffer, tuple(positions))
        self.growing[node] = at
        return Load(buffer.name, at, buffer.dtype, self.inner_masks)

    # ---- shared subexpressions
    def split_shared(self, body: list[Stmt]) -> list[Stmt]:
        """Large subexpressions that occur twice in a body become locals, so that no tree grows exponentially."""
        size: dict[int, int] = {}
        uses: dict[int, int] = {}
        alive: list[Expr] = []

        def visit(e: Expr) -> None:
            uses[id(e)] = uses.get(id(e), 0) + 1
            if id(e) in size:
                return
            alive.append(e)
            below = children(e)
            for c in below:
                visit(c)
            size[id(e)] = 1 + sum(size[id(c)] for c in below)

        for s in stores(body):
            for e in exprs(s):
                visit(e)
        if not any(n > 1 and size[i] > SHARED for i, n in uses.items()):
            return body
        return _Splitter(self, size, uses).run(body)


class _Splitter:
    """Replaces shared subexpressions of a straight-line body by locals stored before their first use."""

    def __init__(self, writer: Writer, size: dict[int, int], uses: dict[int, int]):
        self.writer, self.size, self.uses = writer, size, uses
        self.done: dict[int, Expr] = {}
        self.out: list[Stmt] = []

    def run(self, body: list[Stmt]) -> list[Stmt]:
        for s in body:
            if isinstance(s, Store):
                value = self.rebuild(s.value)
                self.out.append(s if value is s.value else replace(s, value=value))
            else:
                self.out.append(s)
        return self.out

    def rebuild(self, e: Expr) -> Expr:
        if id(e) in self.done:
            return self.done[id(e)]
        new = e
        if isinstance(e, Apply):
            args = tuple(self.rebuild(a) for a in e.args)
            if any(a is not b for a, b in zip(args, e.args, strict=True)):
                new = replace(e, args=args)
            # What is left of it after its own parts became locals decides.
            if self.uses[id(e)] > 1 and _tree(new, SHARED) > SHARED:
                t = self.writer.local("t", (), e.dtype)
                self.out.append(Store(t.name, (), new))
                new = Load(t.name, (), e.dtype)
        self.done[id(e)] = new
        return new


def _tree(e: Expr, limit: int) -> int:
    """The number of nodes of a tree, counted up to just above the limit."""
    n, stack = 0, [e]
    while stack and n <= limit:
        n += 1
        stack.extend(children(stack.pop()))
    return n


def _python(value, dtype: DType):
    return float(value) if dtype.is_float else bool(value) if dtype.kind == "b" else int(value)


# ---- groups -----------------------------------------------------------------------------------------------
def write(group: Group, cone: Cone) -> Written:
    """The kernel of a group."""
    w = Writer(group, cone)
    if group.kind == "rows":
        body = _rows(w)
    elif group.kind == "ordered":
        body = NESTS[type(group.outputs[0].op)](w, group.outputs[0])
    else:
        body = _elements(w)
    params = (*w.inputs.items(), *w.outputs.items())
    position = {n: k for k, n in enumerate(cone.nodes)}
    reductions = () if group.kind == "contract" else (*group.staged, *group.finished, *group.sinks)
    names = "_".join(dict.fromkeys((group.kind, *(n.op.name for n in reductions))))
    kernel = Kernel(
        names,
        tuple(b for _, b in params),
        tuple(w.locals),
        tuple(body),
    )
    return Written(
        kernel,
        tuple((what, position[n]) for (what, n), _ in params),
        tuple(position[n] for n in w.sites),
    )


def _elements(w: Writer) -> list[Stmt]:
    """Maps and contractions: parallel over every element."""
    group = w.group
    loops = [(f"i{d}", n, "parallel") for d, n in enumerate(group.rows)]
    w.index = tuple(w.loop_index(a, n) for a, n, _ in loops)
    body: list[Stmt] = []
    for node in group.staged:
        body += accumulate(w, node, w.index)
    for node in group.finished:
        body += element_reduction(w, node, w.index)
    last: list[Stmt] = []
    for v in group.outputs:
        index = tuple(w.index[r] if r >= 0 else Affine() for r in group.dims[v])
        last.append(w.output(v, index))
    return nest([t for t in loops if t[1] != 1], body + w.split_shared(last))


def _rows(w: Writer) -> list[Stmt]:
    group = w.group
    if group.sinks and form(group.sinks[0]) == "long":
        body, loops = long_partials(w, group.sinks[0])
        return nest(loops, body)
    _levels(w)
    return row_group(w)


def _levels(w: Writer) -> None:
    """Which stage computes each reduction, and which values are worth keeping from one stage to later ones."""
    staged, rows = set(w.group.staged), prod(w.group.rows)
    below = {n: () if n in w.cone.external or n in w.cone.chunked else n.inputs for n in w.cone.nodes}
    level: dict[Node, int] = {}
    price: dict[Node, int] = {}
    for n in w.cone.nodes:
        level[n] = max((level[x] for x in below[n]), default=0) + (n in staged)
        # What does not move within a row is a scalar, computed once.
        own = 0 if n in staged or n.type.size <= rows else getattr(n.op, "cost", 0)
        price[n] = min(own + sum(price[x] for x in below[n] if x not in staged), 1 << 16) if own else 0
        if type(n.op) in MOVEMENT:
            price[n] = price[n.inputs[0]] if below[n] else 0
    w.level = level
    last = max(level.values(), default=0) + 1
    used: dict[Node, set[int]] = {n: set() for n in w.cone.nodes}
    for v in w.group.outputs:
        used[v].add(last)
    for v in w.group.sinks:
        used[v.inputs[0]].add(last)
    for n in reversed(w.cone.nodes):
        if n in w.group.sinks:
            continue
        stages = {level[n]} if n in staged else used[n]
        dear = len(stages) > 1 and price[n] >= DEAR and n not in staged and n.type.size > rows
        if dear and type(n.op) in ELEMENTWISE and below[n]:
            w.keep.add(n)
            stages = {min(stages)}  # later stages read what the first one keeps
        for x in below[n]:
            used[x] |= stages
