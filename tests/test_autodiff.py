"""The walks of autodiff: against PyTorch, against finite differences, again and again, and through loops."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pullback.autodiff import custom_vjp, grad, jvp, stop_gradient, vjp
from pullback.dsl import array as xp
from pullback.dsl import random
from pullback.dsl.control import scan
from pullback.dsl.promotion import dtype_of
from pullback.dsl.pytree import tree_leaves
from pullback.dsl.tensor import Tensor
from pullback.errors import DTypeError, ShapeError, TraceError
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, make
from pullback.graph.types import f32, f64, i32, u32
from pullback.graph.verify import verify
from pullback.ops.leaf import Input
from pullback.ops.scan import Scan
from pullback.passes.settle import settle

torch = pytest.importorskip("torch")


def graph_of(fn, *arrays) -> Graph:
    inputs = [make(Input(f"x{i}", dtype_of(a.dtype), a.shape)) for i, a in enumerate(arrays)]
    outputs = tree_leaves(fn(*map(Tensor, inputs)))
    return Graph("g", tuple(inputs), tuple(t.node for t in outputs))


def run(fn, *arrays) -> list[np.ndarray]:
    """fn's results, as they are and after `settle`, which must not change a bit."""
    graph = graph_of(fn, *arrays)
    results = evaluate(graph, list(arrays))
    settled = settle(graph)
    verify(settled)
    assert not {"custom_vjp", "stop_gradient"} & {n.op.name for n in settled.nodes}
    for a, b in zip(results, evaluate(settled, list(arrays)), strict=True):
        assert np.array_equal(a, b, equal_nan=True)
    return results


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def against_torch(fn, reference, *arrays, rtol=1e-10, atol=1e-12):
    """A scalar function, its gradients, and the gradients of a scalar made of those."""

    def ours(*xs):
        loss = fn(*xs)
        first = grad(loss, list(xs))
        mixed = xp.sum(first[0] * first[0])
        for g in first[1:]:
            mixed = mixed + xp.sum(xp.sin(g))
        return loss, first, grad(mixed, list(xs))

    results = run(ours, *arrays)
    xs = [torch.tensor(a, requires_grad=True) for a in arrays]
    loss = reference(*xs)
    first = torch.autograd.grad(loss, xs, create_graph=True)
    mixed = (first[0] ** 2).sum() + sum(torch.sin(g).sum() for g in first[1:])
    second = torch.autograd.grad(mixed, xs, allow_unused=True)
    second = [torch.zeros_like(x) if s is None else s for s, x in zip(second, xs, strict=True)]
    for value, expected in zip(results, (loss, *first, *second), strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=rtol, atol=atol)


def test_layers_against_torch():
    x, w, b, labels = data(5, 4), data(3, 4, seed=1), data(3, seed=2), np.array([0, 2, 1, 1, 0])

    def ours(x, w, b):
        h = x @ w.T + b
        h = (h - xp.mean(h, axis=-1, keepdims=True)) / xp.sqrt(xp.var(h, axis=-1, keepdims=True) + 1e-5)
        h = h * 0.5 * (1.0 + xp.erf(h / np.sqrt(2.0)))
        log_p = h - xp.logsumexp(h, axis=-1, keepdims=True)
        return -xp.mean(xp.take_along_axis(log_p, labels[:, None], axis=-1))

    def theirs(x, w, b):
        h = torch.nn.functional.layer_norm(x @ w.T + b, (3,))
        return torch.nn.functional.cross_entropy(torch.nn.functional.gelu(h), torch.tensor(labels))

    against_torch(ours, theirs, x, w, b)


def test_attention_against_torch():
    q, k, v = (data(2, 3, 4, seed=s) for s in range(3))

    def ours(q, k, v):
        s = xp.einsum("bik,bjk->bij", q, k) / 2.0
        s = xp.where(xp.tril(xp.ones((3, 3))) > 0, s, float("-inf"))
        p = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
        return xp.sum(xp.tanh((p / xp.sum(p, axis=-1, keepdims=True)) @ v))

    def theirs(q, k, v):
        return torch.tanh(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)).sum()

    against_torch(ours, theirs, q, k, v)


