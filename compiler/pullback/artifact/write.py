"""Program, plans and object code -> the artifact: one shared library with its manifest inside."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

from pullback_runtime import format

from .. import __version__
from ..codegen.cpu import symbol
from ..codegen.native_abi import EXPORTS
from ..codegen.native_layout import Level
from ..codegen.target import Target
from ..errors import BuildError
from ..graph import program as ir
from ..kernel.plan import Plan
from .elf import Data, link
from .gpu import gpu_entry, launch_names
from .tables import Tables, pack_tables, plan_arena, plan_scratch

# What each level of the psABI requires, by LLVM's names (AMD64 psABI, section 3.1.1).
_V2 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
REQUIRED = {"x86-64": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}


def artifact_bytes(
    program: ir.Program,
    plans: Mapping[str, Plan],
    targets: Sequence[Target],
    kernel_objects: Sequence[bytes],
    native_object: bytes,
    options: Mapping[str, object] | None = None,
    text: bytes = b"",
    ptx: Mapping[str, str] | None = None,
) -> bytes:
    """Link an artifact.

    `plans`: isa -> plan, one for each of `targets` (processors, best last, then GPUs), all with the same functions
    and state.
    `kernel_objects`: object code that defines `codegen.cpu.symbol(key, target)` for each plan's kernels.
    `native_object`: `codegen.native.native_module()` compiled for the lowest x86-64.
    `text`: the program in a form that `artifact.reopen` reads, so that every stage can be looked at later.
    `ptx`: isa -> the kernels of a GPU's plan.

    Without code for a processor the library has no code at all: the runtime reads its sections.
    """
    if not targets:
        raise BuildError("an artifact needs at least one target")
    first, ptx = plans[targets[0].isa], ptx or {}
    for t in targets[1:]:
        _check_same(first, plans[t.isa], t.isa)
    processors = [t for t in targets if not t.is_gpu]
    tables = [pack_tables(plans[t.isa]) for t in processors]
    gpus = tuple(gpu_entry(plans[t.isa], t, ptx[t.isa]) for t in targets if t.is_gpu)
    manifest = make_manifest(program, first, plans, processors, tables, gpus, options or {}).to_json()
    data = [
        Data(format.SECTION, "pb_manifest_data", manifest, end_symbol="pb_manifest_end"),
        Data(format.CONSTANTS_SECTION, "pb_constants", first.constants or b"\0"),
    ]
    if text:
        data.append(Data(format.PROGRAM_SECTION, "pb_program_text", text))
    for g in gpus:
        data.append(Data(format.PTX_SECTION + g.name, f"pb_ptx.{g.name}", zlib.compress(ptx[g.name].encode(), 6)))
    if not processors:
        return link([], [], data)
    return link([*kernel_objects, native_object], EXPORTS, [*data, *_levels(processors, tables)])


def _levels(processors: Sequence[Target], tables: Sequence[Tables]) -> list[Data]:
    """What the native module finds its instruction sets by."""
    data, rows, pointers = [], b"", []
    for i, (t, table) in enumerate(zip(processors, tables, strict=True)):
        tables_name, kernels_name = f"pb_tables.{t.isa}", f"pb_kernels.{t.isa}"
        addresses = tuple((8 * k, symbol(key, t)) for k, key in enumerate(table.kernels))
        data.append(Data(f".pullback.tables.{t.isa}", tables_name, table.data))
        data.append(
            Data(f".pullback.kernels.{t.isa}", kernels_name, bytes(8 * len(addresses) or 8), pointers=addresses)
        )
        rows += struct.pack("<4q", feature_mask(required_features(t)), 0, 0, 0)
        pointers.append((i * Level.SIZE + Level.TABLES, tables_name))
        pointers.append((i * Level.SIZE + Level.KERNELS, kernels_name))
    data.append(Data(".pullback.levels", "pb_levels", rows, pointers=tuple(pointers)))
    data.append(Data(".pullback.level_count", "pb_level_count", struct.pack("<q", len(processors))))
    return data


def required_features(target: Target) -> tuple[str, ...]:
    """What a processor must have to run a target's code, as far as this project knows how to ask."""
    if target.cpu not in REQUIRED:
        raise BuildError(f"unknown processor {target.cpu!r}: expected {', '.join(REQUIRED)}")
    extra = [name[1:] for name in target.features.split(",") if name.startswith("+")]
    needed = {*REQUIRED[target.cpu], *extra}
    return tuple(f for f in format.FEATURES if f in needed)


def feature_mask(features: Sequence[str]) -> int:
    return sum(1 << format.FEATURES.index(f) for f in features)


def _check_same(a: Plan, b: Plan, isa: str) -> None:
    """Plans for several instruction sets differ in kernels and arena only."""
    if a.state != b.state or a.state_bytes != b.state_bytes or a.constants != b.constants:
        raise BuildError(f"the plan for {isa} lays out state or constants in another way than the first plan")
    if [(f.name, f.inputs, f.outputs) for f in a.functions] != [(f.name, f.inputs, f.outputs) for f in b.functions]:
        raise BuildError(f"the plan for {isa} has other functions than the first plan")


# ---- the manifest ---------------------------------------------------------------------------------------
def make_manifest(
    program: ir.Program,
    plan: Plan,
    plans: Mapping[str, Plan],
    processors: Sequence[Target],
    tables: Sequence[Tables],
    gpus: tuple[format.Gpu, ...],
    options: Mapping[str, object],
) -> format.Manifest:
    """`plan`: any of `plans`; functions and state are alike in all."""
    slots = {s.name: s for s in plan.state}
    missing = [n for n in program.states if n not in slots]
    if missing:
        raise BuildError(f"the plan has no place for state {missing[0]!r}")
    state = tuple(
        format.StateEntry(
            s.name, s.kind, s.type.dtype.name, s.type.shape, slots[s.name].offset, slots[s.name].strides, s.aliases
        )
        for s in program.states.values()
    )
    if len(program.functions) != len(plan.functions):
        raise BuildError("the plan does not have the program's functions")
    levels = tuple(
        format.Level(
            t.isa, t.cpu, required_features(t), plan_arena(plans[t.isa]), plan_scratch(plans[t.isa]),
            [[launch_names(x) for x in launches] for launches in table.launches],
        )
        for t, table in zip(processors, tables, strict=True)
    )  # fmt: skip
    return format.Manifest(
        program.name,
        "x86_64",
        f"pullback {__version__}",
        tuple(_function(f, p.outputs) for f, p in zip(program.functions, plan.functions, strict=True)),
        state,
        plan.state_bytes,
        levels,
        gpus,
        {**program.options, **options},
    )


def _function(f: ir.Function, outputs) -> format.Function:
    return format.Function(
        f.name,
        dict(f.dims),
        tuple(format.Array(a.name, a.type.dtype.name, a.type.shape) for a in f.arguments),
        format.encode_tree(f.inputs),
        tuple(format.Array(f"result {i}", t.dtype.name, t.shape) for i, t in enumerate(outputs)),
        format.encode_tree(f.outputs),
        f.training,
        f.padded,
        tuple(format.Print(p.format, tuple(p.results)) for p in f.prints),
        f.loc.file,
        f.loc.line,
        f.unpadded,
    )
