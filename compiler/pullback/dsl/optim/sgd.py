"""SGD, RMSprop and Adagrad, as in torch.optim."""

from __future__ import annotations

from ..array import full_like, sqrt, where
from ..tensor import Tensor
from .clip import Clip
from .optimizer import Optimizer, Options, Params, Slots, Spread
from .schedules import Rate, Schedule


def _decayed(p: Tensor, g: Tensor, options: Options, at: Spread) -> Tensor:
    """The gradient with that of the L2 penalty."""
    return g + p * at(options["weight_decay"], p) if options["weight_decay"] else g


class SGD(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum; the first step's momentum buffer is the gradient."""

    def __init__(
        self,
        params: Params,
        lr: Rate | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ):
        super().__init__(
            params,
            clip,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def check(self, options: Options) -> None:
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")

    def slots(self, options: Options) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if options["momentum"] else {}

    def factors(self, step: Tensor, lr: Rate, options: Options) -> tuple[Rate, Rate]:
        undamped = 1 - options["dampening"]
        return lr, 1.0 if undamped == 1 else where(step > 1, full_like(step, undamped), 1.0)

    def apply(
        self, p: Tensor, g: Tensor, slots: Slots, options: Options, factors: tuple[Rate, Rate], at: Spread
    ) -> tuple[Tensor, Slots]:
        lr, undamped = factors
        g, momentum = _decayed(p, g, options, at), options["momentum"]
        if not momentum:
            return p - g * at(lr, p), {}
        added = g if isinstance(undamped, float) else g * at(undamped, p)
        buffer = slots["momentum_buffer"] * at(momentum, p) + added
        direction = g + buffer * at(momentum, p) if options["nesterov"] else buffer
        return p - direction * at(lr, p), {"momentum_buffer": buffer}


class RMSprop(Optimizer):
    """Tieleman and Hinton 2012; `centered`: divided by the estimated deviation (Graves 2013)."""

    def __init__(
        self,
        params: Params,
        lr: Rate | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ):
        super().__init__(
            params,
            clip,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )

    def slots(self, options: Options) -> dict[str, float]:
        used = {"square_avg": True, "grad_avg": options["centered"], "momentum_buffer": options["momentum"]}
        return {name: 0.0 for name, on in used.items() if on}

    def factors(self, step: Tensor, lr: Rate, options: Options) -> Rate:
        return lr

    def apply(
        self, p: Tensor, g: Tensor, slots: Slots, options: Options, factors: Rate, at: Spread
    ) -> tuple[Tensor, Slots]:
        g, forget = _decayed(p, g, options, at), at(1 - options["alpha"], p)
        square = slots["square_avg"]
        square = square + (g * g - square) * forget
        new, spread = {"square_avg": square}, square
        if options["centered"]:
            mean = slots["grad_avg"]
            mean = new["grad_avg"] = mean + (g - mean) * forget
            spread = square - mean * mean
        direction = g / (sqrt(spread) + at(options["eps"], p))
        if options["momentum"]:
            direction = new["momentum_buffer"] = slots["momentum_buffer"] * at(options["momentum"], p) + direction
        return p - direction * at(factors, p), new


RMSProp = RMSprop


class Adagrad(Optimizer):
    """Duchi et al. 2011."""

    def __init__(
        self,
        params: Params,
        lr: Rate | Schedule = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ):
        super().__init__(
            params,
            clip,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
        )

    def slots(self, options: Options) -> dict[str, float]:
        return {"sum": float(options["initial_accumulator_value"])}

    def factors(self, step: Tensor, lr: Rate, options: Options) -> Rate:
        decay = options["lr_decay"]
        return lr / ((step - 1) * decay + 1) if decay else lr

    def apply(
        self, p: Tensor, g: Tensor, slots: Slots, options: Options, factors: Rate, at: Spread
    ) -> tuple[Tensor, Slots]:
        g = _decayed(p, g, options, at)
        total = slots["sum"] + g * g
        return p - g * at(factors, p) / (sqrt(total) + at(options["eps"], p)), {"sum": total}
