"""What an op is: one frozen dataclass per primitive, its attributes as fields, in a few families.

Every op says how its type follows (`infer`), what it means (`evaluate`, numpy: the oracle), how it
differentiates (`jvp`, `vjp`, in terms of the DSL, so derivatives differentiate again) and how it
lowers.  How it lowers depends on the family:

* *pointwise* ops (`Elementwise`, `Movement`, gather, iota, random): `lower(index, read)` gives the scalar
  expression of the output's element at `index`; `read(i, index, masks=(), other=0)` is input i's element there;
* *reductions* (`Reduction`): a combiner over some axes of one or more inputs;
* *contractions* (`Contract`): labels, as in einsum;
* *regions* (`scan`): loops of the plan; *ordered* and *scatter* kernels have their own nests.

A missing rule fails at import: the base classes are abstract and `@register` checks them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..graph.types import TensorType

if TYPE_CHECKING:
    from ..dsl.tensor import Tensor
    from ..graph.graph import Node
    from ..kernel.kernel import Expr, Index

OPS: dict[str, type[Op]] = {}


def register(cls: type[Op]) -> type[Op]:
    """Enter an op class into the op table (the name its text form uses)."""
    missing = getattr(cls, "__abstractmethods__", None)
    if missing:
        raise TypeError(f"op {cls.__name__} lacks {', '.join(sorted(missing))}")
    if cls.name in OPS:
        raise TypeError(f"two ops named {cls.name}")
    OPS[cls.name] = cls
    return cls


class Op(ABC):
    """Base of all ops.  Subclasses are `@register @dataclass(frozen=True)`."""

    name: ClassVar[str]

    @abstractmethod
    def infer(self, *types: TensorType) -> TensorType:
        """The result's type; raises `ShapeError` or `DTypeError` that says expected and got."""

    @abstractmethod
    def evaluate(self, *arrays: np.ndarray) -> np.ndarray:
        """The meaning, in numpy.  The caller rounds the result to the inferred dtype."""

    @abstractmethod
    def jvp(self, out: Tensor, inputs: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor | None:
        """The tangent of the output; `None` stands for zero on both sides."""

    @abstractmethod
    def vjp(self, out: Tensor, inputs: tuple[Tensor, ...], ct: Tensor) -> tuple[Tensor | None, ...]:
        """The cotangents of the inputs, `None` where there is none."""

    def attrs(self) -> dict[str, object]:
        """The attributes, in order, for the printer and for content hashes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


Read = Callable[..., "Expr"]


class Pointwise(Op):
    """Each output element is one scalar expression of input elements: fuses with anything."""

    cost: ClassVar[int] = 1
    """Rough operations per element (a transcendental: 20); what recomputation in fusion weighs."""

    @abstractmethod
    def lower(self, node: Node, index: tuple[Index, ...], read: Read) -> Expr:
        """The element at `index`.  Raises `NotAffine` where the index map has no affine form."""


class NotAffine(Exception):
    """A movement whose index map does not factor: its input must be in memory (a reshape is then a view)."""


class Elementwise(Pointwise):
    """Same-shaped inputs (the DSL broadcasts explicitly), one element each.  `partials` gives both derivatives."""

    @abstractmethod
    def partials(self, out: Tensor, *inputs: Tensor) -> tuple[Tensor | float | None, ...]:
        """d out / d input, one for each input; `None` where the derivative is zero everywhere."""

    @abstractmethod
    def scalar(self, *args: Expr) -> Expr:
        """The expression on scalars of the kernel IR."""

    def lower(self, node, index, read):
        return self.scalar(*(read(i, index) for i in range(len(node.inputs))))

    def jvp(self, out, inputs, tangents):
        total = None
        for p, t in zip(self.partials(out, *inputs), tangents, strict=True):
            if p is None or t is None:
                continue
            term = t if isinstance(p, float) and p == 1.0 else t * p
            total = term if total is None else total + term
        return total

    def vjp(self, out, inputs, ct):
        return tuple(
            None if p is None else ct if isinstance(p, float) and p == 1.0 else ct * p
            for p in self.partials(out, *inputs)
        )


class Linear(Op):
    """Linear in its inputs together (movement, sum): the jvp is the op itself, the vjp its transpose."""

    @abstractmethod
    def transpose(self, out: Tensor, inputs: tuple[Tensor, ...], ct: Tensor) -> tuple[Tensor | None, ...]:
        """The cotangents of the inputs."""

    @abstractmethod
    def apply(self, *inputs: Tensor) -> Tensor:
        """This op on other inputs of the same types."""

    def jvp(self, out, inputs, tangents):
        if all(t is None for t in tangents):
            return None
        from ..dsl.array import zeros_like

        return self.apply(*(zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True)))

    def vjp(self, out, inputs, ct):
        return self.transpose(out, inputs, ct)


class Reduction(Op):
    """Combine over `axes` (ascending, non-negative; the result has no such axes).

    The order of summation belongs to the meaning: `lower/nests.py` fixes it from shape and axes alone.
    """

    axes: tuple[int, ...]

    combine: ClassVar[str]
    """The scalar function that combines two partial results: add, mul, maximum, minimum, ..."""
    identity: ClassVar[float]
    """The combiner's neutral element (floats; integers use the type's own extreme)."""


@dataclass(frozen=True)
class ContractLabels:
    """Labels of a contraction, one letter per axis: `lhs="bik", rhs="bjk", out="bij"`."""

    lhs: str
    rhs: str
    out: str

    @property
    def reduced(self) -> str:
        """The labels summed over, in the order in which they are summed (as they stand in lhs)."""
        return "".join(c for c in self.lhs if c not in self.out)
