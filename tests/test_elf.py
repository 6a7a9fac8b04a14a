"""Our linker against `ld`, and the structure of what it writes."""

import ctypes
import io
import itertools
import shutil
import struct
import subprocess
import uuid

import artifact_by_hand as hand
import numpy as np
import pytest

from pullback.artifact.elf import Data, LinkError, link
from pullback.codegen.compile import compile_module
from pullback.codegen.native_abi import EXPORTS
from pullback.codegen.target import cpu_target

TARGET = cpu_target("x86-64-v2")
HEAD = 'target triple = "x86_64-unknown-linux-gnu"\n'

# Everything a linker has to do: constants, a jump table, tables of addresses, bss, initialised data, a GOT
# entry for a preemptible symbol, calls among objects and to libc, weak symbols, constructors, debug lines.
ONE = """
@table = internal constant [3 x ptr] [ptr @twice, ptr @thrice, ptr @other]
@counter = internal global i64 40
@zeros = internal global [1000 x i64] zeroinitializer
@shared = external global i64
@weak_value = weak hidden constant i64 7
@init = internal constant [1 x ptr] [ptr @start], section ".init_array", align 8
@llvm.used = appending global [1 x ptr] [ptr @init], section "llvm.metadata"
declare hidden i64 @other(i64)
declare i64 @labs(i64)
define internal void @start() {
  store i64 5, ptr getelementptr ([1000 x i64], ptr @zeros, i64 0, i64 999)
  ret void
}
define hidden i64 @twice(i64 %x) {
  %r = mul i64 %x, 2
  ret i64 %r
}
define hidden i64 @thrice(i64 %x) {
  %r = mul i64 %x, 3
  ret i64 %r
}
define i64 @by_table(i64 %i, i64 %x) {
  %p = getelementptr [3 x ptr], ptr @table, i64 0, i64 %i
  %f = load ptr, ptr %p
  %r = call i64 %f(i64 %x)
  ret i64 %r
}
define i64 @count() {
  %a = load i64, ptr @counter
  %b = add i64 %a, 1
  store i64 %b, ptr @counter
  %z = load i64, ptr getelementptr ([1000 x i64], ptr @zeros, i64 0, i64 999)
  %s = load i64, ptr @shared
  %w = load i64, ptr @weak_value
  %t = add i64 %b, %z
  %u = add i64 %t, %s
  %v = add i64 %u, %w
  ret i64 %v
}
define i64 @jump(i64 %x) {
  switch i64 %x, label %d [ i64 0, label %a  i64 1, label %b  i64 2, label %c  i64 3, label %e  i64 4, label %f ]
a: ret i64 11
b: ret i64 -7
c: ret i64 1234567
e: ret i64 5
f: ret i64 99
d: ret i64 0
}
define double @polynomial(double %x) {
  %a = fmul double %x, 0x400921FB54442D18
  %b = fadd double %a, 0x4005BF0A8B145769
  ret double %b
}
define i64 @absolute(i64 %x) {
  %r = call i64 @labs(i64 %x)
  ret i64 %r
}
"""

TWO = """
@shared = global i64 1000
@weak_value = hidden constant i64 9
define hidden i64 @other(i64 %x) {
  %r = mul i64 %x, 100
  ret i64 %r
}
define ptr @data() { ret ptr @blob }
define i64 @size() {
  %d = sub i64 ptrtoint (ptr @blob_end to i64), ptrtoint (ptr @blob to i64)
  ret i64 %d
}
define ptr @pointers() { ret ptr @addresses }
@blob = external hidden constant i8
@blob_end = external hidden constant i8
@addresses = external hidden constant ptr
"""

NAMES = ("by_table", "count", "jump", "polynomial", "absolute", "data", "size", "pointers", "shared")


@pytest.fixture(scope="module")
def objects():
    return [compile_module(HEAD + ONE, TARGET), compile_module(HEAD + TWO, TARGET)]


BLOB = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def ours(objects, tmp_path_factory):
    data = [
        Data(".pullback.blob", "blob", BLOB, end_symbol="blob_end"),
        Data(".pullback.addresses", "addresses", bytes(16), pointers=((0, "twice"), (8, "blob"))),
    ]
    path = tmp_path_factory.mktemp("ours") / "ours.so"
    path.write_bytes(link(objects, NAMES, data, imports=("labs",)))
    return path


