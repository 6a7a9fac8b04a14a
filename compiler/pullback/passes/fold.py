"""Constant folding: graph IR in, graph IR out, with nodes whose inputs are all constant evaluated.

The reference evaluator computes.  Arithmetic on `Fill`s stays a `Fill` of any size; arrays are folded up to
`LIMIT` elements, and not where that makes them larger (a broadcast costs nothing in a kernel, a constant
costs memory).  What comes out uniform, or empty, becomes a `Fill`.  `Iota` counts as computed, not as constant.
"""

from __future__ import annotations

import numpy as np

from ..graph.content import region_fields
from ..graph.evaluate import apply
from ..graph.graph import Graph, Node, rewrite, same_or_replaced
from ..graph.types import TensorType, TupleType
from ..ops.leaf import Constant, Fill
from ..ops.op import Elementwise

LIMIT = 4096
SMALL = 64
"""Results of up to this many elements may be larger than the constants they come from."""

UNFOLDED = frozenset({"random", "gather", "gather_along", "scatter_add", "debug_print"})
"""Not folded: what checks its indices when it runs, and what has an effect or depends on the run."""


def fold(graph: Graph) -> Graph:
    """Evaluate constant nodes."""

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        node = same_or_replaced(node, inputs)
        return folded(node) or node

    return rewrite(graph, rule)


def folded(node: Node) -> Node | None:
    """The constant node that `node` is, if it is one and is not written as one yet."""
    op = node.op
    for x in node.inputs:
        c = type(x.op)
        if c is not Fill and c is not Constant:
            return None
    if type(op) is Fill or isinstance(node.type, TupleType):
        return None
    if type(op) is Constant:
        value = _uniform(op)
        return None if value is None else fill_like(node, value)
    if not node.inputs or op.name in UNFOLDED or region_fields(type(op)):
        return None
    if isinstance(op, Elementwise) and all([type(x.op) is Fill for x in node.inputs]):
        scalars = tuple([_scalar(x) for x in node.inputs])
        type_ = TensorType(node.type.dtype, ())
        return fill_like(node, _evaluate(Node(op, scalars, type_), scalars).item())
    largest = max([x.type.size for x in node.inputs])
    if largest > LIMIT or node.type.size > max(largest, SMALL):
        return None
    constant = Constant.of(_evaluate(node, node.inputs), node.type.dtype)
    value = _uniform(constant)
    return Node(constant, (), node.type, node.loc, node.tag) if value is None else fill_like(node, value)


def fill_like(node: Node, value: float | int | bool) -> Node:
    """`value` everywhere, in place of `node`."""
    return Node(Fill(value, node.type.dtype, node.type.shape), (), node.type, node.loc, node.tag)


def _scalar(node: Node) -> Node:
    dtype = node.type.dtype
    return Node(Fill(node.op.value, dtype, ()), (), TensorType(dtype, ()))


def _evaluate(node: Node, inputs: tuple[Node, ...]) -> np.ndarray:
    with np.errstate(all="ignore"):
        return apply(node, [x.op.evaluate() for x in inputs])


def _uniform(constant: Constant) -> float | int | bool | None:
    """The value that fills a constant, bit for bit, if there is one (an empty constant: zero)."""
    data, size = constant.data, constant.dtype.size
    if not data:
        return False if constant.dtype.kind == "b" else 0.0 if constant.dtype.is_float else 0
    head = data[: 64 * size]
    if head != head[:size] * (len(head) // size) or data != data[:size] * (len(data) // size):
        return None
    return Constant(data[:size], constant.dtype, ()).evaluate().item()
