"""The order in which reductions add: part of their meaning, so it follows from shape and axes alone.

* *row* reductions (the last axis is reduced): W = min(64, next power of two >= n) strided partial results, position
  mod W along the last axis, outer reduced axes in order outside of it; then the partials fold in halves.  A row of more
  than 16384 elements goes in chunks of that many; the chunks' results are a row again.
* *column* reductions (the last axis is kept): chunks of C = max(8, n / 128) positions, n / 128 rounded up to a power of
  two or a multiple of 16, but of 32 rather than of less where that leaves 16 of them, each in order into one
  accumulator; then the chunks' results in order.  With several reduced axes a chunk is a stretch of one of them, with
  all axes inside of it.

Nodes in; shapes of chunks and of partial results out.  `rows.py` writes the nests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from ..graph.graph import Node
from ..ops.reduction import Arg

LANES = 64
"""Strided partial results of a row reduction."""
LONG = 16384
"""Elements of a row that are reduced in one go."""
SMALL_CHUNK, CHUNKS = 8, 128
"""Column reductions: the fewest positions of a chunk, and the most chunks: a GPU has about as many processors."""
STEP = 16
"""Longer chunks have a multiple of so many positions: as many rows as a block of a GPU takes at a time."""
CHUNK, ENOUGH = 32, 16
"""Chunks of at least so many positions cost next to nothing; there should be so many chunks."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a reduction over `extents` is cut: `size` positions of axis number `axis` and all axes inside of it."""

    extents: tuple[int, ...]
    axis: int
    size: int

    @property
    def count(self) -> int:
        """Chunks along the cut axis."""
        return ceil(self.extents[self.axis] / self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The chunk numbers' extents."""
        return (*self.extents[: self.axis], self.count)


def next_power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def cut(extents: Sequence[int], size: int, low: bool) -> Chunks:
    """Chunks of about `size` positions: at least (columns) or at most (rows, `low`) that many where axes allow."""
    axis, inner = len(extents) - 1, 1
    while axis > 0 and inner * extents[axis] <= size:
        inner *= extents[axis]
        axis -= 1
    along = max(1, size // inner if low else ceil(size / inner))
    return Chunks(tuple(extents), axis, min(along, max(extents[axis], 1)))


def column_chunks(extents: Sequence[int]) -> Chunks:
    n = prod(extents)
    least = ceil(n / CHUNKS)
    least = next_power(least) if least <= STEP else ceil(least / STEP) * STEP
    size = max(SMALL_CHUNK, min(CHUNK, next_power(ceil(n / ENOUGH))), least)
    return cut(extents, size, False)


def row_chunks(extents: Sequence[int]) -> Chunks:
    return cut(extents, LONG, True)


def reduced_extents(node: Node) -> tuple[int, ...]:
    shape = node.inputs[0].shape
    return tuple(shape[a] for a in node.op.axes)


def form(node: Node) -> str:
    """How a reduction is lowered.

    none: nothing to combine (no axes, or no elements); row; long (a row in chunks); element (in order, for each
    element of the result: few positions, argmax along a column); column (chunks, then their results in order).
    """
    x, axes = node.inputs[0].type, node.op.axes
    if not axes or not x.size:
        return "none"
    row = axes[-1] == x.ndim - 1
    if isinstance(node.op, Arg):
        return "row" if row else "element"
    n = prod(reduced_extents(node))
    if row:
        return "long" if n > LONG else "row"
    return "element" if n <= SMALL_CHUNK else "column"


def partial_shape(node: Node) -> tuple[int, ...]:
    """The shape of the partial results that a long or column reduction keeps in memory."""
    extents = reduced_extents(node)
    if form(node) == "long":
        return (*node.shape, *row_chunks(extents).shape)
    return (*column_chunks(extents).shape, *node.shape)
