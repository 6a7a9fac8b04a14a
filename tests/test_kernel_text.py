"""Kernels and plans as text: printed, parsed, and printed again; what the totals count; clear errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernel_samples import TEXTS, kernel, random_kernel

from pullback.errors import PullbackError
from pullback.graph.graph import Loc
from pullback.graph.types import TensorType, bool_, f32, f64, i32
from pullback.kernel.kernel import Affine, Barrier, Buffer, Const, Kernel, Load, Loop, Store, apply
from pullback.kernel.plan import Allocation, Argument, Call, FunctionPlan, Launch, Plan, Repeat, StateSlot
from pullback.kernel.plan_text import parse_plan, print_plan, totals, traffic
from pullback.kernel.text import parse_kernel, print_kernel


@pytest.mark.parametrize("name", TEXTS)
def test_samples_survive(name):
    k = kernel(name)
    text = print_kernel(k, "model.py:12")
    assert parse_kernel(text) == k
    assert print_kernel(parse_kernel(text), "model.py:12") == text


def test_random_kernels_survive():
    for seed in range(80):
        k = random_kernel(seed)
        text = print_kernel(k)
        assert print_kernel(parse_kernel(text)) == text
        assert parse_kernel(text) == replace(k), seed


def test_the_printed_form():
    assert print_kernel(kernel("linear"), "mlp.py:12") == (
        "kernel linear(x: f32[5,6], w: f32[7,6], b: f32[7]) -> h: f32[5,7]  # mlp.py:12\n"
        + TEXTS["linear"].strip().split("\n", 1)[1]
        + "\n"
    )


def test_everything_that_a_kernel_can_hold():
    x, y, t = Buffer("x", (8,), f64), Buffer("y", (8,), f64, "global", (2,)), Buffer("t", (), bool_, "register")
    i = Affine.of("i")
    a = Load("x", (i,), f64)
    body = (
        Loop("i", 4, "ordered", (Store("t", (), Const(True, bool_)), Barrier()), "thread"),
        Loop(
            "i",
            8,
            "reduce",
            (
                Store("y", (i,), apply("sub", apply("sub", a, a), apply("sub", a, apply("neg", Const(-2.5, f64))))),
                Store("y", (i * -1 + 7,), apply("div", Const(float("inf"), f64), apply("mul", apply("add", a, a), a))),
                Store("y", (i,), a, where=apply("lt", apply("add", a, a), Const(float("-inf"), f64))),
                Store(
                    "y",
                    (i,),
                    apply("select", apply("eq", apply("lt", a, a), Load("t", (), bool_)), a, Const(1e-30, f64)),
                ),
                Store("y", (i,), apply("cast", Const(-3, i32), dtype=f64), ((i, 3), (i * -1 + -2, 1)), "any"),
                Store("y", (i,), Load("x", (i + 9,), f64, ((i + 9, 8),), float("nan"))),
            ),
            "unroll",
        ),
    )
    k = Kernel("every.thing", (x, y), (t,), body)
    text = print_kernel(k)
    assert print_kernel(parse_kernel(text)) == text
    assert "thread ordered i < 4" in text and "unroll reduce i < 8" in text and "barrier" in text
    assert "x[i] - x[i] - (x[i] - neg(-2.5:f64))" in text and "y: f64[8] strides(2)" in text
    assert "(x[i] < x[i]) == t" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a kernel, got no text"),
        ("kernel f(x: f33[2])", "line 1: expected one of .*, got f33"),
        (
            "kernel f(x: f32[2]) -> y: f32[2]\n  parallel i < 2\n    z[i] = 0.0",
            "line 3: expected a buffer's name, got z",
        ),
        ("kernel f(x: f32[2]) -> y: f32[2]\n  parallel i > 2", "line 2: expected '<', got >"),
        ("kernel f() -> y: f32[2]\n  y[0] = q + 1.0", "line 2: expected a buffer, a function or a number, got q"),
        ("kernel f() -> y: f32[2]\n  y[0] = frob(1.0)", "line 2: frob is no scalar function"),
        ("kernel f() -> y: f32[2]\n  y[0] = 1.0 2.0", "line 2: expected the end of the line, got 2.0"),
        ("kernel f() -> y: f32[2]\n  y[0] =", "line 2: expected an expression, got the end of the line"),
    ],
)
def test_mistakes_name_the_line(text, message):
    with pytest.raises(PullbackError, match=message):
        parse_kernel(text)


# ---- plans ----------------------------------------------------------------------------------------------
def sample_plan() -> Plan:
    k, g = kernel("linear"), kernel("gather")
    here, there = Loc("dir/model.py", 12, "forward"), Loc("a b.py", 3, "", True)
    first = Launch(
        (Call("k1", (Argument(3, 0), Argument(1, 64), Argument(1, 256), Argument(0, 0)), 1, here, "linear"),), 2
    )
    table = Argument(0, 256, (96,))
    second = Launch((Call("2nd", (table, Argument(2, 0), Argument(5, 0)), 1, there, "", ("index of take",)),))
    function = FunctionPlan(
        "train.batch=5",
        (TensorType(f32, (5, 6)), TensorType(i32, ())),
        (TensorType(f32, (5, 3)),),
        (first, Repeat(3, (second, Repeat(2, (second,))), True)),
        1,
        1024,
        128,
        (Allocation("h: 1", TensorType(f32, (5, 7)), 0, 140, 0, 1, here),),
    )
    state = (StateSlot("model.weight", TensorType(f32, (7, 6)), 64, (6, 1)),)
    return Plan({"k1": k, "2nd": g}, (function,), state, 512, bytes(20))


def test_plans_survive():
    plan = sample_plan()
    text = print_plan(plan)
    assert parse_plan(text, plan.constants) == plan
    assert print_plan(parse_plan(text, plan.constants)) == text
    assert (
        'in "forward"' in text and "by (96)" in text and 'sites("index of take")' in text and "repeat 3 reverse" in text
    )


def test_traffic_counts_each_byte_once():
    assert traffic(kernel("linear")) == {"x": (120, 0), "w": (168, 0), "b": (28, 0), "h": (0, 140)}
    assert traffic(kernel("softmax")) == {"x": (216, 0), "y": (0, 216)}
    assert traffic(kernel("gather")) == {"table": (60, 0), "index": (20, 0), "y": (0, 60)}  # 15 of 24 elements
    assert traffic(kernel("convolution"))["x"] == (2 * 5 * 5 * 3 * 4, 0)
    plan = sample_plan()
    linear, gather = 120 + 168 + 28, 60 + 20
    assert totals(plan, plan.functions[0]) == (1 + 9, linear + 9 * gather, 140 + 9 * 60)


def test_mistakes_in_plans_name_the_line():
    lines = print_plan(sample_plan()).split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("  arena"))
    lines[at] = "  arena many"
    with pytest.raises(PullbackError, match=f"line {at + 1}: expected an integer, got many"):
        parse_plan("\n".join(lines))
