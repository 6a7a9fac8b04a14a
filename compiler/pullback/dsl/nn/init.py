"""Initial values of parameters, with the names, distributions and defaults of torch.nn.init.

Each function sets how a parameter (or buffer) starts; the numbers come from the program's seed and the parameter's
name, so they are the same on every machine, and differ from torch's.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...errors import ShapeError
from ...graph.types import TensorType
from ..array import arange, argsort, log, reshape, sqrt, sum, where, zeros
from ..control import scan
from ..promotion import ArrayLike
from ..state import Draw, Init, Variable
from ..tensor import Tensor

__all__ = [
    "array_",
    "calculate_gain",
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


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


def array_(tensor: Variable, values: ArrayLike) -> Variable:
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


def dirac_(tensor: Variable, groups: int = 1) -> Variable:
    """Convolutions [out, in / groups, ...] that hand their input on: in each group, output c is input c."""
    shape = tensor.shape
    if not 3 <= len(shape) <= 5:
        raise ShapeError(f"dirac_ needs a weight of 3 to 5 dimensions, got {list(shape)}")
    if shape[0] % groups:
        raise ShapeError(f"dirac_: {shape[0]} outputs cannot be dealt out to {groups} groups")
    values = np.zeros(shape, tensor.dtype.numpy)
    size = shape[0] // groups
    for c in range(min(size, shape[1])):
        values[(slice(c, None, size), c, *(n // 2 for n in shape[2:]))] = 1
    return array_(tensor, values)


def sparse_(tensor: Variable, sparsity: float, std: float = 0.01) -> Variable:
    """Normal, but in every column of a matrix this share of elements is zero (Martens 2010)."""
    if len(tensor.shape) != 2:
        raise ShapeError(f"sparse_ needs a matrix, got {list(tensor.shape)}")
    zeros = math.ceil(sparsity * tensor.shape[0])

    def init(draw: Draw) -> Tensor:
        shuffled = argsort(draw.uniform(0.0, 1.0, stream=1), axis=0)  # a permutation of each column's numbers
        return where(shuffled < zeros, 0.0, draw.normal(0.0, std))

    return _set(tensor, init)


def orthogonal_(tensor: Variable, gain: float = 1.0) -> Variable:
    """A random matrix [rows, the rest] with orthonormal rows or columns, whichever are fewer (Saxe et al. 2013).

    Uniform among these: the Q of a normal matrix's QR decomposition, by Gram-Schmidt (twice: Giraud et al. 2005).
    """
    if len(tensor.shape) < 2:
        raise ShapeError(f"orthogonal_ needs 2 or more dimensions, got {list(tensor.shape)}")
    rows, rest = tensor.shape[0], math.prod(tensor.shape[1:])
    shape, dtype = (min(rows, rest), max(rows, rest)), tensor.dtype.compute

    def step(q: Tensor, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        k, v = x
        for _ in range(2):
            v = v - (q @ v) @ q
        v = v / sqrt(sum(v * v))
        return where(reshape(arange(shape[0]) == k, (-1, 1)), v, q), v

    def init(draw: Draw) -> Tensor:
        vectors = replace(draw, type=TensorType(dtype, shape)).normal(0.0, 1.0)
        _, q = scan(step, zeros(shape, dtype=dtype), (arange(shape[0]), vectors))
        return reshape((q if rows <= rest else q.T) * gain, tensor.shape).astype(tensor.dtype)

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
