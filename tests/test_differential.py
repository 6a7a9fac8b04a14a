"""A sample of the differential tests, and every graph that they have found to be compiled wrongly.

`python tests/differential.py --count 5000` is the long form.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from differential import BATCH, Setting, check, isolated, run_batch, shrink
from random_graphs import random_array
from random_programs import Case, make_case

from pullback.codegen.target import host_level
from pullback.graph.graph import Graph
from pullback.graph.text import parse
from pullback.schedule import Limits

BATCHES = 5


def test_all_ways_agree_on_every_branch():
    """Thresholds are lowered so far that small graphs go where large ones do."""
    covered: Counter = Counter()
    for first in range(0, BATCH * BATCHES, BATCH):
        texts, seen = run_batch(range(first, first + BATCH), shrinking=False)
        assert not texts, "\n".join(texts)
        covered.update(seen)
    assert {entry[3] for entry in covered} >= {
        "map", "rows", "contraction", "vector", "unroll", "blocks", "block ranges", "split", "peel", "masked store",
        "masked load", "packed local", "packed register", "row in registers", "row in memory", "checked index",
        "tile fold", "as it stands", "forward", "reverse",
    }  # fmt: skip
    assert {entry[2] for entry in covered} == {"alone", "map", "prologue", "core", "epilogue", "loop"}


# ---- what they have found -------------------------------------------------------------------------------
LOWERED = {"LANES": 16, "LONG": 64, "SMALL_CHUNK": 2, "CHUNKS": 5}
PLAIN = Setting("x86-64-v2", Limits(), {}, 1, True)
FOUND: dict[str, tuple[Setting, str, int, str]] = {
    # how it is built, how exactly it must agree, how many of its inputs and outputs are states
    "states that change places": (
        PLAIN,
        "exact",
        2,
        """
graph f {
  %0 = input() label="s0": f32[3]
  %1 = input() label="s1": f32[3]
  return %1, %0
}""",
    ),
    "a contraction's operand that is an output too": (
        PLAIN,
        "f64",
        0,
        """
graph f {
  %0 = input() label="x0": f64[2,7]
  %1 = slice(%0) start=(0,4) stop=(2,7) step=(1,1): f64[2,3]
  %2 = sin(%1): f64[2,3]
  %3 = sum(%2) axes=(0,1): f64[]
  %4 = fill() value=1.0: f64[2]
  %5 = contract(%1, %4) lhs="ab" rhs="a" out="b": f64[3]
  %6 = sin(%5): f64[3]
  %7 = sum(%6) axes=(0): f64[]
  %8 = add(%3, %7): f64[]
  return %8, %1
}""",
    ),
    "a value stored after a group has computed it for itself": (
        Setting("x86-64-v2", Limits(), LOWERED, 1, True),
        "f64",
        0,
        """
graph f {
  %0 = input() label="x0": f64[1,4,9]
  %1 = input() label="x1": f64[1,4,9]
  %2 = input() label="x2": f64[]
  %3 = cast(%2): i32[]
  %4 = fill() value=4: i32[]
  %5 = remainder(%3, %4): i32[]
  %6 = reshape(%5): i32[1]
  %7 = gather(%0, %6) axis=1: f64[1,1,9]
  %8 = sin(%7): f64[1,1,9]
  %9 = sum(%8) axes=(2): f64[1,1]
  %10 = reshape(%9): f64[]
  %11 = fill() value=0.0: f64[]
  %12 = add(%10, %11): f64[]
  %13 = iota() axis=1: i32[1,4,9]
  %14 = broadcast(%5) axes=(): i32[1,4,9]
  %15 = eq(%13, %14): bool[1,4,9]
  %16 = fill() value=0.0: f64[1,4,9]
  %17 = select(%15, %1, %16): f64[1,4,9]
  return %12, %17, %11
}""",
    ),
    "a padded value kept for a whole row": (
        PLAIN,
        "f64",
        0,
        """
