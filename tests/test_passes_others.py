"""cse, dce and the runner."""

import pytest
from random_graphs import random_inputs, same_values, traced

from pullback import passes
from pullback.dsl import array as xp
from pullback.dsl.tensor import Tensor, emit
from pullback.graph.content import equal
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, Loc, Node, make
from pullback.graph.program import Argument, Function, Program
from pullback.graph.text import to_text
from pullback.graph.types import TensorType, f32, i32
from pullback.ops.elementwise import Add, Exp, Maximum, Neg
from pullback.ops.leaf import Fill, Input, Item
from pullback.ops.scan import Scan

LOC, LATER = Loc("model.py", 1), Loc("model.py", 2)
V = TensorType(f32, (4,))


def count(g: Graph) -> int:
    return len(g.nodes)


# ---- cse -------------------------------------------------------------------------------------------------
def test_equal_nodes_merge_into_the_first():
    x = make(Input("x", f32, (4,)), loc=LOC)
    a, b = make(Exp(), x, loc=LOC), make(Exp(), x, loc=LATER)
    g = passes.run(Graph("g", (x,), (make(Add(), a, b, loc=LOC), b)), [passes.cse])
    assert count(g) == 3 and g.outputs[1].loc == LOC


def test_commutative_operands_merge_in_either_order():
    def model(x, y):
        return (x + y) * (y + x)

    g = passes.run(traced(model, V, V), [passes.cse])
    assert count(g) == 4
    maximum = passes.run(
        traced(
            lambda x, y: emit(Maximum(), x.node, y.node) + emit(Maximum(), y.node, x.node),
            V,
            V,
        ),
        [passes.cse],
    )
    assert count(maximum) == 5  # -0.0 and 0.0: the first may win
    assert count(passes.run(traced(lambda x, y: (x - y) * (y - x), V, V), [passes.cse])) == 5


def test_tags_keep_copies_apart():
    x = make(Input("x", f32, (4,)), loc=LOC)
    a, b, c = make(Exp(), x, loc=LOC), make(Exp(), x, loc=LOC, tag=1), make(Exp(), x, loc=LOC, tag=1)
    g = passes.run(Graph("g", (x,), (a, b, c)), [passes.cse])
    assert g.outputs == (a, b, b)


def test_signed_zeros_stay_apart():
    g = traced(lambda x: (x + emit(Fill(0.0, f32, (4,)))) * (x + emit(Fill(-0.0, f32, (4,)))), V)
    assert count(passes.run(g, [passes.cse])) == count(g)


def test_equal_loops_merge():
    def body():
        s = make(Input("s", f32, (4,)), loc=LOC)
        return Graph("body", (s,), (make(Neg(), s, loc=LOC),))

    x = make(Input("x", f32, (4,)), loc=LOC)
    a, b = (make(Item(0), make(Scan(body(), 3, 0, 1, False), x, loc=LOC), loc=LOC) for _ in range(2))
    g = passes.run(Graph("g", (x,), (make(Add(), a, b, loc=LOC),)), [passes.cse])
    assert count(g) == 4


# ---- dce -------------------------------------------------------------------------------------------------
def scan(body, constants, carries, length, *inputs):
    params = [
        make(Input(f"v{i}", x.dtype, x.shape if i < constants + carries else x.shape[1:]), loc=LOC)
        for i, x in enumerate(inputs)
    ]
    outputs = tuple(r.node for r in body(*map(Tensor, params)))
    s = emit(Scan(Graph("body", tuple(params), outputs), length, constants, carries, False), *[x.node for x in inputs])
    return [emit(Item(k), s.node) for k in range(len(outputs))]


def shrunk(model, *types):
    """The graph after dce, and its one scan, same values checked."""
    g = traced(model, *types)
    small = passes.run(g, [passes.dce])
    x = random_inputs(g)
    assert same_values(evaluate(g, x), evaluate(small, x))
    assert equal(small, passes.run(small, [passes.dce]))
    return small, next(n for n in small.nodes if n.op.name == "scan")


