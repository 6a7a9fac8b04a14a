"""The artifact's manifest: its schema and its reader.  The contract between the compiler and the runtime.

An artifact is an ELF shared library.  Section `.pullback.manifest` holds the manifest, UTF-8 JSON; it is read
from the file without loading the library.  Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod

from .errors import ArtifactError
from .sections import read_section

VERSION = 3
"""Of the manifest and the C ABI.  A runtime reads artifacts of its own version only."""

SECTION = ".pullback.manifest"
PROGRAM_SECTION = ".pullback.program"
"""The traced program, for the compiler's `inspect`; the runtime has no use for it."""

PTX_SECTION = ".pullback.ptx."
"""Followed by a GPU's name: the text of its kernels, compressed by zlib."""

CONSTANTS_SECTION = ".pullback.constants"

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
    unpadded: str = field(default="", repr=False)
    """Why `padded` is None, for messages.  (Not in `repr`, of which fingerprints are made.)"""


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
        return _call(self.launches, function, launch, call)


def _call(launches: list, function: int, launch: int, call: int) -> Call:
    *rest, sites = launches[function][launch][call]
    return Call(*rest, tuple(sites))


@dataclass(frozen=True)
class TensorMap:
    """Boxes of a parameter's memory, which a kernel's bulk copies move (`cuTensorMapEncodeTiled`): `offset` in bytes
    from the parameter's address; `dtype` an element type or tf32; `shape`, `strides` (bytes) and `box` slowest first;
    `swizzle` 0, 32, 64 or 128."""

    parameter: int
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True)
class GpuKernel:
    """How a kernel is launched: `threads` of a block, `shared` bytes of dynamic shared memory.  Its arguments are
    pointers to its parameters, the status record, the number of the call, then its tensor maps."""

    symbol: str
    threads: int
    shared: int
    maps: tuple[TensorMap, ...] = ()


@dataclass(frozen=True)
class Gpu:
    """Code for one architecture, PTX of version `ptx` in a section of its own.

    `steps[f]` are the steps of function f, the first `commits[f]` of which come before its first write to state:

        ["launch", [kernel, blocks, [base, offset, stride, ...], ...], ...]     calls, with a place for each parameter
        ["repeat", count, reverse, step, ...]

    Bases are 0 the arena, 1 the state, 2 the constants, then the inputs, then the outputs; offsets and strides (one
    for each loop around the launch) are bytes.  `launches` is as in `Level`, in the order of `steps`.
    """

    name: str
    ptx: str
    arena: int
    kernels: tuple[GpuKernel, ...]
    commits: tuple[int, ...]
    steps: list
    launches: list

    def call(self, function: int, launch: int, call: int) -> Call:
        return _call(self.launches, function, launch, call)


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
    gpus: tuple[Gpu, ...] = ()
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
        gpus=tuple(_gpu(g, len(raw["functions"])) for g in raw["gpus"]),
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
        _str(f["file"]), _size(f["line"]), _str(f.get("unpadded", "")),
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


def _gpu(g: dict, functions: int) -> Gpu:
    kernels = tuple(
        GpuKernel(_str(k["symbol"]), _size(k["threads"]), _size(k["shared"]), tuple(map(_tensor_map, k["maps"])))
        for k in g["kernels"]
    )
    commits, steps, launches = _sizes(g["commits"]), g["steps"], g["launches"]
    if not len(commits) == len(steps) == len(launches) == functions:
        raise ValueError(f"GPU {g['name']}: steps for another number of functions")
    return Gpu(_str(g["name"]), _str(g["ptx"]), _size(g["arena"]), kernels, commits, steps, launches)


def array_size(a: Array) -> int:
    """Its bytes."""
    return prod(a.shape) * ITEM_SIZE[a.dtype]


def _tensor_map(m: dict) -> TensorMap:
    shape, strides, box = (_sizes(m[n]) for n in ("shape", "strides", "box"))
    return TensorMap(
        _size(m["parameter"]), _size(m["offset"]), _str(m["dtype"]), shape, strides, box, _size(m["swizzle"])
    )


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
