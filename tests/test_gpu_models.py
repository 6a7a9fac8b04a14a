"""Programs on the emulated GPU give the CPU's bits: every layer, loss, optimizer and draw, the examples, `mlpdeep`.

Each is a training step (forward, backward, update), compared with the evaluator of the CPU's plan: outputs and every
byte of state, in three orders of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_kernel_bits as attention
from emulated import ORDERS, follow, gpu_build
from simt.native import needs_emulator

import pullback as pb
from pullback import nn, optim
from pullback.dsl.trace import parse_dims, trace_functions, trace_script
from pullback.graph.types import TensorType

EXAMPLES = Path(__file__).parents[1] / "examples"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# ---- layers and losses --------------------------------------------------------------------------------------
X = normal(4, 6)
LONG = normal(3, 33)
OTHER = normal(4, 6)
LABELS = np.array([0, 5, 2, 1], np.int32)
TOKENS = np.array([[0, 4, 2], [2, 2, 1]], np.int32)
CHANCES = RNG.random((4, 6)).astype(np.float32)

NO_LAYER = {"Buffer", "Module", "Parameter", "functional", "init"}
"""Names of `pullback.nn` that compute nothing by themselves."""

LAYERS: dict[str, tuple[Callable, ...]] = {
    # name -> what makes the layer (or loss, or function), then what it is called on: floats get gradients
    "Linear": (lambda: nn.Linear(6, 5), X),
    "Embedding": (lambda: nn.Embedding(7, 5, padding_idx=1), TOKENS),
    "LayerNorm": (lambda: nn.LayerNorm(33), LONG),
    "Dropout": (lambda: nn.Dropout(0.3), LONG),
    "Flatten": (lambda: nn.Flatten(), normal(2, 3, 4)),
    "Identity": (lambda: nn.Identity(), X),
    "Sequential": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()), X),
    "ModuleList": (lambda: Chain(nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])), X),
    "ModuleDict": (lambda: Chain(nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 3)})), X),
    **{n: (getattr(nn, n), X) for n in ("ReLU", "LeakyReLU", "ELU", "Sigmoid", "LogSigmoid", "Tanh", "SiLU")},
    **{n: (getattr(nn, n), X) for n in ("GELU", "Softplus")},
    "Softmax": (lambda: nn.Softmax(dim=0), X),
    "LogSoftmax": (lambda: nn.LogSoftmax(dim=-1), LONG),
    **{n: (getattr(nn, n), X, OTHER) for n in ("MSELoss", "L1Loss", "HuberLoss", "SmoothL1Loss")},
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss, X, CHANCES),
    "CrossEntropyLoss": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2), X, LABELS),
    "NLLLoss": (nn.NLLLoss, X, LABELS),
    **{n: (lambda n=n: getattr(nn, n), X) for n in ("relu", "sigmoid", "silu", "tanh", "logsigmoid", "flatten")},
    "leaky_relu": (lambda: lambda x: nn.leaky_relu(x, 0.2), X),
    "elu": (lambda: lambda x: nn.elu(x, 1.5), X),
    "gelu": (lambda: lambda x: nn.gelu(x, approximate="tanh"), X),
    "softplus": (lambda: lambda x: nn.softplus(x, 2.0, 5.0), X),
    "softmax": (lambda: nn.softmax, LONG),
    "log_softmax": (lambda: lambda x: nn.log_softmax(x, 0), X),
    "dropout": (lambda: lambda x: nn.dropout(x, 0.5), X),
    "linear": (lambda: nn.linear, X, normal(5, 6), normal(5)),
    "layer_norm": (lambda: lambda x, w, b: nn.layer_norm(x, (33,), w, b), LONG, normal(33), normal(33)),
    "embedding": (lambda: lambda w: nn.embedding(pb.asarray(TOKENS), w), normal(7, 5)),
    "mse_loss": (lambda: lambda x, y: nn.mse_loss(x, y, "sum"), X, OTHER),
    "l1_loss": (lambda: lambda x, y: nn.l1_loss(x, y, "none"), X, OTHER),
    "huber_loss": (lambda: lambda x, y: nn.huber_loss(x, y, delta=0.7), X, OTHER),
    "smooth_l1_loss": (lambda: lambda x, y: nn.smooth_l1_loss(x, y, beta=0.7), X, OTHER),
    "binary_cross_entropy_with_logits": (
        lambda: lambda x, y, w: nn.binary_cross_entropy_with_logits(x, y, weight=w),
        X,
        CHANCES,
        normal(6),
    ),
    "cross_entropy": (lambda: nn.cross_entropy, LONG, np.array([32, 0, 7], np.int32)),
    "nll_loss": (lambda: nn.nll_loss, X, LABELS),
}


class Chain(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x):
        for layer in self.layers.values() if isinstance(self.layers, nn.ModuleDict) else self.layers:
            x = pb.sin(layer(x))
        return x


class Trial(nn.Module):
    """A layer and what it is called on; float arrays are parameters, so that they get gradients."""

    def __init__(self, layer, arrays):
        self.layer = layer
        self.arrays = [nn.Parameter(a) if a.dtype.kind == "f" else pb.asarray(a) for a in arrays]

    def __call__(self):
        return self.layer(*(a + 0.0 if isinstance(a, nn.Parameter) else a for a in self.arrays))


def trained(model: nn.Module, optimizer: optim.Optimizer, steps: int, orders=ORDERS) -> None:
    """Training steps on the sum of the outputs' squares."""

    @pb.function(training=True)
    def step():
        out = model()
        loss = pb.sum(out * out)
        optimizer.minimize(loss)
        return loss, out

    program = trace_functions([step], {"model": model, "optimizer": optimizer})
    found = follow(gpu_build(program), [("step", [])] * steps, orders)
    assert np.isfinite(found[-1][0])