def test_movement_and_indexing_against_torch():
    x, table = data(4, 6), data(5, 6, seed=1)
    index = np.array([[1, 4], [1, 0]], np.int32)

    def ours(x, table):
        e = xp.take(table, index, axis=0)  # 2, 2, 6
        y = xp.concat([x[1:3, ::2], xp.flip(x, axis=0)[:2, 1::2]], axis=1)  # 2, 6
        y = xp.pad(y, [(1, 0), (0, 0)])[::2].reshape(-1)
        z = xp.sort(xp.permute_dims(e, (2, 0, 1)).reshape(6, 4), axis=1) * y[:6, None]
        return (
            xp.sum(xp.cumulative_sum(z, axis=0) ** 2) + xp.prod(xp.roll(y, 2) + 2.0) + xp.sum(xp.tile(x, (2, 1)) ** 3)
        )

    def theirs(x, table):
        e = table[torch.tensor(index, dtype=torch.int64)]
        y = torch.cat([x[1:3, ::2], torch.flip(x, [0])[:2, 1::2]], 1)
        y = torch.nn.functional.pad(y, (0, 0, 1, 0))[::2].reshape(-1)
        z = torch.sort(e.permute(2, 0, 1).reshape(6, 4), 1)[0] * y[:6, None]
        return (torch.cumsum(z, 0) ** 2).sum() + (torch.roll(y, 2) + 2.0).prod() + (x.tile(2, 1) ** 3).sum()

    against_torch(ours, theirs, x, table)


def test_f32_against_torch():
    x, w = data(8, 5).astype(np.float32), data(5, 3, seed=1).astype(np.float32)
    against_torch(
        lambda x, w: xp.mean(xp.tanh(x @ w) ** 2),
        lambda x, w: (torch.tanh(x @ w) ** 2).mean(),
        x,
        w,
        rtol=1e-5,
        atol=1e-6,
    )


def test_grad_again_and_again():
    def fourth(x):
        y = xp.sum(xp.sin(x) * xp.exp(x * 0.5))
        for _ in range(4):
            y = xp.sum(grad(y, x))
        return y

    x = data(3)
    expected = np.imag((0.5 + 1j) ** 4 * np.exp((0.5 + 1j) * x)).sum()
    np.testing.assert_allclose(run(fourth, x)[0], expected, rtol=1e-10)


def test_wrt_keeps_its_structure_and_unreached_tensors_get_zeros():
    def fn(a, b, c):
        g = grad(xp.sum(a * b), {"w": [a, (b, None)], "unused": c})
        assert list(g) == ["w", "unused"] and g["w"][1][1] is None
        return g

    a, b, c = data(2), data(2, seed=1), data(3)
    ga, gb, gc = run(fn, a, b, c)
    assert np.array_equal(ga, b) and np.array_equal(gb, a) and np.array_equal(gc, np.zeros(3))


def test_wrt_may_depend_on_one_another():
    """As torch.autograd.grad: the gradient of an earlier tensor goes through the later ones."""

    def fn(x):
        y = x * x
        return grad(xp.sum(y * x), [x, y, y])

    x = data(3)
    gx, gy, again = run(fn, x)
    np.testing.assert_allclose(gx, 3 * x**2)
    assert np.array_equal(gy, x) and np.array_equal(again, x)


def test_vjp_and_jvp():
    def f(p):
        return {"y": xp.sin(p["x"]) * p["w"], "n": xp.arange(3)}

    def fn(x, w, ct, t):
        out, pullback = vjp(f, {"x": x, "w": w})
        (back,) = pullback({"y": ct, "n": xp.arange(3)})
        same, tangent = jvp(f, ({"x": x, "w": w},), ({"x": t, "w": xp.zeros_like(w)},))
        return out["y"], back["x"], back["w"], same["y"], tangent["y"], tangent["n"]

    x, w, ct, t = (data(3, seed=s) for s in range(4))
    y, bx, bw, same, ty, tn = run(fn, x, w, ct, t)
    np.testing.assert_allclose(bx, ct * np.cos(x) * w)
    np.testing.assert_allclose(bw, ct * np.sin(x))
    np.testing.assert_allclose(ty, t * np.cos(x) * w)
    assert np.array_equal(y, same) and not tn.any()


def test_one_tensor_twice_among_the_primals():
    def fn(x):
        _, pullback = vjp(lambda a, b: a * a * b, x, x)
        return pullback(xp.ones_like(x))

    x = data(2)
    a, b = run(fn, x)
    np.testing.assert_allclose(a, 2 * x * x)
    np.testing.assert_allclose(b, x * x)


