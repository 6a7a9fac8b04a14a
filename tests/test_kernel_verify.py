"""The kernel verifier: what it accepts, what it finds, and that its interval arithmetic is never wrong."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from kernel_samples import TEXTS, kernel, random_kernel

from pullback.codegen.target import cpu_target
from pullback.errors import VerifyError
from pullback.graph.types import f32
from pullback.kernel.bounds import apart, within
from pullback.kernel.content import content_key
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Affine, Apply, Buffer, Const, Kernel, Loop, Store, apply, load
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify


@pytest.mark.parametrize("name", TEXTS)
def test_samples_are_valid(name):
    verify(kernel(name), cpu_target("x86-64-v3"))


def test_random_kernels_are_valid():
    for seed in range(60):
        verify(random_kernel(seed))


BROKEN = {
    "not bound": "y[q] = 0.0",
    "bound by a loop around it already": "parallel i < 2\n  ordered i < 2\n    y[i] = 0.0",
    "index i + 1 of y can be 1 to 8, dimension 0 has 8 elements": "parallel i < 8\n  y[i + 1] = 0.0",
    "index i of x can be 0 to 8": "parallel i < 8\n  y[i] = 0.0\nordered i < 9\n  y[0] = x[i | i < 9 else 0.0]",
    "has 1 dimensions, the index has 2": "y[0, 1] = 0.0",
    "loads t before anything was stored": "y[0] = t",
    "iterations of i are not independent: they can meet in y": "parallel i < 8\n  y[0] = 1.0",
    "iterations of j are not independent": "parallel j < 7\n  y[j + 1] = y[j]",
    "iterations of k are not independent": "t = 0.0\nparallel k < 4\n  t = t + x[k]\ny[0] = t",
    "iterations of m are not independent": "parallel m < 4\n  t = x[m]\ny[0] = t",
    "iterations of n are not independent": "parallel n < 4\n  y[check(c[n], 8, 0)] = 1.0",
    "iterations of o are not independent": "parallel o < 2\n  parallel p < 5\n    y[o*4 + p | o*4 + p < 8] = 1.0",
    "block loops are parallel, outermost": "parallel i < 2\n  block j < 4\n    y[i*4 + j] = 0.0",
    "among themselves": "block i < 4\n  y[i] = 0.0\ny[4] = 0.0",
    "another range of blocks can meet this one in y": "block i < 4\n  y[i] = 0.0\nblock i < 4\n  y[i + 3] = 0.0",
    "register r moves with i, a loop bound to serial": "ordered i < 4\n  unroll j < 2\n    r[i] = 0.0",
    "a vector loop in a vector loop": "vector i < 2\n  vector j < 4\n    y[i*4 + j] = 0.0",
    "the check allows 9": "y[check(c[0], 9, 0)] = 0.0",
    "a check needs an integer": "y[check(x[0], 8, 0)] = 0.0",
    "stores i32 to y, which is f32": "y[0] = c[0]",
    "`where` is f32, expected bool": "y[0] = 1.0 where x[0]",
    "add of different types: f32, i32": "y[0] = add:f32(x[0], c[0])",
    "exp is not for i32": "y[0] = cast:f32(exp(c[0]))",
    "select takes 3 arguments, got 2": "y[0] = select(x[0] < 1.0, x[0])",
    "select chooses by a bool, got f32": "y[0] = select(x[0], x[0], x[0])",
    "bitcast from f32 to i8": "d[0] = bitcast:i8(x[0])",
    "keeps what is there elsewhere": "parallel i < 8\n  y[i | i < 4 else 0.0] = 1.0 where x[i] < 0.0",
    "no tile 'spiral'": "tile spiral\n  y[0] = 0.0",
    "tile transpose: expected two nested loops": "tile transpose\n  y[0] = 0.0",
    "tile fold: expected extents that halve": "r[0] = 0.0\nr[1] = 0.0\nr[2] = 0.0\nr[3] = 0.0\n"
    "tile fold\n  unroll i < 2\n    r[i] = r[i] + r[i + 2]",
    "tile fold: expected r": "r[0] = 0.0\nr[1] = 0.0\ntile fold\n  unroll i < 1\n    r[i] = r[i] + r[i]",
    "constant extent": "ordered i < 4\n  vector j < i + 1\n    y[j] = 0.0",
}
HEAD = "kernel broken(x: f32[8], c: i32[8], d: i8[8]) -> y: f32[8]\n  t: f32[] register\n  r: f32[4] register\n"


@pytest.mark.parametrize("message", BROKEN)
def test_broken_rules_are_named(message):
    k = parse_kernel(HEAD + "\n".join("  " + line for line in BROKEN[message].split("\n")))
    with pytest.raises(VerifyError, match="kernel broken") as failure:
        verify(k)
    assert message in str(failure.value)


def test_the_statement_is_named():
    k = parse_kernel(HEAD + "  parallel i < 8\n    y[i] = exp(x[i + 3])\n")
    with pytest.raises(VerifyError, match=r"`y\[i\] = exp\(x\[i \+ 3\]\)`: index i \+ 3 of x can be 3 to 10"):
        verify(k)


def test_names_spaces_functions():
    x = Buffer("x", (4,))
    with pytest.raises(VerifyError, match="two buffers have the same name"):
        verify(Kernel("k", (x, x), (), ()))
    with pytest.raises(VerifyError, match="parameters are global"):
        verify(Kernel("k", (replace(x, space="local"),), (), ()))
    with pytest.raises(VerifyError, match="no scalar function 'frobnicate'"):
        verify(Kernel("k", (x,), (), (Store("x", (Affine(),), Apply("frobnicate", (Const(1.0),), f32)),)))
    with pytest.raises(VerifyError, match="no buffer 'z'"):
        verify(Kernel("k", (x,), (), (Store("z", (Affine(),), Const(1.0)),)))


def test_gpu_loops_need_a_gpu():
    k = parse_kernel("kernel f() -> y: f32[8]\n  thread i < 8\n    y[i] = 0.0\n")
    verify(k)
    with pytest.raises(VerifyError, match="x86-64-v3 has no loops bound to thread"):
        verify(k, cpu_target("x86-64-v3"))


def test_what_schedules_make_is_accepted():
    accepted = [
        "parallel o < 2\n  parallel p < 4\n    y[o*4 + p] = x[o*4 + p]",  # split
        "parallel p < 4\n  parallel o < 2\n    y[o*4 + p] = x[o*4 + p]",  # split and interchanged
        "parallel o < 3\n  vector p < 3\n    y[o*3 + p | o*3 + p < 8] = x[o*3 + p | o*3 + p < 8 else 0.0]",  # masked
        "parallel o < 2\n  vector p < 3\n    y[o*3 + p] = 0.0\nvector p < 2\n  y[p + 6] = 0.0",  # peeled
        "block o < 2\n  vector p < 3\n    y[o*3 + p] = 0.0\nblock o < 1\n  vector p < 2\n    y[p + 6] = 0.0",
        "block o < 4\n  t = x[o]\n  y[o] = t\nblock o < 4\n  t = x[o + 4]\n  y[o + 4] = t",  # one local, two copies
        "parallel i < 8\n  y[i] = y[i] * 2.0",  # in place
        "ordered k < 4\n  parallel i < 8\n    y[i] = y[i] + x[k*2 | k < 4 else 0.0]",
        "parallel i < 2\n  parallel k < i + 1\n    y[i*4 + k] = 0.0",  # a triangle
    ]
    for text in accepted:
        verify(parse_kernel(HEAD + "\n".join("  " + line for line in text.split("\n"))))


# ---- interval arithmetic against enumeration --------------------------------------------------------------
def random_affine(r: random.Random, axes: str) -> Affine:
    a = Affine(r.randint(-4, 4))
    for n in axes:
        if r.random() < 0.7:
            a = a + Affine.of(n) * r.choice([-8, -3, -2, -1, 1, 1, 2, 3, 4, 8])
    return a


def value(a: Affine, at: dict[str, int]) -> int:
    return a.const + sum(c * at[n] for n, c in a.terms)


def test_within_is_never_wrong_and_sees_the_usual_masks():
    r = random.Random(1)
    proved = 0
    for _ in range(1500):
        extents = {n: r.randint(1, 4) for n in "ijk"}
        a, size = random_affine(r, "ijk"), r.randint(1, 12)
        masks = [(random_affine(r, "ijk"), r.randint(-3, 6)) for _ in range(r.randint(0, 2))]
        if r.random() < 0.5:
            masks += [(a, size), (a * -1, 1)]
        points = [dict(zip("ijk", p, strict=True)) for p in itertools.product(*(range(extents[n]) for n in "ijk"))]
        inside = all(0 <= value(a, p) < size for p in points if all(value(m, p) < bound for m, bound in masks))
        claim = within(a, size, {n: (0, e - 1) for n, e in extents.items()}, masks)
        assert inside or not claim
        assert claim or len(masks) < 2 or masks[-2:] != [(a, size), (a * -1, 1)]
        proved += claim
    assert proved > 500


def test_apart_is_never_wrong():
    r = random.Random(2)
    proved = 0
    for _ in range(1500):
        extents = {n: r.randint(1, 4) for n in "iuv"}
        outer = r.randint(0, 3)
        w = tuple(random_affine(r, "iuvo") for _ in range(r.randint(1, 2)))
        x = w if r.random() < 0.5 else tuple(i + r.randint(-2, 2) for i in w)
        inner = {n: (0, extents[n] - 1) for n in "uv"}
        if not apart("i", extents["i"], w, x, inner, (16, 1)[-len(w) :]):
            continue
        proved += 1
        rest = list(itertools.product(range(extents["u"]), range(extents["v"])))
        for p, q in itertools.product(range(extents["i"]), repeat=2):
            if p == q:
                continue
            mine = {tuple(value(a, {"i": p, "u": u, "v": v, "o": outer}) for a in w) for u, v in rest}
            other = {tuple(value(a, {"i": q, "u": u, "v": v, "o": outer}) for a in x) for u, v in rest}
            assert not mine & other, (w, x, extents)
    assert proved > 300


def test_dags_are_visited_once():
    """An expression of 2^60 paths: every walk must see its 60 nodes only."""
    x, y = Buffer("x", (4,)), Buffer("y", (4,))
    e = load(x, "i")
    for _ in range(60):
        e = apply("add", e, e)
    k = Kernel("dag", (x, y), (), (Loop("i", 4, "parallel", (Store("y", (Affine.of("i"),), e),)),))
    verify(k)
    assert print_kernel(k).count("let") == 59
    assert print_kernel(parse_kernel(print_kernel(k))) == print_kernel(k)
    assert content_key(parse_kernel(print_kernel(k))) == content_key(k)
    assert evaluate(k, [[1.0, 2.0, 3.0, 4.0], None])["y"].tolist() == [2.0**60 * n for n in (1, 2, 3, 4)]
