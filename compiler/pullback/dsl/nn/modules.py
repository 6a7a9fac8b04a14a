"""Activations and losses as modules, with torch.nn's names and arguments."""

from __future__ import annotations

from ..promotion import ArrayLike
from ..tensor import Tensor
from . import activations as A
from . import losses as L
from .module import Module


class ReLU(Module):
    def __init__(self, inplace: bool = False):
        pass

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.relu(input)


class LeakyReLU(Module):
    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        self.negative_slope = negative_slope

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.leaky_relu(input, self.negative_slope)


class ELU(Module):
    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        self.alpha = alpha

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.elu(input, self.alpha)


class Sigmoid(Module):
    def __call__(self, input: ArrayLike) -> Tensor:
        return A.sigmoid(input)


class LogSigmoid(Module):
    def __call__(self, input: ArrayLike) -> Tensor:
        return A.logsigmoid(input)


class Tanh(Module):
    def __call__(self, input: ArrayLike) -> Tensor:
        return A.tanh(input)


class GELU(Module):
    def __init__(self, approximate: str = "none"):
        self.approximate = approximate

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.gelu(input, self.approximate)


class SiLU(Module):
    def __init__(self, inplace: bool = False):
        pass

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.silu(input)


class Softplus(Module):
    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        self.beta, self.threshold = beta, threshold

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.softplus(input, self.beta, self.threshold)


class Softmax(Module):
    def __init__(self, dim: int | None = None):
        self.dim = dim

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.softmax(input, self.dim)


class LogSoftmax(Module):
    def __init__(self, dim: int | None = None):
        self.dim = dim

    def __call__(self, input: ArrayLike) -> Tensor:
        return A.log_softmax(input, self.dim)


class MSELoss(Module):
    def __init__(self, reduction: str = "mean"):
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.mse_loss(input, target, self.reduction)


class L1Loss(Module):
    def __init__(self, reduction: str = "mean"):
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.l1_loss(input, target, self.reduction)


class HuberLoss(Module):
    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        self.reduction, self.delta = reduction, delta

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.huber_loss(input, target, self.reduction, self.delta)


class SmoothL1Loss(Module):
    def __init__(self, reduction: str = "mean", beta: float = 1.0):
        self.reduction, self.beta = reduction, beta

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.smooth_l1_loss(input, target, self.reduction, self.beta)


class CrossEntropyLoss(Module):
    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = L.IGNORED,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        self.weight, self.ignore_index = weight, ignore_index
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


class NLLLoss(Module):
    def __init__(self, weight: Tensor | None = None, ignore_index: int | None = L.IGNORED, reduction: str = "mean"):
        self.weight, self.ignore_index, self.reduction = weight, ignore_index, reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class BCEWithLogitsLoss(Module):
    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", pos_weight: Tensor | None = None):
        self.weight, self.reduction, self.pos_weight = weight, reduction, pos_weight

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Tensor:
        return L.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)
