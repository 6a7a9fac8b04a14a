"""How many kernels the building blocks of networks become: no more than a good hand-fused implementation has."""

from __future__ import annotations

from time import process_time

import numpy as np
from random_graphs import traced

import pullback as pb
from pullback import nn, passes
from pullback.config import Options
from pullback.dsl.trace import trace_functions
from pullback.graph.evaluate import evaluate
from pullback.graph.types import TensorType, f32, i32
from pullback.kernel.verify import verify
from pullback.lower.evaluate import evaluate_region
from pullback.lower.groups import Region
from pullback.lower.regions import lower

B, K, N = 64, 40, 48


def t(*shape, dtype=f32):
    return TensorType(dtype, shape)


def region(f, *types: TensorType) -> Region:
    """Lowered, fused; checked against the graph's evaluator, and bit for bit against one kernel for each node."""
    graph = passes.run(traced(f, *types))
    fused, plain = lower(graph), lower(graph, Options(fusion=False))
    for p in (*fused.pieces, *plain.pieces):
        verify(p.kernel)
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 8, x.shape).astype(np.int32) if x.dtype is i32 else rng.standard_normal(x.shape).astype("f")
        for x in types
    ]
    one, other = evaluate_region(fused, arrays), evaluate_region(plain, arrays)
    for want, a, b in zip(evaluate(graph, arrays), one, other, strict=True):
        assert a.tobytes() == b.tobytes()
        np.testing.assert_allclose(a, want, rtol=2e-4, atol=2e-4 * max(1.0, np.abs(want).max()))
    return fused


def kinds(r: Region) -> list[str]:
    return [p.kernel.name for p in r.pieces]


def sizes(r: Region) -> list[tuple[int, ...]]:
    """The shapes that kernels write."""
    return [
        v.type.shape
        for p in r.pieces
        for v, b in zip(p.arguments, p.kernel.params, strict=True)
        if b.name in p.kernel.outputs
    ]


def layer_norm(x, g, b):
    d = x - pb.mean(x, axis=-1, keepdims=True)
    return d / pb.sqrt(pb.mean(d * d, axis=-1, keepdims=True) + 1e-5) * g + b


def linear_gelu(x, w, b):
    return pb.gelu(x @ w.T + b, approximate="tanh")


def test_softmax():
    assert len(region(lambda x: pb.softmax(x, -1), t(B, N)).pieces) == 1
    assert len(region(lambda x, dy: pb.vjp(lambda x: pb.softmax(x, -1), x)[1](dy), t(B, N), t(B, N)).pieces) == 1


def test_layer_norm_forward():
    assert len(region(layer_norm, t(B, N), t(N), t(N)).pieces) == 1


def test_layer_norm_backward():
    """One kernel, with the column sums' chunks; what adds these up is part of whoever reads the gradient."""
    r = region(lambda x, g, b, dy: pb.vjp(layer_norm, x, g, b)[1](dy), t(B, N), t(N), t(N), t(B, N))
    assert kinds(r)[0].startswith("rows") and len(r.pieces) == 3
    assert all(p.kernel.name == "map_sum" and p.arguments[-1].type.shape == (N,) for p in r.pieces[1:])

    def updated(x, g, b, dy):
        dx, dg, db = pb.vjp(layer_norm, x, g, b)[1](dy)
        return dx, g - 0.1 * dg, b - 0.1 * db

    assert len(region(updated, t(B, N), t(N), t(N), t(B, N)).pieces) == 3


def test_cross_entropy():
    """Loss and gradient of the rows are one kernel; the mean over rows the second."""

    def f(x, y):
        loss = nn.cross_entropy(x, y)
        return loss, pb.grad(loss, x)

    r = region(f, t(B, 10), t(B, dtype=i32))
    assert len(r.pieces) == 2
    assert sizes(r)[-1] == ()


def test_cross_entropy_stores_no_copy_of_the_logits():
    """The label's logit is picked where the logits are, however they were computed."""

    def f(x, w, y):
        h = x
        for _ in range(4):
            h = h + pb.gelu(h @ w, approximate="tanh")
        loss = nn.cross_entropy(h, y)
        return loss, pb.grad(loss, h)

    r = region(f, t(B, 16), t(16, 16), t(B, dtype=i32))
    assert sizes(r)[-3:] == [(B,), (B, 16), ()]
    assert len(r.pieces) == 4 + 2


