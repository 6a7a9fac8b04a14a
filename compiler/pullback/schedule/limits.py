"""The thresholds of the CPU schedules, in one place: measured once, lowered by tests so that small shapes reach
every branch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in elements unless said.  The defaults were measured on Zen 4 (docs/schedules.md)."""

    block: int = 8192
    """Element steps of one block of a map, where there are so many: a few microseconds of work."""
    flat: int = 128
    """Maps of one axis that is a multiple of this go in blocks of just as many elements, so that one code serves all
    their sizes; blocks are dealt many at a time, so that small ones cost nothing."""
    block_flops: int = 1 << 18
    """The same for contractions (2.5 microseconds)."""
    blocks: int = 24
    """As many blocks of a contraction balance up to eight threads."""
    pair_blocks: int = 12
    """The same for those of bf16 in pairs, which pack both operands."""
    heavy: int = 6
    """Epilogues of contractions that cost more are loops of their own instead of being unrolled over a tile."""
    light: int = 8
    """Maps that cost at most this are unrolled by `group` vectors."""
    group: int = 4
    row_vectors: int = 8
    """Rows of at most so many vectors stay in registers between stages."""
    pack_bytes: int = 1 << 20
    """A column operand of more bytes than this is packed in panels although it lies well."""
    pack_k: int = 64
    """Packing what lies well needs at least so many steps of k to pay."""
    long_k: int = 1024
    """Packed rows: so long a k goes in stretches, so that a block of them stays near."""
    deep_k: int = 4096
    """Packed panels: the same."""
    far_bytes: int = 8 << 20
    """Rows of more bytes than this come from memory again for each panel."""
    far_rows: int = 5 << 20
    """Rows along which k steps by at least `page` bytes are packed if they are more than this ..."""
    sharing_rows: int = 1 << 20
    """... and if the steps are multiples of a page, already if they are more than this."""
    page: int = 2048
    """Bytes; successive k that lie a multiple of it apart share cache sets, and nothing prefetches them."""


DEFAULT = Limits()
