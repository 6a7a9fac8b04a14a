"""`pb.scan` from end to end: compiled = evaluated = a Python loop in PyTorch, forward, backward and in training."""

from __future__ import annotations

import numpy as np
import pytest

import pullback as pb
from pullback import nn, optim
from pullback.dsl.trace import trace_functions
from pullback.graph.evaluate import evaluate_function

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)


def compiled_and_evaluated(function, *arrays, tolerance: float = 1e-12) -> list[np.ndarray]:
    """The results of a function without state, compiled with and without fusion; equal to the evaluator's."""
    expected, _ = evaluate_function(trace_functions([function]), function.name, {}, arrays)
    for fusion in (True, False):
        got = getattr(pb.build(function, cache=False, fusion=fusion), function.name)(*arrays)
        got = got if isinstance(got, tuple) else (got,)
        for x, y in zip(expected, got, strict=True):
            np.testing.assert_allclose(y, x, rtol=tolerance, atol=tolerance)
            assert y.dtype == x.dtype and y.shape == x.shape
    return expected


def t64(*arrays: np.ndarray) -> list:
    return [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]


# ---- forward and gradients ------------------------------------------------------------------------------
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_recurrence_and_its_gradient(length, reverse):
    """h' = tanh(W h + x); all states stacked; the gradient of a sum of squares by W, h0 and xs."""
    w, h0, xs = RNG.normal(size=(3, 3)), RNG.normal(size=(2, 3)), RNG.normal(size=(length, 2, 3))

    @pb.function(pb.f64[3, 3], pb.f64[2, 3], pb.f64[length, 2, 3])
    def f(w, h0, xs):
        def cell(h, x):
            h = pb.tanh(pb.matmul(h, w) + x)
            return h, h * 2.0

        h, ys = pb.scan(cell, h0, xs, reverse=reverse)
        loss = pb.sum(h * h) + pb.sum(ys * ys)
        return (h, ys, *pb.grad(loss, (w, h0, xs)))

    a, b, c = t64(w, h0, xs)
    h, ys = b, [None] * length
    for i in reversed(range(length)) if reverse else range(length):
        h = torch.tanh(h @ a + c[i])
        ys[i] = h * 2.0
    stacked = torch.stack(ys) if ys else torch.zeros((0, 2, 3), dtype=torch.float64)
    ((h * h).sum() + (stacked * stacked).sum()).backward()
    grads = [x.grad if x.grad is not None else torch.zeros_like(x) for x in (a, b, c)]
    for x, y in zip(compiled_and_evaluated(f, w, h0, xs), [h, stacked, *grads], strict=True):
        np.testing.assert_allclose(x, y.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_carries_that_change_places(length):
    """Fibonacci: (a, b) -> (b, a + b); and three carries that rotate."""

    @pb.function(pb.f64[4], pb.f64[4], pb.f64[4])
    def f(a, b, c):
        (a, b), seen = pb.scan(lambda s, _: ((s[1], s[0] + s[1]), s[0]), (a, b), None, length=length)
        turned, _ = pb.scan(lambda s, _: ((s[1], s[2], s[0]), None), (a, b, c), None, length=length)
        return (a, b, seen, *turned, pb.grad(pb.sum(turned[0] * b), c))

    arrays = [RNG.normal(size=4) for _ in range(3)]
    a, b, seen = arrays[0], arrays[1], []
    for _ in range(length):
        seen.append(a)
        a, b = b, a + b
    turned = [(a, b, arrays[2])[(k + length) % 3] for k in range(3)]
    gradient = b if turned[0] is arrays[2] else np.zeros(4)
    expected = [a, b, np.reshape(seen, (length, 4)), *turned, gradient]
    for x, y in zip(compiled_and_evaluated(f, *arrays), expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_loop_in_a_loop():
    """Powers of a matrix in the inner loop, their products in the outer one, differentiated through both."""
    n = 3
    a, x, scales = RNG.normal(size=(n, n)) / 2, RNG.normal(size=n), RNG.normal(size=(4,))

    @pb.function(pb.f64[n, n], pb.f64[n], pb.f64[4])
    def f(a, x, scales):
        def outer(v, s):
            def inner(u, _):
                u = pb.matmul(a, u) * s
                return u, pb.sum(u)

            v, sums = pb.scan(inner, v, None, length=3)
            return v, sums

        v, sums = pb.scan(outer, x, scales)
        return (sums, *pb.grad(pb.sum(v) + pb.sum(pb.sin(sums)), (a, x, scales)))

    ta, tx, ts = t64(a, x, scales)
    v, rows = tx, []
    for i in range(4):
        sums = []
        for _ in range(3):
            v = ta @ v * ts[i]
            sums.append(v.sum())
        rows.append(torch.stack(sums))
    total = torch.stack(rows)
    (v.sum() + torch.sin(total).sum()).backward()
    for got, expected in zip(compiled_and_evaluated(f, a, x, scales), [total, ta.grad, tx.grad, ts.grad], strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-11, atol=1e-12)


def test_second_derivative_through_a_loop():
    """x -> x^8 by squaring three times: 56 x^6."""

    @pb.function(pb.f64[5])
    def f(x):
        y, _ = pb.scan(lambda c, _: (c * c, None), x, None, length=3)
        (first,) = pb.grad(pb.sum(y), (x,))
        return pb.grad(pb.sum(first), x)

    x = RNG.normal(size=5)
    (second,) = compiled_and_evaluated(f, x)
    np.testing.assert_allclose(second, 56 * x**6, rtol=1e-12)


def test_integer_carries_and_indices_from_a_loop():
    """A counter that indexes a table; bits of a linear congruential generator."""

    @pb.function(pb.f32[6], pb.i32[()])
    def f(table, start):
        def step(c, _):
            i, state = c
            return ((i + 2) % 6, state * 1664525 + 1013904223), (pb.take(table, i), state)

        (i, _), (picked, states) = pb.scan(step, (start, pb.asarray(7, dtype=pb.u32)), None, length=5)
        return i, picked, states

    table = RNG.normal(size=6).astype(np.float32)
    i, picked, states = compiled_and_evaluated(f, table, np.array(1, np.int32))
    assert i == (1 + 10) % 6 and np.array_equal(picked, table[[1, 3, 5, 1, 3]])
    expected = [7]
    for _ in range(4):
        expected.append((expected[-1] * 1664525 + 1013904223) % 2**32)
    assert states.tolist() == expected


# ---- training -------------------------------------------------------------------------------------------
def test_a_recurrent_network_trains_as_in_torch():
    """The sum of a sequence modulo 2, by an RNN with SGD and momentum: the same losses for 40 steps."""
    batch, length, width, steps = 8, 6, 12, 40

    class Net(nn.Module):
        def __init__(self):
            self.inner, self.input, self.out = nn.Linear(width, width), nn.Linear(1, width), nn.Linear(width, 2)

        def __call__(self, xs):
            def cell(h, x):
                return pb.tanh(self.inner(h) + self.input(x)), None

            h, _ = pb.scan(cell, pb.zeros((batch, width)), xs)
            return self.out(h)

    net = Net()
    optimizer = optim.SGD(net, lr=0.1, momentum=0.9)

    @pb.function(pb.f32[length, batch, 1], pb.i32[batch], training=True)
    def train(xs, label):
        loss = nn.cross_entropy(net(xs), label)
        optimizer.minimize(loss)
        return loss

    program = pb.build(train, cache=False, threads=2)
    layers = {name: torch.nn.Linear(*shape) for name, shape in
              {"inner": (width, width), "input": (1, width), "out": (width, 2)}.items()}  # fmt: skip
    for name, layer in layers.items():
        for part in ("weight", "bias"):
            getattr(layer, part).data = torch.tensor(program.state[f"net.{name}.{part}"].copy())
    sgd = torch.optim.SGD([p for m in layers.values() for p in m.parameters()], lr=0.1, momentum=0.9)
    for k in range(steps):
        rng = np.random.default_rng(k)
        bits = rng.integers(0, 2, (length, batch, 1))
        xs, label = bits.astype(np.float32), (bits.sum(axis=(0, 2)) % 2).astype(np.int32)
        h = torch.zeros((batch, width))
        for x in torch.tensor(xs):
            h = torch.tanh(layers["inner"](h) + layers["input"](x))
        loss = torch.nn.functional.cross_entropy(layers["out"](h), torch.tensor(label, dtype=torch.int64))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        np.testing.assert_allclose(program.train(xs=xs, label=label), loss.item(), rtol=2e-4)


def test_dropout_in_a_loop_draws_anew_in_every_iteration():
    """Masks differ from iteration to iteration and from step to step, and the gradient uses the same ones."""
    drop = nn.Dropout(0.5)

    @pb.function(pb.f32[64], training=True)
    def f(x):
        _, ys = pb.scan(lambda c, _: (c, drop(x)), pb.asarray(0.0), None, length=4)
        return ys, pb.grad(pb.sum(ys), x)

    program = pb.build(f, cache=False)
    ys, gradient = program.f(x=np.ones(64, np.float32))
    assert len({y.tobytes() for y in ys}) == 4 and set(np.unique(ys)) == {0.0, 2.0}
    np.testing.assert_array_equal(gradient, ys.sum(axis=0))
    assert program.f(x=np.ones(64, np.float32))[0].tobytes() != ys.tobytes()
