"""Layers, activations, losses and initialisers against PyTorch: values and gradients, in f64."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpreter import Interpreter, interpret, run

import pullback as pb
from pullback import nn, optim
from pullback.dsl.trace import trace_functions
from pullback.errors import DTypeError, ShapeError, TraceError

RNG = np.random.default_rng(0)


def both(ours, theirs, *arrays, wrt=None, rtol=1e-9, atol=1e-12):
    """Value and gradients (by the float arrays) of sum(out * weights) agree."""
    wrt = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"] if wrt is None else wrt
    tensors = [torch.from_numpy(a.copy()).requires_grad_(i in wrt) for i, a in enumerate(arrays)]
    expected = theirs(*tensors)
    weights = np.random.default_rng(1).standard_normal(tuple(expected.shape))
    grads = torch.autograd.grad((expected * torch.from_numpy(weights)).sum(), [tensors[i] for i in wrt])

    def fn(*xs):
        out = ours(*xs)
        return out, pb.grad(pb.sum(out * pb.asarray(weights)), [xs[i] for i in wrt])

    out, got = run(fn, *arrays)
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol, atol)
    for g, e in zip(got, grads, strict=True):
        np.testing.assert_allclose(g, e.numpy(), rtol, atol)


X = np.concatenate([RNG.standard_normal(20) * 3, [0.0, -0.0, 30.0, -30.0]]).reshape(4, 6)

ACTIVATIONS = {
    "relu": (nn.relu, F.relu),
    "leaky_relu": (lambda x: nn.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    "elu": (lambda x: nn.elu(x, 1.5), lambda x: F.elu(x, 1.5)),
    "sigmoid": (pb.sigmoid, torch.sigmoid),
    "logsigmoid": (nn.logsigmoid, F.logsigmoid),
    "tanh": (nn.tanh, torch.tanh),
    "gelu": (nn.gelu, F.gelu),
    "gelu_tanh": (lambda x: nn.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (nn.silu, F.silu),
    "softplus": (nn.softplus, F.softplus),
    "softplus_beta": (lambda x: nn.softplus(x, 2.0, 5.0), lambda x: F.softplus(x, 2.0, 5.0)),
    "softmax": (nn.softmax, lambda x: F.softmax(x, -1)),
    "softmax_0": (lambda x: nn.softmax(x, dim=0), lambda x: F.softmax(x, 0)),
    "log_softmax": (lambda x: pb.log_softmax(x, axis=-1), lambda x: F.log_softmax(x, -1)),
    "log_softmax_0": (lambda x: nn.log_softmax(x, 0), lambda x: F.log_softmax(x, 0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    both(*ACTIVATIONS[name], X, atol=2e-9 if "softplus" in name or "logsigmoid" in name else 1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_finite_in_f32_at_the_ends(name):
    x = np.array([[-1e18, -1000, -100, -88, -20], [20, 88, 100, 1000, 1e6]], np.float32)
    fn = ACTIVATIONS[name][0]
    out, grad = run(lambda x: (y := fn(x), pb.grad(pb.sum(y), x)), x)
    assert np.isfinite(out).all() and np.isfinite(grad).all()
    assert np.isnan(run(fn, np.full((2, 2), np.nan, np.float32))).all()


MODULES = {
    "ReLU": (nn.ReLU(), torch.nn.ReLU()),
    "LeakyReLU": (nn.LeakyReLU(), torch.nn.LeakyReLU()),
    "ELU": (nn.ELU(), torch.nn.ELU()),
    "Sigmoid": (nn.Sigmoid(), torch.nn.Sigmoid()),
    "LogSigmoid": (nn.LogSigmoid(), torch.nn.LogSigmoid()),
    "Tanh": (nn.Tanh(), torch.nn.Tanh()),
    "GELU": (nn.GELU(), torch.nn.GELU()),
    "GELU_tanh": (nn.GELU("tanh"), torch.nn.GELU("tanh")),
    "SiLU": (nn.SiLU(), torch.nn.SiLU()),
    "Softplus": (nn.Softplus(), torch.nn.Softplus()),
    "Softmax": (nn.Softmax(dim=0), torch.nn.Softmax(dim=0)),
    "LogSoftmax": (nn.LogSoftmax(dim=1), torch.nn.LogSoftmax(dim=1)),
    "Identity": (nn.Identity(54, unused=1), torch.nn.Identity(54, unused=1)),
    "Flatten": (nn.Flatten(0), torch.nn.Flatten(0)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module_without_state(name):
    both(*MODULES[name], X, atol=2e-9)


A, B = RNG.standard_normal((2, 5, 4)) * 1.5
P = RNG.random((5, 4))

LOSSES = {
    "mse": (nn.mse_loss, F.mse_loss, A, B),
    "mse_sum": (lambda a, b: nn.mse_loss(a, b, "sum"), lambda a, b: F.mse_loss(a, b, reduction="sum"), A, B),
    "l1": (nn.l1_loss, F.l1_loss, A, B),
    "l1_none": (lambda a, b: nn.l1_loss(a, b, "none"), lambda a, b: F.l1_loss(a, b, reduction="none"), A, B),
    "huber": (lambda a, b: nn.huber_loss(a, b, delta=0.7), lambda a, b: F.huber_loss(a, b, delta=0.7), A, B),
    "smooth_l1": (lambda a, b: nn.smooth_l1_loss(a, b, beta=0.7), lambda a, b: F.smooth_l1_loss(a, b, beta=0.7), A, B),
    "smooth_l1_0": (
        lambda a, b: nn.smooth_l1_loss(a, b, beta=0.0),
        lambda a, b: F.smooth_l1_loss(a, b, beta=0.0),
        A,
        B,
    ),
    "bce": (nn.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, A, P),
    "bce_weights": (
        lambda a, p, w: nn.binary_cross_entropy_with_logits(a, p, weight=w, pos_weight=w),
        lambda a, p, w: F.binary_cross_entropy_with_logits(a, p, weight=w, pos_weight=w),
        A,
        P,
        RNG.random(4),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    ours, theirs, *arrays = LOSSES[name]
    both(ours, theirs, *arrays, wrt=[0, 1])


LABELS = np.array([0, 3, 1, 1, 2])
IGNORED = np.array([0, 3, -100, 1, -100])
WEIGHT = RNG.random(4) + 0.5

CROSS_ENTROPY = {
    "plain": (LABELS, {}),
    "sum": (LABELS, {"reduction": "sum"}),
    "none": (LABELS, {"reduction": "none"}),
    "smooth": (LABELS, {"label_smoothing": 0.1}),
    "ignore": (IGNORED, {}),
    "ignore_another": (LABELS, {"ignore_index": 1}),
    "ignore_all": (np.full(5, -100), {}),
    "ignore_none": (IGNORED, {"reduction": "none"}),
    "weight": (LABELS, {"weight": WEIGHT}),
    "all": (IGNORED, {"weight": WEIGHT, "ignore_index": -100, "label_smoothing": 0.2}),
    "all_sum": (IGNORED, {"weight": WEIGHT, "ignore_index": -100, "label_smoothing": 0.2, "reduction": "sum"}),
    "smooth_ignore": (IGNORED, {"ignore_index": -100, "label_smoothing": 0.2}),
    "probabilities": (P / P.sum(1, keepdims=True), {}),
    "probabilities_smooth": (P / P.sum(1, keepdims=True), {"label_smoothing": 0.1, "weight": WEIGHT}),
}


def with_weight(options, convert):
    return {k: convert(v) if k == "weight" else v for k, v in options.items()}


@pytest.mark.parametrize("name", CROSS_ENTROPY)
def test_cross_entropy(name):
    target, options = CROSS_ENTROPY[name]
    both(
        lambda x, t: nn.cross_entropy(x, t, **options),
        lambda x, t: F.cross_entropy(x, t, **with_weight(options, torch.from_numpy)),
        A,
        target,
        wrt=[0],
    )


@pytest.mark.parametrize("rows", [256, 257, 300])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_of_many_rows(rows, weight):
    """The rows that count are counted in each, or in parts first."""
    target = RNG.integers(-1, 4, rows)
    options = {"ignore_index": -1, "weight": weight}
    both(
        lambda x, t: nn.cross_entropy(x, t, **options),
        lambda x, t: F.cross_entropy(x, t, **with_weight(options, lambda w: w if w is None else torch.from_numpy(w))),
        RNG.standard_normal((rows, 4)),
        target,
        wrt=[0],
    )


@pytest.mark.parametrize("name", ["plain", "sum", "ignore", "ignore_all", "weight"])
def test_nll_loss(name):
    target, options = CROSS_ENTROPY[name]
    both(
        lambda x, t: nn.nll_loss(x, t, **options),
        lambda x, t: F.nll_loss(x, t, **with_weight(options, torch.from_numpy)),
        A,
        target,
        wrt=[0],
    )


def test_cross_entropy_over_axis_1_and_of_one_sample():
    x, t = RNG.standard_normal((2, 3, 5)), RNG.integers(0, 3, (2, 5))
    both(nn.cross_entropy, F.cross_entropy, x, t)
    both(nn.cross_entropy, F.cross_entropy, x[0, :, 0].copy(), np.array(1))


def test_cross_entropy_is_exact_for_extreme_scores():
    x = np.array([[1000.0, -1000.0, 0.0], [-1e4, -1e4, -1e4]], np.float32)
    t = np.array([1, 2], np.int32)
    loss, grad = run(lambda x, t: (y := nn.cross_entropy(x, t, reduction="none"), pb.grad(pb.sum(y), x)), x, t)
    np.testing.assert_allclose(loss, [2000.0, math.log(3)], rtol=1e-6)
    np.testing.assert_allclose(grad, [[1, -1, 0], [1 / 3, 1 / 3, -2 / 3]], atol=1e-6)


def test_loss_modules():
    pairs = [
        (nn.MSELoss("sum"), torch.nn.MSELoss(reduction="sum"), B),
        (nn.L1Loss(), torch.nn.L1Loss(), B),
        (nn.HuberLoss(delta=0.5), torch.nn.HuberLoss(delta=0.5), B),
        (nn.SmoothL1Loss(beta=0.5), torch.nn.SmoothL1Loss(beta=0.5), B),
        (nn.BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss(), P),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
        (nn.NLLLoss(reduction="sum"), torch.nn.NLLLoss(reduction="sum"), LABELS),
    ]
    for ours, theirs, target in pairs:
        both(ours, theirs, A, target, wrt=[0])


def as_torch(module, reference, *arrays, training=False):
    """A layer with the reference's parameters: results and all parameters' gradients agree."""
    ours = module.state_dict()
    reference = reference.double()
    assert list(ours) == list(reference.state_dict())
    for name, value in reference.state_dict().items():
        assert ours[name].shape == tuple(value.shape)
        ours[name].initialize(value.numpy())

    @pb.function(tuple(pb.f64[a.shape] if a.dtype.kind == "f" else pb.i64[a.shape] for a in arrays))
    def fn(xs):
        out = module(*xs)
        return out, pb.grad(pb.sum(out * out), dict(module.named_parameters()))

    out, grads = interpret(fn)("fn", arrays)
    expected = reference(*(torch.from_numpy(a) for a in arrays))
    (expected * expected).sum().backward()
    np.testing.assert_allclose(out, expected.detach().numpy(), 1e-9, 1e-12)
    assert list(grads) == [name for name, _ in reference.named_parameters()]
    for name, p in reference.named_parameters():
        np.testing.assert_allclose(grads[name], p.grad.numpy(), 1e-9, 1e-12)


def test_linear():
    as_torch(nn.Linear(4, 3, dtype=pb.f64), torch.nn.Linear(4, 3), A)
    as_torch(
        nn.Linear(4, 3, bias=False, dtype=pb.f64), torch.nn.Linear(4, 3, bias=False), RNG.standard_normal((2, 5, 4))
    )
    as_torch(nn.Linear(4, 3, dtype=pb.f64), torch.nn.Linear(4, 3), A[0])


def test_layer_norm():
    as_torch(nn.LayerNorm(4, dtype=pb.f64), torch.nn.LayerNorm(4), A * 3 + 1)
    as_torch(nn.LayerNorm((5, 4), eps=1e-3, dtype=pb.f64), torch.nn.LayerNorm((5, 4), eps=1e-3), np.stack([A, B]))
    as_torch(nn.LayerNorm(4, bias=False, dtype=pb.f64), torch.nn.LayerNorm(4, bias=False), A)
    both(lambda x: nn.layer_norm(x, (4,)), lambda x: F.layer_norm(x, (4,)), A)


def test_layer_norm_variance_does_not_cancel():
    x = (RNG.standard_normal((3, 64)) + 1e4).astype(np.float32)
    out = run(lambda x: nn.layer_norm(x, (64,)), x)
    np.testing.assert_allclose(out, F.layer_norm(torch.from_numpy(x).double(), (64,)).numpy(), atol=2e-3)


def test_embedding():
    indices = RNG.integers(0, 7, (2, 3))
    as_torch(nn.Embedding(7, 4, dtype=pb.f64), torch.nn.Embedding(7, 4), indices)
    indices[0, 0] = 2
    as_torch(nn.Embedding(7, 4, padding_idx=2, dtype=pb.f64), torch.nn.Embedding(7, 4, padding_idx=2), indices)


def test_containers_and_names_as_in_torch():
    def model(nn, **dtype):
        return nn.Sequential(
            nn.Linear(4, 8, **dtype), nn.GELU(), nn.Sequential(nn.LayerNorm(8, **dtype)), nn.Linear(8, 2, **dtype)
        )

    as_torch(model(nn, dtype=pb.f64), model(torch.nn), A)

    class Ours(nn.Module):
        def __init__(self):
            self.layers = nn.ModuleList([nn.Linear(4, 4, dtype=pb.f64) for _ in range(2)])
            self.heads = nn.ModuleDict({"a": nn.Linear(4, 2, dtype=pb.f64)})

        def forward(self, x):
            for layer in self.layers:
                x = nn.relu(layer(x))
            return self.heads["a"](x)

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
            self.heads = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 2)})

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.heads["a"](x)

    as_torch(Ours(), Theirs(), A)


def test_dropout_masks_follow_seed_step_and_mode():
    drop = nn.Dropout(0.25)

    @pb.function(pb.f32[100, 100], training=True)
    def train(x):
        return drop(x), drop(x)

    @pb.function(pb.f32[100, 100])
    def predict(x):
        return drop(x)

    ones = np.ones((100, 100), np.float32)
    program = interpret(train, predict)
    a, b = program("train", ones)
    c, _ = program("train", ones)
    assert set(np.unique(a)) == {0.0, np.float32(1 / 0.75)}
    assert abs((a > 0).mean() - 0.75) < 0.02
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    np.testing.assert_array_equal(program("predict", ones), ones)
    again = interpret(train, predict)
    np.testing.assert_array_equal(again("train", ones)[0], a)
    assert not np.array_equal(interpret(train, seed=1)("train", ones)[0], a)
    assert program.state["rng.step"] == 2


def test_dropout_has_the_masks_gradient_and_is_frozen_by_eval():
    drop, frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
    x = np.ones((4, 50), np.float32)
    out, grad = run(lambda x: (y := drop(x), pb.grad(pb.sum(y), x)), x, training=True)
    np.testing.assert_array_equal(out, grad)
    np.testing.assert_array_equal(run(frozen, x, training=True), x)
    np.testing.assert_array_equal(run(nn.Dropout(1.0), x, training=True), 0 * x)

    def evaluates_inside(x):
        drop.eval()
        return drop(x)

    np.testing.assert_array_equal(run(evaluates_inside, x, training=True), x)
    assert drop.training  # eval() inside of a function ends with it


def test_own_layers_see_the_mode():
    class Noisy(nn.Module):
        def forward(self, x):
            return nn.dropout(x, 1.0) if self.training else x + 1

    layer, x = Noisy(), np.ones(3, np.float32)
    np.testing.assert_array_equal(run(layer, x, training=True), 0)
    np.testing.assert_array_equal(run(layer, x, training=False), 2)
    np.testing.assert_array_equal(run(Noisy().eval(), x, training=True), 2)
    np.testing.assert_array_equal(run(lambda x: nn.dropout(x, 1.0), x, training=False), 1)


def test_a_deep_copy_is_another_state_with_the_same_start():
    model = nn.Sequential(nn.Linear(2, 3), nn.Embedding(4, 3, padding_idx=0))
    target = copy.deepcopy(model)
    state = init_of(target=target, model=model)
    assert len(state) == 1 + 6
    for name in model.state_dict():
        np.testing.assert_array_equal(state[f"target.{name}"], state[f"model.{name}"])


@pytest.mark.parametrize("dtype", [pb.bf16, pb.f16])
def test_layers_of_small_floats(dtype):
    model = nn.Sequential(nn.Linear(4, 8, dtype=dtype), nn.LayerNorm(8, dtype=dtype), nn.GELU("tanh"))
    optimizer = optim.SGD(model, lr=0.1)

    @pb.function(dtype[5, 4], pb.i32[5])
    def step(x, t):
        y = model(x)
        assert y.dtype == dtype
        optimizer.minimize(nn.cross_entropy(pb.sigmoid(y), t))
        return y

    program = interpret(step)
    for _ in range(3):
        assert np.isfinite(program("step", A, LABELS)).all()


def init_of(**modules):
    """Initial values by name."""

    @pb.function(pb.f32[1])
    def touch(x):
        return [p + 0 for m in modules.values() for p in m.parameters()]

    return Interpreter(trace_functions([touch], namespace=modules), seed=3).state


def weight_of(parameter):
    module = nn.Module()
    module.weight = parameter
    return init_of(m=module)["m.weight"]


def test_initial_values_have_torchs_distributions():
    state = init_of(a=nn.Linear(100, 300), e=nn.Embedding(300, 100, padding_idx=5), n=nn.LayerNorm(7))
    for name in ("a.weight", "a.bias"):
        w = state[name]
        assert abs(w).max() <= 0.1 and abs(w.std() - 0.1 / math.sqrt(3)) < 0.005 and abs(w.mean()) < 0.01
    e = np.delete(state["e.weight"], 5, 0)
    assert abs(e.std() - 1) < 0.02 and abs(e.mean()) < 0.02
    assert not state["e.weight"][5].any()
    np.testing.assert_array_equal(state["n.weight"], 1)
    np.testing.assert_array_equal(state["n.bias"], 0)


def test_initial_values_depend_on_seed_and_name_only():
    alone = init_of(a=nn.Linear(4, 4))
    more = init_of(b=nn.Linear(4, 4), a=nn.Linear(4, 4))
    np.testing.assert_array_equal(alone["a.weight"], more["a.weight"])
    assert not np.array_equal(more["a.weight"], more["b.weight"])


INITIALISERS = {
    "uniform_": ((-1.0, 3.0), 1.0, 4 / math.sqrt(12)),
    "normal_": ((1.0, 2.0), 1.0, 2.0),
    "constant_": ((0.5,), 0.5, 0.0),
    "zeros_": ((), 0.0, 0.0),
    "ones_": ((), 1.0, 0.0),
    "xavier_uniform_": ((), 0.0, math.sqrt(2 / 300)),
    "xavier_normal_": ((2.0,), 0.0, 2 * math.sqrt(2 / 300)),
    "kaiming_uniform_": ((), 0.0, math.sqrt(2 / 200)),
    "kaiming_normal_": ((0, "fan_out", "relu"), 0.0, math.sqrt(2 / 100)),
    "trunc_normal_": ((0.5, 1.0, -1.5, 2.5), 0.5, 0.8796),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_initialiser(name):
    args, mean, std = INITIALISERS[name]
    layer = nn.Linear(200, 100)
    assert getattr(nn.init, name)(layer.weight, *args) is layer.weight
    w = init_of(m=layer)["m.weight"]
    assert abs(w.mean() - mean) < 0.03 * (std or 1)
    assert abs(w.std() - std) < 0.03 * std + 1e-7
    if name == "trunc_normal_":
        assert -1.5 <= w.min() < -1.4 and 2.4 < w.max() <= 2.5


@pytest.mark.parametrize("shape", [(24, 24), (10, 30), (30, 10), (8, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [pb.f32, pb.f64, pb.bf16])
def test_orthogonal(shape, dtype):
    weight = nn.Parameter(pb.zeros(shape, dtype=dtype))
    assert nn.init.orthogonal_(weight, gain=2.0) is weight
    w = weight_of(weight).astype(np.float64).reshape(shape[0], -1)
    square = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    bound = {pb.f32: 1e-5, pb.f64: 1e-13, pb.bf16: 0.05}[dtype]
    np.testing.assert_allclose(square, 4 * np.eye(len(square)), atol=bound)
    assert abs(w.mean()) < 0.25 and (w < 0).any()


def test_sparse():
    layer = nn.Linear(50, 64)
    nn.init.sparse_(layer.weight, 0.3, std=2.0)
    w = init_of(m=layer)["m.weight"]
    zero = w == 0
    np.testing.assert_array_equal(zero.sum(0), math.ceil(0.3 * 64))
    assert len({tuple(column) for column in zero.T}) > 30  # each column by itself
    assert abs(w[~zero].std() - 2) < 0.15 and abs(w.mean()) < 0.15


@pytest.mark.parametrize(("shape", "groups"), [((4, 3, 5), 1), ((4, 2, 3, 3), 2), ((6, 4, 2, 3, 4), 3)])
def test_dirac(shape, groups):
    weight = nn.Parameter(np.ones(shape, np.float32))
    nn.init.dirac_(weight, groups)
    expected = torch.nn.init.dirac_(torch.empty(shape), groups)
    np.testing.assert_array_equal(weight_of(weight), expected.numpy())


@pytest.mark.parametrize(
    ("initialise", "expected"),
    [
        (lambda w: nn.init.orthogonal_(w), r"2 or more dimensions, got \[4\]"),
        (lambda w: nn.init.sparse_(w, 0.5), r"needs a matrix, got \[4\]"),
        (lambda w: nn.init.dirac_(w), r"3 to 5 dimensions, got \[4\]"),
    ],
)
def test_initialisers_of_other_shapes(initialise, expected):
    with pytest.raises(pb.ShapeError, match=expected):
        initialise(nn.Parameter(np.zeros(4)))


def test_parameters_of_arrays_and_attribute_writes():
    class Model(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter([1.0, 2.0])
            self.register_buffer("count", pb.zeros((), dtype=pb.i32))

        def __call__(self, x):
            self.count = self.count + 1
            return x * self.scale

    model = Model()
    model.scale = np.array([3.0, 4.0])

    @pb.function(pb.f32[2])
    def call(x):
        return model(x)

    program = interpret(call)
    for _ in range(3):
        np.testing.assert_array_equal(program("call", np.ones(2, np.float32)), [3, 4])
    assert program.state["model.count"] == 3
    assert program.program.states["model.count"].kind == "buffer"
    assert list(model.state_dict()) == ["scale", "count"]


def test_functional_call_runs_with_other_parameters():
    model = nn.Linear(2, 1, bias=False)
    model.weight = np.array([[2.0, 3.0]])
    optimizer = optim.SGD(model, lr=1.0)

    @pb.function(pb.f32[2])
    def maml(x):
        params = dict(model.named_parameters())
        grads = pb.grad(pb.sum(model(x)), params)
        fast = {k: p - 0.5 * grads[k] for k, p in params.items()}
        return pb.functional_call(model, fast, x), model(x)

    @pb.function(pb.f32[2])
    def learned(x):
        """Other parameters are differentiated through, also after a step has written the model's own."""
        optimizer.minimize(pb.sum(model(x)))
        params = {"weight": 2 * pb.reshape(x, (1, 2))}
        return pb.grad(pb.sum(pb.functional_call(model, params, x)), x), pb.grad(pb.sum(model(x)), x), model.weight

    @pb.function(pb.f32[2])
    def wrong(x):
        return pb.functional_call(model, {"bias": x}, x)

    through, plain, weight = interpret(learned)("learned", np.array([1, 2], np.float32))
    np.testing.assert_array_equal(through, [4, 8])
    np.testing.assert_array_equal(plain, [1, 1])
    np.testing.assert_array_equal(weight, [[1, 1]])
    fast, slow = interpret(maml)("maml", np.array([1, 2], np.float32))
    assert slow == 8 and fast == 1.5 + 4
    with pytest.raises(TraceError, match="'bias' is no state of Linear; it has weight"):
        interpret(wrong)