def test_linear_gelu_forward():
    r = region(linear_gelu, t(B, K), t(N, K), t(N))
    assert kinds(r) == ["contract"]


def test_linear_gelu_saves_one_tensor():
    """Forward and backward apart: the forward kernel stores its result and the one tensor that the derivative needs."""

    def f(x, w, b, v):
        h, back = pb.vjp(linear_gelu, x, w, b)
        return (h, *back((h @ v) @ v.T))

    r = region(f, t(B, K), t(N, K), t(N), t(N, 8))
    first = r.pieces[0]
    assert sum(b.shape == (B, N) for b in first.kernel.params if b.name in first.kernel.outputs) == 2
    # Backward: dh (the last contraction) with gelu's derivative as its epilogue, dx, dw, and the bias' sum in chunks.
    assert kinds(r) == ["contract"] * 5 + ["rows_sum", "map_sum"]


def test_linear_gelu_backward():
    """dz with the bias' partial sums in one kernel; dx; dw; the partial sums' end."""

    def f(z, x, w, dy):
        (dz,) = pb.vjp(lambda z: pb.gelu(z, approximate="tanh"), z)[1](dy)
        return dz @ w, dz.T @ x, pb.sum(dz, axis=0)

    r = region(f, t(B, N), t(B, K), t(N, K), t(B, N))
    assert sorted(kinds(r)) == ["contract", "contract", "map_sum", "rows_sum"]


def test_relu_saves_a_mask():
    """What relu's derivative needs is one byte for each element, not the value before."""

    def f(x, w, v):
        h, back = pb.vjp(lambda x, w: pb.relu(x @ w.T), x, w)
        return (h, *back((h @ v) @ v.T))

    r = region(f, t(B, K), t(N, K), t(N, 8))
    assert [v.type.dtype.name for v in r.pieces[0].arguments[-2:]] == ["bool", "f32"]


def test_residual_is_an_epilogue():
    r = region(lambda x, w: x + pb.tanh(x @ w), t(B, K), t(K, K))
    assert kinds(r) == ["contract"]


def test_permutes_are_index_maps():
    """Heads split off and merged again without copies."""

    def f(x, w, v):
        h = pb.permute_dims(pb.reshape(x @ w, (B, 4, 10)), (1, 0, 2))  # [4, B, 10]
        s = pb.softmax(h @ pb.permute_dims(h, (0, 2, 1)), -1)
        return pb.reshape(pb.permute_dims(s @ h, (1, 0, 2)), (B, K)) @ v

    r = region(f, t(B, K), t(K, K), t(K, 8))
    assert kinds(r) == ["contract", "contract", "rows_max_sum", "contract", "contract"]
    assert (B, K) in [v.type.shape for v in r.pieces[-1].arguments]  # a view of [B, 4, 10]


def test_batch_norm():
    def f(x):
        d = x - pb.mean(x, axis=(0, 2), keepdims=True)
        return d / pb.sqrt(pb.mean(d * d, axis=(0, 2), keepdims=True) + 1e-5)

    assert len(region(f, t(4, 20, 33)).pieces) == 1


# ---- whole training steps -----------------------------------------------------------------------------------
def step_region(functions, namespace) -> tuple[Region, int]:
    """The lowered train step of a traced program, and how many of its outputs are state."""
    program = passes.run(trace_functions([functions], namespace))
    f = program.functions[0]
    return lower(f.graph, writes=len(f.writes)), len(f.writes)


def test_dropout_draws_once():
    """Philox is dear: one kernel stores the mask that forward and backward read."""
    model = nn.Sequential(nn.Linear(K, N), nn.Dropout(0.1), nn.Linear(N, 4))
    optimizer = pb.optim.SGD(model, lr=0.1)

    @pb.function(pb.f32[B, K], training=True)
    def train(x):
        loss = pb.mean(model(x) ** 2)
        optimizer.minimize(loss)
        return loss

    r, _ = step_region(train, {"model": model, "optimizer": optimizer})
    drawing = [p for p in r.pieces if any(n.op.name == "random" for n in p.nodes)]
    assert len(drawing) == 1
    assert drawing[0].arguments[-1].type == TensorType(pb.bool, (B, N))


