"""A derivative that the script states itself (`custom_vjp`).

The op is an identity that carries a rule; `autodiff.settle` takes it out of a graph that is differentiated no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..graph.types import TupleType
from . import rules as F
from .op import Op, register


@register
@dataclass(frozen=True)
class CustomVjp(Op):
    """Inputs: `results` values, the `arguments` they are a function of, then what `backward` needs.

    The results pass through.  Cotangents go to the arguments only, as `backward(needed, cotangents)` says.
    """

    name = "custom_vjp"
    backward: Callable
    results: int
    arguments: int

    def infer(self, *types):
        return TupleType(types[: self.results])

    def evaluate(self, *arrays):
        return arrays[: self.results]

    def jvp(self, out, inputs, tangents):
        # Forwards, the operations that made the results are differentiated as they are.
        known = {i: t for i, t in enumerate(tangents[: self.results]) if t is not None}
        return known or None

    def vjp(self, out, inputs, ct):
        first = self.results + self.arguments
        cotangents = [ct.get(i) if i in ct else F.zeros_like(x) for i, x in enumerate(inputs[: self.results])]
        to_arguments = self.backward(inputs[first:], cotangents)
        return (None,) * self.results + tuple(to_arguments) + (None,) * (len(inputs) - first)
