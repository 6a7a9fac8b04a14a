"""Reading a relocatable ELF64 object: sections with their relocations, and symbols."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

WRITE, ALLOC, EXECUTE, GROUP, TLS = 1, 2, 4, 0x200, 0x400
SYMTAB, RELA, BSS, REL, GROUP_TYPE = 2, 4, 8, 9, 17
KEPT = (1, 7, BSS, 14, 15, 16, 0x70000001)
"""Section types that are linked: data, notes, bss, init/fini arrays, x86-64 unwind tables."""


@dataclass(eq=False, slots=True)
class Section:
    """One input section; `relocations`: (offset, kind, symbol, addend)."""

    name: str
    type: int
    flags: int
    align: int
    data: bytearray
    size: int
    entry_size: int = 0
    relocations: list[tuple[int, int, Symbol, int]] = field(default_factory=list)


UNDEFINED = Section("", 0, 0, 1, bytearray(), 0)
"""The section of symbols that are defined elsewhere; None is the section of absolute ones."""


@dataclass(eq=False, slots=True)
class Symbol:
    """bind: 0 local, 1 global, 2 weak.  kind: 0 none, 1 object, 2 function, 3 section."""

    name: str
    bind: int
    kind: int
    visibility: int
    section: Section | None
    value: int
    size: int

    @property
    def is_local(self) -> bool:
        return self.bind == 0

    @property
    def is_weak(self) -> bool:
        return self.bind == 2


def read_object(blob: bytes, machine: int) -> tuple[list[Section], list[Symbol]]:
    """Sections worth linking and all symbols.  ValueError, struct.error or IndexError if it is no such object."""
    if blob[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian ELF64 file")
    kind, at_machine = struct.unpack_from("<HH", blob, 16)
    if kind != 1:
        raise ValueError("not a relocatable object")
    if at_machine != machine:
        raise ValueError(f"made for machine {at_machine}, expected {machine}")
    (start,) = struct.unpack_from("<Q", blob, 40)
    count, strings = struct.unpack_from("<HH", blob, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", blob, start + 64 * i) for i in range(count)]

    def content(header: tuple[int, ...]) -> bytes:
        offset, size = header[4], header[5]
        if offset + size > len(blob):
            raise ValueError("truncated")
        return blob[offset : offset + size]

    def text(table: bytes, at: int) -> str:
        return table[at : table.index(b"\0", at)].decode()

    names = content(headers[strings])
    sections: dict[int, Section] = {}
    for i, h in enumerate(headers):
        name, type, flags = text(names, h[0]), h[1], h[2]
        if type in (GROUP_TYPE, REL) or flags & (GROUP | TLS):
            raise ValueError(f"section {name} is of a kind that this linker does not know")
        if type in KEPT and name != ".note.GNU-stack" and (h[5] or name == ".text"):
            # As `ld` has it, unwind tables are plain data.
            data = bytearray() if type == BSS else bytearray(content(h))
            sections[i] = Section(name, 1 if type == 0x70000001 else type, flags, max(h[8], 1), data, h[5], h[9])
    symbols = [Symbol("", 0, 0, 0, UNDEFINED, 0, 0)]
    for h in headers:
        if h[1] == SYMTAB:
            table, strs = content(h), content(headers[h[6]])
            symbols = [_symbol(table, strs, o, sections, text) for o in range(0, h[5], 24)]
    for h in headers:
        target = sections.get(h[7])
        if h[1] == RELA and target is not None:
            for offset, info, addend in struct.iter_unpack("<QQq", content(h)):
                target.relocations.append((offset, info & 0xFFFFFFFF, symbols[info >> 32], addend))
    return list(sections.values()), symbols[1:]


def _symbol(table: bytes, strings: bytes, offset: int, sections: dict[int, Section], text) -> Symbol:
    name, info, other, index, value, size = struct.unpack_from("<IBBHQQ", table, offset)
    if index == 0xFFF2:
        raise ValueError("common symbols are not supported")
    section = UNDEFINED if index == 0 else None if index == 0xFFF1 else sections.get(index, UNDEFINED)
    return Symbol(text(strings, name), info >> 4, info & 15, other & 3, section, value, size)
