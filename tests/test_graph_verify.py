"""The verifier names the node and the place of what is wrong."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from random_graphs import graphs

import pullback
from pullback.errors import VerifyError
from pullback.graph.graph import Graph, Loc, Node, make
from pullback.graph.program import Argument, Function, Program, State
from pullback.graph.types import TensorType, f32, i32
from pullback.graph.verify import verify
from pullback.ops.elementwise import Add, Cast, Neg
from pullback.ops.leaf import Input, Item
from pullback.ops.scan import Scan

LOC = Loc("model.py", 7)
X = TensorType(f32, (2,))


def inp(label="x", dtype=f32, shape=(2,)):
    return make(Input(label, dtype, shape), loc=LOC)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_random_graphs_are_right(graph):
    verified = set()
    verify(graph, verified)
    assert verified >= set(graph.nodes)


def test_wrong_type():
    x = inp()
    bad = Node(Neg(), (x,), TensorType(i32, (2,)), LOC)
    with pytest.raises(VerifyError, match=r"graph g: neg: i32\[2\] at model.py:7: its inputs give f32\[2\]"):
        verify(Graph("g", (x,), (bad,)))


def test_wrong_inputs():
    x, y = inp(), inp("y", f32, (3,))
    bad = Node(Add(), (x, y), X, LOC)
    with pytest.raises(VerifyError, match=r"add: .* does not take \(f32\[2\], f32\[3\]\)"):
        verify(Graph("g", (x, y), (bad,)))


def test_inputs():
    x, y = inp(), inp("y")
    with pytest.raises(VerifyError, match="'y' is not an input of this graph"):
        verify(Graph("g", (x,), (make(Add(), x, y, loc=LOC),)))
    with pytest.raises(VerifyError, match="two inputs are labelled 'x'"):
        verify(Graph("g", (x, inp()), (x,)))
    with pytest.raises(VerifyError, match="a graph input must be an input node"):
        verify(Graph("g", (make(Neg(), x, loc=LOC),), (x,)))
    with pytest.raises(VerifyError, match="stands twice"):
        verify(Graph("g", (x, x), (x,)))


def test_what_was_verified_is_not_looked_at_again():
    x = inp()
    bad = Node(Neg(), (x,), TensorType(i32, (2,)), LOC)
    verify(Graph("g", (x,), (bad,)), {bad})


def loop(body: Graph) -> Graph:
    start = inp("start")
    scan = make(Scan(body, 3, 0, 1, False), start, loc=LOC)
    return Graph("g", (start,), (make(Item(0), scan, loc=LOC),))


def test_regions_are_closed():
    carry, foreign = inp("carry"), inp("foreign")
    verify(loop(Graph("body", (carry,), (make(Neg(), carry, loc=LOC),))))
    with pytest.raises(VerifyError, match=r"graph body: .*'foreign' is not an input"):
        verify(loop(Graph("body", (carry,), (make(Add(), carry, foreign, loc=LOC),))))


def test_regions_have_the_right_signature():
    carry = inp("carry")
    good = loop(Graph("body", (carry,), (make(Neg(), carry, loc=LOC),)))
    scan = good.outputs[0].inputs[0]
    other = Graph("body", (carry,), (make(Cast(i32), carry, loc=LOC),))
    bad = Node(replace(scan.op, body=other), scan.inputs, scan.type, LOC)
    with pytest.raises(VerifyError, match=r"carry 0 to stay f32\[2\], got i32\[2\]"):
        verify(Graph("g", good.inputs, (Node(Item(0), (bad,), X, LOC),)))


def program(**changes) -> Program:
    x, w = inp(), inp("w")
    f = Function("f", Graph("f", (x, w), (x, w)), (Argument("x", X),), ("w",), ("w",), {"x": 0}, 0)
    return Program("p", {"w": State("w", X)}, (replace(f, **changes),))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reads": ("v",)}, "function f: the program has no state 'v'"),
        ({"writes": ("w", "w")}, "writes a state twice"),
        ({"arguments": ()}, "1 arguments and states read, but 2 graph inputs"),
        ({"arguments": (Argument("x", TensorType(f32, (5,))),)}, r"'x' is f32\[5\]"),
        ({"outputs": {"a": [0, 1]}}, "outputs tree has the leaf 1; there are 1"),
        ({"inputs": {"x": "0"}}, "inputs tree has the leaf '0'"),
    ],
)
def test_programs(changes, message):
    verify(program())
    with pytest.raises(VerifyError, match=message):
        verify(program(**changes))


def test_written_states_keep_their_type():
    p = program()
    wrong = Program("p", {"w": State("w", X)}, (replace(p.functions[0], graph=_cast_output(p.functions[0].graph)),))
    with pytest.raises(VerifyError, match=r"cast: i32\[2\] at .*state 'w' is f32\[2\]"):
        verify(wrong)


def _cast_output(g: Graph) -> Graph:
    return Graph(g.name, g.inputs, (g.outputs[0], make(Cast(i32), g.outputs[1], loc=LOC)))


def test_nothing_assigns_to_a_node():
    """Nodes are frozen by agreement (`graph.Node`): the compiler's source is what can be checked."""
    fields = {"op", "inputs", "type", "loc", "tag"}
    found = []
    for path in Path(pullback.__file__).parent.rglob("*.py"):
        for n in ast.walk(ast.parse(path.read_text())):
            written = isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and n.attr in fields
            if written and not (isinstance(n.value, ast.Name) and n.value.id == "self"):
                found.append(f"{path}:{n.lineno}")
    assert not found
