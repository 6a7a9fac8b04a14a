"""The op families as sets of classes: lowering asks for every node, and `isinstance` on abstract classes is slow."""

from __future__ import annotations

from ..ops import OPS
from ..ops import movement as M
from ..ops.indexing import Gather, GatherAlong
from ..ops.op import Elementwise, Pointwise, Reduction


def _family(base: type) -> frozenset[type]:
    return frozenset(cls for cls in OPS.values() if issubclass(cls, base))


ELEMENTWISE, POINTWISE, REDUCTIONS = map(_family, (Elementwise, Pointwise, Reduction))
MOVEMENT = _family(M.Movement)
GATHERS = frozenset((Gather, GatherAlong))
INDEX_ONLY = frozenset((M.Permute, M.Broadcast, M.Slice, M.Flip))
"""Movement whose index map is affine and without masks, whatever the shapes."""
