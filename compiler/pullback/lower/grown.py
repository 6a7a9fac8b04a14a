"""Groups while they grow: which of them depends on which, which may take a node, which may merge.

The state of the sweep in `fuse.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ..graph.graph import Node
from .align import Dims
from .groups import Group

ROWS = 16
"""Groups of fewer rows than this take in no more work than one row is worth: they would lose parallelism."""
SMALL = 16384
"""Elements that one block may as well do alone."""


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

    # ---- which group computes a node
    def aligned(self, g: Grown, n: Node, dims: Dims) -> bool:
        """Whether n has all shared axes of the group (a map may become rows that share its axes)."""
        if not g.shared() <= set(dims):
            return False
        if g.kind == "rows":
            return self.wide(g, n)
        if all(i >= 0 or m == 1 for i, m in zip(dims, n.shape, strict=True)):
            return True
        # n repeats a map's value along new axes: rows, if these come last and there are enough.
        if g.kind != "map" or g.finished or g.late or prod(g.extents.values()) < ROWS:
            return False
        first = next(d for d, (i, m) in enumerate(zip(dims, n.shape, strict=True)) if i < 0 and m != 1)
        return all(i < 0 for i in dims[first:]) and all(i in dims for i in g.extents)

    def wide(self, g: Grown, n: Node) -> bool:
        """There are rows enough for n's size."""
        return n.type.size <= SMALL or g.count() >= ROWS

    def choose(self, n: Node, found: dict[Grown, Dims], blocked: list[Grown], bits: int) -> Grown | None:
        """The group that computes n; others are merged into it or read through memory."""
        if len(found) == 1 and not blocked:
            (g,) = found
            if bits and self.closure(bits) & g.mask:
                return None
            self.widen(g, n, found[g])
            return g
        ready = [g for g in found if g not in blocked]
        for g in blocked:
            bits |= g.mask
        for g in sorted(ready, key=lambda g: (g.kind != "contract", -g.number)):
            others = [h for h in ready if h is not g]
            join = [h for h in others if self.can_merge(g, h, found[g], found[h])]
            apart = bits
            for h in others:
                if h not in join:
                    apart |= h.mask
            if self.closure(apart) & g.mask or any(self.closure(apart) & h.mask for h in join):
                join = []
                for h in others:
                    apart |= h.mask
                if self.closure(apart) & g.mask:
                    continue
            for h in join:
                if self.find(h) is h and self.can_merge(g, h, found[g], found[h]):
                    self.merge(g, h)
            self.widen(g, n, found[g])
            return g
        return None

    def widen(self, g: Grown, n: Node, dims: Dims) -> None:
        if g.kind == "map" and not all(i >= 0 or m == 1 for i, m in zip(dims, n.shape, strict=True)):
            g.kind, g.rows = "rows", tuple(g.extents)

    def can_merge(self, g: Grown, h: Grown, a: Dims, b: Dims) -> bool:
        if "contract" in (g.kind, h.kind) or g.deps & h.mask or h.deps & g.mask:
            return False
        if g.kind == h.kind == "map":
            return a == b and g.extents == h.extents
        if g.finished or h.finished or g.late or h.late:
            return False
        rows = g.rows if g.kind == "rows" else h.rows
        if g.kind == h.kind and g.rows != h.rows:
            return False
        if any(g.extents.get(i) != h.extents.get(i) for i in rows):
            return False
        if any((i in rows or j in rows) and i != j for i, j in zip(a, b, strict=True)):
            return False
        return prod(g.extents[i] for i in rows) >= ROWS or g.work + h.work <= SMALL