@needs_emulator
@pytest.mark.parametrize("name", sorted(set(nn.__all__) - NO_LAYER))
def test_layers(name):
    assert name in LAYERS, f"nn.{name} has no sample here: add one to LAYERS"
    make, *arrays = LAYERS[name]
    model = Trial(make(), arrays)
    trained(model, optim.SGD(model, lr=0.05), 2)


# ---- optimizers ---------------------------------------------------------------------------------------------
NO_OPTIMIZER = {"Optimizer", "Schedule"}
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "SGD": lambda m: optim.SGD(m, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adagrad": lambda m: optim.Adagrad(m, lr=0.1, lr_decay=0.1),
    "Adam": lambda m: optim.Adam(m, lr=0.1, amsgrad=True, weight_decay=0.01),
    "AdamW": lambda m: optim.AdamW(m, lr=0.1),
    "RMSprop": lambda m: optim.RMSprop(m, lr=0.1, momentum=0.9, centered=True),
    "RMSProp": lambda m: optim.RMSProp(m, lr=0.1),
    "clip_by_global_norm": lambda m: optim.Adam(m, lr=0.1, clip=optim.clip_by_global_norm(0.5)),
    "global_norm": lambda m: optim.SGD(m, lr=0.1, clip=lambda g: [x / (1.0 + optim.global_norm(g)) for x in g]),
    "clip_by_value": lambda m: optim.SGD(m, lr=0.1, clip=optim.clip_by_value(0.3)),
    "constant": lambda m: optim.SGD(m, lr=optim.constant(0.1)),
    "cosine": lambda m: optim.AdamW(m, lr=optim.cosine(0.1, steps=5, warmup=2)),
    "exponential": lambda m: optim.SGD(m, lr=optim.exponential(0.1, 0.7)),
    "join": lambda m: optim.SGD(m, lr=optim.join([optim.constant(0.1), optim.constant(0.01)], [2])),
    "linear": lambda m: optim.SGD(m, lr=optim.linear(0.1, 0.0, steps=3)),
    "step": lambda m: optim.SGD(m, lr=optim.step(0.1, 2)),
    "warmup": lambda m: optim.SGD(m, lr=optim.warmup(0.1, 3)),
}


@needs_emulator
@pytest.mark.parametrize("name", sorted(set(optim.__all__) - NO_OPTIMIZER))
def test_optimizers(name):
    assert name in OPTIMIZERS, f"optim.{name} has no sample here: add one to OPTIMIZERS"
    model = Trial(nn.Linear(6, 40), [X])
    trained(model, OPTIMIZERS[name](model), 3)


# ---- random numbers -----------------------------------------------------------------------------------------
INITIALISERS = [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("_") and n != "array_"]

ARGUMENTS = {"constant_": (0.5,), "sparse_": (0.3,)}


class Initialised(nn.Module):
    def __init__(self):
        for name in INITIALISERS:
            shape = (4, 4, 3) if name == "dirac_" else (9, 9)
            setattr(self, name, nn.Parameter(type=TensorType(pb.f32, shape)))
            getattr(nn.init, name)(getattr(self, name), *ARGUMENTS.get(name, ()))


