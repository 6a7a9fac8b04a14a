"""Structural identity: what counts and what does not."""

import random
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from hypothesis import given, settings
from random_graphs import graphs, random_graph

from pullback.graph.content import equal, identity, key
from pullback.graph.graph import Graph, Loc, Node, make, rewrite
from pullback.graph.types import f32
from pullback.ops.elementwise import Add, Mul, Sub
from pullback.ops.leaf import Constant, Fill, Input
from pullback.ops.movement import Pad

LOC = Loc("model.py", 1)


def two(op, swap=False, loc=LOC, name="g", tag=0):
    x, y = (make(Input(k, f32, (2,)), loc=loc) for k in "xy")
    a, b = (y, x) if swap else (x, y)
    return Graph(name, (x, y), (make(op, a, b, loc=loc, tag=tag),))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_locations_and_names_do_not_count(graph):
    def moved(n: Node, inputs):
        return Node(n.op, inputs, n.type, Loc("elsewhere.py", 99), n.tag)

    other = rewrite(Graph("other", graph.inputs, graph.outputs), moved)
    assert key(other) == key(graph) and equal(other, graph)


def test_ops_wiring_and_tags_count():
    g = two(Sub())
    assert key(g) == key(two(Sub(), loc=Loc("b.py", 2), name="h"))
    for other in (two(Add()), two(Sub(), swap=True), two(Sub(), tag=1)):
        assert key(other) != key(g) and not equal(other, g)


def test_sharing_counts():
    x = make(Input("x", f32, ()), loc=LOC)
    once = make(Mul(), x, x, loc=LOC)
    twice = make(Mul(), x, x, loc=LOC)
    assert not equal(
        Graph("g", (x,), (make(Add(), once, once, loc=LOC),)),
        Graph("g", (x,), (make(Add(), once, twice, loc=LOC),)),
    )


def test_signed_zeros_and_nan():
    assert identity(Fill(0.0, f32, ())) != identity(Fill(-0.0, f32, ()))
    assert identity(Pad((1,), (1,), 0.0)) != identity(Pad((1,), (1,), -0.0))
    assert identity(Fill(float("nan"), f32, ())) == identity(Fill(float("nan"), f32, ()))


def test_constants_count():
    a, b = (Graph("g", (), (make(Constant.of(np.full(9, v), f32), loc=LOC),)) for v in (1.0, 2.0))
    assert key(a) != key(b)


def test_the_same_in_another_process():
    code = "import random; from random_graphs import random_graph; from pullback.graph.content import key; "
    code += "print(*[key(random_graph(random.Random(s))) for s in range(5)])"
    path = [str(Path(__file__).parent), *sys.path]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert out.stdout.split() == [key(random_graph(random.Random(s))) for s in range(5)]


def test_fast():
    x = make(Input("x", f32, (4,)), loc=LOC)
    n = x
    for k in range(1750):
        n = make(Add(), n, make(Fill(float(k), f32, (4,)), loc=LOC), loc=LOC)
    g = Graph("g", (x,), (n,))
    best = min(_seconds(lambda: key(g)) for _ in range(5))
    assert len(g.nodes) == 3501
    assert best < 0.1  # about 0.006 on one quiet core


def _seconds(f):
    start = perf_counter()
    f()
    return perf_counter() - start