def test_adamw_over_50_parameters():
    """One kernel for each parameter, all independent of each other (they become one launch), and one for the
    scalars that they share."""

    model = nn.ModuleList([nn.Linear(20, 16 + k % 3, bias=False) for k in range(50)])
    optimizer = pb.optim.AdamW(model, lr=1e-3)

    @pb.function(pb.f32[20], training=True)
    def train(x):
        loss = sum(pb.sum(pb.tanh(layer(x))) for layer in model)
        optimizer.minimize(loss)
        return loss

    r, writes = step_region(train, {"model": model, "optimizer": optimizer})
    state = {v for v in r.outputs[len(r.outputs) - writes :] if v.type.ndim == 2}
    assert len(state) == 150
    updates = [p for p in r.pieces if state & set(p.arguments)]
    assert len(updates) == 50
    written = [v for p in updates for v, b in zip(p.arguments, p.kernel.params) if b.name in p.kernel.outputs]
    assert len(written) == 150 and set(written) == state
    assert all(state.isdisjoint(_reads(p)) for p in updates)
    assert len({id(p.kernel) for p in updates}) == 3  # one for each shape
    scalars = [p for p in r.pieces if all(v.type.size == 1 for v in p.arguments)]
    assert len([p for p in scalars if p.kernel.name == "map"]) == 1


def _reads(p):
    return {v for v, b in zip(p.arguments, p.kernel.params, strict=True) if b.name not in p.kernel.outputs}


def _mlp(layers: int = 1):
    model = nn.Sequential(nn.Linear(K, N), *(nn.Sequential(nn.ReLU(), nn.Linear(N, N)) for _ in range(layers)))
    optimizer = pb.optim.AdamW(model, lr=1e-3)

    @pb.function(pb.f32[B, K], pb.i32[B], training=True)
    def train(x, y):
        loss = nn.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    return step_region(train, {"model": model, "optimizer": optimizer})


def test_mlp_step():
    """2 forward; loss with its gradient and the last bias' sums; the mean; dh with relu; 2 dw; the other bias' sums;
    4 updates; the optimizer's scalars."""
    r, _ = _mlp()
    print(f"kernels of a two-layer MLP's AdamW step: {len(r.pieces)}")
    assert len(r.pieces) == 13
    more, _ = _mlp(2)
    assert len(more.pieces) == 13 + 6  # forward, dh, dw, bias sums, two updates


def test_state_is_written_last():
    """No contraction and no group of rows writes new values of state: they can run before what may fail."""
    r, writes = _mlp(2)
    state = set(r.outputs[len(r.outputs) - writes :])
    for p in r.pieces:
        if p.kernel.name == "contract" or p.kernel.name.startswith("rows"):
            assert state.isdisjoint(p.arguments)


def test_equal_layers_share_kernels():
    few, many = _mlp(3)[0], _mlp(6)[0]
    assert len(many.pieces) == len(few.pieces) + 18
    kernels = [len({id(p.kernel) for p in r.pieces}) for r in (few, many)]
    assert kernels[0] == kernels[1]


def test_deterministic():
    a, b = _mlp(2)[0], _mlp(2)[0]
    assert [p.kernel for p in a.pieces] == [p.kernel for p in b.pieces]
    assert [[v.name for v in p.arguments] for p in a.pieces] == [[v.name for v in p.arguments] for p in b.pieces]


def test_fast():
    """Microseconds for a node: repeated layers cost a look-up."""

    def seconds(layers: int) -> tuple[float, int]:
        model = nn.Sequential(*(nn.Sequential(nn.Linear(N, N), nn.LayerNorm(N), nn.GELU()) for _ in range(layers)))
        optimizer = pb.optim.AdamW(model, lr=1e-3)

        @pb.function(pb.f32[B, N], training=True)
        def train(x):
            loss = pb.mean(model(x) ** 2)
            optimizer.minimize(loss)
            return loss

        graph = passes.run(trace_functions([train], {"model": model, "optimizer": optimizer})).functions[0].graph
        best = np.inf
        for _ in range(3):
            start = process_time()
            lower(graph)
            best = min(best, process_time() - start)
        return best, len(graph.nodes)

    (few, nodes), (many, more) = seconds(4), seconds(12)
    assert (many - few) / (more - nodes) < 150e-6
