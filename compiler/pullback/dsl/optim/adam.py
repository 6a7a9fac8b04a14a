"""Adam and AdamW, as in torch.optim."""

from __future__ import annotations

import math

from ..array import expm1, maximum, sqrt
from ..tensor import Tensor
from .clip import Clip
from .optimizer import Optimizer, Options, Params, Slots, Spread
from .schedules import Rate, Schedule


class Adam(Optimizer):
    """Kingma and Ba 2015; `weight_decay` is an L2 penalty (added to the gradient); `amsgrad`: Reddi et al. 2018."""

    decoupled = False

    def __init__(
        self,
        params: Params,
        lr: Rate | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ):
        super().__init__(
            params,
            clip,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
        )

    def check(self, options: Options) -> None:
        if not all(0 <= b < 1 for b in options["betas"]):
            raise ValueError(f"{type(self).__name__}: betas are {options['betas']}, expected 0 <= beta < 1")

    def slots(self, options: Options) -> dict[str, float]:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if options["amsgrad"] else ("exp_avg", "exp_avg_sq")
        return dict.fromkeys(names, 0.0)

    def factors(self, step: Tensor, lr: Rate, options: Options) -> tuple[Rate, Rate, Rate | None]:
        """p -= rate * m / (sqrt(v) + eps): both bias corrections are in the scalars."""
        correct1, correct2 = (_bias_correction(step, beta) for beta in options["betas"])
        root = sqrt(correct2) if isinstance(correct2, Tensor) else 1.0
        decay = 1 - lr * options["weight_decay"] if self.decoupled and options["weight_decay"] else None
        return root * lr / correct1, root * options["eps"], decay

    def apply(
        self, p: Tensor, g: Tensor, slots: Slots, options: Options, factors: tuple[Rate, Rate, Rate | None], at: Spread
    ) -> tuple[Tensor, Slots]:
        (beta1, beta2), (rate, eps, decay) = options["betas"], factors
        if options["weight_decay"] and not self.decoupled:
            g = g + p * at(options["weight_decay"], p)
        m, v = slots["exp_avg"], slots["exp_avg_sq"]
        m = m + (g - m) * at(1 - beta1, p)
        v = v + (g * g - v) * at(1 - beta2, p)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if options["amsgrad"]:
            v = new["max_exp_avg_sq"] = maximum(slots["max_exp_avg_sq"], v)
        kept = p if decay is None else p * at(decay, p)
        return kept - m * at(rate, p) / (sqrt(v) + at(eps, p)), new


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): p *= 1 - lr * weight_decay first."""

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: Rate | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, clip=clip)


def _bias_correction(step: Tensor, beta: float) -> Rate:
    """1 - beta ** step, exact also in f32 (as a difference it would lose digits at the first steps)."""
    return -expm1(step * math.log(beta)) if beta else 1.0
