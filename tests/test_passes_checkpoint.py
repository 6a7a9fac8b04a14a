"""What is saved for the backward part, and what is computed again."""

import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import graphs, random_inputs, same_values

from pullback import nn, passes
from pullback.autodiff import grad
from pullback.dsl import array as xp
from pullback.dsl.tensor import Tensor, emit
from pullback.graph.content import equal
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, Loc, Node, make, rewrite
from pullback.graph.text import to_text
from pullback.graph.types import bool_, f32, u32
from pullback.ops.leaf import Input, Leaf
from pullback.ops.random import Random
from pullback.passes.checkpoint import _cut, _solve, checkpoint

LOC = Loc("model.py", 1)
B, D = 8, 6


def tensor(label, *shape, dtype=f32):
    return Tensor(make(Input(label, dtype, shape), loc=LOC))


def gelu(k, z, *_):
    half = z * 0.5
    return half + half * xp.erf(z * 0.5**0.5)


def training(layer, depth=3) -> Graph:
    """Loss and gradients of a stack of `layer(k, z)` after linear maps, simplified."""
    x, ws = tensor("x", B, D), [tensor(f"w{k}", D, D) for k in range(depth + 1)]
    bs = [tensor(f"b{k}", D) for k in range(depth + 1)]
    seed, step = tensor("seed", 2, dtype=u32), tensor("step", dtype=u32)
    h = x
    for k in range(depth):
        h = layer(k, h @ ws[k].T + bs[k], seed, step)
    z = h @ ws[-1].T + bs[-1]
    loss = -xp.mean(nn.log_softmax(z, axis=1)[:, 0])
    gradients = grad(loss, [*ws, *bs])
    inputs = tuple(t.node for t in (x, *ws, *bs, seed, step))
    return passes.run(Graph("train", inputs, (loss.node, *[g.node for g in gradients])))


def kept(g: Graph) -> list[str]:
    """Ops of the forward values that wait for gradient nodes: copies, or behind a contraction."""
    depth = {}
    for n in g.nodes:
        depth[n] = max([depth[x] for x in n.inputs], default=0) + (n.op.name == "contract")
    found = dict.fromkeys(
        x
        for n in g.nodes
        if n.loc.gradient
        for x in n.inputs
        if not x.loc.gradient and (n.tag or depth[n] > depth[x]) and not isinstance(x.op, Leaf)
    )
    return [n.op.name for n in g.nodes if n in found]


def counts(g: Graph) -> dict[str, int]:
    names = [n.op.name for n in g.nodes]
    return {k: names.count(k) for k in ("contract", "sum", "max", "random")}


def check(layer, depth=3) -> tuple[Graph, Graph]:
    before = training(layer, depth)
    after = passes.run(before, [checkpoint])
    assert counts(after) == counts(before)
    inputs = random_inputs(before, special=False)
    assert same_values(evaluate(before, inputs), evaluate(after, inputs))
    assert equal(passes.run(after, [passes.cse]), after), "cse must not merge the copies again"
    assert passes.run(after, [checkpoint]) is after
    return before, after


def test_relu_keeps_only_what_the_next_layer_keeps():
    before, after = check(lambda k, z, *_: xp.where(z <= 0, 0, z))
    assert kept(before) == ["le", "select"] * 3
    assert kept(after) == ["select"] * 3


@pytest.mark.parametrize(
    "condition, result",
    [
        (lambda z: z > 0, lambda c, z: xp.where(c, z, 0)),
        (lambda z: z > 0, lambda c, z: xp.where(c, z, z * 0.01)),
    ],
)
def test_other_rectifiers(condition, result):
    _, after = check(lambda k, z, *_: result(condition(z), z))
    assert kept(after) == ["select"] * 3


def test_a_result_that_does_not_show_the_condition():
    _, after = check(lambda k, z, *_: xp.where(z <= 0, 1, z))
    assert kept(after) == ["le", "select"] * 3


def test_a_negative_slope_does_not_show_the_sign():
    _, after = check(lambda k, z, *_: xp.where(z > 0, z, z * -0.5))
    assert kept(after) == ["gt", "select"] * 3  # one byte of mask rather than four of z


def test_gelu_keeps_the_preactivation():
    before, after = check(gelu)
    assert kept(before) == ["mul", "erf", "add"] * 3  # besides what early gradient nodes read
    assert kept(after) == ["add", "add"] * 3  # z = x @ w.T + b, and gelu(z) for the next layer


def test_tanh_keeps_nothing_but_its_result():
    _, after = check(lambda k, z, *_: xp.tanh(z))
    assert kept(after) == ["tanh"] * 3


def test_dropout_keeps_the_mask_and_never_draws_again():
    def dropout(k, z, seed, step):
        bits = emit(Random(k, (B, D)), seed.node, step.node)
        return xp.where(bits < 2**31, xp.tanh(z) * 2, 0)

    _, after = check(dropout)
    saved = [n for n in after.nodes if n.op.name == "lt"]
    assert len(saved) == 3 and all(n.dtype is bool_ for n in saved)
    assert kept(after).count("random") == 0 and kept(after).count("lt") == 3


