"""Compiled programs give the bits that the kernel evaluator predicts from their plan: outputs and every state."""

from __future__ import annotations

import numpy as np
import pytest

import pullback as pb
from pullback import nn, optim
from pullback.codegen.numpy_math import numpy_functions
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.kernel.evaluate import evaluate_plan, pack_state, unpack_state
from pullback.kernel.plan_text import parse_plan, print_plan
from pullback.kernel.verify import verify, verify_plan
from pullback_runtime import load


class Block(nn.Module):
    """Layer norm, attention and an embedding: rows, contractions, gathers."""

    def __init__(self):
        self.tokens = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def __call__(self, tokens):
        x = self.norm(self.tokens(tokens))
        scores = pb.matmul(self.query(x), pb.permute_dims(self.key(x), (0, 2, 1)))
        return pb.matmul(pb.softmax(scores / 3.0, axis=-1), pb.gelu(self.value(x)))


block = Block()
adam = optim.AdamW(block, lr=0.01)


@pb.function(pb.i32[3, 5], pb.i32[3, 5], training=True)
def train(tokens, labels):
    logits = block(tokens)
    loss = nn.cross_entropy(pb.reshape(logits, (15, 11)), pb.reshape(labels, (15,)))
    adam.minimize(loss)
    return loss, pb.argmax(logits, axis=-1)


@pytest.mark.parametrize(("fusion", "cpu"), [(True, "native"), (False, "native"), (True, "x86-64-v2")])
def test_a_training_step_bit_for_bit(tmp_path, fusion, cpu):
    program = trace_functions([train], {"block": block, "adam": adam})
    built = Build(program, Options(fusion=fusion, cpu=cpu))
    plan = built.plans[built.targets[-1].isa]
    verify_plan(plan)
    for k in plan.kernels.values():
        verify(k, built.targets[-1])
    assert print_plan(parse_plan(print_plan(plan), plan.constants)) == print_plan(plan)
    path = tmp_path / "block.so"
    path.write_bytes(built.artifact)
    compiled = load(path, seed=3)
    state = pack_state(plan, {name: np.array(value) for name, value in compiled.state.items()})
    g = np.random.default_rng(0)
    for _ in range(3):
        tokens, labels = g.integers(0, 11, (2, 3, 5)).astype(np.int32)
        got = compiled.train(tokens=tokens, labels=labels)
        wanted = evaluate_plan(plan, "train", state, [tokens, labels], functions=numpy_functions())
        assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
        for name, value in unpack_state(plan, state).items():
            assert np.array_equal(np.asarray(compiled.state[name]), value), name


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("dtype", [pb.f32, pb.f64], ids=str)
def test_products_give_the_same_bits_however_factors_lie(tmp_path, dtype, cpu):
    """k is added in order, so a factor that is turned on its way to registers changes nothing."""
    shapes = [(m, n, k) for m in (2, 3, 4, 7, 12) for n, k in ((2, 67), (16, 19), (33, 16), (70, 35), (131, 130))]

    def products(a, b, c):
        return a @ b, a @ c.T

    def function(i, m, n, k):
        return pb.function(dtype[m, k], dtype[k, n], dtype[n, k], name=f"f{i}")(products)

    program = trace_functions([function(i, *s) for i, s in enumerate(shapes)])
    path = tmp_path / "products.so"
    path.write_bytes(Build(program, Options(cpu=cpu)).artifact)
    compiled, g = load(path), np.random.default_rng(0)
    for i, (m, n, k) in enumerate(shapes):
        a, b = (g.standard_normal(s).astype(np.float32 if dtype is pb.f32 else float) for s in ((m, k), (k, n)))
        plain, turned = getattr(compiled, f"f{i}")(a=a, b=b, c=np.ascontiguousarray(b.T))
        assert np.array_equal(plain, turned), (m, n, k)
        assert np.allclose(plain, a @ b, rtol=1e-4, atol=1e-4), (m, n, k)


def test_a_value_that_one_stage_needs_in_part_is_not_kept_in_part(tmp_path):
    """The sum visits three rows; kept from there, the other five would be read and never written."""

    def sliced(m, b):
        x = b * pb.cos(m) * 1.25
        return x[:, 3:, :] + pb.sum(x[:, :3, :]), x + pb.max(x[:, :, 1:], axis=(1, 2), keepdims=True)

    program = trace_functions([pb.function(pb.f64[2, 8, 4], pb.f64[2, 8, 4], name="f")(sliced)])
    path = tmp_path / "sliced.so"
    path.write_bytes(Build(program, Options()).artifact)
    m, b = np.random.default_rng(0).standard_normal((2, 2, 8, 4))
    x = b * np.cos(m) * 1.25
    first, second = load(path).f(m=m, b=b)
    assert np.allclose(first, x[:, 3:] + x[:, :3].sum(), rtol=1e-13)
    assert np.allclose(second, x + x[:, :, 1:].max((1, 2), keepdims=True), rtol=1e-13)