graph f {
  %0 = input() label="x0": f64[9,4]
  %1 = cos(%0): f64[9,4]
  %2 = pad(%1) low=(0,0) high=(0,2) value=0.0: f64[9,6]
  %3 = fill() value=1.5: f64[9,6]
  %4 = mul(%2, %3): f64[9,6]
  %5 = sin(%4): f64[9,6]
  %6 = sum(%5) axes=(0,1): f64[]
  return %6, %2
}""",
    ),
    "a scalar of the row under the mask of a chunk": (
        Setting("x86-64-v3", Limits(), {**LOWERED, "LANES": 4}, 1, True),
        "f64",
        0,
        """
graph f {
  %0 = input() label="x0": f64[33,4,16]
  %1 = input() label="x1": f64[4]
  %2 = mul(%1, %1): f64[4]
  %3 = broadcast(%2) axes=(1): f64[33,4,16]
  %4 = cos(%0): f64[33,4,16]
  %5 = div(%4, %3): f64[33,4,16]
  %6 = sum(%5) axes=(0,2): f64[4]
  return %6
}""",
    ),
    "the sign of zero without fma": (
        PLAIN,
        "exact",
        0,
        """
graph f {
  %0 = input() label="x0": f64[9]
  %1 = fill() value=0.0: f64[9]
  %2 = mul(%0, %1): f64[9]
  %3 = erf(%2): f64[9]
  return %3
}""",
    ),
    "one lane of 16 bits": (
        Setting("x86-64-v4", Limits(block=300, group=4), {}, 1, True),
        "exact",
        0,
        """
graph f {
  %0 = input() label="x0": bf16[7,33,33]
  %1 = fill() value=1: i32[7,33,33]
  %2 = gather_along(%0, %1) axis=2: bf16[7,33,33]
  return %2
}""",
    ),
    "a last chunk beside the masked lanes of the others": (
        Setting("x86-64-v2", Limits(block=300, flat=128), {"SMALL_CHUNK": 2, "CHUNKS": 5}, 1, True),
        "f64",
        0,
        """
graph f {
  %0 = input() label="x0": f64[1,7,1]
  %1 = sum(%0) axes=(0,1): f64[1]
  return %1
}""",
    ),
    "equal code for one block and for two": (
        Setting("x86-64-v2", Limits(block=300, flat=128), {}, 1, True),
        "exact",
        0,
        """
graph f {
  %0 = input() label="x0": f64[]
  %1 = broadcast(%0) axes=(): f64[8,16]
  %2 = broadcast(%0) axes=(): f64[16,16]
  return %1, %2
}""",
    ),
    "equal code for parameters of other sizes": (
        PLAIN,
        "exact",
        1,
        """
graph f {
  %0 = input() label="x0": f32[3]
  %1 = input() label="s0": f32[1]
  %2 = slice(%0) start=(1) stop=(2) step=(1): f32[1]
  %3 = slice(%0) start=(0) stop=(1) step=(1): f32[1]
  return %2, %3, %2
}""",
    ),
}


def case_of(graph: Graph, kind: str, states: int) -> Case:
    """The last inputs are states, and the last outputs their new values."""
    rng = np.random.default_rng(0)
    names = tuple(f"s{k}" for k in range(states))
    return Case(0, kind, graph, names, names, tuple(random_array(rng, x.type, False) for x in graph.inputs))


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    setting, kind, states, text = FOUND[name]
    if setting.level > host_level():
        pytest.skip(f"this processor has no {setting.level}")
    case = case_of(parse(text), kind, states)
    assert isolated(lambda: check([case], setting)) == []


# ---- the engine itself ----------------------------------------------------------------------------------
def test_failures_shrink():
    """A case that fails because of one op is cut down to that op."""
    case = next(c for c in map(make_case, range(500)) if sum(n.op.name == "sort" for n in c.graph.nodes) == 1)
    small = shrink(case, lambda c: any(n.op.name == "sort" for n in c.graph.nodes))
    assert [n.op.name for n in small.graph.nodes if n.inputs] == ["sort"] and not small.states


def test_a_crash_is_a_failure_and_not_the_end():
    def crash() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    assert isolated(crash) == "the process ended with status -9"
    assert isolated(lambda: 1) == 1


def test_a_contraction_whose_operands_no_panel_holds():
    """Seed 900278: a product with an axis of one element on either side, which refused to build for AVX2."""
    texts, _ = run_batch(range(900272, 900288), shrinking=False)
    assert not texts, "\n".join(texts)
