"""Long sums of few tiles in parts, for GPUs (split-K): graph IR in, graph IR out.

A contraction whose result has too few tiles to keep the processors busy, and whose sums are long, becomes a batch of
contractions over parts of k, and the sum of these results in their order: two launches, the same bits each time.  That
changes the order of the sum, so it is done where a precision below f32 was asked for only.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from string import ascii_letters

from ..graph.graph import Graph, Node, make, rewrite, same_or_replaced
from ..graph.types import bf16, f16
from ..ops.contract import Contract
from ..ops.movement import Reshape
from ..ops.reduction import Sum

TILE = 128
"""Rows and columns of the largest tile of a block."""
BLOCKS = 132
"""Blocks that keep the processors busy."""
PART = 512
"""The least length of a part."""


def split_sums(graph: Graph) -> Graph:
    """Contractions of bf16, f16 and tf32 with f32 results, half of the processors idle or more, in parts of k."""

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        if type(node.op) is not Contract or (found := _parts(node)) is None:
            return same_or_replaced(node, inputs)
        op, (label, parts) = node.op, found
        new = next(c for c in ascii_letters if c not in op.lhs + op.rhs + op.out)

        def split(x: Node, labels: str) -> Node:
            at = labels.index(label)
            shape = (*x.shape[:at], parts, x.shape[at] // parts, *x.shape[at + 1 :])
            return make(Reshape(shape), x, loc=node.loc, tag=node.tag)

        lhs, rhs = (s.replace(label, new + label) for s in (op.lhs, op.rhs))
        a, b = (split(x, s) for x, s in zip(inputs, (op.lhs, op.rhs), strict=True))
        partial = make(replace(op, lhs=lhs, rhs=rhs, out=new + op.out), a, b, loc=node.loc, tag=node.tag)
        return make(Sum((0,)), partial, loc=node.loc, tag=node.tag)

    return rewrite(graph, rule)


def _parts(node: Node) -> tuple[str, int] | None:
    """The label to split and into how many parts, if that pays."""
    op, dtype = node.op, node.inputs[0].dtype
    if not op.reduced or not (op.tf32 or (op.wide and dtype in (bf16, f16))):
        return None
    sizes = {c: n for s, x in zip((op.lhs, op.rhs), node.inputs, strict=True) for c, n in zip(s, x.shape, strict=True)}
    label = max(op.reduced, key=sizes.__getitem__)
    rows = prod(sizes[c] for c in op.out if c not in op.rhs)
    columns = prod(sizes[c] for c in op.out if c not in op.lhs)
    batch = prod(sizes[c] for c in op.out if c in op.lhs and c in op.rhs)
    tiles = batch * -(-rows // TILE) * -(-columns // TILE)
    if 2 * tiles > BLOCKS or min(rows, columns) < 8:
        return None
    k = sizes[label]
    fitting = [n for n in range(2, k // PART + 1) if k % (8 * n) == 0]
    if not fitting:
        return None
    return label, next((n for n in fitting if n * tiles >= BLOCKS), fitting[-1])
