"""Deep networks: equal layers fuse equally, so neither kernels nor launches of a layer depend on how many there are."""

from __future__ import annotations

import pytest

import pullback as pb
from pullback import nn, optim
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.lower.groups import Region

WIDTH, BATCH = 64, 32


class PreNorm(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def __call__(self, x):
        return x + nn.gelu(self.linear(self.norm(x)), approximate="tanh")


class PostNorm(nn.Module):
    def __init__(self):
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def __call__(self, x):
        return self.norm(x + nn.relu(self.linear(x)))


class TwoProducts(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def __call__(self, x):
        return x + self.down(nn.gelu(self.up(self.norm(x))))


class Gated(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(WIDTH)
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def __call__(self, x):
        h = self.norm(x)
        return x + self.down(nn.silu(self.gate(h)) * self.up(h))


class Silu(nn.Module):
    def __init__(self):
        self.linear = nn.Linear(WIDTH, WIDTH)

    def __call__(self, x):
        return x + nn.silu(self.linear(x)) * 0.5


class Dropped(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def __call__(self, x):
        return x + self.dropout(nn.gelu(self.linear(self.norm(x))))


def build(layer, depth: int) -> Build:
    model = nn.Sequential(*[layer() for _ in range(depth)])
    optimizer = optim.Adam(model, lr=1e-3)

    @pb.function(pb.f32[BATCH, WIDTH], pb.i32[BATCH], training=True)
    def train(x, y):
        loss = nn.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    return Build(trace_functions([train], {"model": model, "optimizer": optimizer}), Options(cache=False))


def train(layer, depth: int) -> Region:
    return build(layer, depth).regions[0]


@pytest.mark.parametrize("layer", [PreNorm, PostNorm, TwoProducts, Gated, Silu, Dropped])
def test_kernels_do_not_grow_with_depth(layer):
    few, more, most = (train(layer, depth) for depth in (4, 9, 14))
    assert distinct(few) == distinct(more) == distinct(most)
    assert len(most.pieces) - len(more.pieces) == len(more.pieces) - len(few.pieces)


def distinct(r: Region) -> int:
    return len({id(p.kernel) for p in r.pieces})


def test_launches_of_a_layer():
    """Forward: normalise, then the product with its epilogue.  Backward: the rows' gradients with all column sums, then
    the two products side by side; the updates run beside later layers."""
    few, more = (launches(PreNorm, depth) for depth in (4, 9))
    assert more - few == 4 * 5


def launches(layer, depth: int) -> int:
    (plan,) = build(layer, depth).plans.values()
    return len(plan.functions[0].steps)