X = TensorType(f32, (3, 4))


def test_unread_results_and_what_only_they_need_go():
    def model(c, d, s, r, x, y):
        def body(c, d, s, r, x, y):
            return s + x * c, r + d, x + s, y * d

        return scan(body, 2, 2, 3, c, d, s, r, x, y)[2]  # needs s, x, c

    _, loop = shrunk(model, V, V, V, V, X, X)
    assert (loop.op.constants, loop.op.carries) == (1, 1)
    assert [x.op.label for x in loop.inputs] == ["c", "s", "x"]
    assert [str(i) for i in loop.type.items] == ["f32[4]", "f32[3,4]"]


def test_carries_that_others_need_stay():
    def model(a, b):
        return scan(lambda a, b: (a + b, b * 2), 0, 2, 3, a, b)[0]

    _, loop = shrunk(model, V, V)
    assert loop.op.carries == 2


def test_carries_that_only_feed_themselves_go():
    def model(a, b):
        return scan(lambda a, b: (a * 3, b * 2 + a), 0, 2, 3, a, b)[0]

    small, loop = shrunk(model, V, V)
    assert loop.op.carries == 1 and len(small.inputs) == 2


def test_what_a_dead_input_needed_goes_too():
    def model(a, b):
        inner = scan(lambda s: (s * 2, s), 0, 1, 3, b)  # its last carry feeds a dead carry only
        outer = scan(lambda a, b: (a * 3, b + 1), 0, 2, 3, a, inner[0])
        return outer[0], inner[1]

    both, _ = shrunk(model, V, V)
    loops = {n.inputs[0].op.label: len(n.type.items) for n in both.nodes if n.op.name == "scan"}
    assert loops == {"a": 1, "b": 2}  # the live y needs its carry
    graph, _ = shrunk(lambda a, b: model(a, b)[0], V, V)
    assert len([n for n in graph.nodes if n.op.name == "scan"]) == 1


def test_passes_run_inside_bodies():
    def model(s, x):
        return scan(lambda s, x: (xp.exp(x) + xp.exp(x) + xp.negative(-s),), 0, 1, 3, s, x)[0]

    g = passes.run(traced(model, V, X))
    body = next(n.op.body for n in g.nodes if n.op.name == "scan")
    assert [n.op.name for n in body.nodes] == ["input", "input", "exp", "add", "add"]


# ---- the runner ------------------------------------------------------------------------------------------
def test_errors_name_the_pass():
    def broken(graph: Graph) -> Graph:
        (x,) = graph.inputs
        return Graph(graph.name, graph.inputs, (Node(Neg(), (x,), TensorType(i32, (4,)), LATER),))

    with pytest.raises(passes.PassError, match=r"after pass 'broken': .*neg: i32\[4\] at model.py:2: its inputs give"):
        passes.run(traced(lambda x: -x, V), [passes.cse, broken])


def test_dumps_and_timings():
    seen, timings = [], {}
    g = traced(lambda x: xp.negative(-x), V)
    out = passes.run(g, dump=lambda name, result: seen.append((name, to_text(result))), timings=timings)
    assert [name for name, _ in seen] == [p.__name__ for p in passes.PASSES]
    assert seen[-1][1] == to_text(out)
    assert set(timings) == {"verify", *(p.__name__ for p in passes.PASSES)}
    assert all(s >= 0 for s in timings.values())


def test_programs():
    f = Function("f", traced(lambda x: xp.negative(-x), V), (Argument("x", V),), (), (), {"x": 0}, 0)
    p = passes.run(Program("p", {}, (f,)))
    assert isinstance(p, Program) and p.functions[0].graph.outputs == p.functions[0].graph.inputs


def test_nothing_to_do_gives_the_same_object():
    g = traced(lambda x: xp.exp(x) + x, V)
    assert passes.run(g) is g
