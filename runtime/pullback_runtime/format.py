"""The artifact's manifest: its schema and its reader.  The contract between the compiler and the runtime.

An artifact is an ELF shared library.  Section `.pullback.manifest` holds the manifest, UTF-8 JSON; it is read
from the file without loading the library.  Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from .errors import ArtifactError

VERSION = 1
"""Of the manifest and the C ABI.  A runtime reads artifacts of its own version only."""

SECTION = ".pullback.manifest"
PROGRAM_SECTION = ".pullback.program"
"""The traced program, for the compiler's `inspect`; the runtime has no use for it."""

MACHINES = {62: "x86_64", 183: "aarch64"}
"""ELF machine number -> what `platform.machine()` says."""

FEATURES = (
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16",
    "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
    "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq",
    "avx512bf16", "avx512fp16", "avxvnni",
)  # fmt: skip
"""Processor features that code may require, by LLVM's names; `pb_features` has bit i for FEATURES[i]."""

ITEM_SIZE = {
    "f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i64": 8, "i32": 4, "i8": 1, "u32": 4, "u8": 1, "bool": 1,
}  # fmt: skip
"""Element types of the format and their bytes."""


@dataclass(frozen=True)
class Array:
    """An argument or result: what it is called in messages, its element type, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Print:
    """A `debug_print`: `format` is for str.format, its arguments are results (by position, after the user's)."""

    format: str
    results: tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """One compiled entry point; several may share a name and differ in their dimensions.

    `inputs` and `outputs` are trees: {"dict": {...}} | {"list": [...]} | {"tuple": [...]} | position | None.
    """

    name: str
    dims: dict[str, int]
    arguments: tuple[Array, ...]
    inputs: object
    results: tuple[Array, ...]
    outputs: object
    training: bool | None = None
    padded: str | None = None
    prints: tuple[Print, ...] = ()
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class StateEntry:
    """One state: `offset` in bytes, `strides` in elements of the logical array."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """What a failed check in a launch is reported as."""

    kernel: str
    label: str
    file: str
    line: int
    function: str
    gradient: bool
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Level:
    """One instruction set.  `launches[f][l]` is a list of calls in the form of `Call`'s fields."""

    name: str
    cpu: str
    features: tuple[str, ...]
    arena: int
    scratch: int
    launches: list

    def call(self, function: int, launch: int, call: int) -> Call:
        *rest, sites = self.launches[function][launch][call]
        return Call(*rest, tuple(sites))


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact but its code."""

    name: str
    machine: str
    compiler: str
    functions: tuple[Function, ...]
    state: tuple[StateEntry, ...]
    state_bytes: int
    levels: tuple[Level, ...]
    options: dict[str, object] = field(default_factory=dict)
    version: int = VERSION

    @cached_property
    def state_names(self) -> dict[str, StateEntry]:
        """Every name of every state, aliases included."""
        return {n: s for s in self.state for n in (s.name, *s.aliases)}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of functions and state, not of how they were compiled or where their script lies."""
        functions = [replace(f, file="", line=0) for f in self.functions]
        return hashlib.sha256(repr((self.name, functions, self.state)).encode()).hexdigest()

    def to_json(self) -> bytes:
        return json.dumps(_plain(self), separators=(",", ":"), ensure_ascii=False).encode()


def _plain(x):
    if hasattr(x, "__dataclass_fields__"):
        return {f.name: _plain(getattr(x, f.name)) for f in fields(x)}
    if isinstance(x, tuple):
        return [_plain(v) for v in x]
    return x


# ---- trees ----------------------------------------------------------------------------------------------
def encode_tree(tree):
    """A tree of dicts, lists, tuples, positions and None, so that JSON keeps the difference of list and tuple."""
    if isinstance(tree, dict):
        return {"dict": {k: encode_tree(v) for k, v in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [encode_tree(v) for v in tree]}
    if isinstance(tree, list):
        return {"list": [encode_tree(v) for v in tree]}
    return tree


def tree_positions(tree) -> Iterator[int]:
    """The positions in an encoded tree."""
    if isinstance(tree, int):
        yield tree
    elif tree is not None:
        ((kind, items),) = tree.items()
        for v in items.values() if kind == "dict" else items:
            yield from tree_positions(v)


# ---- reading --------------------------------------------------------------------------------------------
def read_manifest(path: str | os.PathLike) -> Manifest:
    """The manifest of an artifact, read without loading it.  ArtifactError says what is wrong with the file."""
    machine, data = read_section(path, SECTION)
    return parse_manifest(data, os.fspath(path), machine)


def parse_manifest(data: bytes, path: str = "<bytes>", machine: str | None = None) -> Manifest:
    try:
        raw = json.loads(data.decode())
    except (ValueError, RecursionError) as e:
        raise ArtifactError(f"{path}: the manifest is damaged ({e})") from None
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != VERSION:
        raise ArtifactError(f"{path}: format version {version!r}, but this runtime reads version {VERSION}")
    try:
        manifest = _manifest(raw)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise ArtifactError(f"{path}: the manifest is damaged ({type(e).__name__}: {e})") from None
    if machine is not None and machine != manifest.machine:
        raise ArtifactError(f"{path}: code for {machine}, but the manifest says {manifest.machine}")
    return manifest


def check_machine(manifest: Manifest, path: str) -> None:
    """Refuse code for another kind of processor than this one."""
    here = platform.machine()
    if manifest.machine != here:
        raise ArtifactError(f"{path}: built for {manifest.machine}, but this machine is {here}")


def _manifest(raw: dict) -> Manifest:
    manifest = Manifest(
        name=_str(raw["name"]),
        machine=_str(raw["machine"]),
        compiler=_str(raw["compiler"]),
        functions=tuple(_function(f) for f in raw["functions"]),
        state=tuple(_state(s) for s in raw["state"]),
        state_bytes=_size(raw["state_bytes"]),
        levels=tuple(_level(x) for x in raw["levels"]),
        options=dict(raw["options"]),
    )
    for s in manifest.state:
        last = sum((n - 1) * step for n, step in zip(s.shape, s.strides, strict=True))
        if 0 not in s.shape and s.offset + (last + 1) * ITEM_SIZE[s.dtype] > manifest.state_bytes:
            raise ValueError(f"state {s.name} lies outside of the state's memory")
    return manifest


def _function(f: dict) -> Function:
    arguments, results = tuple(map(_array, f["arguments"])), tuple(map(_array, f["results"]))
    for tree, arrays in ((f["inputs"], arguments), (f["outputs"], results)):
        if any(not 0 <= p < len(arrays) for p in tree_positions(tree)):
            raise ValueError(f"function {f['name']}: a tree refers to an array that does not exist")
    dims = {_str(k): _size(v) for k, v in f["dims"].items()}
    prints = tuple(Print(_str(p["format"]), _sizes(p["results"])) for p in f["prints"])
    return Function(
        _str(f["name"]), dims, arguments, f["inputs"], results, f["outputs"], f["training"], f["padded"], prints,
        _str(f["file"]), _size(f["line"]),
    )  # fmt: skip


def _array(a: dict) -> Array:
    return Array(_str(a["name"]), _dtype(a["dtype"]), _sizes(a["shape"]))


def _state(s: dict) -> StateEntry:
    return StateEntry(
        _str(s["name"]), _str(s["kind"]), _dtype(s["dtype"]), _sizes(s["shape"]), _size(s["offset"]),
        _sizes(s["strides"]), tuple(map(_str, s["aliases"])),
    )  # fmt: skip


def _level(x: dict) -> Level:
    features = tuple(map(_str, x["features"]))
    launches = x["launches"]
    if not isinstance(launches, list):
        raise TypeError("launches must be a list")
    return Level(_str(x["name"]), _str(x["cpu"]), features, _size(x["arena"]), _size(x["scratch"]), launches)


def _str(x) -> str:
    if not isinstance(x, str):
        raise TypeError(f"expected text, got {x!r}")
    return x


def _size(x) -> int:
    if not isinstance(x, int) or x < 0:
        raise ValueError(f"expected a number >= 0, got {x!r}")
    return x


def _sizes(xs) -> tuple[int, ...]:
    return tuple(map(_size, xs))


def _dtype(x) -> str:
    if x not in ITEM_SIZE:
        raise ValueError(f"unknown element type {x!r}")
    return x


def read_section(path: str | os.PathLike, name: str) -> tuple[str, bytes]:
    """(machine, content) of one section of a shared library, with every offset checked before it is used."""
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
