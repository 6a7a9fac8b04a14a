"""The base of optimizers: parameter groups, slots as states, one step.

An optimizer's formula is in its subclass; scalar factors (rates, bias corrections) are computed once per step and
group, and each is spread once per shape, so that a parameter costs few nodes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...autodiff import grad
from ...errors import BuildError, DTypeError, ShapeError, TraceError, UnknownAttribute
from ...graph.graph import current_loc, loc_scope, topological
from ...graph.types import TensorType, f32, f64, i32
from ..array import broadcast_axes, full
from ..nn.module import Module
from ..promotion import ArrayLike
from ..state import Counter, Parameter, Slot, Stateful, Variable
from ..tensor import Tensor
from ..trace import Trace, require
from .clip import Clip
from .schedules import Rate, Schedule

Options = dict[str, Any]
"""The options of a group: numbers, run-time scalars, schedules, flags."""
Slots = dict[str, Tensor]
Params = Module | Parameter | Iterable[Parameter | Mapping[str, Any]]
"""A module, a parameter, several, or groups of them with options of their own."""


@dataclass(frozen=True)
class Group:
    """Parameters that share options, and the slots of each: name -> state."""

    options: Options
    slots: dict[Parameter, dict[str, Slot]]


class Spread:
    """Scalars as tensors of a parameter's shape and dtype, each made once."""

    def __init__(self):
        self._made: dict[tuple, Tensor] = {}

    def __call__(self, scalar: Rate, like: Tensor) -> Tensor:
        key = (scalar.node if isinstance(scalar, Tensor) else scalar, like.shape, like.dtype.name)
        made = self._made.get(key)
        if made is None:
            if isinstance(scalar, Tensor):
                narrow = self._narrow(scalar, like)
                made = broadcast_axes(narrow, like.shape, ()) if like.shape else narrow
            else:
                made = full(like.shape, scalar, dtype=like.dtype)
            self._made[key] = made
        return made

    def _narrow(self, scalar: Tensor, like: Tensor) -> Tensor:
        key = (scalar.node, like.dtype.name)
        if key not in self._made:
            self._made[key] = scalar if scalar.dtype == like.dtype else scalar.astype(like.dtype)
        return self._made[key]


