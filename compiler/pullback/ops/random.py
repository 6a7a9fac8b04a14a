"""Random bits: a pure function of seed, step and place (Philox 4x32-10), so draws survive rescheduling.

Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.types import TensorType, u32
from ..kernel.kernel import Affine, AxisValue, Const, Expr, Index, apply
from .leaf import index_value
from .op import Pointwise, register

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter, key):
    """Philox 4x32-10 on numpy u32 arrays (or numbers): four counter words, two key words -> four words."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (int(k) for k in key)
    low = np.uint64(0xFFFFFFFF)
    for r in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        x0, x1 = (np.uint64((k + r * w) & 0xFFFFFFFF) for k, w in zip((k0, k1), WEYL, strict=True))
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ x0, p1 & low, (p0 >> np.uint64(32)) ^ c3 ^ x1, p0 & low
    return tuple(c.astype(np.uint32) for c in (c0, c1, c2, c3))


def _flat(index: tuple[Index, ...], shape: tuple[int, ...]) -> Expr:
    """The element's number in C order, as u32."""
    flat, others, step = Affine(), [], 1
    for i, n in zip(reversed(index), reversed(shape), strict=True):
        if isinstance(i, Affine):
            flat = flat + i * step
        else:
            others.append(apply("mul", index_value(i, u32), Const(step, u32)))
        step *= n
    total: Expr = AxisValue(flat, u32)
    for o in others:
        total = apply("add", total, o)
    return total


@register
@dataclass(frozen=True)
class Random(Pointwise):
    """u32 bits: the first word of Philox at counter (element number, step, stream, iteration), key `seed`.

    Inputs: seed u32[2], step u32[] and, inside a scan, iteration u32[] (else 0).
    """

    name = "random"
    cost = 60
    stream: int
    shape: tuple[int, ...]

    def infer(self, seed, *counters):
        if seed != TensorType(u32, (2,)):
            raise DTypeError(f"random: expected a seed u32[2], got {seed}")
        if not 1 <= len(counters) <= 2 or any(t != TensorType(u32, ()) for t in counters):
            raise DTypeError(f"random: expected step and iteration u32[], got {[str(t) for t in counters]}")
        if prod(self.shape) > 2**32 or not 0 <= self.stream < 2**32:
            raise ShapeError(f"random: expected at most 2**32 elements and streams, got {list(self.shape)}")
        return TensorType(u32, self.shape)

    def evaluate(self, seed, step, iteration=0):
        flat = np.arange(prod(self.shape)).reshape(self.shape)
        return philox((flat, step, self.stream, iteration), seed)[0]

    def lower(self, node, index, read):
        def word(c: int) -> Expr:
            return Const(c & 0xFFFFFFFF, u32)

        def xor(a: Expr, b: Expr) -> Expr:
            return apply("xor", a, b)

        keys = [read(0, (Affine(d),)) for d in range(2)]
        c0, c1, c2 = _flat(index, self.shape), read(1, ()), word(self.stream)
        c3 = read(2, ()) if len(node.inputs) > 2 else word(0)
        m0, m1 = map(word, MULTIPLIERS)
        for r in range(ROUNDS):
            x0, x1 = (apply("add", k, word(r * w)) for k, w in zip(keys, WEYL, strict=True))
            c0, c1, c2, c3 = (
                xor(xor(apply("mulhi", c2, m1), c1), x0),
                apply("mul", c2, m1),
                xor(xor(apply("mulhi", c0, m0), c3), x1),
                apply("mul", c0, m0),
            )
        return c0

    def jvp(self, out, inputs, tangents):
        return None

    def vjp(self, out, inputs, ct):
        return (None,) * len(inputs)
