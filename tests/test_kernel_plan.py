"""Plans in numpy, and the plan verifier: one broken rule at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pullback.errors import PullbackError, VerifyError
from pullback.graph.graph import Loc
from pullback.graph.types import TensorType, bf16, f32, i32
from pullback.kernel.evaluate import CheckFailed, evaluate_plan, pack_state, unpack_state
from pullback.kernel.plan import Allocation, Argument, Call, FunctionPlan, Launch, Plan, Repeat, StateSlot
from pullback.kernel.text import parse_kernel
from pullback.kernel.verify import verify_plan

LOC = Loc("model.py", 7)
KERNELS = {
    "double": """
kernel double(x: f32[4]) -> y: f32[4]
  block i < 4
    y[i] = x[i] + x[i]
""",
    "add": """
kernel add(x: f32[4]) -> y: f32[4]
  parallel i < 4
    y[i] = y[i] + x[i]
""",
    "shift": """
kernel shift(x: f32[4]) -> y: f32[4]
  parallel i < 4
    y[i] = x[i + 1 | i < 3 else 0.0]
""",
    "take": """
kernel take(x: f32[4], n: i32[2]) -> y: f32[2]
  parallel i < 2
    y[i] = x[check(n[i], 4, 0)]
""",
}
ARENA, STATE, CONSTANTS, X, N, OUT = range(6)


def call(kernel: str, *arguments: Argument | tuple, blocks: int = 1, **more) -> Call:
    return Call(kernel, tuple(Argument(*a) if isinstance(a, tuple) else a for a in arguments), blocks, LOC, **more)


def plan(*steps, commit: int = 2, arena: int = 256, allocations=None, state=None) -> Plan:
    """One function of x: f32[3,4] and n: i32[2] with an output f32[2]; state w: f32[4] and v: f32[4]."""
    if allocations is None:
        allocations = (
            Allocation("a", TensorType(f32, (4,)), 0, 16, 0, 2, LOC),
            Allocation("b", TensorType(f32, (4,)), 64, 16, 1, 2, LOC),
        )
    inputs = (TensorType(f32, (3, 4)), TensorType(i32, (2,)))
    function = FunctionPlan(
        "step", inputs, (TensorType(f32, (2,)),), tuple(steps), commit, arena, 0, tuple(allocations)
    )
    slots = state or (
        StateSlot("w", TensorType(f32, (4,)), 0, (1,)),
        StateSlot("v", TensorType(f32, (4,)), 64, (1,)),
    )
    return Plan(
        {k: parse_kernel(t) for k, t in KERNELS.items()}, (function,), slots, 128, np.arange(4, dtype="f4").tobytes()
    )


TAKE = call("take", (ARENA, 0), (N, 0), (OUT, 0), sites=("label of take",))
GOOD = (
    Launch((call("double", (X, 16), (ARENA, 0), blocks=4),)),
    Launch((TAKE, call("double", (ARENA, 0), (ARENA, 64), blocks=4))),
    Repeat(3, (Launch((call("add", (X, 0, (16,)), (STATE, 0)),)),)),
    Launch((call("add", (ARENA, 64), (STATE, 64)),)),
)
GOOD = (*GOOD[:2], GOOD[3], GOOD[2])  # the arena's buffers end at launch 2


def test_a_plan_runs_and_changes_state():
    p = plan(*GOOD)
    verify_plan(p)
    x, n = np.arange(12, dtype=np.float32).reshape(3, 4), np.array([3, 1], np.int32)
    state = pack_state(p, {"w": np.ones(4), "v": np.zeros(4)})
    for lockstep in (True, False):
        (out,) = evaluate_plan(p, "step", state.copy(), [x, n], lockstep)
        assert out.tolist() == [14.0, 10.0]
    evaluate_plan(p, "step", state, [x, n])
    after = unpack_state(p, state)
    assert np.array_equal(after["w"], 1 + x.sum(0)) and np.array_equal(after["v"], 4 * x[1])


def test_a_failed_check_leaves_state_as_it_was():
    p = plan(*GOOD)
    state = pack_state(p, {"w": np.ones(4), "v": np.zeros(4)})
    before = state.copy()
    with pytest.raises(CheckFailed, match="index 4 is not in 0 <= index < 4"):
        evaluate_plan(p, "step", state, [np.zeros((3, 4), np.float32), np.array([0, 4], np.int32)])
    assert np.array_equal(state, before)


def test_loops_move_arguments_and_may_count_down():
    text = "kernel carry(x: f32[1]) -> y: f32[1], c: f32[1]\n  y[0] = c[0]\n  c[0] = c[0] * 2.0 + x[0]\n"
    body = Launch((call("carry", (X, 0, (4,)), (OUT, 0, (4,)), (STATE, 0)),))
    p = plan(Repeat(2, (body,), reverse=True), commit=0, allocations=())
    p = replace(p, kernels={"carry": parse_kernel(text)})
    verify_plan(p)
    state = pack_state(p, {"w": np.array([1, 0, 0, 0])})
    x = np.array([[5, 7, 0, 0]] * 3, np.float32)
    (out,) = evaluate_plan(p, p.functions[0], state, [x, np.zeros(2, np.int32)])
    assert out.tolist() == [9.0, 1.0] and unpack_state(p, state)["w"][0] == 23.0


def test_states_are_views_and_may_be_bf16():
    slots = (StateSlot("t", TensorType(bf16, (2, 3)), 2, (1, 2)), StateSlot("s", TensorType(f32, ()), 64, ()))
    p = plan(commit=0, allocations=(), state=slots)
    value = bf16.round(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3))
    state = pack_state(p, {"t": value, "s": np.float32(4)})
    assert np.array_equal(unpack_state(p, state)["t"], value) and unpack_state(p, state)["s"] == 4
    assert np.array_equal(state[2:14].view(np.uint16) << 0, (value.T.copy().view(np.uint32) >> 16).ravel())


def test_wrong_inputs_are_refused():
    p = plan(*GOOD)
    with pytest.raises(PullbackError, match="step: expected 2 inputs, got 1"):
        evaluate_plan(p, "step", None, [np.zeros((3, 4))])
    with pytest.raises(PullbackError, match=r"expected f32\[3,4\], got \[4, 3\]"):
        evaluate_plan(p, "step", None, [np.zeros((4, 3)), np.zeros(2)])
    with pytest.raises(PullbackError, match="expected 128 bytes, got 3"):
        evaluate_plan(p, "step", np.zeros(3, np.uint8), [np.zeros((3, 4)), np.zeros(2)])


def test_blocks_of_one_kernel_in_any_number():
    one = call("double", (X, 0), (ARENA, 0), blocks=3)
    p = plan(Launch((one,)), commit=1, allocations=())
    verify_plan(p)
    with pytest.raises(VerifyError, match="the kernel has 1 blocks, the call says 3"):
        verify_plan(plan(Launch((call("add", (X, 0), (ARENA, 0), blocks=3),)), commit=1, allocations=()))


ALONE = Launch((call("double", (X, 16), (ARENA, 0), blocks=4),))
BROKEN = {
    "no kernel triple": (Launch((call("triple", (X, 0), (ARENA, 0)),)),),
    "3 parameters, 2 arguments": (Launch((call("take", (ARENA, 0), (N, 0)),)),),
    "y takes bytes 252 to 268 of base 0": (Launch((call("double", (X, 0), (ARENA, 252), blocks=4),)),),
    "y takes bytes 0 to 272 of base 0": (Repeat(9, (Launch((call("double", (X, 0), (ARENA, 0, (32,)), blocks=4),)),)),),
    "x has 1 strides in 0 loops": (Launch((call("double", (X, 0, (16,)), (ARENA, 0), blocks=4),)),),
    "no base 9": (Launch((call("double", (9, 0), (ARENA, 0), blocks=4),)),),
    "which lies in read-only base 3": (Launch((call("double", (CONSTANTS, 0), (X, 0), blocks=4),)),),
    "writes state (y) before the commit point": (Launch((call("double", (X, 0), (STATE, 0), blocks=4),)),),
    "a check after the commit point": (ALONE, ALONE, Launch((TAKE,))),
    "x and y share memory": (ALONE, Launch((call("shift", (ARENA, 0), (ARENA, 0)),))),
    "x and y share memory, and": (ALONE, ALONE, Launch((call("double", (STATE, 0), (STATE, 4), blocks=4),))),
    "calls of one launch meet": (
        *(ALONE, ALONE),
        Launch((call("double", (X, 0), (STATE, 0), blocks=4), call("double", (X, 0), (STATE, 12), blocks=4))),
    ),
    "no one buffer alive here": (Launch((call("double", (X, 0), (ARENA, 32), blocks=4),)),),
    "reads a, which nothing has written": (Launch((call("double", (ARENA, 0), (OUT, 0), blocks=2),)),),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_plans_are_named(message):
    with pytest.raises(VerifyError, match="plan of step: launch") as failure:
        verify_plan(plan(*BROKEN[message]))
    assert message in str(failure.value)
    assert "launch 0:" in str(failure.value) or "model.py:7" in str(failure.value)


def test_in_place_is_legal_where_blocks_read_what_they_write():
    verify_plan(plan(ALONE, Launch((call("double", (ARENA, 0), (ARENA, 0), blocks=4),))))


def test_buffers_that_are_alive_together_share_nothing():
    a, b = (Allocation(n, TensorType(f32, (4,)), o, 16, f, l, LOC) for n, o, f, l in (("a", 0, 0, 2), ("b", 12, 1, 3)))
    with pytest.raises(VerifyError, match="buffers b and a are alive together and share bytes at 12"):
        verify_plan(plan(allocations=(a, b)))
    verify_plan(plan(allocations=(replace(a, last=1), b)))  # one launch in place
    with pytest.raises(VerifyError, match="buffer b ends at 28, the arena has 20 bytes"):
        verify_plan(plan(allocations=(b,), arena=20))


def test_interleaved_columns_do_not_meet():
    text = "kernel column(x: f32[4]) -> y: f32[4] strides(2)\n  parallel i < 4\n    y[i] = x[i]\n"
    calls = (call("column", (X, 0), (ARENA, 0)), call("column", (X, 16), (ARENA, 4)))
    p = plan(Launch(calls), commit=1, allocations=())
    verify_plan(replace(p, kernels={"column": parse_kernel(text)}))
    p = plan(
        Launch((calls[0], replace(calls[1], arguments=(Argument(X, 16), Argument(ARENA, 8))))), commit=1, allocations=()
    )
    with pytest.raises(VerifyError, match="calls of one launch meet"):
        verify_plan(replace(p, kernels={"column": parse_kernel(text)}))


def test_states_do_not_overlap_and_fit():
    a, b = StateSlot("a", TensorType(f32, (4,)), 0, (1,)), StateSlot("b", TensorType(f32, (2, 2)), 12, (8, 1))
    with pytest.raises(VerifyError, match="states a and b overlap at byte 12"):
        verify_plan(plan(state=(a, b)))
    with pytest.raises(VerifyError, match="the states take 140 bytes, the plan says 128"):
        verify_plan(plan(state=(a, replace(b, offset=100))))
