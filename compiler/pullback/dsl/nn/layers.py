"""Layers with torch.nn's names, arguments, parameter layouts and initial distributions, and their functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...autodiff import stop_gradient
from ...errors import DTypeError, ShapeError
from ...graph.graph import make
from ...graph.types import DType
from ...ops.contract import Contract
from ...ops.reduction import Sum
from ..array import broadcast_axes, reshape, sqrt, take, where
from ..creation import takes_arrays
from ..indexing import index_tensor
from ..promotion import ArrayLike
from ..rng import bernoulli
from ..state import Draw, Parameter
from ..tensor import Tensor
from ..trace import require
from . import init
from .module import Module, parameter


@takes_arrays("input", "weight", "bias")
def linear(input: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Tensor:
    """input [..., in] times weight [out, in] transposed, plus bias [out]: one contraction, no transpose."""
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        expected = f"[..., {weight.shape[1]}]" if weight.ndim == 2 else "[..., in]"
        raise ShapeError(f"linear: expected input {expected} for weight {list(weight.shape)}, got {list(input.shape)}")
    if input.dtype != weight.dtype:
        raise DTypeError(f"linear: expected input of dtype {weight.dtype}, as the weight, got {input.dtype}")
    rows = "abcdefghijklmnop"[: input.ndim - 1]
    y = Tensor(make(Contract(f"{rows}y", "zy", f"{rows}z"), input.node, weight.node))
    return y if bias is None else y + broadcast_axes(bias, y.shape, (y.ndim - 1,))


class Linear(Module):
    """y = x W^T + b: weight [out_features, in_features], bias [out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: DType | None = None):
        self.in_features, self.out_features = in_features, out_features
        self.weight = init.kaiming_uniform_(parameter((out_features, in_features), dtype), a=math.sqrt(5))
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self.bias = init.uniform_(parameter((out_features,), dtype), -bound, bound) if bias else None

    def __call__(self, input: ArrayLike) -> Tensor:
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


@takes_arrays("weight")
def embedding(input: ArrayLike, weight: ArrayLike, padding_idx: int | None = None) -> Tensor:
    """Rows of weight [n, d] at integer indices [...]: [..., d].  The row padding_idx gets no gradient."""
    input = index_tensor(input, weight.shape[0])
    rows = take(weight, input, axis=0)
    if padding_idx is None:
        return rows
    padding = input == padding_idx % weight.shape[0]
    return where(broadcast_axes(padding, rows.shape, tuple(range(input.ndim))), stop_gradient(rows), rows)


class Embedding(Module):
    """A table of vectors: weight [num_embeddings, embedding_dim], N(0, 1) at first (row padding_idx: 0)."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, dtype: DType | None = None
    ):
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ShapeError(f"Embedding: padding_idx {padding_idx} is no row of {num_embeddings}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.weight = init.normal_(parameter((num_embeddings, embedding_dim), dtype))
        if padding_idx is not None:
            self.weight.init = self._padded_init

    def _padded_init(self, draw: Draw) -> Tensor:
        from ..array import iota

        shape = draw.type.shape
        return where(iota(shape, 0) == self.padding_idx, 0, draw.normal(0.0, 1.0))

    def __call__(self, input: ArrayLike) -> Tensor:
        return embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


@takes_arrays("input", "weight", "bias")
def layer_norm(
    input: ArrayLike,
    normalized_shape: Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes; the variance in a second pass, biased."""
    normalized_shape = tuple(normalized_shape)
    first = input.ndim - len(normalized_shape)
    if not normalized_shape or input.shape[max(first, 0) :] != normalized_shape:
        expected = ", ".join(map(str, normalized_shape))
        raise ShapeError(f"layer_norm: expected input [..., {expected}], got {list(input.shape)}")
    rows, columns = tuple(range(first)), tuple(range(first, input.ndim))
    scale = 1.0 / max(math.prod(normalized_shape), 1)

    def mean(x: Tensor) -> Tensor:
        return Tensor(make(Sum(columns), x.node)) * scale

    centered = input - broadcast_axes(mean(input), input.shape, rows)
    deviation = sqrt(mean(centered * centered) + eps)
    y = centered * broadcast_axes(1.0 / deviation, input.shape, rows)
    if weight is not None:
        y = y * broadcast_axes(weight, input.shape, columns)
    return y if bias is None else y + broadcast_axes(bias, input.shape, columns)


class LayerNorm(Module):
    """Layer normalisation over the last axes (Ba et al. 2016): weight and bias of normalized_shape."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: DType | None = None,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps = shape, eps
        self.weight: Parameter | None = init.ones_(parameter(shape, dtype)) if elementwise_affine else None
        self.bias: Parameter | None = init.zeros_(parameter(shape, dtype)) if elementwise_affine and bias else None

    def __call__(self, input: ArrayLike) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


@takes_arrays("input")
def dropout(input: ArrayLike, p: float = 0.5, training: bool | None = None) -> Tensor:
    """Zero with probability p, the rest divided by 1 - p; another mask at each step.

    training None: in functions with training=True.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is {p}, expected a probability")
    if training is None:
        training = require("dropout is called").trains()
    if not training or p == 0:
        return input
    if p == 1:
        return input * 0
    return where(bernoulli(1 - p, input.shape), input * (1 / (1 - p)), 0)


class Dropout(Module):
    """Zeroes elements with probability p in functions with training=True, unless frozen by `eval()`."""

    def __init__(self, p: float = 0.5, inplace: bool = False):
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p is {p}, expected a probability")
        self.p = p

    def __call__(self, input: ArrayLike) -> Tensor:
        return dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """Its input; takes any arguments."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, input: ArrayLike) -> Tensor:
        return input


@takes_arrays("input")
def flatten(input: ArrayLike, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim (inclusive) as one."""
    ndim = max(input.ndim, 1)
    start, end = start_dim % ndim, end_dim % ndim
    shape = input.shape or (1,)
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


class Flatten(Module):
    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def __call__(self, input: ArrayLike) -> Tensor:
        return flatten(input, self.start_dim, self.end_dim)
