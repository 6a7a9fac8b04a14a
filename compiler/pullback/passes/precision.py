"""Matrix products in less precision: graph IR in, graph IR out.

Contractions of f32 tensors get operands that are rounded (to bf16, or to the 10 bits of mantissa of tf32); they still
add in f32, and their results, like everything else, are f32.  A value is cast to bf16 once, where it is made and
before it is moved, however many contractions read it: so the cast joins the kernel that makes the value.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import BuildError
from ..graph.graph import Graph, Node, make, rewrite, same_or_replaced
from ..graph.types import bf16, f32
from ..ops.contract import Contract
from ..ops.elementwise import Cast
from ..ops.movement import Broadcast, Flip, Permute, Reshape, Slice
from ..ops.scan import Scan

PRECISIONS = ("f32", "tf32", "bf16")
_MOVES = frozenset((Permute, Reshape, Broadcast, Slice, Flip))


def precision(name: str):
    """The passes that give contractions a precision."""
    if name not in PRECISIONS:
        raise BuildError(f"--precision {name}: expected {', '.join(PRECISIONS)}")
    return {"f32": (), "tf32": (precision_tf32,), "bf16": (precision_bf16,)}[name]


def precision_tf32(graph: Graph) -> Graph:
    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        if _counts(node):
            return make(replace(node.op, tf32=True), *inputs, loc=node.loc, tag=node.tag)
        return same_or_replaced(node, inputs)

    return rewrite(graph, rule)


def precision_bf16(graph: Graph) -> Graph:
    casts: dict[Node, Node] = {}

    def narrow(x: Node) -> Node:
        found = casts.get(x)
        if found is None:
            if type(x.op) is Cast and x.inputs[0].dtype == bf16:
                found = x.inputs[0]
            elif type(x.op) in _MOVES and x.inputs[0].type.size <= 4 * x.type.size:
                found = make(x.op, narrow(x.inputs[0]), loc=x.loc, tag=x.tag)
            else:
                found = make(Cast(bf16), x, loc=x.loc, tag=x.tag)
            casts[x] = found
        return found

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        if _counts(node):
            return make(replace(node.op, wide=True), *map(narrow, inputs), loc=node.loc, tag=node.tag)
        return same_or_replaced(node, inputs)

    return rewrite(graph, rule)


def applies(graph: Graph) -> bool:
    """Is there a contraction, in loops too, that a precision changes?"""
    return any(_counts(n) or (type(n.op) is Scan and applies(n.op.body)) for n in graph.nodes)


def _counts(node: Node) -> bool:
    """A contraction of f32 that sums, not one that was given a precision already."""
    return type(node.op) is Contract and node.inputs[0].dtype == f32 and bool(node.op.reduced) and not node.op.tf32
