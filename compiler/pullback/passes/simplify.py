"""Algebraic simplification: graph IR in, graph IR out, with the same values and less work.

One bottom-up walk with small local rules (`algebra.py`: element-wise; `shapes.py`: movement, reductions,
contractions; `loops.py`: scans); constants are folded on the way.  See `docs/passes.md` for the list.
"""

from __future__ import annotations

from functools import lru_cache

from ..graph.graph import Graph
from ..ops.op import OPS, Elementwise
from . import algebra, loops, shapes
from .rules import Rule, simplified


def simplify(graph: Graph) -> Graph:
    """Apply the rules to a fixed point."""
    return simplified(graph, rules())


@lru_cache(maxsize=1)
def rules() -> dict[str, tuple[Rule, ...]]:
    """The rules for each op name, in the order in which they are tried."""
    own = {**algebra.RULES, **shapes.RULES, **loops.RULES}
    return {
        name: (
            *((own[name],) if name in own else ()),
            *((algebra.work_first,) if issubclass(cls, Elementwise) else ()),
        )
        for name, cls in OPS.items()
    }