@needs_emulator
def test_random_numbers():
    """Philox on the device: the draws of initialisers, of dropout's kind, and in loops, step after step."""
    model = Initialised()

    @pb.function(training=True)
    def draw():
        single = pb.random.normal((37,)), pb.random.uniform((5, 7)), pb.random.bernoulli(0.3, (40,))
        double = pb.random.normal((11,), dtype=pb.f64), pb.random.uniform((3,), dtype=pb.bf16)
        _, loop = pb.scan(lambda s, _: (s + 1.0, pb.random.uniform((3,)) + s), pb.zeros((3,)), None, length=4)
        return *single, *double, loop, model.uniform_ + 0.0

    program = trace_functions([draw], {"model": model})
    first, second = follow(gpu_build(program), [("draw", [])] * 2)
    assert all(not np.array_equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))
    assert abs(first[0].mean()) < 0.5 and 0 < first[1].min() < first[1].max() < 1


# ---- programs -----------------------------------------------------------------------------------------------
def labelled(batch: int, width: int, classes: int, steps: int) -> list[tuple[str, list[np.ndarray]]]:
    labels = RNG.integers(0, classes, (steps, batch)).astype(np.int32)
    return [("train", [normal(batch, width), y]) for y in labels]


@needs_emulator
def test_ten_steps_of_digits():
    build = gpu_build(trace_script(EXAMPLES / "digits.py", [], parse_dims(["batch=16"])))
    follow(build, [*labelled(16, 64, 10, 10), ("predict", [normal(16, 64)])])


@needs_emulator
def test_xor():
    build = gpu_build(trace_script(EXAMPLES / "xor.py", [], {}))
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    step = ("train", [x, np.array([0, 1, 1, 0], np.float32)])
    losses = follow(build, [*[step] * 10, ("predict", [x])])
    assert losses[9][0] < losses[0][0]


@needs_emulator
def test_spiral():
    build = gpu_build(trace_script(EXAMPLES / "spiral.py", [], parse_dims(["batch=24"])))
    follow(build, [*labelled(24, 2, 2, 3), ("probability", [normal(24, 2)])])


@needs_emulator
def test_ten_steps_of_mlpdeep(monkeypatch):
    """The benchmark's model script with four layers of width 32."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    workloads = pytest.importorskip("workloads")
    monkeypatch.setattr(workloads, "MLPDEEP", {**workloads.MLPDEEP, "width": 32, "batch": 12})
    build = gpu_build(trace_script(BENCHMARKS / "pullback_mlpdeep.py", ["--layers", "4"], {}))
    losses = follow(build, labelled(12, 32, 32, 10))
    assert all(np.isfinite(x[0]) for x in losses)


@needs_emulator
@pytest.mark.parametrize("fusion", [True, False])
def test_attention_with_layer_norm_embedding_and_adamw(fusion):
    program = trace_functions([attention.train], {"block": attention.block, "adam": attention.adam})
    steps = [("train", list(RNG.integers(0, 11, (2, 3, 5)).astype(np.int32))) for _ in range(3)]
    follow(gpu_build(program, fusion=fusion), steps, ORDERS if fusion else ORDERS[2:])


# ---- loops --------------------------------------------------------------------------------------------------
def recurrent(reverse: bool):
    @pb.function(pb.f32[7, 5], pb.f32[5, 5])
    def run(xs, w):
        def step(h, x):
            h = pb.tanh(pb.matmul(h, w) + x)
            return h, pb.softmax(h)

        last, rows = pb.scan(step, pb.zeros((5,)), xs, reverse=reverse)
        return last, rows, *pb.grad(pb.sum(last) + pb.sum(rows * rows), (xs, w))

    return run


@pb.function(pb.f32[3, 4, 6])
def nested(xs):
    """A scan within a scan, whose carries change places."""

    def outer(carry, rows):
        inner, sums = pb.scan(lambda s, x: (s * 0.5 + x, pb.sum(x)), carry[0], rows)
        return (carry[1], inner), sums

    (a, b), sums = pb.scan(outer, (pb.zeros((6,)), pb.ones((6,))), xs)
    return a, b, sums


@needs_emulator
@pytest.mark.parametrize("reverse", [False, True])
def test_scans(reverse):
    build = gpu_build(trace_functions([recurrent(reverse)], {}))
    assert "_loop(" in build.llvm["sm_90"]
    follow(build, [("run", [normal(7, 5), normal(5, 5)])])


@needs_emulator
def test_nested_scans():
    follow(gpu_build(trace_functions([nested], {})), [("nested", [normal(3, 4, 6)])])
