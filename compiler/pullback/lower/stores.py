"""Which of its values a group stores, besides what must be in memory.

What a group's values are needed for outside of it can be stored itself, or computed again there from less: from the
reductions below it and what is in memory anyway.  `choose` compares the two by bytes moved and work repeated.
"""

from __future__ import annotations

from math import inf
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
    anchors = {*g.staged, *g.finished}
    if anchors.issuperset(wanted):
        return wanted
    below: dict[Node, None] = {}
    for n in wanted:
        below.update(dict.fromkeys(_below(n, anchors, stored, memory)))
    best, least = wanted, None
    for first in ([], list(below)):
        chosen = dict.fromkeys(first)
        cost = sum(2.0 * n.type.nbytes for n in chosen)
        for n in wanted:
            if n in chosen:
                continue
            store = 2.0 * n.type.nbytes
            again = _again(n, anchors, stored | chosen.keys(), memory, store)
            if again > store:
                chosen[n] = None
            cost += min(again, store)
        if least is None or cost < least:
            best, least = list(chosen), cost
    return best


def _below(n: Node, anchors: set[Node], stored: set[Node], memory: set[Node]) -> list[Node]:
    """The reductions that computing n again would read, and that are not stored."""
    found, seen, stack = [], {n}, [n]
    while stack:
        x = stack.pop()
        if x in stored or x in memory:
            continue
        if x in anchors:
            found.append(x)
        else:
            for y in x.inputs:
                if y not in seen:
                    seen.add(y)
                    stack.append(y)
    return found


def _again(n: Node, anchors: set[Node], stored: set[Node], memory: set[Node], limit: float) -> float:
    """Computing n again outside of its group, from what is stored: operations, and bytes read besides; inf where a
    reduction below it is not stored, or beyond the limit."""
    cost, size = 0.0, n.type.size
    seen, stack = {n}, [n]
    while stack:
        x = stack.pop()
        if x in stored:
            continue
        if x in memory:
            cost += x.type.nbytes if 2 * x.type.size >= size else 0
        elif x in anchors:
            return inf
        else:
            cost += WORK * size * getattr(x.op, "cost", 1)
            for y in x.inputs:
                if y not in seen:
                    seen.add(y)
                    stack.append(y)
        if cost > limit:
            return inf
    return cost
