"""Habits from torch and JAX that this DSL does not share: the message says what to write instead."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import pullback as pb
import pullback_runtime as rt
from pullback import nn, optim
from pullback.dsl.trace import trace_functions
from pullback.errors import BuildError, DTypeError, PullbackError, ShapeError, TraceError
from pullback_runtime.training import fit

model = nn.Linear(3, 1)
optimizer = optim.SGD(model, lr=0.1)
counted = nn.Module()
counted.register_buffer("calls", pb.zeros(()))


def traced(body):
    def f(x):
        return body(x)

    return trace_functions((pb.function(pb.f32[4, 3], training=True)(f),), globals())


def counts(carry, x):
    counted.calls = counted.calls + 1  # would happen once, not in every iteration
    return carry, x


def learns(carry, x):
    optimizer.minimize(pb.sum(model(x)))
    return carry, x


HABITS = {
    "backward": (lambda x: pb.sum(x).backward(), TraceError, r"no 'backward'; use optimizer.minimize"),
    "detach": (lambda x: x.detach(), TraceError, r"use pb.stop_gradient\(x\)"),
    "view": (lambda x: x.view(-1), TraceError, r"use x.reshape\(shape\)"),
    "unsqueeze": (lambda x: x.unsqueeze(0), TraceError, "use pb.expand_dims"),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 0.0), TraceError, r"use pb.where\(mask, value, x\)"),
    "method that is a function here": (lambda x: x.exp(), TraceError, r"no 'exp'; use pb.exp\(x\)"),
    "of a parameter": (lambda x: model.weight.numpy(), TraceError, "a Parameter has no 'numpy'"),
    "unknown": (lambda x: x.nonsense, AttributeError, "'Tensor' object has no attribute 'nonsense'"),
    "format": (lambda x: f"{pb.sum(x):.3f}", TraceError, r"use pb.debug_print\(\"{:.3f}\", x\)"),
    "zero_grad": (lambda x: optimizer.zero_grad(), TraceError, "no 'zero_grad'; use nothing: gradients are not kept"),
    "step": (lambda x: optimizer.step(), TraceError, r"use optimizer.minimize\(loss\)"),
    "grad of a function": (lambda x: pb.grad(lambda x: pb.sum(x), x), ShapeError, r"pb.grad\(f\(x\), x\)"),
    "grad by a module": (lambda x: pb.grad(pb.sum(model(x)), model), DTypeError, "take dict.module.named_parameters"),
    "vjp of a value": (lambda x: pb.vjp(pb.sum(x), x), TraceError, "a function, as in pb.vjp.f, x., got Tensor"),
    "vjp of integers": (lambda x: pb.vjp(pb.sum, 3), DTypeError, "vjp: expected tensors, got int"),
    "jvp of a value": (lambda x: pb.jvp(x, (x,), (x,)), TraceError, "expected a function, as in pb.jvp"),
    "jvp without tuples": (lambda x: pb.jvp(pb.sum, x, x), ShapeError, r"pb.jvp\(f, \(x,\), \(t,\)\), got Tensor"),
    "state in a loop": (lambda x: pb.scan(counts, x, x), TraceError, "assigns the buffer 'counted.calls' f32.*: carry"),
    "learning in a loop": (
        lambda x: pb.scan(learns, x, x),
        TraceError,
        "f assigns the counter 'optimizer.step' i32.*: carry",
    ),
    "integers to learn": (lambda x: nn.Parameter([1, 2]), DTypeError, r"type i32\[2\] cannot be learned"),
}  # fmt: skip


@pytest.mark.parametrize("name", HABITS)
def test_habits(name):
    body, error, message = HABITS[name]
    with pytest.raises(error, match=message) as e:
        traced(body)
    if isinstance(e.value, PullbackError):
        assert str(e.value).startswith(f"{__file__}:")


def test_python_still_asks_for_attributes():
    seen = []

    def body(x):
        seen.extend([hasattr(x, "view"), hasattr(x, "shape"), f"{x}", f"{model.weight}", hasattr(optimizer, "step")])
        return x

    traced(body)
    assert seen == [False, True, "Tensor(f32[4,3])", "<parameter 'model.weight' f32[1,3]>", False]
    assert copy.deepcopy(model).weight is not model.weight


def test_state_that_a_loop_reads_and_its_caller_assigns():
    def body(x):
        counted.calls, _ = pb.scan(lambda c, r: (c + counted.calls + r[0], ()), counted.calls, x)
        return counted.calls

    assert [str(s.type) for s in traced(body).states.values()][1:] == ["f32[]"]


def test_rates_and_frozen_integers():
    with pytest.raises(ValueError, match="Adam: expected lr >= 0, got -1"):
        optim.Adam(model, lr=-1)
    assert nn.Parameter(np.arange(2), requires_grad=False).dtype in (pb.i32, pb.i64)
    with pytest.raises(BuildError, match="got no parameters"):
        optim.Adam([], lr=0.1)


def test_other_number_of_rows():
    """A mean over the batch cannot be padded; the message says so, and how to compile both sizes."""
    batch = pb.dim("batch")

    @pb.function(pb.f32[batch, 3], pb.f32[batch])
    def fit(x, y):
        return nn.mse_loss(model(x)[:, 0], y)

    program = pb.build(fit, dims={"batch": 4})
    with pytest.raises(rt.ArgumentShapeError) as e:
        program.fit(np.zeros((2, 3)), np.zeros(2))
    assert str(e.value) == (
        "fit: input 'x': expected shape [4, 3], got [2, 3]; a smaller batch is not padded, as rows meet in sum at "
        f'{__file__}:{fit.fn.__code__.co_firstlineno + 2} (to compile it for both: dims={{"fit.batch": (4, 2)}})'
    )
    with pytest.raises(rt.ArgumentShapeError, match=r"got \[5, 3\] \(to compile it for both"):
        program.fit(np.zeros((5, 3)), np.zeros(5))
    for x, y in ((np.zeros((2, 2)), np.zeros(2)), (np.zeros((2, 3)), np.zeros(3)), (np.zeros((0, 3)), np.zeros(0))):
        with pytest.raises(rt.ArgumentShapeError, match=r"expected shape \[4, 3\], got \[\d, \d\]$"):
            program.fit(x, y)


def test_scalar_input():
    with pytest.raises(
        TraceError, match=r"the spec of x is f32, expected e.g. pb.f32\[64\], pb.f32\[\(\)\] for a scalar"
    ):
        trace_functions((pb.function(pb.f32)(lambda x: x),), {})


def test_failed_check_has_the_line_of_the_index():
    """Not that of what the gather was fused with."""
    table = nn.Embedding(5, 3)

    @pb.function(pb.i32[4, 2])
    def look(tokens):
        x = table(tokens)
        return pb.permute_dims(x, (1, 0, 2)) * 2

    program = pb.build(look)
    with pytest.raises(rt.CheckError) as e:
        program.look(np.full((4, 2), 7))
    place = f"{__file__}:{look.fn.__code__.co_firstlineno + 2}"
    message = "index 'tokens' of gather (expected 0 to 4): 7 is out of range; the state is as it was before"
    assert str(e.value) == f"look: {place}: {message}"


def test_where_a_built_program_is(tmp_path):
    @pb.function(pb.f32[3])
    def twice(x):
        return x * 2

    memory = pb.build(twice)
    assert memory.path is None and repr(memory) == "<program program: twice>"
    with pytest.raises(TypeError, match=r'cannot be pickled: give pb\.build output="FILE.so", load that in the other'):
        pickle.dumps(memory)
    with pytest.raises(AttributeError, match=r"^program has no function 'thrice'; its functions are twice$"):
        memory.thrice  # noqa: B018
    with pytest.raises(rt.DataError, match=r"^program has no function 'train'"):
        fit(memory, {"x": np.zeros((2, 3))})
    for path in (tmp_path / "m.so", str(tmp_path / "n.so")):
        program = pb.build(twice, output=path)
        assert program.path == str(path) and (rt.load(path).twice([1, 2, 3]) == program.twice([1, 2, 3])).all()
    nowhere = tmp_path / "none" / "m.so"
    with pytest.raises(BuildError, match=f"^cannot write {nowhere}: No such file or directory$"):
        pb.build(twice, output=nowhere)
    with pytest.raises(BuildError, match=r'^dims is 4: expected names and sizes, such as \{"batch": 64\}$'):
        pb.build(twice, dims=4)
