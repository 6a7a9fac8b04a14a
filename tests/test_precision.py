"""`--precision`: the pass, the nests and what a step computes.

bf16 and tf32 are graphs whose casts are explicit, so the first tests say them before and after.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from random_graphs import traced
from test_emit import HERE

import pullback as pb
from pullback import cli, driver, nn, optim, passes
from pullback.codegen.target import cpu_target
from pullback.dsl.tensor import emit
from pullback.dsl.trace import trace_functions, trace_script
from pullback.errors import BuildError
from pullback.graph.content import equal
from pullback.graph.graph import Graph, make
from pullback.graph.text import parse, to_text
from pullback.graph.types import TensorType, bf16, f32, f64
from pullback.kernel.text import print_kernel
from pullback.lower import lower
from pullback.ops.contract import Contract
from pullback.ops.elementwise import Cast
from pullback.ops.leaf import Input
from pullback.ops.movement import Permute
from pullback.passes.precision import precision

EXAMPLES = Path(__file__).parent.parent / "examples"
X, W = TensorType(f32, (4, 6)), TensorType(f32, (5, 6))


def op(o, *xs):
    return emit(o, *(x.node for x in xs))


def half(x):
    return op(Cast(bf16), x)


def contract(lhs, rhs, out, **kw):
    return lambda x, w: op(Contract(lhs, rhs, out, **kw), x, w)


nt, tn = contract("ik", "jk", "ij"), contract("ki", "kj", "ij")
wide_nt, wide_tn = contract("ik", "jk", "ij", wide=True), contract("ki", "kj", "ij", wide=True)


def becomes(name, before, after, *types):
    got = passes.run(traced(before, *types), precision(name))
    want = traced(after, *types)
    assert equal(got, want), f"{to_text(got)}\nis not\n{to_text(want)}"


def test_bf16_casts_each_value_once():
    def before(x, w):
        return nt(x, w), tn(x, x)

    def after(x, w):
        h = half(x)
        return wide_nt(h, half(w)), wide_tn(h, h)

    becomes("bf16", before, after, X, W)


def test_bf16_casts_before_moving():
    def before(x, w):
        return nt(x, op(Permute((1, 0)), w)), nt(x, w[:, :4])

    def after(x, w):
        h, v = half(x), half(w)
        return wide_nt(h, op(Permute((1, 0)), v)), wide_nt(h, v[:, :4])

    square = TensorType(f32, (4, 4))
    becomes("bf16", lambda x, w: before(x, w)[0], lambda x, w: after(x, w)[0], square, square)
    becomes("bf16", before, after, square, TensorType(f32, (4, 4)))


def test_tf32_is_a_field():
    becomes("tf32", nt, contract("ik", "jk", "ij", tf32=True), X, W)


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_what_is_no_sum_of_f32_stays(name):
    wide, narrow = TensorType(f64, (4, 6)), TensorType(bf16, (4, 6))
    for t in (wide, narrow):
        becomes(name, contract("ik", "jk", "ij"), contract("ik", "jk", "ij"), t, t)


def test_twice_changes_nothing():
    for name in ("bf16", "tf32"):
        once = passes.run(traced(nt, X, W), precision(name))
        assert equal(passes.run(once, precision(name)), once)


def test_unknown():
    with pytest.raises(BuildError, match="--precision f16: expected f32, tf32, bf16"):
        precision("f16")


def test_fields_are_printed_where_they_are_set():
    graph = passes.run(traced(nt, X, W), precision("bf16"))
    text = to_text(graph)
    assert 'out="ij" wide=true: f32[4,5]' in text and "tf32" not in text
    assert equal(parse(text), graph)


def nest(**fields) -> str:
    dtype = bf16 if fields.get("wide") else f32
    x, w = (make(Input(n, dtype, s)) for n, s in (("x", (4, 6)), ("w", (5, 6))))
    (piece,) = lower(Graph("g", (x, w), (make(Contract("ik", "jk", "ij", **fields), x, w),))).pieces
    return print_kernel(piece.kernel)


def test_nests():
    assert "acc0 = fma(tf32(x0[i0, k0]), tf32(x1[i1, k0]), acc0)" in nest(tf32=True)
    assert "acc0 = fma_ftz(cast:f32(x0[i0, k0]), cast:f32(x1[i1, k0]), acc0)" in nest(wide=True)


# ---- what a step computes ---------------------------------------------------------------------------------
WIDTH, BATCH, CLASSES = 96, 64, 10


def trained(threads: int = 1, **options):
    """A program that trains a small network: losses of steps, and the state that they leave."""
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, CLASSES))
    optimizer = optim.Adam(model, lr=1e-3)

    @pb.function(pb.f32[BATCH, WIDTH], pb.i32[BATCH], training=True)
    def train(x, y):
        loss = nn.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    return pb.build(train, threads=threads, cache=False, **options)


def losses(program, steps: int) -> np.ndarray:
    """New samples at each step, of classes that a linear map tells apart."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((WIDTH, CLASSES), dtype=np.float32)
    out = []
    for _ in range(steps):
        x = rng.standard_normal((BATCH, WIDTH), dtype=np.float32)
        out.append(program.train(x=x, y=(x @ teacher).argmax(-1).astype(np.int32)))
    return np.array(out)


