"""The rules of the graph IR, checked: graph IR in, nothing out, `VerifyError` where a rule is broken.

Nodes are frozen and hold their inputs, so a graph cannot have cycles and a node that was right once stays
right: pass the same `verified` set from one pass to the next, and only new nodes cost anything.
"""

from __future__ import annotations

from ..errors import PullbackError, VerifyError
from ..ops.op import OPS
from .content import region_fields
from .graph import Graph, Node
from .program import Function, Program
from .types import TensorType, TupleType


def verify(what: Graph | Program, verified: set[Node] | None = None) -> None:
    """Check a graph or a program.  `verified` holds nodes that need no second look, and is added to."""
    verified = set() if verified is None else verified
    if isinstance(what, Program):
        for function in what.functions:
            _verify_function(what, function, verified)
    else:
        _verify_graph(what, verified)


def _fail(graph: Graph, node: Node, message: str) -> None:
    raise VerifyError(f"graph {graph.name}: {node.op.name}: {node.type} at {node.loc}: {message}")


def _verify_graph(graph: Graph, verified: set[Node]) -> None:
    inputs = set(graph.inputs)
    if len(inputs) != len(graph.inputs):
        raise VerifyError(f"graph {graph.name}: the same input node stands twice among its inputs")
    labels: set[str] = set()
    for n in graph.inputs:
        if n.op.name != "input":
            _fail(graph, n, "a graph input must be an input node")
        if n.op.label in labels:
            _fail(graph, n, f"two inputs are labelled {n.op.label!r}")
        labels.add(n.op.label)
    for n in graph.nodes:
        if not n.inputs and n.op.name == "input" and n not in inputs:
            _fail(graph, n, f"input {n.op.label!r} is not an input of this graph")
        if n not in verified:
            _verify_node(graph, n, verified)
    verified.update(graph.nodes)


def _verify_node(graph: Graph, node: Node, verified: set[Node]) -> None:
    op = node.op
    if OPS.get(op.name) is not type(op):
        _fail(graph, node, "the op is not in the op table")
    for name in region_fields(type(op)):
        _verify_graph(getattr(op, name), verified)
    types = [x.type for x in node.inputs]
    try:
        type_ = op.infer(*types)
    except PullbackError as error:
        _fail(graph, node, f"does not take ({', '.join(map(str, types))}): {error}")
    if type_ is not node.type and type_ != node.type:
        _fail(graph, node, f"its inputs give {type_}")
    if types and type_ is types[0]:
        return  # an input's type, which was checked with the input
    for t in type_.items if isinstance(type_, TupleType) else (type_,):
        if not (isinstance(t, TensorType) and all([type(d) is int and d >= 0 for d in t.shape])):
            _fail(graph, node, "dimensions must be non-negative integers")


def _verify_function(program: Program, function: Function, verified: set[Node]) -> None:
    graph, where = function.graph, f"function {function.name}"
    if len(set(function.writes)) != len(function.writes):
        raise VerifyError(f"{where}: writes a state twice: {', '.join(function.writes)}")
    for name in (*function.reads, *function.writes):
        if name not in program.states:
            raise VerifyError(f"{where}: the program has no state {name!r}")
    _verify_graph(graph, verified)

    expected = [(a.name, a.type) for a in function.arguments] + [(s, program.states[s].type) for s in function.reads]
    if len(expected) != len(graph.inputs):
        raise VerifyError(f"{where}: {len(expected)} arguments and states read, but {len(graph.inputs)} graph inputs")
    for (name, type_), node in zip(expected, graph.inputs, strict=True):
        if node.type != type_:
            _fail(graph, node, f"{where}: {name!r} is {type_}")

    if len(function.writes) > len(graph.outputs):
        raise VerifyError(f"{where}: writes {len(function.writes)} states, but has {len(graph.outputs)} graph outputs")
    first = len(graph.outputs) - len(function.writes)
    for name, node in zip(function.writes, graph.outputs[first:], strict=True):
        if node.type != program.states[name].type:
            _fail(graph, node, f"{where}: state {name!r} is {program.states[name].type}")
    for node in graph.outputs:
        if not isinstance(node.type, TensorType):
            _fail(graph, node, "a function's output must be one tensor")
    _verify_positions(where, "inputs", function.inputs, len(function.arguments))
    _verify_positions(where, "outputs", function.outputs, first)


def _verify_positions(where: str, what: str, tree: object, count: int) -> None:
    """The leaves of an argument or result tree are positions below `count`."""
    stack = [tree]
    while stack:
        t = stack.pop()
        if isinstance(t, dict):
            stack += t.values()
        elif isinstance(t, list | tuple):
            stack += t
        elif t is not None and not (type(t) is int and 0 <= t < count):
            raise VerifyError(f"{where}: {what} tree has the leaf {t!r}; there are {count}")
