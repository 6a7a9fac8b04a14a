"""What lowering hands to the planner: kernels on values, in regions; and the groups that become kernels.

Graph in, `Region` out (`regions.lower`).  A *group* is a set of nodes that become one kernel (`fuse.py` forms
them, `nests.py` writes them down); a *piece* is that kernel on values that lie in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..graph.graph import NOWHERE, Loc, Node
from ..graph.types import TensorType
from ..kernel.kernel import Kernel
from .families import REDUCTIONS
from .summation import form


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A tensor that lives in memory between kernels, C-contiguous.

    `source` is the node that it holds (None: the partial results of a reduction).  A `view_of` another value
    has the same bytes under another shape.
    """

    name: str
    type: TensorType
    loc: Loc
    source: Node | None = None
    view_of: Value | None = None

    def __repr__(self) -> str:
        return f"<{self.name}: {self.type}>"


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """One kernel on values.

    `kernel` is unscheduled, its `params` in the order of `arguments`; a parameter has the bytes of its value,
    though neighbouring axes may be merged and axes of extent 1 left out.  `sites[k]` says what the kernel's
    check number k looks at.
    """

    kernel: Kernel
    arguments: tuple[Value, ...]
    loc: Loc
    label: str
    sites: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, eq=False, slots=True)
class LoopPiece:
    """A scan: `body` runs `count` times.

    constants: (outer, inner); carries: (initial outer, inner input, inner output, final outer); stacked_in:
    (outer, inner) and stacked_out: (inner, outer), where the outer value has one more leading axis.
    """

    count: int
    reverse: bool
    body: Region
    constants: tuple[tuple[Value, Value], ...]
    carries: tuple[tuple[Value, Value, Value, Value], ...]
    stacked_in: tuple[tuple[Value, Value], ...]
    stacked_out: tuple[tuple[Value, Value], ...]
    loc: Loc = NOWHERE
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """Pieces in an order of execution.  Constants of the graph appear as values whose source is the node."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    pieces: tuple[Piece | LoopPiece, ...]


@dataclass(eq=False, slots=True)
class Group:
    """Nodes that become one kernel.

    kind: 'map' | 'rows' | 'contract' | 'ordered' | 'loop'.  A map or a contraction is parallel over all axes of
    its outputs.  A group of rows shares the axes of extents `rows`; `dims` tells for each output which of its
    axes these are.  `staged`: reductions (row reductions; the contraction), computed once for each row, each
    indexed by exactly the shared axes.  `finished`: column sums whose chunks this group adds up.  `sinks`: column
    sums (or long row sums) of which this group computes the chunks.
    """

    kind: str
    rows: tuple[int, ...] = ()
    outputs: list[Node] = field(default_factory=list)
    staged: list[Node] = field(default_factory=list)
    finished: list[Node] = field(default_factory=list)
    sinks: list[Node] = field(default_factory=list)
    dims: dict[Node, tuple[int, ...]] = field(default_factory=dict)

    def cone(self, memory: set[Node]) -> Cone:
        """Everything that the group computes, down to what lies in memory; unused reductions are dropped."""
        computed = {*self.outputs, *self.staged, *self.finished, *self.sinks}
        # Of reductions in chunks (other than those whose chunks this group makes) the chunks are in memory.
        chunked = {n for n in (*self.finished, *self.staged) if in_chunks(n)}
        order: dict[Node, None] = {}
        external: set[Node] = set()
        for root in (*self.sinks, *self.outputs):
            stack = [(root, False)]
            while stack:
                node, done = stack.pop()
                if done:
                    order[node] = None
                elif node in order:
                    continue
                elif node in memory and node not in computed:
                    external.add(node)
                    order[node] = None
                elif node in chunked:
                    order[node] = None
                else:
                    stack.append((node, True))
                    stack += [(x, False) for x in reversed(node.inputs) if x not in order]
        self.staged = [n for n in self.staged if n in order]
        self.finished = [n for n in self.finished if n in order]
        return Cone(tuple(order), frozenset(external), frozenset(n for n in chunked if n in order))


@dataclass(frozen=True, eq=False, slots=True)
class Cone:
    """What a group computes, in topological order, and what it reads: `external` nodes are in memory, of `chunked`
    reductions the chunks' results are."""

    nodes: tuple[Node, ...]
    external: frozenset[Node]
    chunked: frozenset[Node] = frozenset()


def in_chunks(node: Node) -> bool:
    """A reduction that has partial results in memory."""
    return type(node.op) in REDUCTIONS and form(node) in ("column", "long")
