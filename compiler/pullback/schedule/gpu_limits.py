"""The thresholds of the GPU schedules, in one place; lowered by tests so that small shapes reach every branch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuLimits:
    threads: int = 256
    """Threads of a block of a map."""
    vector_from: int = 1 << 16
    """Maps of at least so many elements give each thread a vector: fewer would leave processors idle."""
    warps: int = 4
    """Rows that a block takes at a time, one for each warp."""
    sum_warps: int = 16
    """Rows that a block takes at a time where they are summed over columns."""
    shared: int = 96 << 10
    """Bytes of shared memory that every GPU from sm_80 on has for a block."""
    registers: int = 1 << 16
    """Registers of a processor: the threads of a block share them."""
    scatter: int = 1 << 16
    """Threads of a scatter-add: its destinations go in so many ranges that there are about as many."""
    row: int = 8
    """Rows of at least so many elements get a warp, shorter ones a thread."""
    row_threads: int = 512
    """Threads of a block that has a row of its own, at most."""
    private: int = 32
    """Elements of a buffer that a thread keeps in registers, where its loops must be unrolled for it."""
    contraction: int = 8
    """Contractions of at least so many rows, columns and products go in tiles, smaller ones one element a thread."""
    moving: bool = False
    """The kernel is launched in loops, where its parameters move: no tensor maps."""
    blocks: int = 132
    """Tiles that keep the processors busy: with fewer, smaller tiles are taken."""


GPU = GpuLimits()
