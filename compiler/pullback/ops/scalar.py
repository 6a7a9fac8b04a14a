"""The base of element-wise ops: what an entry of the scalar table (`kernel/scalars.py`) says about an op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.types import TensorType, bool_
from ..kernel.kernel import apply
from ..kernel.scalars import SCALARS
from .op import Elementwise

_KINDS = {"f": "float", "i": "signed integer", "u": "unsigned integer", "b": "bool"}


@dataclass(frozen=True)
class Scalar(Elementwise):
    """What the entry of the scalar table says.  No attributes: all instances of a class are equal."""

    name = ""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.name in SCALARS:
            cls.entry = SCALARS[cls.name]
            cls.cost = cls.entry.cost

    def __eq__(self, other):
        return self.__class__ is other.__class__

    def __hash__(self):
        return hash(self.__class__)

    def infer(self, first, *rest):
        entry = self.entry
        if 1 + len(rest) != entry.arity:
            raise ShapeError(f"{self.name}: expected {entry.arity} arguments, got {1 + len(rest)}")
        if first.dtype.kind not in entry.kinds:
            expected = ", ".join(_KINDS[k] for k in entry.kinds)
            raise DTypeError(f"{self.name}: expected {expected}, got {first.dtype}")
        for t in rest:
            same_shape(self.name, first, t)
            if t.dtype is not first.dtype and t.dtype != first.dtype:
                raise DTypeError(f"{self.name}: expected two tensors of one type, got {first.dtype} and {t.dtype}")
        return first if entry.result == "same" else TensorType(bool_, first.shape)

    def evaluate(self, *arrays):
        with np.errstate(all="ignore"):
            return self.entry.evaluate(*arrays)

    def scalar(self, *args):
        return apply(self.name, *args, dtype=bool_ if self.entry.result == "bool" else args[-1].dtype)


def same_shape(name: str, a: TensorType, b: TensorType) -> None:
    if a.shape != b.shape:
        raise ShapeError(f"{name}: expected equal shapes, got {list(a.shape)} and {list(b.shape)}")


class Flat(Scalar):
    """Zero derivative everywhere (comparisons, rounding, bits)."""

    def partials(self, out, *inputs):
        return (None,) * len(inputs)
