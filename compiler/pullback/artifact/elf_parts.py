"""What the linker puts together: data from outside of any object, and output sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import BuildError
from .elf_object import Section


class LinkError(BuildError):
    """Objects that do not go together: a bug of the code generator, or a damaged cache."""


@dataclass(frozen=True)
class Data:
    """Bytes in a read-only section of their own; `symbol` is where they start, `symbol_end` where they end.

    `pointers`: (offset, symbol) pairs, eight-byte addresses that the loader fills in.
    """

    section: str
    symbol: str
    data: bytes
    align: int = 64
    pointers: tuple[tuple[int, str], ...] = ()
    end_symbol: str = ""


@dataclass
class Output:
    """A section of the result: pieces of input sections of one name."""

    name: str
    type: int
    flags: int
    align: int = 1
    entry_size: int = 0
    address: int = 0
    size: int = 0
    pieces: list[tuple[int, Section]] = field(default_factory=list)

    def add(self, section: Section) -> None:
        self.align = max(self.align, section.align)
        offset = -(-self.size // section.align) * section.align
        self.pieces.append((offset, section))
        self.size = offset + section.size


def output_name(s: Section) -> str:
    """`.text.f` -> `.text` and so on; debug and our own sections keep their names."""
    for prefix in (".text", ".data.rel.ro", ".rodata", ".data", ".bss", ".init_array", ".fini_array"):
        if s.name == prefix or s.name.startswith(prefix + "."):
            return prefix
    return s.name


def is_relro(name: str) -> bool:
    return name in (".data.rel.ro", ".init_array", ".fini_array") or name.startswith(".pullback.")
