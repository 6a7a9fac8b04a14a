"""Graph -> region: the kernels of a graph on values in memory.

In: an optimised `Graph` (IR 1).  Out: a `Region` of pieces (IR 2 kernels, not scheduled yet).  `fuse.py` says which
nodes become one kernel; equal groups (the layers of a network) are written once and found again by their structure.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..graph.content import identity
from ..graph.graph import Graph, Node
from ..graph.types import TensorType
from ..ops.elementwise import Select
from ..ops.indexing import ScatterAdd
from ..ops.leaf import Input
from ..ops.scan import Scan
from .families import ELEMENTWISE, MOVEMENT
from .fuse import form_groups
from .groups import Cone, Group, LoopPiece, Piece, Region, Value
from .nests import Written, write
from .partition import Fusion
from .summation import partial_shape

if TYPE_CHECKING:
    from ..config import Options


@dataclass(eq=False)
class Lowering:
    """Kernels that were written already, with their labels, by the structure of their groups.  One object may serve
    many graphs."""

    fusion: bool = True
    written: dict[tuple, tuple[Written, str]] = field(default_factory=dict)
    codes: dict[Hashable, int] = field(default_factory=dict)
    """Numbers of ops and types, from which structures are made."""

    def region(self, graph: Graph, writes: int = 0) -> Region:
        return _Region(self, graph, form_groups(graph, self.fusion, writes)).build()


def lower(graph: Graph, options: Options | None = None, writes: int = 0, lowering: Lowering | None = None) -> Region:
    """`options.fusion` off: every node its own kernel, with the same bits.

    The last `writes` outputs are new values of state: no kernel that can run early writes them, so that a step that
    fails leaves state as it was.  `lowering` carries kernels from one graph to the next.
    """
    fusion = options is None or options.fusion
    return (lowering or Lowering(fusion)).region(graph, writes)


class _Region:
    def __init__(self, lowering: Lowering, graph: Graph, fusion: Fusion):
        self.lowering, self.graph, self.fusion = lowering, graph, fusion
        self.values: dict[Node, Value] = {}
        self.partials: dict[Node, Value] = {}
        self.types: dict[int, int] = {}
        self.operations: dict[tuple[int, int], int] = {}

    def build(self) -> Region:
        inputs = tuple(self._value(n, n.op.label) for n in self.graph.inputs)
        pieces: list[Piece | LoopPiece] = []
        for group in self.fusion.groups:
            piece = self._loop(group) if group.kind == "loop" else self._piece(group)
            if piece is not None:
                pieces.append(piece)
        outputs = tuple(self._value(n) for n in self.graph.outputs)
        return Region(inputs, outputs, tuple(pieces))

    def _value(self, node: Node, name: str = "") -> Value:
        value = self.values.get(node)
        if value is None:
            base = self.fusion.views.get(node)
            name = name or f"{node.op.name}{len(self.values)}"
            view_of = None if base is None else self._value(base)
            value = self.values[node] = Value(name, node.type, node.loc, node, view_of)
        return value

    def _partial(self, node: Node) -> Value:
        value = self.partials.get(node)
        if value is None:
            type_ = TensorType(node.dtype.compute, partial_shape(node))
            name = f"{node.op.name}.partial{len(self.partials)}"
            value = self.partials[node] = Value(name, type_, node.loc)
        return value

    # ---- one kernel
    def _piece(self, group: Group) -> Piece | None:
        if not any(n.type.size for n in (*group.outputs, *group.sinks)):
            return None
        cone = self.fusion.cones[group]
        nodes = tuple([n for n in cone.nodes if n not in cone.external])
        key = self._structure(group, cone)
        found = self.lowering.written.get(key)
        if found is None:
            found = self.lowering.written[key] = write(group, cone), _label(nodes)
        written, label = found
        arguments = tuple(
            self._partial(cone.nodes[k]) if what == "partial" else self._value(cone.nodes[k])
            for what, k in written.parameters
        )
        sites = tuple(_site(cone.nodes[k]) for k in written.sites)
        main = (*group.staged, *group.finished, *group.sinks, *reversed(group.outputs))[0]
        return Piece(written.kernel, arguments, main.loc, label, sites, nodes)

    def _structure(self, group: Group, cone: Cone) -> tuple:
        """What a group's kernel depends on: equal keys, equal kernels."""
        number = {n: k for k, n in enumerate(cone.nodes)}
        items = []
        for n in cone.nodes:
            if n in cone.external:
                items.append(-1 - self._type(n))
            elif n in cone.chunked:
                items.append((self._operation(n), -1 - self._type(n.inputs[0])))
            else:
                items.append((self._operation(n), *[number[x] for x in n.inputs]))
        dims = tuple([group.dims.get(n) for n in group.outputs])
        roles = (group.staged, group.finished, group.sinks, group.outputs)
        return (group.kind, group.rows, tuple(items), dims, *[tuple([number[n] for n in r]) for r in roles])

    def _type(self, n: Node) -> int:
        code = self.types.get(id(n.type))  # few type objects serve many nodes
        if code is None:
            code = self.types[id(n.type)] = self._code(n.type)
        return code

    def _operation(self, n: Node) -> int:
        """The number of an op with its result's type."""
        key = id(n.op), id(n.type)  # many nodes share both objects
        code = self.operations.get(key)
        if code is None:
            code = self.operations[key] = self._code((identity(n.op), self._type(n)))
        return code

    def _code(self, what: Hashable) -> int:
        return self.lowering.codes.setdefault(what, len(self.lowering.codes))

    # ---- a scan
    def _loop(self, group: Group) -> LoopPiece:
        scan = next(n for n in group.outputs if type(n.op) is Scan)
        items = {n.op.index: n for n in group.outputs if n is not scan}
        op: Scan = scan.op
        body = self.lowering.region(op.body)
        outer = [self._value(x) for x in scan.inputs]

        def result(i: int) -> Value:
            if i in items:
                return self._value(items[i])
            return Value(f"scan.{i}", scan.type.items[i], scan.loc)  # nobody reads it

        fixed = op.constants + op.carries
        carries = tuple(
            (outer[op.constants + i], body.inputs[op.constants + i], body.outputs[i], result(i))
            for i in range(op.carries)
        )
        stacked_out = tuple((body.outputs[i], result(i)) for i in range(op.carries, len(body.outputs)))
        return LoopPiece(
            op.length,
            op.reverse,
            body,
            tuple(zip(outer[: op.constants], body.inputs[: op.constants], strict=True)),
            carries,
            tuple(zip(outer[fixed:], body.inputs[fixed:], strict=True)),
            stacked_out,
            scan.loc,
            tuple(group.outputs),
        )


