"""Optimizers against PyTorch for 20 steps from equal weights, schedules, clipping, parameter groups."""

import math

import numpy as np
import pytest
import torch
from interpreter import Interpreter, interpret, run

import pullback as pb
from pullback import nn, optim
from pullback.dsl.optim.adam import _bias_correction
from pullback.dsl.trace import trace_functions
from pullback.errors import BuildError, DTypeError, ShapeError, TraceError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((8, 5)), RNG.standard_normal((8, 3))
STEPS = 20

CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd_dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "sgd_nesterov": ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "sgd_maximize": ("SGD", {"lr": 0.001, "maximize": True, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_all": ("RMSprop", {"lr": 0.005, "momentum": 0.5, "centered": True, "weight_decay": 0.01, "alpha": 0.9}),
    "adagrad": ("Adagrad", {}),
    "adagrad_all": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.01},
    ),
    "adam": ("Adam", {}),
    "adam_all": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "amsgrad": True}),
    "adam_beta1_0": ("Adam", {"betas": (0.0, 0.9)}),
    "adamw": ("AdamW", {}),
    "adamw_all": ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
}


def network(nn, **dtype):
    return nn.Sequential(nn.Linear(5, 7, **dtype), nn.Tanh(), nn.Linear(7, 3, **dtype))


def pair(dtype, torch_dtype):
    """Our model and torch's with equal weights."""
    torch.manual_seed(0)
    ours, theirs = network(nn, dtype=dtype), network(torch.nn).to(torch_dtype)
    for name, value in theirs.state_dict().items():
        ours.state_dict()[name].initialize(value.numpy())
    return ours, theirs


def train(model, optimizer, dtype=pb.f64):
    @pb.function(dtype[X.shape], dtype[Y.shape])
    def step(x, y):
        loss = nn.mse_loss(model(x), y)
        optimizer.minimize(loss)
        return loss

    return interpret(step)


def train_torch(model, optimizer, steps=STEPS, clip=None, schedule=None):
    x, y = (torch.from_numpy(a).to(next(model.parameters()).dtype) for a in (X, Y))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        if clip:
            clip(model.parameters())
        optimizer.step()
        if schedule:
            schedule.step()
        losses.append(loss.item())
    return losses


def compare(program, losses, model, rtol, steps=STEPS):
    dtype = program.state["model.0.weight"].dtype
    x, y = X.astype(dtype), Y.astype(dtype)
    np.testing.assert_allclose([program("step", x, y) for _ in range(steps)], losses, rtol)
    for name, value in model.state_dict().items():
        got = program.state[f"model.{name}"]
        np.testing.assert_allclose(got, value.numpy(), rtol, atol=rtol * float(value.abs().max()))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "rtol"), [(pb.f64, torch.float64, 1e-9), (pb.f32, torch.float32, 1e-4)]
)
def test_as_torch(name, dtype, torch_dtype, rtol):
    cls, options = CASES[name]
    model, theirs = pair(dtype, torch_dtype)
    optimizer = getattr(optim, cls)(model, **options)
    losses = train_torch(theirs, getattr(torch.optim, cls)(theirs.parameters(), **options))
    compare(train(model, optimizer, dtype), losses, theirs, rtol)


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "rmsprop", "adamw"])
def test_defaults_are_torchs(name):
    cls = CASES[name][0]
    model, theirs = pair(pb.f32, torch.float32)
    ours = getattr(optim, cls)(model).groups[0].options
    defaults = getattr(torch.optim, cls)(theirs.parameters()).defaults
    assert {k: defaults[k] for k in ours} == ours


def test_clip_by_global_norm_as_torch():
    model, theirs = pair(pb.f64, torch.float64)
    optimizer = optim.SGD(model, lr=0.5, clip=optim.clip_by_global_norm(0.3))
    losses = train_torch(
        theirs,
        torch.optim.SGD(theirs.parameters(), lr=0.5),
        clip=lambda p: torch.nn.utils.clip_grad_norm_(p, 0.3),
    )
    compare(train(model, optimizer), losses, theirs, 1e-5)  # torch adds 1e-6 to the norm