def test_forward_over_reverse_is_the_hessian():
    def fn(x, v):
        return jvp(lambda x: grad(xp.sum(x**4) + xp.prod(x), x), (x,), (v,))[1]

    x, v = data(3) + 3, data(3, seed=1)
    hessian = np.diag(12 * x**2) + np.prod(x) / np.outer(x, x) * (1 - np.eye(3))
    np.testing.assert_allclose(run(fn, x, v)[0], hessian @ v)


def test_stop_gradient():
    x = data(3)
    (g,) = run(lambda x: grad(xp.sum(x * stop_gradient({"a": x * x})["a"]), x), x)
    assert np.array_equal(g, x * x)


def test_where_keeps_the_infinity_of_the_other_branch_out():
    x = np.array([0.0, 4.0, -1.0])
    (g,) = run(lambda x: grad(xp.sum(xp.where(x > 0, xp.sqrt(xp.where(x > 0, x, 1.0)), 0.0)), x), x)
    assert np.array_equal(g, [0, 0.25, 0])


def test_clip_and_relu_at_their_corners():
    x = np.array([-1.0, 0.0, 1.0, 2.0])
    (g,) = run(lambda x: grad(xp.sum(xp.clip(x, 0, 1)), x), x)
    assert np.array_equal(g, [0, 1, 1, 0])


# ---- custom_vjp -------------------------------------------------------------------------------------------
def test_custom_vjp():
    @custom_vjp
    def scaled(p, x, *, power=2):
        return {"a": p["w"] * x, "b": x**power}

    def forward(p, x, power=2):
        return {"a": p["w"] * x, "b": x**power}, (p["w"], x, "anything", power)

    def backward(saved, ct):
        w, x, word, _ = saved
        assert word == "anything"
        return {"w": ct["a"] * x * 10.0}, ct["a"] * w + ct["b"], None

    scaled.defvjp(forward, backward)

    def fn(w, x):
        out = scaled({"w": w}, x, 2)
        first = grad(xp.sum(out["a"]) + xp.sum(out["b"] * 3.0), [w, x])
        only_a = grad(xp.sum(out["a"]), x)
        return (
            out,
            first,
            only_a,
            grad(xp.sum(first[0] ** 2), x),
            jvp(lambda x: scaled({"w": w}, x, 2)["b"], (x,), (x,))[1],
        )

    w, x = data(3), data(3, seed=1)
    a, b, gw, gx, only_a, second, tangent = run(fn, w, x)
    np.testing.assert_allclose(a, w * x)
    np.testing.assert_allclose(b, x**2)
    np.testing.assert_allclose(gw, 10 * x)
    np.testing.assert_allclose(gx, w + 3)
    np.testing.assert_allclose(only_a, w)
    np.testing.assert_allclose(second, 200 * x)
    np.testing.assert_allclose(tangent, 2 * x * x)  # forwards, its operations are differentiated


def test_custom_vjp_mistakes():
    x = Tensor(make(Input("x", f64, (3,))))
    f = custom_vjp(lambda x: x)
    with pytest.raises(TraceError, match="defvjp"):
        f(x)
    for given, text in ((lambda s, ct: ct, "a tuple of 1"), (lambda s, ct: (ct[:2],), r"f64\[2\]")):
        f.defvjp(lambda x: (x, None), given)
        with pytest.raises(ShapeError, match=text):
            grad(xp.sum(f(x)), x)


# ---- scan -------------------------------------------------------------------------------------------------
def cell(w, u):
    def step(h, x):
        h = xp.tanh(h @ w + x @ u)
        return h, xp.sum(h * x, axis=-1)

    return step


@pytest.mark.parametrize("reverse", [False, True])
def test_recurrent_net_against_torch(reverse):
    xs, h, w, u = data(5, 2, 3), data(2, 3, seed=1), data(3, 3, seed=2), data(3, 3, seed=3)

    def ours(xs, h, w, u):
        last, ys = scan(cell(w, u), h, xs, reverse=reverse)
        return xp.sum(xp.sin(last)) + xp.sum(ys * ys)

    def theirs(xs, h, w, u):
        total = 0.0
        for x in reversed(xs) if reverse else xs:
            h = torch.tanh(h @ w + x @ u)
            total = total + ((h * x).sum(-1) ** 2).sum()
        return torch.sin(h).sum() + total

    against_torch(ours, theirs, xs, h, w, u, rtol=1e-9)