def _label(nodes: tuple[Node, ...]) -> str:
    """The ops of a piece, for people: reductions and contractions, else the element-wise ones."""
    ops = [n.op for n in nodes if type(n.op) not in MOVEMENT]
    heavy = dict.fromkeys(op.name for op in ops if type(op) not in ELEMENTWISE)
    light = dict.fromkeys(op.name for op in ops if type(op) in ELEMENTWISE)
    names = [n for n in (*heavy, *light) if n not in ("fill", "iota", "constant")] or [nodes[-1].op.name]
    return "+".join(names[:4]) + ("+..." if len(names) > 4 else "")


def _site(node: Node) -> str:
    """Where a check is and what it looks at: the indices, named after the input that holds them where it is one."""
    indices = node.inputs[0] if type(node.op) is ScatterAdd else node.inputs[-1]
    while type(indices.op) in ELEMENTWISE or type(indices.op) in MOVEMENT:
        if type(indices.op) is Select:  # where(valid, index, 0)
            indices = indices.inputs[1]
        elif len(indices.inputs) == 1:
            indices = indices.inputs[0]
        else:
            break
    name = f" '{indices.op.label}'" if type(indices.op) is Input else ""
    size = node.op.size if type(node.op) is ScatterAdd else node.inputs[0].shape[node.op.axis]
    return f"{node.loc}: index{name} of {node.op.name} (expected 0 to {size - 1})"
