"""Loss curves of compiled training against PyTorch's, from the same initial weights, for 100 steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import pullback as pb
from pullback import nn, optim

torch = pytest.importorskip("torch")

OPTIMIZERS = {
    "SGD": (lambda m: optim.SGD(m, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (lambda m: optim.SGD(m, lr=0.02, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
    "nesterov": (
        lambda m: optim.SGD(m, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4),
    ),
    "RMSprop": (lambda m: optim.RMSprop(m, lr=1e-3), lambda p: torch.optim.RMSprop(p, lr=1e-3)),
    "Adagrad": (lambda m: optim.Adagrad(m, lr=0.01), lambda p: torch.optim.Adagrad(p, lr=0.01)),
    "Adam": (lambda m: optim.Adam(m, lr=1e-3), lambda p: torch.optim.Adam(p, lr=1e-3)),
    "AdamW": (lambda m: optim.AdamW(m, lr=1e-3), lambda p: torch.optim.AdamW(p, lr=1e-3)),
}
MODELS = {"digits": (64, 128, 10), "mlp3": (20, 48, 32, 5)}


def layers(library, sizes):
    """Linear and ReLU in turn, of either library."""
    out = []
    for a, b in itertools.pairwise(sizes):
        out += [library.Linear(a, b), library.ReLU()]
    return library.Sequential(*out[:-1])


def batches(name: str, sizes, n: int, size: int = 32):
    """Real digits, or a fixed random task."""
    rng = np.random.default_rng(3)
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        x = rng.standard_normal((512, sizes[0]))
        y = np.argmax(x @ rng.standard_normal((sizes[0], sizes[-1])), axis=1)
    for _ in range(n):
        rows = rng.integers(0, len(x), size)
        yield x[rows].astype(np.float32), y[rows].astype(np.int32)


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    """One program for each model with a training function for each optimizer, each on a model of its own."""
    sizes = MODELS[request.param]
    functions, namespace = [], {}
    for name, (make, _) in OPTIMIZERS.items():
        model = layers(nn, sizes)
        optimizer = make(model)
        namespace |= {f"model_{name}": model, f"optimizer_{name}": optimizer}

        @pb.function(pb.f32[32, sizes[0]], pb.i32[32], training=True, name=f"train_{name}")
        def train(x, y, model=model, optimizer=optimizer):
            loss = nn.cross_entropy(model(x), y)
            optimizer.minimize(loss)
            return loss

        functions.append(train)
    return request.param, sizes, build(functions, namespace)


def build(functions, namespace):
    import tempfile
    from pathlib import Path

    import pullback_runtime as rt
    from pullback import driver
    from pullback.dsl.trace import trace_functions

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.so"
        driver.write(path, driver.compile_program(trace_functions(functions, namespace), pb.Options(cache=False)))
        return rt.load(path, seed=5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_curve_follows_torch(built, name):
    model_name, sizes, program = built
    theirs = layers(torch.nn, sizes)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(program.state[f"model_{name}.{key}"])))
    optimizer = OPTIMIZERS[name][1](theirs.parameters())
    step = getattr(program, f"train_{name}")
    for i, (x, y) in enumerate(batches(model_name, sizes, 100)):
        optimizer.zero_grad()
        want = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y).long())
        want.backward()
        optimizer.step()
        got = float(step(x=x, y=y))
        assert got == pytest.approx(want.item(), rel=1e-4), f"step {i}"
