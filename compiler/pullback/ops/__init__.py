"""All ops, by family.  `OPS` maps a name of the text form to its class."""

from . import contract, custom, elementwise, indexing, leaf, movement, ordered, random, reduction, scan
from .op import OPS

__all__ = [
    "OPS",
    "contract",
    "custom",
    "elementwise",
    "indexing",
    "leaf",
    "movement",
    "ordered",
    "random",
    "reduction",
    "scan",
]