def test_training_as_with_f32():
    expected = losses(trained(), 300)
    assert expected[-20:].mean() < 0.5 * expected[:20].mean()
    for name in ("bf16", "tf32"):
        got = losses(trained(precision=name), 300)
        assert 0 < abs(got.mean() - expected.mean()) < 0.02 * expected.mean(), name
        assert abs(got[-50:].mean() - expected[-50:].mean()) < 0.02 * expected[-50:].mean(), name


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_the_same_bits_in_every_way(name):
    """Threads, fusion, recomputation, instruction sets: with products in pairs and without."""
    ways = [{}, {"threads": 2}, {"fusion": False}, {"recompute": False}, *({"cpu": level} for level in HERE[1:])]
    results = [losses(trained(precision=name, **way), 4).tobytes() for way in ways]
    assert set(results) == {results[0]}


@pytest.mark.parametrize("name, error", [("bf16", 1e-2), ("tf32", 1e-3)])
def test_gradients(name, error):
    """Those of the f32 program, but for the rounding of operands."""

    @pb.function(pb.f32[32, 70], pb.f32[50, 70], pb.f32[50, 9])
    def gradients(x, w, v):
        h = pb.tanh(x @ w.T)
        return pb.grad(pb.sum(pb.sin(h @ v)), (x, w, v))

    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((32, 70)),
        "w": rng.standard_normal((50, 70)) / 8,
        "v": rng.standard_normal((50, 9)) / 7,
    }
    arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    exact, got = (pb.build(gradients, cache=False, precision=p).gradients(**arrays) for p in ("f32", name))
    for a, b in zip(exact, got, strict=True):
        assert a.dtype == b.dtype == np.float32
        assert 0 < np.linalg.norm(a - b) < error * np.linalg.norm(a)


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_digits_reach_the_accuracy_of_f32(name, tmp_path, capsys):
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(EXAMPLES / "train_digits.py"))["main"]
    program = trace_script(EXAMPLES / "digits.py", [], {"batch": 64})
    driver.write(tmp_path / "digits.so", driver.compile_program(program, pb.Options(cache=False, precision=name)))
    assert main(tmp_path / "digits.so") >= 0.97


@pytest.mark.parametrize("cpu, named", [("v3", "x86-64-v3"), ("v3,v4", "x86-64-v3 and x86-64-v4")])
def test_bf16_without_instructions_for_it_is_remarked(cpu, named, tmp_path, capsys):
    script = tmp_path / "product.py"
    script.write_text("import pullback as pb\n@pb.function(pb.f32[2, 3], pb.f32[3])\ndef f(x, w):\n    return x @ w\n")
    argv = ["build", str(script), "-o", str(tmp_path / "p.so"), "--no-cache", "--cpu", cpu, "--precision"]
    assert cli.main([*argv, "bf16"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"pullback: warning: --precision bf16: no AVX-512-BF16 (VDPBF16PS) on {named}:")
    for silent in (["bf16", "-q"], ["f32"]):
        assert cli.main([*argv, *silent]) == 0 and not capsys.readouterr().err


def test_what_is_remarked_depends_on_machine_and_program():
    def said(f, **options):
        return driver.remarks(trace_functions([f]), pb.Options(precision="bf16", **options))

    @pb.function(pb.f32[4, 3], pb.f32[3, 3])
    def looped(xs, w):
        return pb.scan(lambda c, x: (pb.tanh(w @ c + x), c), pb.zeros((3,)), xs)[0]

    @pb.function(pb.f32[4])
    def pointwise(x):
        return x * 2.0

    assert said(looped, cpu="v4") and not said(pointwise, cpu="v4") and not said(looped, target="cuda")
    assert bool(said(looped, cpu="native")) != cpu_target("native").has_bf16_dot
    with pytest.warns(UserWarning, match="AVX-512-BF16") as found:
        pb.build(looped, cache=False, cpu="v2", precision="bf16")
    assert found[0].filename == __file__