def test_scan_means_a_python_loop():
    def f(carry, x):
        i, total = carry
        return (i + 1, total + x["a"] * i), {"i": i, "twice": [x["a"] * 2.0, x["b"]]}

    def fn(a, b):
        (i, total), ys = scan(f, (0, xp.zeros((2,), dtype=f64)), {"a": a, "b": b})
        assert ys["i"].dtype is i32 and isinstance(ys["twice"], list)
        return i, total, ys["i"], ys["twice"][0]

    a, b = data(4, 2), data(4)
    i, total, steps, twice = run(fn, a, b)
    assert i == 4 and np.array_equal(steps, range(4))
    np.testing.assert_allclose(total, (np.arange(4)[:, None] * a).sum(0))
    assert np.array_equal(twice, 2 * a)


def test_nested_scans_differentiate_against_torch():
    x, w = data(3, 4), data(4, seed=1)

    def ours(x, w):
        def outer(c, row):
            inner, ys = scan(lambda d, e: (xp.sin(d * w) + e, d * e), c, row)
            return inner * 0.5, xp.sum(ys)

        last, ys = scan(outer, w * 2.0, x)
        return xp.sum(last) + xp.sum(ys * ys)

    def theirs(x, w):
        c, total = w * 2.0, 0.0
        for row in x:
            d, s = c, 0.0
            for e in row:
                d, s = torch.sin(d * w) + e, s + (d * e).sum()
            c, total = d * 0.5, total + s * s
        return c.sum() + total

    against_torch(ours, theirs, x, w, rtol=1e-9)


def test_jvp_of_scan():
    xs, h, w, u = data(4, 2, 3), data(2, 3, seed=1), data(3, 3, seed=2), data(3, 3, seed=3)
    t = [data(*a.shape, seed=9 + i) for i, a in enumerate((xs, w))]

    def f(xs, w, h, u):
        last, ys = scan(cell(w, u), h, xs)
        return last, ys

    def fn(xs, h, w, u, txs, tw):
        return jvp(lambda xs, w: f(xs, w, h, u), (xs, w), (txs, tw))[1]

    last, ys = run(fn, xs, h, w, u, *t)
    moved = [run(lambda xs, w, h, u: f(xs, w, h, u), xs + e * t[0], w + e * t[1], h, u) for e in (1e-6, -1e-6)]
    for value, up, down in zip((last, ys), *moved, strict=True):
        np.testing.assert_allclose(value, (up - down) / 2e-6, rtol=1e-7, atol=1e-8)


def test_the_backward_scan_shares_the_forward_loop():
    xs, h, w, u = data(5, 2, 3), data(2, 3, seed=1), data(3, 3, seed=2), data(3, 3, seed=3)

    def fn(xs, h, w, u):
        last, ys = scan(cell(w, u), h, xs)
        loss = xp.sum(last) + xp.sum(ys)
        return loss, grad(loss, [w, h])

    graph = settle(graph_of(fn, xs, h, w, u))
    loops = [n for n in graph.nodes if isinstance(n.op, Scan)]
    assert [(n.op.length, n.op.reverse) for n in loops] == [(5, False), (5, True)]
    saved = loops[0].type.items[2:]
    assert len(saved) <= 2, "the carry and the new state; 1 - tanh^2 is made again from the latter"


def test_what_does_not_vary_is_computed_before_the_loop():
    def fn(xs, w):
        return scan(lambda c, x: (c + xp.sum(xp.exp(w) * x), None), xp.zeros((), dtype=f64), xs)[0]

    graph = graph_of(fn, data(4), data(3))
    (loop,) = [n for n in graph.nodes if isinstance(n.op, Scan)]
    assert "exp" not in {n.op.name for n in loop.op.body.nodes} and "exp" in {n.op.name for n in graph.nodes}


