"""Activation functions, as in torch.nn.functional: compositions of few nodes that are stable at both ends.

`dim` is torch's word, `axis` the array API's; softmax takes either (by default the last axis).
"""

from __future__ import annotations

import math

from ...errors import ShapeError
from ...graph.graph import make
from ...ops.elementwise import StopGradient, Sub
from ...ops.movement import Broadcast
from ...ops.reduction import Max, Sum
from ..array import erf, exp, expm1, log, log1p, tanh, where
from ..creation import takes_arrays
from ..promotion import ArrayLike
from ..tensor import Tensor


@takes_arrays("input")
def relu(input: ArrayLike) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    return where(input <= 0, 0, input)


@takes_arrays("input")
def leaky_relu(input: ArrayLike, negative_slope: float = 0.01) -> Tensor:
    return where(input > 0, input, input * negative_slope)


@takes_arrays("input")
def elu(input: ArrayLike, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha (e^x - 1) below."""
    positive = input > 0
    return where(positive, input, expm1(where(positive, 0, input)) * alpha)


_LOWEST = {"f64": -708.0, "f32": -87.0, "bf16": -87.0, "f16": -10.0}
"""Below, e^-x would overflow; the sigmoid is less than the smallest normal number's neighbourhood there."""


@takes_arrays("input")
def sigmoid(input: ArrayLike) -> Tensor:
    """1 / (1 + e^-x)."""
    low = _LOWEST.get(input.dtype.name, -87.0)
    return 1 / (exp(where(input < low, -low, -input)) + 1)


@takes_arrays("input")
def logsigmoid(input: ArrayLike) -> Tensor:
    return -softplus(-input)


@takes_arrays("input")
def gelu(input: ArrayLike, approximate: str = "none") -> Tensor:
    """x Phi(x) (Hendrycks and Gimpel 2016); approximate="tanh" is their second form."""
    half = input * 0.5
    if approximate == "none":
        return half + half * erf(input * math.sqrt(0.5))
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")
    c = math.sqrt(2.0 / math.pi)
    return half + half * tanh(input * (input * input * (0.044715 * c) + c))


@takes_arrays("input")
def silu(input: ArrayLike) -> Tensor:
    """x sigmoid(x)."""
    low = _LOWEST.get(input.dtype.name, -87.0)
    return input / (exp(where(input < low, -low, -input)) + 1)


@takes_arrays("input")
def softplus(input: ArrayLike, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta; x itself where beta x is above the threshold."""
    x = input if beta == 1 else input * beta
    large = x > threshold
    y = log1p(exp(where(large, 0, x)))
    return where(large, input, y if beta == 1 else y / beta)


@takes_arrays("input")
def softmax(input: ArrayLike, dim: int | None = None, *, axis: int | None = None) -> Tensor:
    """e^x / sum(e^x) along one axis."""
    axis = softmax_axis(input, dim, axis)
    e = exp(shifted(input, axis))
    return e / spread(sum_out(e, axis), e.shape, axis)


@takes_arrays("input")
def log_softmax(input: ArrayLike, dim: int | None = None, *, axis: int | None = None) -> Tensor:
    """log(softmax(x)), exact also where softmax is 0."""
    axis = softmax_axis(input, dim, axis)
    x = shifted(input, axis)
    return x - spread(log(sum_out(exp(x), axis)), x.shape, axis)


def softmax_axis(input: Tensor, dim: int | None, axis: int | None) -> int:
    axis = -1 if dim is None and axis is None else dim if axis is None else axis
    if not -input.ndim <= axis < input.ndim:
        raise ShapeError(f"softmax over axis {axis} of shape {list(input.shape)}")
    return axis % input.ndim


def shifted(x: Tensor, axis: int) -> Tensor:
    """x less its maximum along an axis: a softmax does not depend on the shift, so its derivatives need not either."""
    top = make(StopGradient(), make(Max((axis,)), x.node))
    return Tensor(make(Sub(), x.node, make(_along(x.shape, axis), top)))


def sum_out(x: Tensor, axis: int) -> Tensor:
    return Tensor(make(Sum((axis,)), x.node))


def spread(x: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """x, which lacks `axis` of `shape`, repeated along it."""
    return Tensor(make(_along(shape, axis), x.node))


def _along(shape: tuple[int, ...], axis: int) -> Broadcast:
    return Broadcast(shape, tuple(d for d in range(len(shape)) if d != axis))
