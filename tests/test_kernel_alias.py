"""Which outputs may lie on inputs, and which kernels share code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_samples import TEXTS, inputs, kernel, random_kernel

from pullback.errors import PullbackError
from pullback.kernel.alias import can_alias, merge_params
from pullback.kernel.content import content, content_key, free_block, with_blocks
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Affine, Kernel, Loop, Store, map_expr, map_stmts, map_store, subst_leaf, written
from pullback.kernel.text import parse_kernel

HEAD = "kernel k(a: f32[6,6], v: f32[6]) -> b: f32[6,6]\n  s: f32[] register\n  t: f32[6] local\n"


def nest(text: str) -> Kernel:
    return parse_kernel(HEAD + "\n".join("  " + line for line in text.strip("\n").split("\n")))


SAFE = {
    "element by element": "parallel i < 6\n  parallel j < 6\n    b[i, j] = a[i, j] * v[j]",
    "row by row": """
parallel i < 6
  s = -inf
  reduce k < 6
    s = maximum(s, a[i, k])
  parallel k < 6
    b[i, k] = exp(a[i, k] - s)""",
    "a row kept, then shifted": """
parallel i < 6
  parallel k < 6
    t[k] = a[i, k]
  parallel k < 6
    b[i, k] = t[k] + t[0]""",
    "split and masked": """
block o < 2
  parallel i < 4
    vector j < 6
      b[o*4 + i, j | o*4 + i < 6] = neg(a[o*4 + i, j | o*4 + i < 6 else 0.0])""",
    "peeled": """
block o < 2
  vector j < 6
    b[o*2, j] = a[o*2, j]
    b[o*2 + 1, j] = a[o*2 + 1, j]
block o < 2
  vector j < 6
    b[o + 4, j] = neg(v[j])""",
}
UNSAFE = {
    "the row before": "parallel i < 6\n  parallel j < 6\n    b[i, j] = a[i, j] + a[i, 0]",
    "transposed": "parallel i < 6\n  parallel j < 6\n    b[j, i] = a[i, j]",
    "read after": "parallel i < 6\n  parallel j < 6\n    b[i, j] = 0.0\n  parallel j < 6\n    t[j] = a[i, j]",
    "column sums": """
parallel j < 6
  s = 0.0
  reduce i < 6
    s = s + a[i, j]
  parallel i < 6
    b[j, i] = s""",
    "gathered": "parallel i < 6\n  parallel j < 6\n    b[i, j] = a[check(cast:i32(v[i]), 6, 0), j]",
    "the output is read": "parallel i < 6\n  parallel j < 6\n    b[i, j] = a[i, j]\n    b[i, j] = b[i, j] + 1.0",
    "side by side": """
parallel i < 6
  s = 0.0
  reduce j < 6
    s = s + a[i, j]
  t[i] = s
