"""IR 1: pure SSA over whole tensors.

A `Node` applies an op to nodes; its attributes are the fields of the op (a frozen dataclass), so equal
ops compare equal and cse needs no table.  A `Graph` is its inputs and outputs: the nodes between are
whatever the outputs reach.  Nodes are frozen; a pass builds new ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from .types import DType, Type

if TYPE_CHECKING:
    from ..ops.op import Op


class Loc(NamedTuple):
    """Where in the model script a node comes from; `gradient`: it belongs to that line's derivative."""

    file: str
    line: int
    function: str = ""
    gradient: bool = False

    def as_gradient(self) -> Loc:
        return self if self.gradient else Loc(self.file, self.line, self.function, True)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (" (gradient)" if self.gradient else "")


NOWHERE = Loc("<unknown>", 0)


@dataclass(eq=False, slots=True)
class Node:
    """One operation.  `tag` != 0 marks a recomputed copy: cse never merges nodes of different tags.

    Frozen, by agreement (`Final`; a test reads the source): a check at run time would take most of the time that making
    a node takes.
    """

    op: Final[Op]
    inputs: Final[tuple[Node, ...]]
    type: Final[Type]
    loc: Final[Loc] = NOWHERE
    tag: Final[int] = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def replace(self, inputs: tuple[Node, ...]) -> Node:
        """The same operation on other inputs of the same types."""
        return Node(self.op, inputs, self.type, self.loc, self.tag)

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.type} at {self.loc}>"


_loc: ContextVar[Loc | None] = ContextVar("pullback_loc", default=None)


class loc_scope:  # as a generator it would be slower
    """Nodes made inside get `loc` (autodiff: the forward node's place, marked as its gradient)."""

    __slots__ = ("loc", "token")

    def __init__(self, loc: Loc):
        self.loc = loc

    def __enter__(self) -> None:
        self.token = _loc.set(self.loc)

    def __exit__(self, *exception: object) -> None:
        _loc.reset(self.token)


_PACKAGE = __name__.rsplit(".", 2)[0] + "."  # frames of this package are not the user's
_FILES = __file__.removesuffix(f"graph{os.sep}graph.py")


def current_loc() -> Loc:
    """The innermost frame outside of this package, or the scope's place."""
    scoped = _loc.get()
    if scoped is not None:
        return scoped
    frame = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith(_FILES)  # (quick; made methods have no file)
        or (frame.f_globals.get("__name__", "") + ".").startswith(_PACKAGE)
    ):
        frame = frame.f_back
    if frame is None:
        return NOWHERE
    return Loc(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def make(op: Op, *inputs: Node, loc: Loc | None = None, tag: int = 0) -> Node:
    """A checked node: the op infers the type from its inputs' types or raises a `ScriptError`."""
    loc = loc or current_loc()
    node = Node(op, inputs, op.infer(*[x.type for x in inputs]), loc, tag)
    made = _made.get()
    if made is not None:
        made.add(node)
    return node


_made: ContextVar[set[Node] | None] = ContextVar("pullback_made", default=None)


@contextmanager
def recording() -> Iterator[set[Node]]:
    """The nodes that `make` makes inside: what the body of a loop may keep to itself."""
    outer, made = _made.get(), set()
    token = _made.set(made)
    try:
        yield made
    finally:
        _made.reset(token)
        if outer is not None:
            outer |= made


@dataclass(frozen=True, eq=False)
class Graph:
    """`inputs` are nodes of op `Input`; `outputs` any nodes.  Identity is the object's."""

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    _order: list = field(default_factory=list, repr=False)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that the outputs reach, and all inputs, every node after its inputs."""
        if not self._order:
            self._order.append(topological(self.inputs, self.outputs))
        return self._order[0]

    def users(self) -> dict[Node, list[Node]]:
        """node -> the nodes that read it (once per reading node)."""
        users: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for n in self.nodes:
            for x in dict.fromkeys(n.inputs):
                users[x].append(n)
        return users


def topological(inputs: tuple[Node, ...], outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """Depth first without recursion, inputs first: the order in which a script made its nodes, nearly."""
    order: dict[Node, None] = dict.fromkeys(inputs)
    entered: set[Node] = set()  # waits for its inputs
    for out in outputs:
        stack = [out]
        while stack:
            node = stack[-1]
            if node in order:
                stack.pop()
                continue
            missing = () if node in entered else [x for x in node.inputs if x not in order]
            if missing:
                entered.add(node)
                stack += missing[::-1]
            else:
                order[node] = None
                stack.pop()
    return tuple(order)


def rewrite(graph: Graph, rule: Callable[[Node, tuple[Node, ...]], Node], merges: bool = False) -> Graph:
    """Rebuild a graph bottom-up: `rule(node, new inputs)` gives the node that replaces it.

    Graph inputs stay as they are.  Returns the same object where nothing changed.  `merges`: the rule gives the node
    itself on its new inputs, or one that it gave before; then the order of the nodes is known.
    """
    new: dict[Node, Node] = {x: x for x in graph.inputs}
    for n in graph.nodes:
        if n not in new:
            new[n] = rule(n, tuple([new[x] for x in n.inputs]))
    outputs = tuple(new[x] for x in graph.outputs)
    if outputs == graph.outputs:
        return graph
    return Graph(graph.name, graph.inputs, outputs, [tuple(dict.fromkeys(new.values()))] if merges else [])


def same_or_replaced(node: Node, inputs: tuple[Node, ...]) -> Node:
    """The usual end of a rewrite rule: keep the node object where its inputs did not change."""
    return node if inputs == node.inputs else node.replace(inputs)
