"""The contraction: einsum of two tensors, which matrix products and convolutions are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.graph import make
from ..graph.types import TensorType, f32
from ..kernel.scalars import tf32
from . import rules as F
from .op import ContractLabels, Op, register


@register
@dataclass(frozen=True)
class Contract(ContractLabels, Op):
    """Multiply along equal labels and sum over those that the result lacks.

    Every label stands in at least two of lhs, rhs and out, and once in each: axes that one operand
    alone would sum over are the DSL's to sum beforehand.  Sums run in the order of `reduced`, by fma (for bf16
    by fma_ftz, as matrix units do), into one accumulator (f32 for f32 and smaller floats).

    wide: the result has the accumulator's type.  tf32: operands in f32 are rounded to 10 bits of mantissa first.
    """

    name = "contract"
    wide: bool = False
    tf32: bool = False

    def infer(self, a, b):
        if a.dtype != b.dtype or a.dtype.kind == "b":
            raise DTypeError(f"contract: expected two tensors of one number type, got {a.dtype} and {b.dtype}")
        sizes: dict[str, int] = {}
        for labels, t in ((self.lhs, a), (self.rhs, b)):
            if len(labels) != t.ndim:
                raise ShapeError(f"contract: expected {len(labels)} axes ({labels}), got {list(t.shape)}")
            for label, n in zip(labels, t.shape, strict=True):
                if sizes.setdefault(label, n) != n:
                    raise ShapeError(
                        f"contract: axis {label} has sizes {sizes[label]} and {n} in "
                        f"{self.lhs}{list(a.shape)}, {self.rhs}{list(b.shape)}"
                    )
        letters = (*self.lhs, *self.rhs, *self.out)
        repeated = any(len(set(s)) != len(s) for s in (self.lhs, self.rhs, self.out))
        if repeated or any(letters.count(c) < 2 for c in letters) or not set(self.out) <= sizes.keys():
            raise ShapeError(f"contract: labels {self.lhs},{self.rhs}->{self.out} are not a contraction of two tensors")
        return TensorType(a.dtype.compute if self.wide else a.dtype, tuple(sizes[c] for c in self.out))

    def evaluate(self, a, b):
        wide = np.float64 if a.dtype.kind == "f" else a.dtype
        if self.tf32 and a.dtype == f32.numpy:
            a, b = tf32(a), tf32(b)
        batch = [c for c in self.out if c in self.lhs and c in self.rhs]
        rows, columns = ([c for c in self.out if c in x and c not in batch] for x in (self.lhs, self.rhs))
        reduced = list(self.reduced)
        sizes = dict(zip(self.lhs + self.rhs, a.shape + b.shape, strict=True))

        def matrix(x, labels, *groups):
            moved = np.transpose(x, [labels.index(c) for g in groups for c in g])
            return moved.reshape([prod(sizes[c] for c in g) for g in groups]).astype(wide)

        with np.errstate(all="ignore"):
            product = matrix(a, self.lhs, batch, rows, reduced) @ matrix(b, self.rhs, batch, reduced, columns)
        order = batch + rows + columns
        product = product.reshape([sizes[c] for c in order])
        return np.transpose(product, [order.index(c) for c in self.out])

    def apply(self, a, b):
        return F.Tensor(make(self, a.node, b.node))

    def jvp(self, out, inputs, tangents):
        (a, b), (ta, tb) = inputs, tangents
        terms = ([self.apply(ta, b)] if ta is not None else []) + ([self.apply(a, tb)] if tb is not None else [])
        return terms[0] + terms[1] if len(terms) == 2 else terms[0] if terms else None

    def vjp(self, out, inputs, ct):
        a, b = inputs
        if ct.dtype == a.dtype:
            return (
                replace(self, lhs=self.out, rhs=self.rhs, out=self.lhs).apply(ct, b),
                replace(self, lhs=self.lhs, rhs=self.out, out=self.rhs).apply(a, ct),
            )
        wide = Contract(self.lhs, self.rhs, self.out)  # the cotangent is wider than the operands
        return tuple(g.astype(a.dtype) for g in wide.vjp(out, (a.astype(ct.dtype), b.astype(ct.dtype)), ct))