def test_layer_norm_keeps_statistics_and_input():
    def norm(k, z, *_):
        mean = xp.mean(z, axis=1, keepdims=True)
        centred = z - mean
        return centred / xp.sqrt(xp.mean(centred * centred, axis=1, keepdims=True) + 1e-5)

    _, after = check(norm)
    assert kept(after) == ["sub", "sqrt", "div"] * 3  # z - mean, each row's deviation, the next input


def test_a_residual_stream_is_not_summed_up_again():
    """x + f(x) at every layer: copies of one layer stay in that layer, else the last would repeat all."""

    def residual(depth):
        x, ws = tensor("x", B, D), [tensor(f"w{k}", D, D) for k in range(depth)]
        h = x
        for k in range(depth):
            h = h + gelu(k, (h - xp.mean(h, axis=1, keepdims=True)) @ ws[k])
        loss = xp.mean(h * h)
        g = Graph("g", tuple(t.node for t in (x, *ws)), (loss.node, *[t.node for t in grad(loss, ws)]))
        return passes.run(passes.run(g), [checkpoint])

    def longest(g):
        length = {}
        for n in g.nodes:
            length[n] = (n.tag > 0) + max([length[x] for x in n.inputs if x.tag], default=0)
            assert all(x.tag in (0, n.tag) for x in n.inputs if n.tag)
        return max(length.values())

    few, many = residual(4), residual(8)
    assert longest(few) == longest(many)
    assert len([n for n in many.nodes if n.tag]) <= 2.5 * len([n for n in few.nodes if n.tag])


def test_values_of_the_same_kernel_are_not_computed_again():
    """Softmax and its gradient have no contraction between them: one kernel, nothing to save."""
    x, w = tensor("x", B, D), tensor("w", D, D)
    z = x @ w
    e = xp.exp(z - xp.max(z, axis=1, keepdims=True))
    loss = xp.mean(xp.log(xp.sum(e, axis=1)))
    g = passes.run(Graph("train", (x.node, w.node), (loss.node, *[t.node for t in grad(loss, [w])])))
    assert passes.run(g, [checkpoint]) is g


def test_forward_graphs_stay():
    x, w = tensor("x", B, D), tensor("w", D, D)
    g = Graph("f", (x.node, w.node), (xp.tanh(xp.tanh(x @ w) @ w).node,))
    assert checkpoint(g) is g


def test_prices_decide():
    g = training(gelu)
    assert checkpoint(g, price=lambda n: 0.0) is g  # all is in memory anyway
    nothing_again = checkpoint(g, work=lambda n: float("inf"))
    assert kept(nothing_again) == kept(g)
    dear = checkpoint(g, work=lambda n: 1e9 if n.op.name == "erf" else 1.0)
    assert kept(dear).count("erf") == 3


def test_the_tag_is_fresh():
    def retagged(n: Node, inputs):
        return Node(n.op, inputs, n.type, n.loc, 4) if n.op.name == "tanh" else n.replace(inputs)

    g = rewrite(training(lambda k, z, *_: z * xp.tanh(z)), retagged)
    assert {n.tag for n in checkpoint(g).nodes} == {0, 4, 5, 6, 7}  # three layers, three times


def test_equal_layers_are_solved_once(monkeypatch):
    solver = sys.modules[checkpoint.__module__].nx
    calls, minimum_cut = [], solver.minimum_cut
    monkeypatch.setattr(solver, "minimum_cut", lambda *a, **k: calls.append(a) or minimum_cut(*a, **k))
    checkpoint(training(gelu, depth=12))
    assert 1 <= len(calls) <= 3


@settings(max_examples=120, deadline=None)
@given(graphs(), st.integers(0, 14), st.randoms(use_true_random=False))
def test_any_choice_keeps_every_bit(graph, first, rng):
    """Random graphs with the later nodes called gradients, and random prices."""
    later = {n for i, n in enumerate(graph.nodes) if i >= first and not isinstance(n.op, Leaf)}

    def mark(n: Node, inputs):
        return Node(n.op, inputs, n.type, n.loc.as_gradient() if n in later else n.loc, n.tag)

    g = rewrite(graph, mark)
    prices = {n: rng.choice((0.0, 1.0, 3.0, 10.0)) for n in g.nodes}
    works = {n: rng.choice((0.0, 0.5, 2.0)) for n in g.nodes}
    again = passes.run(g, [lambda g: checkpoint(g, prices.__getitem__, works.__getitem__)])
    inputs = random_inputs(graph)
    assert same_values(evaluate(graph, inputs), evaluate(again, inputs)), to_text(again)


def test_costs_are_cut_minimally():
    """Small chains, against trying every choice: v0 -> v1 -> ... -> vn, the last one wanted."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        n = int(rng.integers(2, 6))
        problem = tuple(
            (
                int(rng.integers(1, 20)),
                float("inf") if v == 0 else int(rng.integers(0, 8)),
                bool(v == n - 1 or rng.random() < 0.3),
                tuple(u for u in range(v) if rng.random() < 0.6),
            )
            for v in range(n)
        )

        def cost(again, problem=problem):
            needed = {v for v, p in enumerate(problem) if p[2]} | {u for v in again for u in problem[v][3]}
            return sum(problem[v][1] for v in again) + sum(problem[v][0] for v in needed if v not in again)

        choices = [[v for v in range(n) if pick[v]] for pick in product((0, 1), repeat=n)]
        best = min(map(cost, choices))
        assert cost(_cut(problem)) == best
        assert cost(_solve(problem)) == best
