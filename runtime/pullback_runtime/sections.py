"""One section of a shared library, read from the file without loading it: every offset is checked before it is used."""

from __future__ import annotations

import os
import struct

from .errors import ArtifactError

MACHINES = {62: "x86_64", 183: "aarch64"}
"""ELF machine number -> what `platform.machine()` says."""


def read_section(path: str | os.PathLike, name: str) -> tuple[str, bytes]:
    """(machine, content) of one section of a shared library."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as f:
            return _read_section(_File(f, path), name)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read ({e.strerror})") from e


class _File:
    def __init__(self, f, path: str):
        self.f, self.path = f, path
        self.size = f.seek(0, os.SEEK_END)

    def bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise ArtifactError(f"{self.path}: truncated: it ends at byte {self.size}, {offset + count} are needed")
        self.f.seek(offset)
        return self.f.read(count)


def _read_section(file: _File, name: str) -> tuple[str, bytes]:
    path = file.path
    if file.size < 64 or file.bytes(0, 6) != b"\x7fELF\x02\x01":
        raise ArtifactError(f"{path}: not a Pullback artifact (no 64-bit ELF file)")
    header = file.bytes(0, 64)
    kind, number = struct.unpack_from("<HH", header, 16)
    machine = MACHINES.get(number, f"machine {number}")
    if kind != 3:
        raise ArtifactError(f"{path}: not a Pullback artifact (an ELF file, but no shared library)")
    (start,) = struct.unpack_from("<Q", header, 40)
    entry, count, strings = struct.unpack_from("<HHH", header, 58)
    if entry != 64 or strings >= count:
        raise ArtifactError(f"{path}: not a Pullback artifact (no table of sections)")
    table = list(struct.iter_unpack("<IIQQQQIIQQ", file.bytes(start, 64 * count)))
    names = file.bytes(table[strings][4], min(table[strings][5], 1 << 20))
    for at, type, _, _, offset, size, *_ in table:
        if type == 1 and names[at : names.find(b"\0", at)] == name.encode():
            return machine, file.bytes(offset, size)
    raise ArtifactError(f"{path}: not a Pullback artifact (a shared library without section {name})")
