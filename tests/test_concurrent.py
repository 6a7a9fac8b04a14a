"""Roles, tokens and copies of kernel IR: their text and rules, and what evaluator and emulator make of mistakes."""

from __future__ import annotations

import numpy as np
import pages
import pytest
from emulated import ORDERS, load, run_kernel
from simt.emulator import EmulationError
from simt.native import needs_emulator
from test_ptx import bits

from pullback.codegen.ptx import gpu_target
from pullback.errors import VerifyError
from pullback.graph.types import bf16
from pullback.kernel.alias import can_alias
from pullback.kernel.content import content_key, free_block
from pullback.kernel.coroutines import RolesFailed
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Affine, subst, walk
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify

SM90A = gpu_target("sm_90a")

# The documentation's: two stages, three steps along k, edges in every direction.
(TEXT,) = pages.blocks("roles", "kernel")


def arrays() -> dict[str, np.ndarray]:
    g = np.random.default_rng(0)
    return {n: bf16.round(g.standard_normal(s).astype(np.float32)) for n, s in (("x", (70, 152)), ("w", (152, 72)))}


def test_text():
    kernel = parse_kernel(TEXT)
    assert print_kernel(kernel) == TEXT
    verify(kernel, SM90A)
    assert content_key(kernel) == content_key(parse_kernel(TEXT.replace("full", "ready").replace("load", "bring")))
    keys = {content_key(parse_kernel(TEXT.replace("phase ko + -1", f"phase ko + {p}"))) for p in (-1, 0)}
    keys.add(content_key(parse_kernel(TEXT.replace("arrive empty[s]", "arrive empty[0]"))))
    keys.add(content_key(pairs := parse_kernel(instead("      roles\n", "      roles of 2 blocks\n"))))
    assert len(keys) == 4 and parse_kernel(print_kernel(pairs)) == pairs
    verify(pairs, SM90A)
    assert free_block(kernel) is None


def test_axes_are_substituted_in_tokens_too():
    (body,) = subst(parse_kernel(TEXT).body, {"s": Affine(1)})
    signals = [s for s in walk((body,)) if hasattr(s, "token")]
    assert signals and all(s.index == (Affine(1),) for s in signals)


def test_the_evaluator_runs_roles():
    x = arrays()
    y = evaluate(parse_kernel(TEXT), x)["y"]
    assert np.allclose(y, x["x"] @ x["w"], atol=1e-4)


@needs_emulator
def test_the_emulator_agrees():
    kernel, x = parse_kernel(TEXT), arrays()
    loaded, wanted = load({"k": kernel}, SM90A), evaluate(kernel, x)["y"]
    for order in ORDERS:
        got, _ = run_kernel(loaded, "k", kernel, SM90A, x, order)
        assert bits(got["y"]) == bits(wanted), order


def instead(old: str, new: str = "") -> str:
    """The text with another piece of a line, or without the whole line."""
    assert old in TEXT, old
    return TEXT.replace(old, new) if new else "".join(s for s in TEXT.splitlines(True) if s.strip() != old)


def before(line: str, *more: str) -> str:
    """The text with lines before another one, as far in as it is."""
    out = []
    for s in TEXT.splitlines(True):
        if s.strip() == line:
            out += [s[: s.index(line)] + m + "\n" for m in more]
        out.append(s)
    return "".join(out)


MISTAKES = {  # what is wrong -> (the text, what the evaluator says, the kinds that the emulator may say)
    "the wrong phase": (instead("phase ko + -1", "phase ko"), "all roles wait", "deadlock"),
    "the wrong parity": (instead("full[s] phase ko", "full[s] phase ko + 1"), "phase 0 is at hand", "async race"),
    "no wait for room": (
        instead("await empty[s] phase ko + -1", "await empty[s] phase -1"),
        "waits for phase -1 of empty|arrives twice",
        "async race invalid deadlock",
    ),
    "too early": (
        instead("await full[s] phase ko", "await full[s] phase -1"),
        "where phase . is at hand",
        "async race deadlock",
    ),
    "an arrival too few": (
        instead("arrive empty[s]", "arrive empty[0]"),
        "arrives twice|all roles wait",
        "deadlock invalid",
    ),
    "an arrival at the wrong place": (
        instead("arrive full[s]", "arrive full[0]"),
        "arrives twice|all roles wait",
        "deadlock invalid async race",
    ),
}


@needs_emulator
@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_noticed(what):
    text, said, kinds = MISTAKES[what]
    kernel, x = parse_kernel(text), arrays()
    with pytest.raises(RolesFailed, match=said):
        evaluate(kernel, x)
    loaded = load({"k": kernel}, SM90A)
    for order in ORDERS:
        with pytest.raises(EmulationError) as e:
            run_kernel(loaded, "k", kernel, SM90A, x, order)
        assert e.value.kind in kinds.split(), e.value


