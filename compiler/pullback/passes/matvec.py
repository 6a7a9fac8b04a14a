"""Products of a matrix and a vector as sums along rows: graph IR in, graph IR out.

A contraction adds k in order, which leaves no vectors along k and one chain of additions for each result.  Where one
operand has a single column (a batch of one sample, a dot product) and the other lies along k in memory, nothing is
reused and nothing else can be vectorised, so it becomes the sum of a product: sums along the last axis are added in
strided parts (`lower/summation.py`), at the speed of memory on processors and GPUs.
"""

from __future__ import annotations

from math import prod

from ..graph.graph import Graph, Node, make, rewrite, same_or_replaced
from ..ops.contract import Contract
from ..ops.elementwise import Cast, Mul
from ..ops.movement import Broadcast, Permute, Reshape
from ..ops.reduction import Sum

SHORT = 32
"""Shorter sums stay contractions."""


def matvec(graph: Graph) -> Graph:
    """Contractions of a float matrix, whose rows lie along k, and a vector become sums of products."""
    matrices = {n: i for n in graph.nodes if type(n.op) is Contract and (i := _matrix(n)) is not None}

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        i = matrices.get(node)
        return same_or_replaced(node, inputs) if i is None else _as_sum(node, inputs, i)

    return rewrite(graph, rule) if matrices else graph


def _matrix(node: Node) -> int | None:
    """Which operand is the matrix, if the other one is a vector (of each batch)."""
    op = node.op
    if op.tf32 or not op.reduced or node.inputs[0].dtype.kind != "f":
        return None
    for i, labels, other in ((0, op.lhs, op.rhs), (1, op.rhs, op.lhs)):
        along = [n for c, n in zip(labels, node.inputs[i].shape, strict=True) if c in op.reduced]
        columns = [n for c, n in zip(other, node.inputs[1 - i].shape, strict=True) if c not in labels]
        if prod(columns) == 1 and labels[-1] in op.reduced and prod(along) >= SHORT:
            return i
    return None


def _as_sum(node: Node, inputs: tuple[Node, ...], i: int) -> Node:
    op, where = node.op, {"loc": node.loc, "tag": node.tag}
    labels, other = (op.lhs, op.rhs) if i == 0 else (op.rhs, op.lhs)
    matrix, vector = inputs[i], inputs[1 - i]

    # The vector's axes in the order of the matrix's, without columns.
    kept = [c for c in other if c in labels]
    if len(kept) < len(other):
        vector = make(
            Reshape(tuple(n for c, n in zip(other, vector.shape, strict=True) if c in labels)), vector, **where
        )
    order = sorted(kept, key=labels.index)
    if order != kept:
        vector = make(Permute(tuple(map(kept.index, order))), vector, **where)

    wide = matrix.dtype.compute
    if wide != matrix.dtype:
        matrix, vector = (make(Cast(wide), x, **where) for x in (matrix, vector))
    if len(order) < len(labels):
        vector = make(Broadcast(matrix.shape, tuple(map(labels.index, order))), vector, **where)
    axes = tuple(d for d, c in enumerate(labels) if c in op.reduced)
    out = make(Sum(axes), make(Mul(), matrix, vector, **where), **where)

    # The result's axes in their order, columns among them.
    left = [c for c in labels if c not in op.reduced]
    order = [c for c in op.out if c in labels]
    if order != left:
        out = make(Permute(tuple(map(left.index, order))), out, **where)
    if out.shape != node.shape:
        out = make(Reshape(node.shape), out, **where)
    return out if out.dtype == node.dtype else make(Cast(node.dtype), out, **where)