def results(path) -> list:
    """What every exported function gives, in a fresh copy of the library."""
    path = shutil.copy(path, path.with_name(f"{path.stem}-{uuid.uuid4()}.so"))
    lib = ctypes.CDLL(str(path))
    lib.polynomial.restype, lib.polynomial.argtypes = ctypes.c_double, [ctypes.c_double]
    for name in ("by_table", "count", "jump", "absolute", "size"):
        getattr(lib, name).restype = ctypes.c_int64
        getattr(lib, name).argtypes = [ctypes.c_int64] * {"by_table": 2, "jump": 1, "absolute": 1}.get(name, 0)
    lib.data.restype = lib.pointers.restype = ctypes.c_void_p
    out = [lib.by_table(i, 21) for i in range(3)] + [lib.count(), lib.count()] + [lib.jump(i) for i in range(6)]
    out += [lib.polynomial(2.5), lib.absolute(-17), ctypes.c_int64.in_dll(lib, "shared").value, lib.size()]
    out.append(ctypes.string_at(lib.data(), lib.size()))
    addresses = ctypes.cast(lib.pointers(), ctypes.POINTER(ctypes.c_void_p))
    out.append(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(addresses[0])(4))
    out.append(addresses[1] == lib.data())
    return out


EXPECTED = [
    *(42, 63, 2100, 41 + 5 + 1000 + 9, 42 + 5 + 1000 + 9, 11, -7, 1234567, 5, 99, 0),
    *(2.5 * np.pi + np.e, 17, 1000, len(BLOB), BLOB, 8, True),
]


def test_functions_work(ours):
    assert results(ours) == EXPECTED


@pytest.mark.skipif(shutil.which("ld") is None, reason="needs ld")
def test_same_as_ld(ours, objects, tmp_path):
    octets = "".join(map("\\{:02X}".format, BLOB))
    array = f"[{len(BLOB)} x i8]"
    blob = f"""{HEAD}
@blob = hidden constant {array} c"{octets}"
@blob_end = hidden alias i8, getelementptr ({array}, ptr @blob, i64 1)
@addresses = hidden constant [2 x ptr] [ptr @twice, ptr @blob]
declare hidden i64 @twice(i64)
"""
    files = []
    for i, o in enumerate([*objects, compile_module(blob, TARGET)]):
        files.append(tmp_path / f"{i}.o")
        files[-1].write_bytes(o)
    subprocess.run(["ld", "-shared", "-z", "now", "-o", tmp_path / "ld.so", *files], check=True)
    assert results(tmp_path / "ld.so") == results(ours) == EXPECTED


