"""`pb.hyper`: scalars that are set between steps without compiling, such as a learning rate."""

from __future__ import annotations

from ..graph.types import DType, f32
from .state import Hyper


def hyper(name: str, value: float, dtype: DType = f32) -> Hyper:
    """A run-time scalar, state `name` of the program, `value` at first: `lr = pb.hyper("lr", 1e-3)`.

    It is used as a tensor inside of functions (also as an optimizer's lr) and set by `program.state["lr"][...] = x`.
    """
    return Hyper(name, value, dtype)