def test_clip_by_value_as_torch():
    model, theirs = pair(pb.f64, torch.float64)
    optimizer = optim.Adam(model, clip=optim.clip_by_value(0.05))
    losses = train_torch(
        theirs,
        torch.optim.Adam(theirs.parameters()),
        clip=lambda p: torch.nn.utils.clip_grad_value_(p, 0.05),
    )
    compare(train(model, optimizer), losses, theirs, 1e-9)


def test_parameter_groups_as_torch():
    model, theirs = pair(pb.f64, torch.float64)
    optimizer = optim.SGD([{"params": model[0]}, {"params": [model[2].weight], "lr": 0.2}], lr=0.01, momentum=0.9)
    groups = [{"params": theirs[0].parameters()}, {"params": [theirs[2].weight], "lr": 0.2}]
    losses = train_torch(theirs, torch.optim.SGD(groups, lr=0.01, momentum=0.9))
    program = train(model, optimizer)
    compare(program, losses, theirs, 1e-9)
    assert "optimizer.momentum_buffer.model.2.bias" not in program.state
    with pytest.raises(BuildError, match=r"unknown options \['beta'\]"):
        optim.SGD([{"params": model, "beta": 1}])
    with pytest.raises(BuildError, match="in two groups"):
        optim.SGD([{"params": model}, {"params": model[0]}])


def test_frozen_and_unreached_parameters_stay():
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1), "c": nn.Linear(2, 1)})
    model["b"].requires_grad_(False)
    optimizer = optim.AdamW(model, weight_decay=0.5)

    @pb.function(pb.f32[2])
    def step(x):
        loss = pb.sum(model["a"](x) * model["b"](x))
        optimizer.minimize(loss)
        return loss

    program = interpret(step)
    before = dict(program.state)
    program("step", np.ones(2, np.float32))
    changed = {k for k, v in program.state.items() if not np.array_equal(v, before[k])}
    slots = {f"optimizer.{s}.model.a.{p}" for s in ("exp_avg", "exp_avg_sq") for p in ("weight", "bias")}
    assert changed == {"model.a.weight", "model.a.bias", "optimizer.step"} | slots
    assert not any(".exp_avg.model.b" in k or ".exp_avg.model.c" in k for k in before)


def test_update_with_own_gradients():
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model, lr=1.0)

    @pb.function(pb.f32[1, 2])
    def step(g):
        optimizer.update([g, None])

    program = Interpreter(trace_functions([step], {"model": model, "optimizer": optimizer}))
    before = program.state["model.weight"]
    assert program("step", np.array([[1, 2]], np.float32)) is None
    np.testing.assert_allclose(program.state["model.weight"], before - [[1, 2]], rtol=1e-6)


def test_two_optimizers_take_turns_in_program_order():
    a, b = nn.Parameter(3.0), nn.Parameter(4.0)
    first, second = optim.SGD([a], lr=0.1), optim.SGD([b], lr=0.1)

    @pb.function()
    def step():
        first.minimize(a * b)
        second.minimize(a * b)  # sees the new a
        return a, b

    assert interpret(step)("step") == (pytest.approx(3 - 0.4), pytest.approx(4 - 0.1 * (3 - 0.4)))


def rates(schedule, steps):
    steps = np.asarray(steps, np.float32)
    return np.array([run(lambda s: pb.asarray(schedule(s)), np.asarray(s)) for s in steps])