def test_shape_and_dtype_errors_say_what_was_expected():
    with pytest.raises(ShapeError, match=r"expected input \[\.\.\., 4\] for weight \[3, 4\], got \[5, 7\]"):
        run(nn.Linear(4, 3), np.ones((5, 7), np.float32))
    with pytest.raises(DTypeError, match="expected input of dtype f32, as the weight, got f64"):
        run(nn.Linear(4, 3), np.ones((5, 4)))
    with pytest.raises(ShapeError, match=r"expected input \[\.\.\., 4\], got \[5\]"):
        run(nn.LayerNorm(4), np.ones(5, np.float32))
    with pytest.raises(ShapeError, match=r"mse_loss: input \[5, 4\] and target \[4\] differ"):
        run(nn.mse_loss, A, A[0])
    with pytest.raises(ShapeError, match=r"expected labels \[5\] for scores \[5, 4\], got .*\[4\]"):
        run(nn.cross_entropy, A, LABELS[:4])
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        run(lambda a, b: nn.mse_loss(a, b, "avg"), A, B)


ARRAYS = {
    "linear": (lambda x: nn.functional.linear(x, x[:3], x[0][:3]), A),
    "layer_norm": (lambda x: nn.functional.layer_norm(x, (4,), A[0], A[1]), A),
    "embedding": (lambda i: nn.functional.embedding(i, A, padding_idx=-1), LABELS),
    "flatten": (nn.flatten, A),
    "dropout": (lambda x: nn.dropout(x, 0.5, training=False), A),
    "mse_loss": (lambda x: nn.mse_loss(x, B), A),
    "mse_loss target": (lambda y: nn.mse_loss(B, y), A),
    "huber_loss": (lambda x: nn.huber_loss(x, target=B), A),
    "smooth_l1_loss": (lambda x: nn.smooth_l1_loss(input=x, target=B), A),
    "l1_loss": (lambda x: nn.l1_loss(x, B), A),
    "logits": (lambda x: nn.binary_cross_entropy_with_logits(x, abs(B), weight=B[0], pos_weight=A[0]), A),
    "cross_entropy": (lambda x: nn.cross_entropy(x, LABELS, weight=A[0]), A),
    "cross_entropy target": (lambda y: nn.cross_entropy(A, y), LABELS),
    "nll_loss": (lambda x: nn.nll_loss(x, LABELS), A),
    **{name: (ours, A) for name, (ours, _) in ACTIVATIONS.items()},
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_lists_are_constants(name):
    """In the dtypes that `asarray` gives them: a numpy array keeps its own, a list is f32 or i32."""
    fn, x = ARRAYS[name]
    narrow = x.astype({"f": np.float32, "i": np.int32}[x.dtype.kind])
    np.testing.assert_array_equal(run(lambda y: fn(x), X), run(fn, x))
    np.testing.assert_array_equal(run(lambda y: fn(x.tolist()), X), run(fn, narrow))


def test_layers_of_arrays_and_scalars():
    layers = nn.Linear(4, 3), nn.LayerNorm(4), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Embedding(5, 2)
    x = A.astype(np.float32)

    @pb.function(pb.f32[5, 4])
    def f(y):
        return [[layer(a) for a in (y, x, x.tolist())] for layer in layers[:3]], layers[3](LABELS)

    results, rows = interpret(f)("f", x)
    for expected, of_array, of_list in results:
        np.testing.assert_array_equal(expected, of_array)
        np.testing.assert_array_equal(expected, of_list)
    assert rows.shape == (5, 2)
    half = run(lambda y: nn.mse_loss(y, 0.1), np.ones((), np.float16))
    assert half.dtype == np.float16  # scalars are weak
    assert run(lambda y: nn.mse_loss(0.1, y), np.ones(())) == (1 - 0.1) ** 2
    assert run(lambda y: nn.nll_loss(y, 1), np.arange(3.0)) == -1
    labels = LABELS.astype(np.uint8)  # which -100 is no number of
    np.testing.assert_allclose(run(nn.cross_entropy, A, labels), run(nn.cross_entropy, A, LABELS), 1e-15)
    with pytest.raises(ShapeError, match="index 9 is out of range for an axis of size 5"):
        run(lambda y: nn.Embedding(5, 2)([9]), A)


def test_state_takes_arrays():
    layer = nn.Linear(4, 3)
    optimizer = optim.SGD(layer, lr=1.0)

    @pb.function(pb.f32[5, 4], training=True)
    def f(x):
        y = pb.functional_call(layer, {"weight": np.zeros((3, 4)), "bias": [1.0, 2.0, 3.0]}, x)
        optimizer.update([None, np.ones(3)])
        return y

    np.testing.assert_array_equal(interpret(f)("f", A.astype(np.float32)), [[1, 2, 3]] * 5)
