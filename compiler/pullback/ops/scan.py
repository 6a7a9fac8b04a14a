"""The loop: a graph applied `length` times, carrying values from one iteration to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ShapeError
from ..graph.graph import Graph, Node, topological
from ..graph.types import TensorType, TupleType
from .op import Op, register


@register
@dataclass(frozen=True)
class Scan(Op):
    """Inputs: `constants` values, `carries` initial values, then stacked xs (leading axis `length`).

    The body maps constants, carries and one slice of every x to the next carries and one slice of every y.
    Result: the final carries, then the stacked ys.  `reverse`: iterations run from the last slice to the first.
    """

    name = "scan"
    body: Graph
    length: int
    constants: int
    carries: int
    reverse: bool

    def infer(self, *types):
        body, fixed = self.body, self.constants + self.carries
        if len(types) != len(body.inputs):
            raise ShapeError(f"scan: expected {len(body.inputs)} inputs, got {len(types)}")
        for i, (t, x) in enumerate(zip(types, body.inputs, strict=True)):
            expected = x.type if i < fixed else stacked(x.type, self.length)
            if t != expected:
                raise ShapeError(f"scan: expected {expected} as input {i}, got {t}")
        for i, out in enumerate(body.outputs[: self.carries]):
            expected = body.inputs[self.constants + i].type
            if out.type != expected:
                raise ShapeError(f"scan: expected carry {i} to stay {expected}, got {out.type}")
        ys = tuple(stacked(y.type, self.length) for y in body.outputs[self.carries :])
        return TupleType(tuple(c.type for c in body.outputs[: self.carries]) + ys)

    def evaluate(self, *arrays):
        from ..graph.evaluate import evaluate

        fixed = self.constants + self.carries
        constants, carries, xs = arrays[: self.constants], list(arrays[self.constants : fixed]), arrays[fixed:]
        ys = [
            np.zeros((self.length, *y.shape), y.dtype.numpy)  # of length 0: nothing to stack
            for y in self.body.outputs[self.carries :]
        ]
        for i in reversed(range(self.length)) if self.reverse else range(self.length):
            results = evaluate(self.body, [*constants, *carries, *(x[i] for x in xs)])
            carries = list(results[: self.carries])
            for y, value in zip(ys, results[self.carries :], strict=True):
                y[i] = value
        return (*carries, *ys)

    def jvp(self, out, inputs, tangents):
        from .scan_rules import scan_jvp

        return scan_jvp(self, out, inputs, tangents)

    def vjp(self, out, inputs, ct):
        from .scan_rules import scan_vjp

        return scan_vjp(self, out, inputs, ct)


def stacked(t: TensorType, length: int) -> TensorType:
    """The type of `length` values of type t, stacked along a new first axis."""
    return TensorType(t.dtype, (length, *t.shape))


def substitute(outputs: Sequence[Node], replaced: dict[Node, Node]) -> list[Node]:
    """`outputs` with some nodes replaced (their inputs are not looked at); `replaced` learns all rebuilt nodes."""
    for n in topological(tuple(replaced), tuple(outputs)):
        if n not in replaced:
            inputs = tuple(replaced[x] for x in n.inputs)
            replaced[n] = n if inputs == n.inputs else n.replace(inputs)
    return [replaced[n] for n in outputs]
