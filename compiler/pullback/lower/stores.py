"""Groups while they grow, and which of their values they store.

What a group's values are needed for outside of it can be stored itself, or computed again there from less: from the
reductions below it and what is in memory anyway.  `choose` compares the two by bytes moved and work repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from ..graph.graph import Node
from .align import Dims
from .groups import Group

if TYPE_CHECKING:
    from .fuse import _Sweep

WORK = 0.25
"""Bytes of traffic that an operation on an element is worth."""


@dataclass(eq=False, slots=True)
class Grown:
    """A group of the sweep.  Shared axes have numbers; `rows`: those that rows are made of (None: all, a map)."""

    number: int
    kind: str  # map | rows | contract | apart
    extents: dict[int, int]
    rows: Dims | None
    mask: int = 0
    deps: int = 0
    read: bool = False
    late: bool = False
    work: int = 0
    merged: Grown | None = None
    fixed: Group | None = None
    staged: list[Node] = field(default_factory=list)
    finished: list[Node] = field(default_factory=list)
    sinks: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    demands: dict[Node, None] = field(default_factory=dict)

    def shared(self) -> set[int]:
        """The axes that every value of the group has (those of extent 1 do not matter)."""
        rows = self.extents if self.rows is None else self.rows
        return {i for i in rows if self.extents[i] != 1}

    def count(self) -> int:
        """How many rows there are."""
        return prod(self.extents[i] for i in (self.extents if self.rows is None else self.rows))

    def take(self, other: Grown) -> None:
        self.mask |= other.mask
        self.deps |= other.deps
        self.read |= other.read
        self.late |= other.late
        self.work += other.work
        if other.kind == "rows" and self.kind == "map":
            self.kind, self.rows = "rows", other.rows
        for mine, theirs in zip(self._lists(), other._lists(), strict=True):
            mine.extend(theirs)
        self.demands.update(other.demands)

    def _lists(self):
        return self.staged, self.finished, self.sinks, self.outputs

    def group(self, dims: dict[Node, Dims], at: dict[Node, int]) -> Group:
        """The finished group: shared axes by their position, nodes in the order of the graph."""
        ids = tuple(self.extents) if self.rows is None else self.rows
        number = {i: k for k, i in enumerate(ids)}

        def sort(nodes: list[Node]) -> list[Node]:
            return sorted(dict.fromkeys(nodes), key=at.__getitem__)

        outputs = sort(self.outputs)
        positions = {n: tuple(number.get(i, -1) for i in dims[n]) for n in outputs}
        extents = tuple(self.extents[i] for i in ids)
        return Group(self.kind, extents, outputs, sort(self.staged), sort(self.finished), sort(self.sinks), positions)


def choose(g: Grown, sweep: _Sweep) -> list[Node]:
    """What the group stores besides what must be in memory."""
    stored = set(g.outputs)
    wanted = sorted((n for n in g.demands if n not in stored), key=sweep.at.__getitem__)
    if not wanted:
        return []
    anchors: dict[Node, None] = {}
    for n in wanted:
        anchors.update(dict.fromkeys(_below(n, g, stored, sweep)[0]))
    best, least = wanted, None
    for first in ([], list(anchors)):
        chosen = dict.fromkeys(first)
        cost = sum(2.0 * n.type.nbytes for n in chosen)
        for n in wanted:
            if n in chosen:
                continue
            missing, work, read = _below(n, g, stored | chosen.keys(), sweep)
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


def _below(n: Node, g: Grown, stored: set[Node], sweep: _Sweep) -> tuple[list[Node], int, int]:
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
        if x in sweep.leaf or (x in sweep.carry and sweep.find(sweep.carry[x]) is not g):
            read += x.type.nbytes if 2 * x.type.size >= n.type.size else 0
            continue
        work += getattr(x.op, "cost", 1)
        for y in x.inputs:
            if y not in seen:
                seen.add(y)
                stack.append(y)
    return missing, work, read
