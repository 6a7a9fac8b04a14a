"""Rewrite rules of `simplify` for scans: node in, simpler node or None out."""

from __future__ import annotations

from dataclasses import replace

from ..graph.graph import Graph, Node, same_or_replaced
from ..ops.leaf import Fill
from ..ops.scan import Scan
from .rules import Builder, Rule, simplified


def scan(b: Builder, n: Node) -> Node | None:
    """What is one scalar everywhere is a constant inside the body too: constants, carries that stay, xs."""
    op: Scan = n.op
    known: dict[Node, Node] = {}
    for i, (x, outer) in enumerate(zip(op.body.inputs, n.inputs, strict=True)):
        carry = i - op.constants
        stays = not 0 <= carry < op.carries or op.body.outputs[carry] is x
        if stays and type(outer.op) is Fill and _is_read(op.body, x, carry):
            known[x] = b.fill_node(outer.op.value, x.type.dtype, x.type.shape)
    if not known:
        return None
    outputs = list(_substitute(op.body, known))
    for x in known:  # a carry still has to be carried
        carry = op.body.inputs.index(x) - op.constants
        if 0 <= carry < op.carries:
            outputs[carry] = x
    body = simplified(Graph(op.body.name, op.body.inputs, tuple(outputs)), b.rules)
    return b.make(replace(op, body=body), *n.inputs)


def _is_read(body: Graph, x: Node, carry: int) -> bool:
    """Whether the body computes with an input, apart from passing it on."""
    return any([x in n.inputs for n in body.nodes]) or any([o is x and k != carry for k, o in enumerate(body.outputs)])


def _substitute(body: Graph, new: dict[Node, Node]) -> tuple[Node, ...]:
    """A body's outputs with some of its inputs replaced."""
    new = dict(new)
    for n in body.nodes:
        if n not in new:
            new[n] = same_or_replaced(n, tuple([new[x] for x in n.inputs]))
    return tuple([new[x] for x in body.outputs])


RULES: dict[str, Rule] = {"scan": scan}
"""op name -> its rule."""
