"""Groups while they grow, and which of them depends on which: the state of the sweep in `fuse.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ..graph.graph import Node
from .align import Dims
from .groups import Group


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


class Groups:
    """All groups by number, and reachability among them: each knows, as a bit set, the groups that it depends on,
    transitively.  A merged group's entry is the group that took it in."""

    def __init__(self):
        self.groups: list[Grown] = []

    def alive(self) -> list[Grown]:
        return [g for g in self.groups if g.merged is None]

    def find(self, g: Grown) -> Grown:
        while g.merged is not None:
            g = g.merged
        return g

    def closure(self, bits: int) -> int:
        """These groups and everything that they depend on."""
        out, rest = bits, bits
        while rest:
            low = rest & -rest
            g = self.find(self.groups[low.bit_length() - 1])
            out |= g.deps | g.mask
            rest &= ~g.mask
        return out

    def new(self, kind: str, extents: dict[int, int], rows: Dims | None, bits: int) -> Grown:
        g = Grown(len(self.groups), kind, extents, rows)
        g.mask = 1 << g.number
        g.deps = self.closure(bits)
        self.groups.append(g)
        return g

    def depend(self, g: Grown, bits: int) -> None:
        """g reads what these groups make; so do all groups that depend on g."""
        new = self.closure(bits) & ~g.deps & ~g.mask
        if new:
            g.deps |= new
            if g.read:
                for h in self.groups:
                    if h.merged is None and h.deps & g.mask:
                        h.deps |= new

    def merge(self, g: Grown, h: Grown) -> None:
        """Take h into g."""
        g.take(h)
        h.merged = g
        for other in self.groups:
            if other.merged is None and other.deps & g.mask:
                other.deps |= g.deps | g.mask