def torch_rates(make, lr, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_schedules_as_torch():
    S = torch.optim.lr_scheduler
    pairs = [
        (optim.step(0.3, 4, 0.5), lambda o: S.StepLR(o, 4, 0.5)),
        (optim.exponential(0.3, 0.9), lambda o: S.ExponentialLR(o, 0.9)),
        (optim.cosine(0.3, steps=20), lambda o: S.CosineAnnealingLR(o, 20)),
        (optim.linear(0.03, 0.3, 5), lambda o: S.LinearLR(o, 0.1, 1.0, 5)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(rates(ours, range(21)), torch_rates(theirs, 0.3, 21), rtol=2e-6, atol=1e-8)


def test_schedules():
    np.testing.assert_allclose(rates(optim.constant(0.1), [0, 7]), 0.1, rtol=1e-6)
    np.testing.assert_allclose(rates(optim.warmup(1.0, 4), range(6)), [0.25, 0.5, 0.75, 1, 1, 1])
    cosine = rates(optim.cosine(2.0, steps=14, warmup=4, final=0.1), [0, 3, 4, 9, 14, 99])
    np.testing.assert_allclose(cosine, [0.5, 2.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6)
    joined = optim.join([optim.warmup(1.0, 2), optim.constant(5.0), optim.linear(4.0, 0.0, 2)], [2, 4])
    np.testing.assert_allclose(rates(joined, range(8)), [0.5, 1, 5, 5, 4, 2, 0, 0])
    with pytest.raises(ValueError, match="steps - warmup is 0"):
        optim.cosine(1.0, steps=10, warmup=10)
    with pytest.raises(ValueError, match="2 schedules need 1 ascending"):
        optim.join([optim.constant(1.0)] * 2, [])


def test_schedule_follows_the_optimizers_steps():
    model, theirs = pair(pb.f64, torch.float64)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 15)
    losses = train_torch(theirs, reference, steps=15, schedule=schedule)
    compare(train(model, optim.SGD(model, lr=optim.cosine(0.2, 15))), losses, theirs, 1e-9, steps=15)


def test_learning_rate_as_run_time_scalar():
    w = nn.Parameter(1.0)
    optimizer = optim.SGD([w], lr=pb.hyper("lr", 0.5))

    @pb.function()
    def step():
        optimizer.minimize(w * 1)
        return w

    program = interpret(step)
    assert program("step") == 0.5
    program.state["lr"] = np.float32(0.25)
    assert program("step") == 0.25
    assert program.program.states["lr"].kind == "hyper"


def test_states_and_their_kinds():
    model, _ = pair(pb.f32, torch.float32)
    optimizer = optim.Adam(model)
    states = train(model, optimizer, pb.f32).program.states
    kinds = {name: state.kind for name, state in states.items()}
    assert kinds["rng.seed"] == "seed" and kinds["optimizer.step"] == "counter"
    assert kinds["model.0.weight"] == "parameter"
    assert kinds["optimizer.exp_avg.model.0.weight"] == "slot"
    assert states["optimizer.exp_avg_sq.model.2.bias"].type == states["model.2.bias"].type
    assert len(states) == 2 + 3 * 4


def test_nodes_per_parameter():
    """Adam costs 12 nodes per parameter beyond the gradient; scalars are shared."""

    def count(n):
        ps = [nn.Parameter(np.ones((3, 4), np.float32)) for _ in range(n)]
        optimizer = optim.Adam(ps)

        @pb.function()
        def step():
            optimizer.update([pb.ones((3, 4))] * n)

        holder = {"ps": ps, "optimizer": optimizer}
        return len(trace_functions([step], holder).functions[0].graph.nodes)

    assert count(9) - count(4) == 5 * (12 + 3)  # and its three states' inputs


def test_bias_correction_is_exact_in_f32():
    for step in (1, 2, 1000):
        got = run(lambda t: _bias_correction(t, 0.999), np.asarray(step, np.float32))
        assert got == pytest.approx(-math.expm1(step * math.log(0.999)), rel=3e-7)


def test_errors():
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model)

    def loss_of(fn):
        @pb.function(pb.f32[2])
        def step(x):
            optimizer.minimize(fn(x))

        return interpret(step)

    with pytest.raises(ShapeError, match=r"test_optim.py:\d+: minimize: the loss must be a scalar, got f32\[2\]"):
        loss_of(model)
    with pytest.raises(DTypeError, match="the loss must be a float, got i32"):
        loss_of(lambda x: pb.sum(model(x)).astype(pb.i32))
    with pytest.raises(TraceError, match="depends on none of the optimizer's parameters"):
        loss_of(pb.sum)
    with pytest.raises(TraceError, match="minimize is called outside of a function"):
        optimizer.minimize(pb.asarray(1.0))
    with pytest.raises(BuildError, match="SGD got no parameters"):
        optim.SGD(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        optim.SGD(model, nesterov=True)