def test_structure(ours):
    elffile = pytest.importorskip("elftools.elf.elffile")
    elf = elffile.ELFFile(io.BytesIO(ours.read_bytes()))
    sections = {s.name: s for s in elf.iter_sections()}
    assert sections[".pullback.blob"].data() == BLOB
    exported = {s.name for s in sections[".dynsym"].iter_symbols() if s["st_shndx"] != "SHN_UNDEF"}
    imported = {s.name for s in sections[".dynsym"].iter_symbols() if s["st_shndx"] == "SHN_UNDEF" and s.name}
    assert exported == set(NAMES) and imported == {"labs"}
    assert {"twice", "thrice", "start"} <= {s.name for s in sections[".symtab"].iter_symbols()}
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [s["p_flags"] for s in loads] == [4, 5, 6]  # nothing is writable and executable
    ends = [(s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]) for s in loads]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
    for name, s in sections.items():
        if s["sh_flags"] & 2 and s["sh_size"]:
            assert any(lo <= s["sh_addr"] and s["sh_addr"] + s["sh_size"] <= hi for lo, hi in ends), name
            assert s["sh_addr"] % max(s["sh_addralign"], 1) == 0, name
    tags = {t.entry.d_tag for s in elf.iter_segments() if s["p_type"] == "PT_DYNAMIC" for t in s.iter_tags()}
    assert "DT_INIT_ARRAY" in tags and "DT_NEEDED" not in tags and "DT_TEXTREL" not in tags
    frames = sections[".eh_frame"].data()
    assert frames[-4:] == bytes(4)
    header = next(s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_EH_FRAME")
    (offset,) = struct.unpack_from("<i", header.data(), 4)
    assert header["p_vaddr"] + 4 + offset == sections[".eh_frame"]["sh_addr"]


def test_unwind_tables_cover_every_function(ours):
    elffile = pytest.importorskip("elftools.elf.elffile")
    elf = elffile.ELFFile(io.BytesIO(ours.read_bytes()))
    entries = [e for e in elf.get_dwarf_info().EH_CFI_entries() if "initial_location" in getattr(e, "header", ())]
    covered = {e.header["initial_location"] for e in entries}
    symbols = [s for s in elf.get_section_by_name(".symtab").iter_symbols() if s["st_info"]["type"] == "STT_FUNC"]
    assert symbols and {s["st_value"] for s in symbols} <= covered


def test_debug_lines_of_several_objects(tmp_path):
    elffile = pytest.importorskip("elftools.elf.elffile")

    def one(name: str, line: int) -> bytes:
        text = f"""{HEAD}
define i64 @{name}(i64 %x) !dbg !4 {{
  %r = mul i64 %x, {line}, !dbg !6
  ret i64 %r, !dbg !6
}}
!llvm.dbg.cu = !{{!1}}
!llvm.module.flags = !{{!2, !3}}
!0 = !DIFile(filename: "{name}.py", directory: "/scripts")
!1 = distinct !DICompileUnit(language: DW_LANG_C99, file: !0, emissionKind: FullDebug)
!2 = !{{i32 2, !"Dwarf Version", i32 4}}
!3 = !{{i32 2, !"Debug Info Version", i32 3}}
!4 = distinct !DISubprogram(name: "{name}", file: !0, line: 1, type: !5, unit: !1, spFlags: DISPFlagDefinition)
!5 = !DISubroutineType(types: !{{}})
!6 = !DILocation(line: {line}, column: 1, scope: !4)
"""
        return compile_module(text, TARGET)

    linked = link([one("first", 17), one("second", 23)], ("first", "second"))
    elf = elffile.ELFFile(io.BytesIO(linked))
    where = {
        s.name: s["st_value"]
        for s in elf.get_section_by_name(".symtab").iter_symbols()
        if s.name in ("first", "second")
    }
    found = {}
    dwarf = elf.get_dwarf_info()
    for unit in dwarf.iter_CUs():
        name = unit.get_top_DIE().attributes["DW_AT_name"].value.decode()
        for entry in dwarf.line_program_for_CU(unit).get_entries():
            if (
                entry.state
                and not entry.state.end_sequence
                and entry.state.address == where[name[:-3]]
                and entry.state.line > 1
            ):
                found[name] = entry.state.line
    assert found == {"first.py": 17, "second.py": 23}


def test_only_what_is_allowed_is_imported_and_defined_once(objects):
    with pytest.raises(LinkError, match=r"undefined symbols: .*labs"):
        link(objects, ())
    with pytest.raises(LinkError, match="symbol 'other' is defined twice"):
        link([*objects, objects[1]], ())
    with pytest.raises(LinkError, match="'nothing' is to be exported but is not defined"):
        link(objects, ("nothing",))
    with pytest.raises(LinkError, match="object 0 cannot be linked: not a little-endian ELF64 file"):
        link([b"nonsense" * 20], ())
    with pytest.raises(LinkError, match="object 0 cannot be linked"):
        link([objects[0][:700]], ())


def test_artifact_imports_and_exports():
    elffile = pytest.importorskip("elftools.elf.elffile")
    elf = elffile.ELFFile(io.BytesIO(hand.demo_bytes()))
    symbols = [
        (s.name, s["st_shndx"] == "SHN_UNDEF") for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name
    ]
    assert {n for n, undefined in symbols if undefined} == {"pthread_create", "pthread_join", "syscall"}
    assert {n for n, undefined in symbols if not undefined} == set(EXPORTS)
    assert "DT_NEEDED" not in {t.entry.d_tag for t in elf.get_section_by_name(".dynamic").iter_tags()}


def test_alignment_is_kept(tmp_path):
    text = HEAD + (
        "@first = internal global i8 1\n@big = internal global [4096 x i8] zeroinitializer, align 256\n"
        "@other = internal global i64 5, align 128\n"
        "define ptr @bss() { ret ptr @big }\ndefine ptr @data() { ret ptr @other }\n"
        "define i8 @use() {\n %r = load volatile i8, ptr @first\n ret i8 %r\n}\n"
    )
    blob = Data(".pullback.x", "x", b"x" * 5, align=4096)
    path = tmp_path / "aligned.so"
    path.write_bytes(link([compile_module(text, TARGET)], ("bss", "data", "use", "x"), [blob]))
    lib = ctypes.CDLL(str(path))
    lib.bss.restype = lib.data.restype = ctypes.c_void_p
    assert lib.bss() % 256 == 0 and lib.data() % 128 == 0 and lib.use() == 1
    assert ctypes.addressof(ctypes.c_char.in_dll(lib, "x")) % 4096 == 0