def test_scan_differentiates_by_whatever_was_made_outside():
    def fn(xs, w):
        scale, turned = xp.full((2, 3), 2.0, dtype=f64), w.T
        last, _ = scan(lambda c, x: (c + x * xp.sum(scale * turned), None), xp.zeros((), dtype=f64), xs)
        return grad(last, [scale, turned])

    xs, w = data(4), data(3, 2)
    by_scale, by_turned = run(fn, xs, w)
    np.testing.assert_allclose(by_scale, xs.sum() * w.T)
    np.testing.assert_allclose(by_turned, np.full((2, 3), 2 * xs.sum()))


def test_random_draws_differ_between_iterations():
    seed = np.array([1, 2], np.uint32)

    def fn(seed):
        def draw():
            return random.uniform(seed, xp.zeros((), dtype=u32), 7, (3,))

        def outer(c, _):
            return c, scan(lambda d, _: (d, draw()), 0, None, length=3)[1]

        return scan(outer, 0, None, length=2)[1]

    (values,) = run(fn, seed)
    assert values.shape == (2, 3, 3) and len(np.unique(values)) == 18


SCAN_MISTAKES = [
    (lambda x: scan(lambda c, x: (c[:2], None), x, None, length=2), ShapeError, "expected carry to keep its shape [3]"),
    (lambda x: scan(lambda c, x: (c.astype(f32), None), x, None, length=2), DTypeError, "expected carry to stay f64"),
    (lambda x: scan(lambda c, x: ((c, c), None), x, None, length=2), ShapeError, "structure"),
    (lambda x: scan(lambda c, x: c, x, None, length=2), ShapeError, "(carry, y)"),
    (lambda x: scan(lambda c, x: (c, x), x, [x, x[:2]]), ShapeError, "one length"),
    (lambda x: scan(lambda c, x: (c, x), x, x, length=5), ShapeError, "[3, 5]"),
    (lambda x: scan(lambda c, x: (c, x), x, x[0]), ShapeError, "0-d"),
]


@pytest.mark.parametrize("case", range(len(SCAN_MISTAKES)))
def test_scan_mistakes(case):
    fn, error, text = SCAN_MISTAKES[case]
    with pytest.raises(error) as caught:
        fn(Tensor(make(Input("x", f64, (3,)))))
    assert text in str(caught.value) and str(caught.value).startswith(__file__)


# ---- errors, places, speed --------------------------------------------------------------------------------
def test_grad_mistakes():
    x, n = Tensor(make(Input("x", f64, (3,)))), Tensor(make(Input("n", i32, ())))
    for fn, error, text in (
        (lambda: grad(x, x), ShapeError, "expected a scalar loss, got f64[3]: take its sum or mean first"),
        (lambda: grad(n, x), DTypeError, "expected a float loss, got i32"),
        (lambda: grad(xp.sum(x), [x, n]), DTypeError, "only floats have derivatives"),
        (lambda: grad(1.0, x), ShapeError, "got float"),
        (lambda: grad(xp.sum(x), [1.0]), DTypeError, "expected tensors, got float"),
        (lambda: vjp(xp.exp, x)[1](xp.ones(4)), ShapeError, "[3]"),
        (lambda: jvp(xp.exp, (x,), (xp.ones(4),)), ShapeError, "[3]"),
    ):
        with pytest.raises(error) as caught:
            fn()
        assert text in str(caught.value) and str(caught.value).startswith(f"{__file__}:")


def test_gradient_nodes_carry_the_forward_line():
    x = Tensor(make(Input("x", f64, (3,))))

    def square():
        return x * x

    line = square.__code__.co_firstlineno + 1
    g = grad(xp.sum(square()), x)
    places = {(n.loc.line, n.loc.gradient) for n in Graph("g", (x.node,), (g.node,)).nodes if n is not x.node}
    assert (line, True) in places and all(gradient for _, gradient in places)


def test_deep_graphs_take_linear_time_and_no_recursion():
    x = Tensor(make(Input("x", f64, (2,))))

    def seconds(depth: int) -> float:
        y = x
        for _ in range(depth):
            y = y * x + y
        start = time.process_time()
        grad(xp.sum(y), x)
        return time.process_time() - start

    small, large = (min(seconds(depth) for _ in range(3)) for depth in (500, 8000))
    assert large < 64 * small, "16 times the depth; a quadratic walk would take 256 times as long"


def test_integers_cut_the_flow():
    x = data(3)
    (g,) = run(lambda x: grad(xp.sum(x * xp.floor(x).astype(i32).astype(f64)), x), x)
    assert np.array_equal(g, np.floor(x))
