"""Which of its values a group stores, besides what must be in memory.

What a group's values are needed for outside of it can be stored itself, or computed again there from less: from the
reductions below it and what is in memory anyway.  `choose` compares the two by bytes moved and work repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..graph.graph import Node
from .grown import Grown

if TYPE_CHECKING:
    from .fuse import _Sweep

WORK = 0.25
"""Bytes of traffic that an operation on an element is worth."""


def choose(g: Grown, sweep: _Sweep, memory: set[Node]) -> list[Node]:
    """What the group stores besides what must be in memory; `memory` has what groups before it leave there."""
    stored = set(g.outputs)
    wanted = sorted((n for n in g.demands if n not in stored), key=sweep.at.__getitem__)
    if not wanted:
        return []
    anchors: dict[Node, None] = {}
    for n in wanted:
        anchors.update(dict.fromkeys(_below(n, g, stored, memory)[0]))
    best, least = wanted, None
    for first in ([], list(anchors)):
        chosen = dict.fromkeys(first)
        cost = sum(2.0 * n.type.nbytes for n in chosen)
        for n in wanted:
            if n in chosen:
                continue
            missing, work, read = _below(n, g, stored | chosen.keys(), memory)
            again = WORK * work * n.type.size + read
            store = 2.0 * n.type.nbytes
            if missing or again > store:
                chosen[n] = None
                cost += store
            else:
                cost += again
        if least is None or cost < least:
            best, least = list(chosen), cost
    return best


def _below(n: Node, g: Grown, stored: set[Node], memory: set[Node]) -> tuple[list[Node], int, int]:
    """Computing n again outside of g: reductions that are not stored, operations, bytes read besides."""
    missing, work, read = [], 0, 0
    seen, stack = {n}, [n]
    anchors = {*g.staged, *g.finished}
    while stack:
        x = stack.pop()
        if x in stored:
            continue
        if x in anchors:
            missing.append(x)
            continue
        if x in memory:
            read += x.type.nbytes if 2 * x.type.size >= n.type.size else 0
            continue
        work += getattr(x.op, "cost", 1)
        for y in x.inputs:
            if y not in seen:
                seen.add(y)
                stack.append(y)
    return missing, work, read
