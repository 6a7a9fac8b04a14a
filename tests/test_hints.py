"""Names and calls that torch, numpy and JAX have and this package has not: the message says what to write."""

from __future__ import annotations

import numpy as np
import pytest

import pullback as pb
import pullback.nn.functional as F
import pullback.nn.init
from pullback import nn, optim
from pullback.dsl import array, instead
from pullback.dsl.trace import trace_functions
from pullback.errors import PullbackError, ShapeError, TraceError


def traced(body):
    @pb.function(pb.f32[4, 3], training=True)
    def f(x):
        return body(x)

    return trace_functions((f,), {})


NAMES = {
    "cat": (lambda: pb.cat, r"pullback has no 'cat'; use pb.concat\(arrays, axis=0\)"),
    "transpose": (lambda: pb.transpose, r"use pb.permute_dims\(x, axes\)"),
    "cumsum": (lambda: pb.cumsum, "use pb.cumulative_sum"),
    "clamp": (lambda: pb.clamp, r"use pb.clip\(x, min, max\)"),
    "split": (lambda: pb.split, "use slices"),
    "topk": (lambda: pb.topk, "use pb.sort"),
    "jit": (lambda: pb.jit, "use @pb.function"),
    "vmap": (lambda: pb.vmap, "use a batch axis"),
    "cond": (lambda: pb.cond, "use pb.where"),
    "while_loop": (lambda: pb.while_loop, "use pb.scan"),
    "value_and_grad": (lambda: pb.value_and_grad, r"use the loss and pb.grad\(loss, wrt\)"),
    "numpy's name": (lambda: pb.arcsin, r"use pb.asin\(x\)"),
    "of nn": (lambda: pb.cross_entropy, "pullback has no 'cross_entropy'; use nn.cross_entropy"),
    "of optim": (lambda: pb.AdamW, "use optim.AdamW"),
    "Conv2d": (lambda: nn.Conv2d, "pullback.nn has no 'Conv2d'; use nn.Linear on patches"),
    "BatchNorm1d": (lambda: nn.BatchNorm1d, "use nn.LayerNorm"),
    "MultiheadAttention": (lambda: nn.MultiheadAttention, "use nn.Linear, q @ k.mT and nn.softmax"),
    "function in nn": (lambda: nn.exp, "use pb.exp"),
    "conv2d": (lambda: F.conv2d, "pullback.nn.functional has no 'conv2d'; use nn.Linear on patches"),
    "one_hot": (lambda: F.one_hot, "use pb.one_hot"),
    "layer in functional": (lambda: F.Linear, "use nn.Linear"),
    "lr_scheduler": (lambda: optim.lr_scheduler, "pullback.optim has no 'lr_scheduler'; use a schedule as lr="),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    get, message = NAMES[name]
    with pytest.raises(TraceError, match=rf"test_hints.py:\d+: .*{message}") as e:
        get()
    assert isinstance(e.value, AttributeError)


def test_unknown_names_are_pythons_own_error():
    for module in (pb, nn, F, optim):
        assert not hasattr(module, "cat") and not hasattr(module, "__wrapped__")
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nonsense'") as e:
            module.nonsense  # noqa: B018
        assert not isinstance(e.value, PullbackError)


def test_nothing_that_exists_has_a_hint():
    assert not instead.FUNCTIONS.keys() & vars(pb).keys()
    assert not instead.METHODS.keys() & set(dir(array.Tensor))
    assert not instead.LAYERS.keys() & (vars(nn).keys() - {"Dropout", "dropout"})  # (for Dropout2d)
    assert not instead.OPTIMIZERS.keys() & vars(optim).keys()


def test_submodules_are_those_of_torch():
    assert F is nn.functional and pullback.nn.init is nn.init
    assert F.softmax is nn.softmax is pb.softmax
    assert F.__all__ == nn.functional.__all__ and set(F.__all__) <= set(dir(F))
    assert nn.init.xavier_uniform_ is pb.nn.init.xavier_uniform_


CALLS = {
    "t": (lambda x: x.t(), "a Tensor has no 't'; use x.T"),
    "clone": (lambda x: x.clone(), "no 'clone'; use x itself"),
    "chunk": (lambda x: x.chunk(2), "no 'chunk'; use slices"),
    "transpose": (lambda x: x.transpose(0, 1), r"no 'transpose'; use x.permute\(axes\)"),
    "as a function": (lambda x: x.cumsum(0), r"no 'cumsum'; use pb.cumulative_sum\(x, axis=...\)"),
    "dim": (lambda x: pb.sum(x, dim=1), "keyword argument 'dim': write axis="),
    "dim of a method": (lambda x: x.max(dim=1), "keyword argument 'dim': write axis="),
    "keepdim": (lambda x: x.mean(-1, keepdim=True), "keyword argument 'keepdim': write keepdims="),
    "axis by position": (lambda x: pb.mean(x, -1), "2 were given: write axis= before the axis"),
    "concat by position": (lambda x: pb.concat([x, x], 1), "write axis= before the axis"),
    "numpy's ufuncs": (lambda x: np.sin(x), r"numpy's functions do not take tensors; write pb.sin\(x\) for np.sin"),
    "numpy's functions": (lambda x: np.mean(x, axis=0), "numpy's functions do not take tensors; use pb.mean"),
    "numpy's names": (lambda x: np.concatenate([x, x]), r"use pb.concat\(arrays, axis=0\)"),
    "numpy's others": (lambda x: np.linalg.norm(x), "use the tensor itself: what a compiled function returns"),
    "grad without wrt": (lambda x: pb.grad(pb.sum(x)), r"by, as in pb.grad\(loss, x\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    body, message = CALLS[name]
    with pytest.raises(TraceError, match=message) as e:
        traced(body)
    assert str(e.value).startswith(f"{__file__}:{body.__code__.co_firstlineno}: ")


def test_other_type_errors_stay_pythons():
    for body, message in (
        (lambda x: pb.exp(x, x), r"^exp\(\) takes 1 positional argument but 2 were given$"),
        (lambda x: pb.sum(x, nonsense=1), "unexpected keyword argument 'nonsense'$"),
        (lambda x: (lambda y: y)(x, dim=1), "keyword argument 'dim'$"),
    ):
        with pytest.raises(TypeError, match=message) as e:
            traced(body)
        assert "write" not in str(e.value)


def test_arrays_leave_operators_to_tensors():
    a = np.ones((4, 3), np.float32)
    for body in (lambda x: a + x, lambda x: x - a, lambda x: np.float32(2) * x, lambda x: np.float64(2) / x):
        (f,) = (f for f in traced(body).functions if f.name == "f")
        assert str(f.graph.outputs[0].type) == "f32[4,3]"


def test_functions_of_jax():
    def f(x):
        return pb.sum(x * x)

    with pytest.raises(ShapeError, match=r"grad takes the value, not the function: pb.grad\(f\(x\), x\)"):
        pb.grad(f)
    with pytest.raises(
        TraceError, match=r"f has 1 parameters \(x\) but .* 0 specs: .* @pb.function\(pb.f32\[64, 8\]\)"
    ):
        pb.function(f)
