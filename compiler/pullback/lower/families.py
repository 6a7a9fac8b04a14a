"""Membership in op families by class: lowering asks for every node, and `isinstance` on abstract classes is slow."""

from __future__ import annotations

from ..ops import movement as M
from ..ops.indexing import Gather, GatherAlong
from ..ops.op import Elementwise, Pointwise, Reduction


class Family(dict[type, bool]):
    """`type(op) in family`: subclasses of one base, each looked at once."""

    def __init__(self, base: type):
        super().__init__()
        self.base = base

    def __missing__(self, cls: type) -> bool:
        return self.setdefault(cls, issubclass(cls, self.base))

    __contains__ = dict.__getitem__  # no frame of Python for each question


ELEMENTWISE, POINTWISE, REDUCTIONS, MOVEMENT = map(Family, (Elementwise, Pointwise, Reduction, M.Movement))
GATHERS = frozenset((Gather, GatherAlong))
INDEX_ONLY = frozenset((M.Permute, M.Broadcast, M.Slice, M.Flip))
"""Movement whose index map is affine and without masks, whatever the shapes."""
