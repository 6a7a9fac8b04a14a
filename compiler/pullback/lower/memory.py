"""Arena planning: buffers with lifetimes -> byte offsets, none of two that live at once overlapping."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes: one cache line, and the widest vector."""


def aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


@dataclass(slots=True)
class Lifetime:
    """`nbytes` that are needed from launch `first` to launch `last`, both included."""

    nbytes: int
    first: int
    last: int


def pack(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets (in order) and the size of the arena.

    Greedy by size (Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference"): the
    largest buffer first, each at the lowest gap among those alive with it that is big enough.
    """
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].nbytes, lifetimes[i].first))
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int, int, int]] = []  # (offset, end, first, last), sorted by offset
    total = 0
    for i in order:
        b = lifetimes[i]
        size, first, last = aligned(b.nbytes), b.first, b.last
        at = 0
        for offset, end, f, l in placed:
            if f <= last and first <= l:
                if offset - at >= size:
                    break
                if end > at:
                    at = end
        offsets[i] = at
        insort(placed, (at, at + size, first, last))
        total = max(total, at + size)
    return offsets, total
