"""Initial values of parameters, with the names, distributions and defaults of torch.nn.init.

Each function sets how a parameter (or buffer) starts; the numbers come from the program's seed and the parameter's
name, so they are the same on every machine, and differ from torch's.
"""

from __future__ import annotations

import math

import numpy as np

from ...errors import ShapeError
from ..array import log, sqrt, where
from ..state import Draw, Init, Variable
from ..tensor import Tensor


def _set(tensor: Variable, init: Init) -> Variable:
    tensor.init = init
    return tensor


def uniform_(tensor: Variable, a: float = 0.0, b: float = 1.0) -> Variable:
    """Uniform in [a, b)."""
    return _set(tensor, lambda draw: draw.uniform(a, b))


def normal_(tensor: Variable, mean: float = 0.0, std: float = 1.0) -> Variable:
    return _set(tensor, lambda draw: draw.normal(mean, std))


def constant_(tensor: Variable, val: float) -> Variable:
    return _set(tensor, lambda draw: draw.full(val))


def zeros_(tensor: Variable) -> Variable:
    return constant_(tensor, 0.0)


def ones_(tensor: Variable) -> Variable:
    return constant_(tensor, 1.0)


def eye_(tensor: Variable) -> Variable:
    """The identity matrix."""
    return array_(tensor, np.eye(*tensor.shape, dtype=tensor.dtype.numpy))


def array_(tensor: Variable, values) -> Variable:
    """These values."""
    tensor.initialize(values)
    return tensor


def trunc_normal_(tensor: Variable, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Variable:
    """Normal, but only values in [a, b]: the inverse distribution function at uniform numbers."""
    low, high = (math.erf((x - mean) / std / math.sqrt(2.0)) for x in (a, b))

    def init(draw: Draw) -> Tensor:
        x = erfinv(draw.uniform(low, high)) * (std * math.sqrt(2.0)) + mean
        return where(x < a, a, where(x > b, b, x))

    return _set(tensor, init)


def xavier_uniform_(tensor: Variable, gain: float = 1.0) -> Variable:
    """Glorot and Bengio 2010, uniform."""
    fan_in, fan_out = fans(tensor.shape)
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Variable, gain: float = 1.0) -> Variable:
    fan_in, fan_out = fans(tensor.shape)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)))


def kaiming_uniform_(
    tensor: Variable, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Variable:
    """He et al. 2015, uniform; `a` is the slope of leaky_relu."""
    bound = math.sqrt(3.0) * calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Variable, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Variable:
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode)))


def _fan(tensor: Variable, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is {mode!r}: expected 'fan_in' or 'fan_out'")
    return fans(tensor.shape)[mode == "fan_out"]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """fan_in and fan_out of a weight [out, in, ...]."""
    if len(shape) < 2:
        raise ShapeError(f"fan in and fan out need a weight of 2 or more dimensions, got {list(shape)}")
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


_GAINS = {
    **dict.fromkeys(("linear", "sigmoid", "conv1d", "conv2d", "conv3d"), 1.0),
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The recommended gain for an activation; `param`: the negative slope of leaky_relu (0.01)."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise ValueError(f"no gain for {nonlinearity!r}: expected leaky_relu, {', '.join(_GAINS)}")
    return _GAINS[nonlinearity]


_CENTRAL = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503)
_CENTRAL += (-0.00417768164, 0.246640727, 1.50140941)
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613)
_TAIL += (0.00943887047, 1.00167406, 2.83297682)


def erfinv(x: Tensor) -> Tensor:
    """The inverse error function, single precision (M. Giles, Approximating the erfinv function, 2012)."""
    w = -log((1.0 - x) * (1.0 + x))
    central = w < 5.0
    w = where(central, w - 2.5, sqrt(where(central, 9.0, w)) - 3.0)
    near, far = _CENTRAL[0] + 0.0 * w, _TAIL[0] + 0.0 * w
    for c, t in zip(_CENTRAL[1:], _TAIL[1:], strict=True):
        near, far = near * w + c, far * w + t
    return where(central, near, far) * x
