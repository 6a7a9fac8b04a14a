"""Order, in-place writes and memory of plans; the example of docs/plan.md is true."""

from __future__ import annotations

import random

import numpy as np
import pages

import pullback as pb
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.graph.graph import Loc
from pullback.kernel.plan import STATE, Call
from pullback.lower.memory import Lifetime, aligned, pack
from pullback.lower.plan import deal_out


def plan_of(function, namespace):
    build = Build(trace_functions([function], namespace), Options(cache=False))
    return next(iter(build.plans.values()))


def test_the_documents_example():
    f = pages.run("plan")["f"]
    assert (len(f.steps), f.commit, f.arena) == (2, 1, 64)
    (write,) = f.steps[1].calls
    assert [a.base for a in write.arguments].count(STATE) == 1


def test_states_that_change_places_go_through_memory():
    a, b = pb.Buffer(pb.arange(6, dtype=pb.f32)), pb.Buffer(pb.ones(6))

    @pb.function()
    def swap():
        old = a + 0.0
        a.assign(b * 1.0)
        b.assign(old)

    program = pb.build(swap, cache=False)
    program.swap()
    np.testing.assert_array_equal(program.state["b"], np.arange(6))
    np.testing.assert_array_equal(program.state["a"], np.ones(6))


def test_a_state_read_elsewhere_is_not_overwritten_early():
    s = pb.Buffer(pb.arange(5, dtype=pb.f32))

    @pb.function()
    def turn():
        s.assign(pb.flip(s) + 1)
        return pb.sum(s)

    program = pb.build(turn, cache=False)
    assert program.turn() == 15
    np.testing.assert_array_equal(program.state["s"], [5, 4, 3, 2, 1])


def test_updates_of_all_slots_are_in_place():
    model = pb.nn.Linear(64, 48)
    optimizer = pb.optim.Adam(model, lr=1e-3)

    @pb.function(pb.f32[48, 64], pb.f32[48])
    def update(w, b):
        optimizer.update([w, b])

    plan = plan_of(update, {"model": model, "optimizer": optimizer})
    calls = [c for s in plan.functions[0].steps for c in s.calls]
    assert not [c for c in calls if c.label == "copy"]


def test_portions_are_even_and_updates_stand_last():
    def call(label: str, blocks: int) -> Call:
        return Call("k", (), blocks, Loc("model.py", 1), label)

    made = deal_out(
        [(2000.0, True, call("update", 7)), (100.0, False, call("short", 1)), (3000.0, False, call("long", 8))]
    )
    assert [(c.label, c.grain, c.portions) for c in made.calls] == [("long", 1, 8), ("short", 1, 1), ("update", 1, 7)]
    assert made.chunk == 1
    (rows,) = deal_out([(400.0, False, call("rows", 8))]).calls
    assert (rows.grain, rows.portions) == (2, 4)  # not three portions of 3, 3, 2
    small = deal_out([(100.0, False, call("small", 12)), (90.0, True, call("update", 3))])
    assert small.chunk == sum(c.portions for c in small.calls)  # one worker's


def test_packing_never_overlaps_what_lives_at_once():
    rng = random.Random(0)
    for _ in range(200):
        lives = []
        for _ in range(rng.randrange(1, 40)):
            first = rng.randrange(20)
            lives.append(Lifetime(rng.choice([0, 4, 64, 100, 5000]), first, first + rng.randrange(8)))
        offsets, total = pack(lives)
        for i, (x, at) in enumerate(zip(lives, offsets, strict=True)):
            assert at % 64 == 0 and at + x.nbytes <= total
            for y, other in list(zip(lives, offsets, strict=True))[:i]:
                if x.first <= y.last and y.first <= x.last:
                    assert at + aligned(x.nbytes) <= other or other + aligned(y.nbytes) <= at


def test_buffers_one_after_the_other_share_memory():
    lives = [Lifetime(1000, i, i + 1) for i in range(10)]
    assert pack(lives)[1] == 2 * aligned(1000)
