"""Membership in op families by class: lowering asks for every node, and `isinstance` on abstract classes is slow."""

from __future__ import annotations

from functools import cache

from ..ops import movement as M
from ..ops.indexing import Gather, GatherAlong
from ..ops.op import Elementwise, Pointwise, Reduction


class Family:
    """`type(op) in family`: subclasses of one base, each looked at once."""

    def __init__(self, base: type):
        self._has = cache(lambda cls: issubclass(cls, base))

    def __contains__(self, cls: type) -> bool:
        return self._has(cls)


ELEMENTWISE, POINTWISE, REDUCTIONS, MOVEMENT = map(Family, (Elementwise, Pointwise, Reduction, M.Movement))
GATHERS = frozenset((Gather, GatherAlong))
INDEX_ONLY = frozenset((M.Permute, M.Broadcast, M.Slice, M.Flip))
"""Movement whose index map is affine and without masks, whatever the shapes."""
