"""Random graphs for fusion: rows, columns, contractions and pointwise chains over a few shapes that meet again.

`random_graphs.py` has every op on tiny shapes; here shapes are large enough for several chunks, masks and lanes, and
values are shared, stored, recomputed and reduced in many ways at once.
"""

from __future__ import annotations

import random

import numpy as np

from pullback.dsl import array as xp
from pullback.dsl.tensor import Tensor
from pullback.graph.graph import Graph, Loc, make
from pullback.graph.types import f32, i32, u32
from pullback.ops import contract, indexing, leaf, movement, ordered
from pullback.ops.random import Random

LOC = Loc("model.py", 1, "f")
ROWS, COLUMNS = (1, 2, 7, 16, 20, 40, 130), (1, 3, 16, 33, 64, 65, 100)


class Builder:
    """Grows tensors of shape [n, m], [n, 1], [m], [] and a few others by random operations."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.n, self.m = rng.choice(ROWS), rng.choice(COLUMNS)
        self.inputs: list[Tensor] = []
        for k, shape in enumerate([(self.n, self.m), (self.n, self.m), (self.m,), (self.m, self.m), ()]):
            self.inputs.append(Tensor(make(leaf.Input(f"x{k}", f32, shape), loc=LOC)))
        self.labels = Tensor(make(leaf.Input("labels", i32, (self.n,)), loc=LOC))
        self.pool: list[Tensor] = list(self.inputs)

    def full(self) -> Tensor:
        """A tensor of shape [n, m], by broadcasting if need be."""
        x = self.rng.choice(self.pool[-6:] if self.rng.random() < 0.7 else self.pool)
        if x.shape == (self.n, self.m):
            return x
        fits = len(x.shape) <= 2 and all(a in (1, b) for a, b in zip(x.shape[::-1], (self.m, self.n), strict=False))
        return xp.broadcast_to(x, (self.n, self.m)) if fits else self.inputs[0]

    def step(self) -> Tensor:
        rng, x = self.rng, self.full()
        kind = rng.choice(STEPS)
        if kind == "unary":
            return rng.choice((xp.tanh, xp.exp, xp.abs, xp.negative, lambda t: t * 0.5))(x * 0.3)
        if kind == "binary":
            return rng.choice((xp.add, xp.subtract, xp.multiply, xp.maximum))(x, self.full())
        if kind == "row":
            f = rng.choice((xp.sum, xp.max, xp.min))
            return f(x, axis=1, keepdims=rng.random() < 0.9)
        if kind == "column":
            return rng.choice((xp.sum, xp.max))(x, axis=0)
        if kind == "all":
            return xp.sum(x) * (1.0 / x.node.type.size)
        if kind == "softmax":
            e = xp.exp(x - xp.max(x, axis=1, keepdims=True))
            return e / xp.sum(e, axis=1, keepdims=True)
        if kind == "normalise":
            d = x - xp.mean(x, axis=1, keepdims=True)
            return d / xp.sqrt(xp.mean(d * d, axis=1, keepdims=True) + 1e-3)
        if kind == "contract":
            return Tensor(make(contract.Contract("ik", "jk", "ij"), x.node, self.inputs[3].node, loc=LOC)) * 0.1
        if kind == "gradient":  # [m, m], then a row of it
            g = Tensor(make(contract.Contract("ki", "kj", "ij"), x.node, self.full().node, loc=LOC)) * 0.1
            self.pool.append(g)
            return xp.sum(g * self.inputs[3], axis=rng.choice((0, 1)))
        if kind == "pick":
            at = xp.expand_dims(self.labels, axis=1)
            return Tensor(make(indexing.GatherAlong(1), x.node, at.node, loc=LOC))
        if kind == "flip":
            return Tensor(make(movement.Flip((rng.randrange(2),)), x.node, loc=LOC))
        if kind == "halves":
            return xp.concat([x[:, self.m // 2 :], x[:, : self.m // 2]], axis=1)
        if kind == "transpose":
            t = xp.permute_dims(x, (1, 0))
            self.pool.append(t)
            return xp.permute_dims(t * 2.0, (1, 0))
        if kind == "flat":
            return xp.reshape(xp.reshape(x, (-1,)) + 1.0, x.shape)
        if kind == "cumulative":
            return Tensor(make(ordered.CumSum(rng.randrange(2), False), x.node, loc=LOC)) * 0.1
        if kind == "argmax":
            return xp.astype(xp.argmax(x, axis=rng.randrange(2)), f32)
        assert kind == "dropout"
        words = [np.zeros(2, np.uint32), np.uint32(rng.randrange(9))]
        bits = Tensor(make(Random(1, x.shape), *(make(leaf.Constant.of(w, u32)) for w in words), loc=LOC))
        return xp.where(bits > 1 << 31, x, 0.0)


STEPS = (
    *["unary", "binary", "binary", "row", "column"] * 2,
    *("all", "softmax", "normalise", "contract", "gradient", "pick", "flip", "flip", "halves", "transpose", "flat"),
    *("cumulative", "argmax", "dropout"),
)


def fusion_graph(rng: random.Random, steps: int = 10) -> Graph:
    b = Builder(rng)
    for _ in range(steps):
        b.pool.append(b.step())
    outputs = [b.pool[-1], *(rng.choice(b.pool[6:]) for _ in range(rng.randint(0, 4)))] if steps > 2 else b.pool[-2:]
    return Graph("fusion", tuple(t.node for t in (*b.inputs, b.labels)), tuple(t.node for t in outputs))


def fusion_inputs(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    m = graph.inputs[2].shape[0]
    return [
        rng.integers(0, m, x.shape).astype(np.int32)
        if x.dtype is i32
        else np.asarray(rng.standard_normal(x.shape), np.float32)
        for x in graph.inputs
    ]
