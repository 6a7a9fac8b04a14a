"""Our own linker: relocatable ELF objects and data -> one shared library, without a linker on the machine.

In: object files as LLVM emits them for x86-64 with `reloc=pic`, and `Data` (tables, manifest) that no compiler
needs to see.  Out: the bytes of a `.so` that glibc and musl load.  The file's offsets are its addresses.

    headers, dynamic tables, read-only data | code, stubs | dynamic section, GOT, relocated constants | data, bss
        r                                       rx              rw, then r (RELRO)                           rw

Only what is named may be exported or imported: an unknown undefined symbol is an error here, not at load.
Sources: System V ABI, AMD64 supplement (relocations: section 4.4); gABI chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence

from .elf_object import ALLOC, BSS, EXECUTE, UNDEFINED, WRITE, Section, Symbol, read_object
from .elf_parts import Data, LinkError, Output, is_relro, output_name

PAGE = 4096
X86_64 = 62
R_64, R_PC32, R_PLT32, R_GOTPCREL, R_32, R_32S, R_PC64, R_GOTPCRELX, R_REX_GOTPCRELX = 1, 2, 4, 9, 10, 11, 24, 41, 42
R_GLOB_DAT, R_RELATIVE = 6, 8
GOT_KINDS = (R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX)
IMPORTS = ("pthread_create", "pthread_join", "syscall")
"""What an artifact may import: nothing that a C library could lack."""


def link(
    objects: Sequence[bytes],
    exports: Sequence[str],
    data: Sequence[Data] = (),
    imports: Collection[str] = IMPORTS,
) -> bytes:
    """Link x86-64 objects into a shared library that exports `exports`."""
    return _Linker(objects, exports, data, imports).link()


class _Linker:
    def __init__(
        self, objects: Sequence[bytes], exports: Sequence[str], data: Sequence[Data], imports: Collection[str]
    ):
        self.sections: list[Section] = []
        self.symbols: list[Symbol] = []
        self.globals: dict[str, Symbol] = {}
        for i, blob in enumerate(objects):
            self._add_object(blob, i)
        for d in data:
            self._add_data(d)
        self.exports = [self._exported(name) for name in exports]
        self.imports = self._undefined(imports)

    # ---- input -----------------------------------------------------------------------------------------
    def _add_object(self, blob: bytes, number: int) -> None:
        try:
            sections, symbols = read_object(blob, X86_64)
        except (ValueError, struct.error, IndexError) as e:
            raise LinkError(f"object {number} cannot be linked: {e}") from e
        self.sections += sections
        for s in symbols:
            self._define(s)

    def _define(self, symbol: Symbol) -> None:
        self.symbols.append(symbol)
        if symbol.section is UNDEFINED or symbol.is_local:
            return
        other = self.globals.get(symbol.name)
        if other is None or (other.is_weak and not symbol.is_weak):
            self.globals[symbol.name] = symbol
        elif not symbol.is_weak:
            raise LinkError(f"symbol {symbol.name!r} is defined twice")

    def _add_data(self, d: Data) -> None:
        flags = ALLOC | (WRITE if d.pointers else 0)
        section = Section(d.section, 1, flags, d.align, bytearray(d.data), len(d.data))
        self.sections.append(section)
        self._define(Symbol(d.symbol, 1, 1, 2, section, 0, len(d.data)))
        if d.end_symbol:
            self._define(Symbol(d.end_symbol, 1, 0, 2, section, len(d.data), 0))
        for offset, name in d.pointers:
            wanted = Symbol(name, 1, 0, 0, UNDEFINED, 0, 0)
            self.symbols.append(wanted)
            section.relocations.append((offset, R_64, wanted, 0))

    def _exported(self, name: str) -> Symbol:
        symbol = self.globals.get(name)
        if symbol is None:
            raise LinkError(f"symbol {name!r} is to be exported but is not defined")
        return symbol

    def _undefined(self, allowed: Collection[str]) -> list[str]:
        """Undefined names, in order; every one of them must be allowed."""
        used = {id(s): s for x in self.sections if x.flags & ALLOC for _, _, s, _ in x.relocations}
        names = {s.name: None for s in used.values() if s.section is UNDEFINED and s.name not in self.globals}
        wrong = [n for n in names if n not in allowed]
        if wrong:
            raise LinkError(f"undefined symbols: {', '.join(wrong)}")
        return list(names)

    def _target(self, symbol: Symbol) -> Symbol | None:
        """The definition that a symbol stands for (not its own, if it is weak); None if it is imported."""
        return symbol if symbol.is_local else self.globals.get(symbol.name)

    # ---- layout ----------------------------------------------------------------------------------------
    def link(self) -> bytes:
        self._collect()
        self._layout()
        out = bytearray(self.file_end)
        self._write_got(out)
        for o in self.allocated:
            for offset, s in o.pieces:
                if s.type != BSS:
                    self._relocate(s, o.address + offset)
                    out[o.address + offset : o.address + offset + s.size] = s.data
        self._write_dynamic(out)
        self._write_segments(out)
        self._write_sections(out)
        return bytes(out)

    def _collect(self) -> None:
        """Merge sections by name; number GOT entries and stubs."""
        outputs: dict[str, Output] = {}
        for s in self.sections:
            name = output_name(s)
            o = outputs.get(name)
            if o is None:
                o = outputs[name] = Output(name, s.type, s.flags, entry_size=s.entry_size)
            o.add(s)
        if ".eh_frame" in outputs:  # a terminator, as the C start files would add
            outputs[".eh_frame"].add(Section(".eh_frame", 1, ALLOC, 1, bytearray(4), 4))
        self.outputs = outputs
        self.place = {id(s): (o, offset) for o in outputs.values() for offset, s in o.pieces}
        self.got: dict[str, int] = {}
        self.stubs: dict[str, int] = {}
        relative = 0
        for s in self.sections:
            if not s.flags & ALLOC:
                continue
            for _, kind, symbol, _ in s.relocations:
                local = self._target(symbol)
                if kind in GOT_KINDS or (kind == R_PLT32 and local is None):
                    self.got.setdefault(self._key(symbol), len(self.got))
                if kind == R_PLT32 and local is None:
                    self.stubs.setdefault(symbol.name, len(self.stubs))
                relative += kind == R_64
        self.relocation_count = len(self.got) + relative

    def _key(self, symbol: Symbol) -> str:
        """One GOT entry per name; a local symbol's entry is its own."""
        return f"{symbol.name}\0{id(symbol)}" if symbol.is_local else symbol.name

    def _layout(self) -> None:
        allocated = [o for o in self.outputs.values() if o.flags & ALLOC]
        self.readonly = [o for o in allocated if not o.flags & (WRITE | EXECUTE)]
        self.code = [o for o in allocated if o.flags & EXECUTE]
        writable = [o for o in allocated if o.flags & WRITE]
        self.relro = [o for o in writable if is_relro(o.name)]
        self.data = sorted((o for o in writable if not is_relro(o.name)), key=lambda o: o.type == BSS)
        self.names = [*self.imports, *(s.name for s in self.exports)]
        self.strings = b"\0" + b"".join(n.encode() + b"\0" for n in self.names)
        self.tables: dict[str, tuple[int, int]] = {}
        self.at = 64 + 56 * 8
        self._put(".dynsym", 24 * (len(self.names) + 1), 8)
        self._put(".hash", 4 * (len(self.names) + 4), 8)
        self._put(".dynstr", len(self.strings), 1)
        self._put(".rela.dyn", 24 * self.relocation_count, 8)
        self._put(".eh_frame_hdr", 8 if ".eh_frame" in self.outputs else 0, 4)
        self._place(self.readonly)
        self.readonly_end = self.at
        self._to_page()
        self.code_start = self.at
        self._place(self.code)
        self._put(".plt", 16 * len(self.stubs), 16)
        self.code_end = self.at
        self._to_page()
        self.write_start = self.at
        self._put(".dynamic", 16 * 16, 16)
        self._put(".got", 8 * len(self.got), 8)
        self._place(self.relro)
        self._to_page()
        self.relro_end = self.at
        self._place([o for o in self.data if o.type != BSS])
        self.file_end = self.at
        self._place([o for o in self.data if o.type == BSS])
        self.memory_end = self.at
        self.allocated = [*self.readonly, *self.code, *self.relro, *self.data]

    def _put(self, name: str, size: int, align: int) -> None:
        self.at = -(-self.at // align) * align
        self.tables[name] = (self.at, size)
        self.at += size

    def _place(self, outputs: list[Output]) -> None:
        for o in outputs:
            o.address = self.at = -(-self.at // o.align) * o.align
            self.at += o.size

    def _to_page(self) -> None:
        self.at = -(-self.at // PAGE) * PAGE

    # ---- contents --------------------------------------------------------------------------------------
    def _address(self, symbol: Symbol) -> int:
        if symbol.section is None:
            return symbol.value
        output, offset = self.place[id(symbol.section)]
        return output.address + offset + symbol.value

    def _write_got(self, out: bytearray) -> None:
        """GOT entries and the stubs that jump through them; starts the list of dynamic relocations."""
        self.dynamic: list[tuple[int, int, int]] = []
        numbers = {name: i + 1 for i, name in enumerate(self.imports)}
        self.numbers = numbers
        start = self.tables[".got"][0]
        by_key = {self._key(s): s for x in self.sections for _, _, s, _ in x.relocations}
        for key, index in self.got.items():
            address, target = start + 8 * index, self._target(by_key[key])
            if target is None:
                self.dynamic.append((address, numbers[key] << 32 | R_GLOB_DAT, 0))
            else:
                struct.pack_into("<Q", out, address, self._address(target))
                self.dynamic.append((address, R_RELATIVE, self._address(target)))
        for name, index in self.stubs.items():
            at = self.tables[".plt"][0] + 16 * index
            entry = start + 8 * self.got[name]
            out[at : at + 16] = b"\xf3\x0f\x1e\xfa\xff\x25" + struct.pack("<i", entry - (at + 10)) + b"\xcc" * 6

    def _relocate(self, section: Section, base: int) -> None:
        """Apply a section's relocations to its data; `base` is its address (0 for debug information)."""
        data, got = section.data, self.tables[".got"][0]
        for offset, kind, symbol, addend in section.relocations:
            place, target = base + offset, self._target(symbol)
            if kind in GOT_KINDS:
                value = got + 8 * self.got[self._key(symbol)] + addend
            elif target is not None:
                value = self._address(target) + addend
            elif kind == R_PLT32:
                value = self.tables[".plt"][0] + 16 * self.stubs[symbol.name] + addend
            elif kind == R_64:
                value = addend
            else:
                raise LinkError(f"relocation {kind} against the imported symbol {symbol.name!r}")
            if kind == R_64:
                struct.pack_into("<Q", data, offset, value & 0xFFFFFFFFFFFFFFFF)
                if section.flags & ALLOC:
                    info = R_RELATIVE if target is not None else self.numbers[symbol.name] << 32 | R_64
                    self.dynamic.append((place, info, value))
            elif kind == R_PC64:
                struct.pack_into("<q", data, offset, value - place)
            elif kind in (R_PC32, R_PLT32, *GOT_KINDS):
                if not -(1 << 31) <= value - place < 1 << 31:
                    raise LinkError(f"{section.name} is more than 2 GiB away from {symbol.name!r}")
                struct.pack_into("<i", data, offset, value - place)
            elif kind in (R_32, R_32S) and not section.flags & ALLOC:
                struct.pack_into("<I", data, offset, value & 0xFFFFFFFF)
            else:
                raise LinkError(f"unsupported relocation {kind} in {section.name} against {symbol.name!r}")

    def _write_dynamic(self, out: bytearray) -> None:
        """Symbols, hash table, relocations and the dynamic section that points at them."""

        def put(name: str, content: bytes) -> None:
            at, size = self.tables[name]
            assert len(content) <= size, name
            out[at : at + len(content)] = content

        symbols, at = bytes(24), 1
        for name in self.imports:
            symbols += struct.pack("<IBBHQQ", at, 0x10, 0, 0, 0, 0)
            at += len(name) + 1
        indices = self._section_numbers()
        for s in self.exports:
            number = indices[self.place[id(s.section)][0].name]
            symbols += struct.pack("<IBBHQQ", at, 0x10 | s.kind, 0, number, self._address(s), s.size)
            at += len(s.name) + 1
        put(".dynsym", symbols)
        n = len(self.names) + 1  # a hash table of one bucket: a dozen symbols
        chain = [0, *(i + 1 if i + 1 < n else 0 for i in range(1, n))]
        put(".hash", struct.pack(f"<{3 + n}I", 1, n, 1 if n > 1 else 0, *chain))
        put(".dynstr", self.strings)
        self.dynamic.sort(key=lambda r: (r[1] != R_RELATIVE, r[0]))
        put(".rela.dyn", b"".join(struct.pack("<QQq", *r) for r in self.dynamic))
        if ".eh_frame" in self.outputs:
            frame, at = self.outputs[".eh_frame"].address, self.tables[".eh_frame_hdr"][0]
            put(".eh_frame_hdr", struct.pack("<BBBBi", 1, 0x1B, 0xFF, 0xFF, frame - (at + 4)))
        tags = [(4, ".hash"), (5, ".dynstr"), (6, ".dynsym")]
        entries = [(tag, self.tables[name][0]) for tag, name in tags] + [(10, len(self.strings)), (11, 24)]
        if self.dynamic:
            relative = sum(r[1] == R_RELATIVE for r in self.dynamic)
            entries += [(7, self.tables[".rela.dyn"][0]), (8, 24 * len(self.dynamic)), (9, 24), (0x6FFFFFF9, relative)]
        for tag, name in ((25, ".init_array"), (26, ".fini_array")):
            if name in self.outputs:
                entries += [(tag, self.outputs[name].address), (tag + 2, self.outputs[name].size)]
        entries += [(30, 8), (0x6FFFFFFB, 1), (0, 0)]  # bind now
        put(".dynamic", b"".join(struct.pack("<QQ", *e) for e in entries))

    def _write_segments(self, out: bytearray) -> None:
        write_size = self.file_end - self.write_start
        dynamic = self.tables[".dynamic"]
        frame = self.tables[".eh_frame_hdr"]
        relro = self.relro_end - self.write_start
        segments = [  # type, flags, address, size in the file, size in memory, align
            (1, 4, 0, self.readonly_end, self.readonly_end, PAGE),
            (1, 5, self.code_start, *[self.code_end - self.code_start] * 2, PAGE),
            (1, 6, self.write_start, write_size, self.memory_end - self.write_start, PAGE),
            (2, 6, dynamic[0], dynamic[1], dynamic[1], 8),
            (0x6474E551, 6, 0, 0, 0, 16),  # no executable stack
            (0x6474E552, 4, self.write_start, relro, relro, 1),
        ]
        if frame[1]:
            segments.append((0x6474E550, 4, frame[0], frame[1], frame[1], 4))
        packed = b"".join(struct.pack("<IIQQQQQQ", t, f, a, a, a, n, m, al) for t, f, a, n, m, al in segments)
        out[64 : 64 + len(packed)] = packed
        self.segment_count = len(segments)

    def _section_numbers(self) -> dict[str, int]:
        return {o.name: i for i, o in enumerate(self.allocated, 1)}

    def _write_sections(self, out: bytearray) -> None:
        """Section headers, debug information and symbols: for debuggers, profilers and the manifest's reader."""
        names, headers = bytearray(b"\0"), [bytes(64)]

        def add(name: str, type: int, flags: int, address: int, offset: int, size: int, *rest: int) -> None:
            link, info, align, entry = (*rest, *(0, 0, 1, 0)[len(rest) :])
            fields = (len(names), type, flags, address, offset, size, link, info, align, entry)
            headers.append(struct.pack("<IIQQQQIIQQ", *fields))
            names.extend(name.encode() + b"\0")

        def append(content: bytes) -> int:
            out.extend(bytes(-len(out) % 8))
            at = len(out)
            out.extend(content)
            return at

        for o in self.allocated:
            offset = self.file_end if o.type == BSS else o.address
            add(o.name, o.type, o.flags & 7, o.address, offset, o.size, 0, 0, o.align)
        symbols = len(headers)
        kinds = {
            ".dynsym": (11, 2, symbols + 1, 1, 8, 24),
            ".dynstr": (3, 2),
            ".hash": (5, 2, symbols, 0, 8, 4),
            ".rela.dyn": (4, 2, symbols, 0, 8, 24),
            ".eh_frame_hdr": (1, 2, 0, 0, 4),
            ".plt": (1, 6, 0, 0, 16),
            ".dynamic": (6, 3, symbols + 1, 0, 8, 16),
            ".got": (1, 3, 0, 0, 8),
        }
        for name, (type, flags, *rest) in kinds.items():
            at, size = self.tables[name]
            if size or type in (3, 11):
                add(name, type, flags, at, at, size, *rest)
        for o in self.outputs.values():
            if not o.flags & ALLOC:
                content = bytearray(o.size)
                for offset, s in o.pieces:
                    self._relocate(s, offset)
                    content[offset : offset + s.size] = s.data
                add(o.name, 1, o.flags & 0x30, 0, append(content), o.size, 0, 0, o.align, o.entry_size)
        table, strings, local = self._symbol_table()
        add(".symtab", 2, 0, 0, append(table), len(table), len(headers) + 1, local, 8, 24)
        add(".strtab", 3, 0, 0, append(strings), len(strings))
        name_table = bytes(names) + b".shstrtab\0"
        add(".shstrtab", 3, 0, 0, append(name_table), len(name_table))
        start = append(b"".join(headers))
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        count = len(headers)
        fields = (3, X86_64, 1, 0, 64, start, 0, 64, 56, self.segment_count, 64, count, count - 1)
        out[:64] = ident + struct.pack("<HHIQQQIHHHHHH", *fields)

    def _symbol_table(self) -> tuple[bytes, bytes, int]:
        """`.symtab`, its strings, and the number of local symbols."""
        indices, exported = self._section_numbers(), {id(s) for s in self.exports}
        chosen = [s for s in self.symbols if s.is_local or self.globals.get(s.name) is s]
        kept = [s for s in chosen if s.section not in (None, UNDEFINED) and s.name and s.kind in (0, 1, 2)]
        kept = [s for s in kept if self.place[id(s.section)][0].name in indices]
        kept.sort(key=lambda s: id(s) in exported)
        strings, table = bytearray(b"\0"), bytearray(24)
        for s in kept:
            bind = 1 if id(s) in exported else 0
            number = indices[self.place[id(s.section)][0].name]
            table += struct.pack("<IBBHQQ", len(strings), bind << 4 | s.kind, 0, number, self._address(s), s.size)
            strings += s.name.encode() + b"\0"
        return bytes(table), bytes(strings), 1 + sum(id(s) not in exported for s in kept)
