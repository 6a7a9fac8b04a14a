"""Structural identity of ops and graphs: graph IR in, keys out.

Two graphs are equal when the same ops are applied in the same wiring, whatever their names and source
locations are.  The nodes reached from the outputs come in an order that depends on the structure alone
(`graph.topological`), so numbering them in that order is canonical and one hash over the lot is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields
from functools import cache
from hashlib import blake2b
from operator import attrgetter

from ..ops.op import Op
from .graph import Graph, Node


@cache
def values_of(cls: type[Op]) -> Callable[[Op], tuple] | None:
    """A fast reader of an op's fields, in order; `None` where the op has no attributes."""
    names = [f.name for f in fields(cls)]
    if not names:
        return None
    if len(names) == 1:
        name = names[0]
        return lambda op: (getattr(op, name),)
    return attrgetter(*names)


@cache
def region_fields(cls: type[Op]) -> tuple[str, ...]:
    """The fields of an op class that hold graphs."""
    return tuple(f.name for f in fields(cls) if f.type in ("Graph", Graph))


def identity(op: Op) -> Hashable:
    """What an op is, as a dictionary key.

    Unlike the dataclass's own equality it keeps 0.0 and -0.0 apart, NaN together, and compares regions by content.
    """
    read, plain = _reader(type(op))
    if read is None:
        return op.name
    return (
        (op.name, read(op)) if plain else (op.name, *[_exact(v) if type(v) in (float, Graph) else v for v in read(op)])
    )


@cache
def _reader(cls: type[Op]) -> tuple[Callable[[Op], tuple] | None, bool]:
    """`values_of` a class, and whether no field of it can hold a float or a graph."""
    plain = not any(t in f.type for f in fields(cls) for t in ("float", "Graph", "object"))
    return values_of(cls), plain


def _exact(value: float | Graph) -> str:
    return key(value) if isinstance(value, Graph) else repr(value)


def _stable(value: object) -> str:
    """A field's value as text that is the same in every process."""
    if isinstance(value, bytes):
        return blake2b(value, digest_size=16).hexdigest()
    return key(value) if isinstance(value, Graph) else repr(value)


def lines(graph: Graph) -> Iterator[str]:
    """One line per node in canonical order: op, attributes, numbers of inputs, tag (types follow from these)."""
    number: dict[Node, int] = {}
    for n in graph.nodes:
        op, inputs = n.op, n.inputs
        read = values_of(type(op))
        attrs = "" if read is None else ",".join([_stable(v) for v in read(op)])
        operands = ",".join([str(number[x]) for x in inputs])
        number[n] = len(number)
        yield f"{op.name}<{attrs}>({operands})#{n.tag}" if n.tag else f"{op.name}<{attrs}>({operands})"
    yield f"{len(graph.inputs)}->" + ",".join([str(number[x]) for x in graph.outputs])


def key(graph: Graph) -> str:
    """A hash of the graph's structure (hex), the same in every process."""
    return blake2b("\n".join(lines(graph)).encode(), digest_size=16).hexdigest()


def equal(a: Graph, b: Graph) -> bool:
    """The same computation, node for node, apart from names and source locations of the graph."""
    return a is b or list(lines(a)) == list(lines(b))