class Optimizer(Stateful):
    """Learns parameters: `optimizer.minimize(loss)` inside of a `@pb.function`.

    params: a module, parameters, or groups `{"params": ..., "lr": ...}` with options of their own.
    """

    names_others = True

    def __init__(self, params: Params, clip: Clip | None = None, **options: object):
        self.clip = clip
        self.counter = Counter(i32)
        self.groups = [self._group(p, {**options, **own}) for p, own in _groups(params, set(options))]
        self.parameters = [p for group in self.groups for p in group.slots]
        if len(set(self.parameters)) != len(self.parameters):
            raise BuildError(f"{type(self).__name__}: a parameter is in two groups")
        if not self.parameters:
            raise BuildError(f"{type(self).__name__} got no parameters to learn ({current_loc()})")

    def _group(self, parameters: Iterable[Parameter], options: Options) -> Group:
        lr = options["lr"]
        if isinstance(lr, int | float) and lr < 0:
            raise ValueError(f"{type(self).__name__}: expected lr >= 0, got {lr}")
        self.check(options)

        def slots(p: Parameter) -> dict[str, Slot]:
            types = {name: (TensorType(p.dtype, p.shape), v) for name, v in self.slots(options).items()}
            return {name: Slot(type, lambda draw, v=v: draw.full(v)) for name, (type, v) in types.items()}

        return Group(options, {p: slots(p) for p in parameters})

    def __getattr__(self, name: str):
        """Only for what is not there."""
        kind = type(self).__name__
        instead = {
            "zero_grad": "nothing: gradients are not kept from one step to the next",
            "step": "optimizer.minimize(loss), or optimizer.update(grads)",
        }.get(name)
        if instead is None:
            raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
        raise UnknownAttribute(f"{kind} has no {name!r}; use {instead}")

    # what a subclass says

    def check(self, options: Options) -> None:
        """Raises where an option is out of range."""

    @abstractmethod
    def slots(self, options: Options) -> dict[str, float]:
        """The slots that each parameter has, and their initial values."""

    @abstractmethod
    def factors(self, step: Tensor, lr: Rate, options: Options) -> object:
        """What a step computes once for all parameters of a group; `step` is a float scalar, 1 at the first step."""

    @abstractmethod
    def apply(
        self, p: Tensor, g: Tensor, slots: Slots, options: Options, factors: Any, at: Spread
    ) -> tuple[Tensor, Slots]:
        """The new parameter and slots."""

    # use

    def minimize(self, loss: Tensor) -> None:
        """Differentiate a scalar loss, clip, update every parameter that the loss depends on, and its slots."""
        trace = require("minimize is called")
        trace.minimizing()
        if not isinstance(loss, Tensor):
            raise TraceError(f"minimize: expected the loss as a tensor, got {type(loss).__name__}")
        if loss.shape:
            raise ShapeError(
                f"minimize: the loss must be a scalar, got {loss.dtype}{list(loss.shape)}: take its mean or sum"
            )
        if not loss.dtype.is_float:
            raise DTypeError(f"minimize: the loss must be a float, got {loss.dtype}")
        with loc_scope(current_loc()):
            reached = set(topological((), (loss.node,)))
            learned = [p for p in self.parameters if trace.values.get(p) in reached]
            if not learned:
                raise TraceError("minimize: the loss depends on none of the optimizer's parameters")
            self._update(trace, dict(zip(learned, grad(loss, learned), strict=True)))

    def update(self, grads: Sequence[ArrayLike | None] | Mapping[Parameter, ArrayLike]) -> None:
        """One step with these gradients: in the order of `optimizer.parameters` (None: leave it), or by parameter."""
        trace = require("update is called")
        trace.minimizing()
        if not isinstance(grads, Mapping):
            if len(grads) != len(self.parameters):
                raise ShapeError(f"update: expected {len(self.parameters)} gradients, got {len(grads)}")
            grads = dict(zip(self.parameters, grads, strict=True))
        given = {p: p.check(g) for p, g in grads.items() if g is not None}
        with loc_scope(current_loc()):
            self._update(trace, given)

    def _update(self, trace: Trace, grads: dict[Parameter, Tensor]) -> None:
        if self.clip is not None:
            grads = dict(zip(grads, self.clip(list(grads.values())), strict=True))
        wide = f64 if any(p.dtype == f64 for p in grads) else f32
        step = self.counter.next().astype(wide)
        at = Spread()
        for group in self.groups:
            lr = group.options["lr"]
            lr = lr(step) if _is_schedule(lr) else lr
            factors = self.factors(step + 1, lr, group.options)
            for p, slots in group.slots.items():
                if p not in grads:
                    continue
                g = -grads[p] if group.options.get("maximize") else grads[p]
                old = {name: Tensor(slot.node) for name, slot in slots.items()}
                new, kept = self.apply(Tensor(p.node), g, old, group.options, factors, at)
                p.check(new)
                trace.write(p, new.node, detached=True)
                for name, value in kept.items():
                    slots[name].assign(value)

    def named_variables(self, root: str, names: dict[Variable, str]) -> Iterator[tuple[str, Variable]]:
        yield f"{root}.step", self.counter
        for group in self.groups:
            for p, slots in group.slots.items():
                for name, slot in slots.items():
                    if p in names:
                        yield f"{root}.{name}.{names[p]}", slot

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.parameters)} parameters>"


def _is_schedule(lr: Rate | Schedule) -> bool:
    return callable(lr) and not isinstance(lr, Tensor)


def _groups(params, known: set[str]) -> Iterator[tuple[list[Parameter], dict[str, object]]]:
    if not isinstance(params, Module):
        params = [params] if isinstance(params, Parameter) else list(params)
    if isinstance(params, Module) or not any(isinstance(p, dict) for p in params):
        yield _parameters(params), {}
        return
    for group in params:
        if not isinstance(group, dict) or "params" not in group:
            raise BuildError(f"expected parameter groups {{'params': ...}}, got {group!r}")
        own = {k: v for k, v in group.items() if k != "params"}
        if not own.keys() <= known:
            raise BuildError(
                f"unknown options {sorted(own.keys() - known)} in a parameter group; known: {sorted(known)}"
            )
        yield _parameters(group["params"]), own


def _parameters(params) -> list[Parameter]:
    if isinstance(params, Parameter):
        params = [params]
    found = params.parameters() if isinstance(params, Module) else [p for x in params for p in _one(x)]
    return [p for p in dict.fromkeys(found) if p.requires_grad]


def _one(x) -> list[Parameter]:
    if isinstance(x, Module):
        return list(x.parameters())
    if isinstance(x, Parameter):
        return [x]
    raise BuildError(f"expected parameters or modules to learn, got {type(x).__name__}")
