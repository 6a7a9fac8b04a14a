"""The reference evaluator: rounding, regions, functions over state."""

import numpy as np
import pytest

from pullback.errors import PullbackError
from pullback.graph.evaluate import evaluate, evaluate_function
from pullback.graph.graph import Graph, Loc, make
from pullback.graph.program import Argument, Function, Program, State
from pullback.graph.types import TensorType, bf16, f16, f32
from pullback.ops.elementwise import Add, Div, Mul
from pullback.ops.leaf import Input, Item
from pullback.ops.scan import Scan

LOC = Loc("model.py", 1)


def inp(label, dtype=f32, shape=()):
    return make(Input(label, dtype, shape), loc=LOC)


def chain(dtype):
    """(x + y) + z"""
    x, y, z = (inp(k, dtype) for k in "xyz")
    return Graph("g", (x, y, z), (make(Add(), make(Add(), x, y, loc=LOC), z, loc=LOC),))


def test_every_result_is_rounded():
    small = 2.0**-9  # half of bf16's last place at 1: each sum alone is rounded to even, back to 1
    assert evaluate(chain(bf16), [1.0, small, small])[0] == 1.0
    assert evaluate(chain(f32), [1.0, small, small])[0] == 1.0 + 2 * small


def test_f16_is_computed_in_f32():
    x, y = inp("x", f16), inp("y", f16)
    g = Graph("g", (x, y), (make(Mul(), x, y, loc=LOC),))
    out = evaluate(g, [np.float16(300), np.float16(300)])[0]
    assert out.dtype == np.float16 and np.isinf(out)


def test_inputs_are_converted_and_checked():
    x = inp("x", bf16, (2,))
    out = evaluate(Graph("g", (x,), (x,)), [[1.0 + 2.0**-12, 3.0]])[0]
    assert out.tolist() == [1.0, 3.0]
    with pytest.raises(PullbackError, match=r"input 'x' is bf16\[2\], got an array of shape \(3,\)"):
        evaluate(Graph("g", (x,), (x,)), [[1.0, 2.0, 3.0]])
    with pytest.raises(PullbackError, match="has 1 inputs, got 2 arrays"):
        evaluate(Graph("g", (x,), (x,)), [1, 2])


def test_no_warnings(recwarn):
    x, y = inp("x"), inp("y")
    out = evaluate(Graph("g", (x, y), (make(Div(), x, y, loc=LOC),)), [0.0, 0.0])[0]
    assert np.isnan(out) and not recwarn.list


def test_scan_carries_and_stacks():
    """s' = s * a + x, stacked: the powers of a polynomial (Horner)."""
    a, s, x = inp("a"), inp("s"), inp("x")
    new = make(Add(), make(Mul(), s, a, loc=LOC), x, loc=LOC)
    body = Graph("horner", (a, s, x), (new, new))
    ins = inp("a"), inp("s"), inp("x", f32, (4,))
    for reverse in (False, True):
        scan = make(Scan(body, 4, 1, 1, reverse), *ins, loc=LOC)
        g = Graph("g", ins, tuple(make(Item(k), scan, loc=LOC) for k in range(2)))
        coefficients = [1.0, 2.0, 3.0, 4.0]
        last, steps = evaluate(g, [10.0, 0.0, coefficients])
        assert last == (4321.0 if reverse else 1234.0)
        assert steps.tolist() == ([4321.0, 432.0, 43.0, 4.0] if reverse else [1.0, 12.0, 123.0, 1234.0])


def test_function_over_state():
    t = TensorType(f32, (2,))
    x, w = inp("x", f32, (2,)), inp("w", f32, (2,))
    graph = Graph("step", (x, w), (make(Mul(), x, w, loc=LOC), make(Add(), w, x, loc=LOC)))
    f = Function("step", graph, (Argument("x", t),), ("w",), ("w",), {"x": 0}, 0)
    p = Program("p", {"w": State("w", t), "v": State("v", t)}, (f,))
    state = {"w": np.array([1, 2], np.float32), "v": np.zeros(2, np.float32)}
    results, after = evaluate_function(p, "step", state, [np.array([3, 4], np.float32)])
    assert results[0].tolist() == [3, 8]
    assert after["w"].tolist() == [4, 6] and after["v"] is state["v"]
    assert state["w"].tolist() == [1, 2]