def test_what_is_on_its_way_is_unknown():
    """A role that reads before the phase is over reads NaN."""
    early = before("arrive empty[s]", "await full[s] phase ko")
    late = early.replace("await full[s] phase ko\n              tile", "tile")
    assert early.count("await full") == 2 and late.count("await full") == 1
    assert np.isnan(evaluate(parse_kernel(late), arrays())["y"]).all()


RULES = {
    "nobody awaits the token full": instead("await full[s] phase ko"),
    "nobody arrives at the token empty": instead("arrive empty[s]"),
    "index s of full can be 0 to 1": instead("full: i64[2]", "full: i64[1]"),
    "full is no token": instead("full: i64[2] token", "full: i64[2] shared"),
    "is an i64": instead("full: i64[2] token", "full: f32[2] token"),
    "others never come here": before("arrive empty[s]", "barrier"),
    "not for some of its threads": before("arrive empty[s]", "lane l < 32", "  arrive empty[s]"),
    "index .* of x can be": instead(" | ib*64 + i < 70, ko*128 + s*64 + k < 152 else 0]", " | ib*64 + i < 70 else 0]"),
    "index i of xs can be": instead("parallel i < 64", "parallel i < 65"),
    "is 0 outside of its parameter": instead("s*64 + k < 152 else 0]", "s*64 + k < 152 else 1.0]"),
    "bound its own indices": instead("ib*64 + i < 70, ko*128", "ib*64 + i + k < 70, ko*128"),
    "a copy stores all of its box": instead("xs[s, i, k] = x", "xs[s, i, k | i < 9] = x"),
    "a copy holds one store of one load": instead("xs[s, i, k] = x[", "xs[s, i, k] = -1.0:bf16 * x["),
    "walks one dimension of xs": instead("xs[s, i, k] = x[ib*64 + i, ", "xs[s, i, k] = x[ib*64, "),
    "belongs to the role": before("arrive full[s]", "acc[0, 0] = 0.0"),
    "is written by copies only": before("arrive empty[s]", "xs[s, 0, 0] = 0.0:bf16"),
    "roles are all that a block holds": before("roles", "barrier"),
    "go in groups of 3": instead("roles", "roles of 3 blocks"),
    "of different names": instead("role multiply", "role load"),
    "expected operands that are loads": instead("= fma_ftz(", "= fma_ftz(0.5 * "),
    "expected acc = fma": instead("= fma_ftz(", "= 0.5 * fma_ftz("),
    "a multiple of 64 rows": instead("unroll i < 64", "unroll i < 32"),
    "stands in no role": "kernel k(x: f32[4]) -> y: f32[4]\n  t: i64[] token\n  await t phase 0\n  y[0] = x[0]\n",
    "no role uses the token": "kernel k(x: f32[4]) -> y: f32[4]\n  t: i64[] token\n  y[0] = x[0]\n",
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    assert RULES[rule] != TEXT
    with pytest.raises(VerifyError, match=rule):
        verify(parse_kernel(RULES[rule]))


def test_only_some_machines_have_tokens():
    for name in ("sm_80", "sm_90", "sm_120"):
        with pytest.raises(VerifyError, match="has no tokens"):
            verify(parse_kernel(TEXT), gpu_target(name))


IN_PLACE = """
kernel k(z: i32[1]) -> x: f32[64,32], y: f32[1]
  xs: f32[64,32] shared
  full: i64[] token
  empty: i64[] token
  roles
    role load warps 1
      await empty phase -1
      copy full
        parallel i < 64
          parallel j < 32
            xs[i, j] = x[i, j]
      arrive full
    role use warps 1
      await full phase 0
      arrive empty
      x[0, 0] = xs[0, 0]
      y[0] = xs[1, 0]
"""


def test_copies_of_what_a_kernel_writes_are_refused():
    with pytest.raises(VerifyError, match="a parameter that nobody stores to, not from x"):
        verify(parse_kernel(IN_PLACE))
    other = IN_PLACE.replace("x: f32[64,32], y", "y").replace("z: i32[1]", "x: f32[64,32], z: i32[1]")
    fixed = parse_kernel(other.replace("      x[0, 0] = xs[0, 0]\n", ""))
    verify(fixed)
    assert evaluate(fixed, {"x": np.arange(2048.0), "z": np.zeros(1)})["y"] == 32


def test_parameters_that_are_copied_are_not_written_over():
    text = IN_PLACE.replace("z: i32[1]) -> x: f32[64,32], y: f32[1]", "x: f32[64,32]) -> y: f32[64,32]")
    kernel = parse_kernel(text.replace("      x[0, 0] = xs[0, 0]\n", "").replace("y[0] =", "y[1, 0] ="))
    verify(kernel)
    assert not can_alias(kernel, "x", "y")