parallel i < 6
  parallel j < 6
    b[i, j] = t[i]""",
}


@pytest.mark.parametrize("name", SAFE)
def test_safe_in_place(name):
    k = nest(SAFE[name])
    assert can_alias(k, "a", "b")
    merged = merge_params(k, "a", "b")
    assert [p.name for p in merged.params] == ["v", "b"]
    arrays = inputs(k)
    separate = evaluate(k, arrays)["b"]
    for lockstep in (True, False):
        together = evaluate(merged, {"v": arrays["v"], "b": arrays["a"]}, lockstep)["b"]
        assert np.array_equal(separate, together, equal_nan=True)


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_in_place(name):
    k = nest(UNSAFE[name])
    assert not can_alias(k, "a", "b")
    with pytest.raises(PullbackError, match="kernel k: a and b cannot share memory"):
        merge_params(k, "a", "b")


def test_other_layouts_and_roles_never_alias():
    k = nest(SAFE["element by element"])
    assert not can_alias(k, "v", "b") and not can_alias(k, "b", "b") and not can_alias(k, "a", "missing")
    assert not can_alias(k, "b", "a")  # a is not written
    strided = replace(k, params=(replace(k.params[0], strides=(1, 6)), *k.params[1:]))
    assert not can_alias(strided, "a", "b")


def test_what_random_kernels_may_do_in_place():
    """Where the analysis says yes, one array gives the bits of two."""
    yes = 0
    for seed in range(300):
        k = random_kernel(seed)
        if can_alias(k, "x", "y"):
            yes += 1
            arrays = inputs(k, seed)
            separate = evaluate(k, {**arrays, "y": arrays["x"]})["y"]
            together = evaluate(merge_params(k, "x", "y"), {"n": arrays["n"], "y": arrays["x"]}, lockstep=False)["y"]
            assert np.array_equal(separate, together, equal_nan=True), seed
    assert yes >= 5


# ---- content --------------------------------------------------------------------------------------------
def renamed(k: Kernel) -> Kernel:
    """Every axis and buffer under another name."""
    axes = {s.axis: f"new_{s.axis}" for s in _loops(k)}
    env = {a: Affine.of(b) for a, b in axes.items()}

    def one(s):
        if isinstance(s, Loop):
            extent = s.extent if isinstance(s.extent, int) else s.extent.subst(env)
            return (replace(s, axis=axes[s.axis], extent=extent),)
        if isinstance(s, Store):
            s = map_store(s, lambda e: subst_leaf(e, env))
            s = map_store(s, lambda e: replace(e, buffer=f"n_{e.buffer}") if hasattr(e, "buffer") else e)
            index = tuple(i.subst(env) if isinstance(i, Affine) else i for i in s.index)
            masks = tuple((m.subst(env), n) for m, n in s.masks)
            return (replace(s, buffer=f"n_{s.buffer}", index=index, masks=masks),)
        return (s,)

    buffers = [tuple(replace(b, name=f"n_{b.name}") for b in bs) for bs in (k.params, k.locals)]
    return Kernel("another", *buffers, map_stmts(k.body, one))


def _loops(k: Kernel) -> list[Loop]:
    out = []
    map_stmts(k.body, lambda s: (out.append(s) or (s,)) if isinstance(s, Loop) else (s,))
    return out


@pytest.mark.parametrize("name", TEXTS)
def test_names_do_not_count(name):
    k = kernel(name)
    assert content_key(renamed(k)) == content_key(k), content(k)


def test_random_kernels_have_different_content():
    kernels = [random_kernel(seed) for seed in range(60)]
    assert len({content_key(k) for k in kernels}) == 60
    assert all(content_key(renamed(k)) == content_key(k) for k in kernels)


def test_everything_else_counts():
    text = "kernel k(x: f32[8]) -> y: f32[8]\n  block o < 2\n    vector i < 4\n      y[o*4 + i] = exp(x[o*4 + i])\n"
    changes = [
        ("exp", "log"), ("vector", "parallel"), ("y[o*4 + i]", "y[o*4 + i + -1]"), ("x: f32", "x: f64"),
        ("= exp(x[o*4 + i])", "= exp(x[o*4 + i | i < 3 else 0.0])"), ("i < 4", "i < 3"), ("exp(", "exp(2.0 * "),
        ("block o < 2", "ordered o < 2"), ("y: f32[8]", "y: f32[8] strides(2)"),
    ]  # fmt: skip
    keys = {content_key(parse_kernel(text))}
    for old, new in changes:
        assert old in text
        keys.add(content_key(parse_kernel(text.replace(old, new))))
    assert len(keys) == len(changes) + 1


def test_the_number_of_blocks_is_no_part_of_the_code():
    text = """
kernel k(x: f32[{n},4]) -> y: f32[{n},4]
  block o < {b}
    parallel r < 2
      vector i < 4
        y[o*2 + r, i] = x[o*2 + r, i]
"""
    small, large = (parse_kernel(text.format(n=2 * b, b=b)) for b in (3, 50))
    assert content_key(small) == content_key(large) and free_block(small) is small.body[0]
    grown = with_blocks(small, 50)
    assert grown.blocks == 50 and [p.shape for p in grown.params] == [(100, 4), (100, 4)]
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    assert np.array_equal(evaluate(grown, {"x": x})["y"], x)
    masked = text.replace("y[o*2 + r, i]", "y[o*2 + r, i | o*2 + r < 5]")
    small, large = (parse_kernel(masked.format(n=2 * b, b=b)) for b in (3, 50))
    assert content_key(small) != content_key(large) and free_block(small) is None
    assert with_blocks(small, 50) is small


def test_the_key_ignores_sharing_of_equal_parts():
    k = random_kernel(3)

    def copy(e):
        return replace(e)

    unshared = replace(k, body=map_stmts(k.body, lambda s: (map_store(s, copy),) if isinstance(s, Store) else (s,)))
    assert content_key(unshared) == content_key(k)
    assert written(k.body) == {"acc", "y"} and map_expr(k.body[0].body[0].body[0].value, copy).value == 0.0
