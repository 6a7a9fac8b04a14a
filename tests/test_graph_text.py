"""Graphs and programs print as text that parses back."""

import numpy as np
import pytest
from hypothesis import given, settings
from random_graphs import graphs

from pullback.errors import PullbackError
from pullback.graph.content import equal
from pullback.graph.graph import NOWHERE, Graph, Loc, make
from pullback.graph.program import Argument, Function, Program, State
from pullback.graph.text import parse, parse_program, parse_type, to_text
from pullback.graph.types import TensorType, TupleType, bf16, bool_, f32, i32
from pullback.ops.elementwise import Add, Neg
from pullback.ops.leaf import Constant, Fill, Input

X = TensorType(f32, (2, 3))
LOC = Loc("dir with space/model.py", 12, "Net.<locals>.f", True)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_round_trip(graph):
    text = to_text(graph, full=True)
    again = parse(text)
    assert to_text(again, full=True) == text
    assert equal(again, graph)
    assert [n.loc for n in again.nodes] == [n.loc for n in graph.nodes]
    assert [n.type for n in again.nodes] == [n.type for n in graph.nodes]


def test_looks_as_documented():
    x = make(Input("x", f32, (2, 3)), loc=NOWHERE)
    y = make(Neg(), x, loc=Loc("m.py", 3, "f"))
    z = make(Add(), x, y, loc=LOC, tag=2)
    assert to_text(Graph("g", (x,), (z, y))).splitlines() == [
        "graph g {",
        '  %0 = input() label="x": f32[2,3]',
        "  %1 = neg(%0): f32[2,3]  # m.py:3 in f",
        "  %2 = add@2(%0, %1): f32[2,3]  # dir with space/model.py:12 in Net.<locals>.f (gradient)",
        "  return %2, %1",
        "}",
    ]


@pytest.mark.parametrize(
    "array, dtype",
    [
        (np.arange(100, dtype=np.float32), f32),
        (np.array([0.1, -0.0, np.nan, np.inf], np.float32), f32),
        (np.array([0x7FC00001, 0x3F800000], np.uint32).view(np.float32), f32),  # a NaN with a payload
        (np.array([1.5, 2.5], np.float32), bf16),
        (np.array([True, False]), bool_),
        (np.zeros((0, 3), np.int32), i32),
    ],
)
def test_constants(array, dtype):
    g = Graph("g", (), (make(Constant.of(array, dtype), loc=NOWHERE),))
    again = parse(to_text(g, full=True))
    assert again.outputs[0].op == g.outputs[0].op


def test_large_constants_are_abbreviated_and_then_do_not_parse():
    g = Graph("g", (), (make(Constant.of(np.arange(1000, dtype=np.float32), f32), loc=NOWHERE),))
    text = to_text(g)
    assert len(text) < 300 and "<4000 bytes" in text
    with pytest.raises(PullbackError, match=r"line 2: expected a whole constant \(print with full=True\)"):
        parse(text)


def test_labels_may_hold_anything():
    x = make(Input('a "quoted": # label, %1', f32, ()), loc=NOWHERE)
    g = Graph("g", (x,), (x,))
    assert parse(to_text(g)).inputs[0].op.label == x.op.label


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), float("-inf"), 1e-30, 0.1])
def test_fill_values(value):
    g = Graph("g", (), (make(Fill(value, f32, (2,)), loc=NOWHERE),))
    assert parse(to_text(g)).outputs[0].op == g.outputs[0].op


@pytest.mark.parametrize(
    "text, message",
    [
        ("grap g {\n}", r"line 1: expected graph <name> \{, got 'grap g \{'"),
        ("graph g {\n  %0 = what(): f32[]\n  return %0\n}", "line 2: expected a known op"),
        ("graph g {\n  %0 = neg(%7): f32[]\n  return %0\n}", "line 2: expected %7 to be defined before"),
        ("graph g {\n  %0 = fill(): f32[]\n  return %0\n}", "line 2: expected the attributes value, dtype, shape"),
        ("graph g {\n  %0 = fill() value=1.0: f99[]\n  return %0\n}", r"expected a type such as f32\[2,3\]"),
        ("graph g {\n  %0 = fill() value=1.0: f32[]\n", "the text ends too early"),
    ],
)
def test_errors_say_where(text, message):
    with pytest.raises(PullbackError, match=message):
        parse(text)


def test_types():
    assert parse_type("f32[2,3]") == X
    assert parse_type("(f32[2,3], i32[])") == TupleType((X, TensorType(i32, ())))


def test_program_round_trip():
    image, weight = (make(Input(k, f32, (2, 3)), loc=NOWHERE) for k in ("image", "model.weight"))
    new = make(Add(), weight, image, loc=LOC)
    train = Function(
        "train",
        Graph("train", (image, weight), (image, new)),
        (Argument("image", X),),
        ("model.weight",),
        ("model.weight",),
        {"image": 0},
        {"loss": 0, "other": None},
        {"batch": 2},
        True,
        LOC,
        "batch",
    )
    state = State("model.weight", X, "parameter", ("model.tied weight",), Loc("m.py", 1))
    program = Program("digits", {"model.weight": state}, (train,), {"cpu": "native", "width": 3})
    text = to_text(program, full=True)
    again = parse_program(text)
    assert to_text(again, full=True) == text
    assert again.states == program.states and again.options == program.options
    f = again.functions[0]
    for name in ("name", "arguments", "reads", "writes", "inputs", "outputs", "dims", "training", "loc", "padded"):
        assert getattr(f, name) == getattr(train, name)
    assert equal(f.graph, train.graph)
