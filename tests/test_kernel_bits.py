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
