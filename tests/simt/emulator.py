"""Run GPU kernels, given as NVPTX LLVM IR, on the CPU: what the kernels compute, and a report of what they do wrong.

    module = Emulator(order="random:7").load(llvm_text)
    module.launch("saxpy", grid=4, block=256, args=[x, y, 2.0, 1024])

numpy arrays are the device's memory, changed in place.  The first error ends a launch with `EmulationError`.
docs/gpu-emulation.md says what is modelled.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
import numpy as np

from pullback.codegen.target import host_level

from . import native
from .instrument import Instrumented, UnsupportedError, instrument
from .tensormap import TensorMap

__all__ = ["EmulationError", "Emulator", "Module", "TensorMap", "UnsupportedError", "device_array"]

KINDS = ["", "race", "bounds", "uninitialised", "async", "misaligned", "divergence", "deadlock", "spin", "invalid"]
ORDERS = {"forward": 0, "reverse": 1, "random": 2}
_CONVERSIONS = ("truncsfbf2", "truncdfbf2", "truncsfhf2", "truncdfhf2", "extendhfsf2")
_GUARD = 64 << 10
_lock = threading.Lock()
_CTYPES = {
    "i1": ctypes.c_uint8,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


class EmulationError(Exception):
    """A kernel did what a GPU punishes (or worse: does not).  `kind` is one of `KINDS`."""

    def __init__(self, kind: str, message: str, thread: int | None = None, block: tuple[int, ...] = ()):
        super().__init__(message)
        self.kind, self.thread, self.block = kind, thread, block


class _Memory(mmap.mmap):
    """Memory of the emulated device."""


def device_array(shape: int | Sequence[int], dtype=np.float32, offset: int = 0) -> np.ndarray:
    """An array in memory of its own, 64 KiB from its neighbours, `offset` bytes past a multiple of 256.

    `launch` uses it in place, so its address may be stored in other arrays; others are copied to such memory and back.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    memory = _Memory(-1, max(count * np.dtype(dtype).itemsize, 1) + offset + 2 * _GUARD)
    return np.frombuffer(memory, dtype, count, _GUARD + offset).reshape(shape)


def _root(a: np.ndarray):
    while isinstance(a, np.ndarray) and a.base is not None:
        a = a.base.obj if isinstance(a.base, memoryview) else a.base
    return a


@cache
def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    level = min(host_level(), "x86-64-v3")
    target = llvm.Target.from_triple(llvm.get_default_triple())
    return target.create_target_machine(cpu=level, opt=0, reloc="default", codemodel="jitdefault")


def _promoted(text: str) -> llvm.ModuleRef:
    """Parsed and verified as it was written, for any target; register arrays promoted."""
    text = re.sub(r"^target .*$", "", text, flags=re.M)
    module = llvm.parse_assembly(text)
    module.triple = llvm.get_default_triple()
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.run(module, llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options(speed_level=0)))
    return module


@dataclass(frozen=True)
class Kernel:
    name: str
    params: tuple[str, ...]
    block: tuple[int, ...]
    """The threads that `nvvm.reqntid` asks for; () if it does not."""
    cluster: tuple[int, ...]
    """The blocks of a cluster, as `nvvm.cluster_dim` says; () if it does not."""
    mentions: frozenset[str]
    """Every global name in it and in what it calls: other arrays in shared memory are not its own."""


def _kernels(module: llvm.ModuleRef) -> dict[str, Kernel]:
    text = str(module)
    groups = dict(re.findall(r"^attributes (#\d+) = \{(.*)\}$", text, re.M))
    bodies = dict(re.findall(r"^define [^\n]*?@([\w.$-]+)\(([^\n]*\n.*?)^\}", text, re.M | re.S))
    names = {f: set(re.findall(r"@([\w.$-]+)", body)) for f, body in bodies.items()}

    def mentions(name: str, seen: frozenset[str]) -> frozenset[str]:
        for n in sorted(names.get(name, set()) - seen):
            seen = mentions(n, seen | {n})
        return seen

    out = {}
    for line in re.findall(r"^define .*\bptx_kernel\b.*$", text, re.M):
        name = re.search(r"@([\w.$-]+)\(", line)[1]
        attributes = line + groups.get((re.findall(r"#\d+", line) or [""])[-1], "")
        block, cluster = (_dimensions(attributes, n) for n in ("reqntid", "cluster_dim"))
        params = tuple(str(a.type) for a in module.get_function(name).arguments)
        out[name] = Kernel(name, params, block, cluster, mentions(name, frozenset()))
    return out


def _dimensions(attributes: str, name: str) -> tuple[int, ...]:
    found = re.search(rf'"nvvm\.{name}"="([\d,]+)"', attributes)
    return tuple(int(n) for n in found[1].split(",")) if found else ()


class Emulator:
    """`order` of threads and blocks: forward, reverse or random:SEED.  `check=False` does not watch accesses."""

    def __init__(self, order: str = "forward", check: bool = True):
        if reason := native.missing():
            raise RuntimeError(reason)
        kind, _, seed = order.partition(":")
        if kind not in ORDERS or (kind == "random") != bool(seed):
            raise ValueError(f"order {order!r}: expected forward, reverse or random:SEED")
        self.order, self.seed, self.check = ORDERS[kind], int(seed or 0), check

    def load(self, text: str) -> Module:
        """Compile a module for this machine.  `UnsupportedError` names an intrinsic that has no emulation."""
        return Module(self, text)

    def with_order(self, order: str) -> Emulator:
        return Emulator(order, self.check)


class _Shared:
    """The shared memory of the blocks of a cluster, below 2 GiB so that 32-bit addresses work; one for the process."""

    def __init__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype, size = ctypes.c_void_p, native.ARENA * (native.MAX_RANKS + 1)
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_size_t]
        at = libc.mmap(
            None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, -1, 0
        )
        if at in (None, ctypes.c_void_p(-1).value):
            raise MemoryError("no memory below 2 GiB for the emulated shared memory")
        self.base = -(-at // native.ARENA) * native.ARENA
        self.flags = np.zeros((native.MAX_RANKS, native.ARENA), np.uint8)
        self.cells = np.zeros((native.MAX_RANKS, native.ARENA // 4 * native.CELL), np.uint8)
        self.clusters = 1  # how many have run: numbers tell the records of one from those of another


@cache
def _shared() -> _Shared:
    return _Shared()


class Module:
    """Compiled kernels; `launch` one."""

    def __init__(self, emulator: Emulator, text: str):
        self.emulator = emulator
        promoted = _promoted(text)
        self.kernels = _kernels(promoted)
        self.code: Instrumented = instrument(str(promoted), emulator.check)
        self._place()
        self._header = [f"declare void @{s}()" for s in sorted(self.code.symbols)]
        self._header += [f"declare void @__{s}()" for s in _CONVERSIONS]
        self._header += [f'@"{a.name}" = external global i8' for a in self.code.shared]
        full = llvm.parse_assembly(self.code.text + "".join(self._entry(k) for k in self.kernels.values()))
        full.triple = llvm.get_default_triple()
        full.verify()
        self.object = _machine().emit_object(full)
        self._engines: list[llvm.ExecutionEngine] = []

    def _entry(self, k: Kernel) -> str:
        lines, operands = [], []
        for i, type in enumerate(k.params):
            lines.append(f"  %s{i} = getelementptr ptr, ptr %a, i32 {i}\n  %p{i} = load ptr, ptr %s{i}\n")
            lines.append(f"  %x{i} = load {type}, ptr %p{i}\n")
            operands.append(f"{type} %x{i}")
        lines.append(f"  call void @{k.name}({', '.join(operands)})\n  ret void\n")
        return f"define void @simt.entry.{k.name}(ptr %a) {{\n{''.join(lines)}}}\n"

    def _place(self) -> None:
        """Offsets of shared arrays: aligned as they ask and no better, with gaps that catch steps past an end.

        Arrays of different kernels lie in the same place.
        """
        self.offsets, common = {}, 1024
        owners = {a.name: [k.name for k in self.kernels.values() if a.name in k.mentions] for a in self.code.shared}
        ends: dict[str, int] = {}
        order = sorted(self.code.shared, key=lambda a: (len(owners[a.name]) == 1, a.dynamic))
        for a in order:
            own = owners[a.name][0] if len(owners[a.name]) == 1 else ""
            at, align = ends.get(own, common) if own else common, max(a.align, 4)
            at = -(-(at + 128) // (2 * align)) * 2 * align + align
            self.offsets[a.name] = at
            if own:
                ends[own] = at + a.size
            else:
                common = at + a.size

    def _rank(self, rank: int) -> llvm.ExecutionEngine:
        """The code for one block of a cluster, with the addresses of its own shared memory."""
        while len(self._engines) <= rank:
            module = llvm.parse_assembly("\n".join(self._header))
            module.triple = llvm.get_default_triple()
            machine = llvm.Target.from_triple(module.triple).create_target_machine(codemodel="jitdefault", jit=True)
            engine = llvm.create_mcjit_compiler(module, machine)
            for symbol in self.code.symbols:
                engine.add_global_mapping(module.get_function(symbol), native.address(symbol))
            for symbol in _CONVERSIONS:
                engine.add_global_mapping(module.get_function(f"__{symbol}"), native.address(f"simt_{symbol}"))
            base = _shared().base + len(self._engines) * native.ARENA
            for a in self.code.shared:
                engine.add_global_mapping(module.get_global_variable(a.name), base + self.offsets[a.name])
            engine.add_object_file(llvm.ObjectFileRef.from_data(self.object))
            engine.finalize_object()
            self._engines.append(engine)
        return self._engines[rank]

    # ---- a launch ----------------------------------------------------------------------------------------
    def launch(
        self, name, grid, block, args=(), shared_bytes: int = 0, cluster=None, memory: Sequence[np.ndarray] = ()
    ):
        """Run a kernel.  `args`: numpy arrays, numbers, `TensorMap`s; integers for raw addresses.

        `memory`: further arrays (of `device_array`) that the kernel may touch through addresses it finds in memory.
        """
        if name not in self.kernels:
            raise ValueError(f"the module has no kernel {name!r}, only {', '.join(self.kernels) or 'none'}")
        kernel = self.kernels[name]
        cluster = cluster or kernel.cluster or 1
        grid, block, cluster = ((d, 1, 1) if isinstance(d, int) else (*d, 1, 1)[:3] for d in (grid, block, cluster))
        ranks, threads = math.prod(cluster), math.prod(block)
        if kernel.block and kernel.block != block[: len(kernel.block)]:
            raise ValueError(f"{name}: launched with blocks of {block} threads, compiled for {kernel.block}")
        if not 1 <= threads <= 1024 or ranks > native.MAX_RANKS or threads * ranks > native.MAX_THREADS:
            raise ValueError(f"{name}: blocks of {threads} threads in clusters of {ranks}")
        if kernel.cluster and kernel.cluster != cluster[: len(kernel.cluster)]:
            raise ValueError(f"{name}: launched with clusters of {cluster} blocks, compiled for {kernel.cluster}")
        if any(g < 1 or g % c for g, c in zip(grid, cluster)):
            raise ValueError(f"{name}: a grid of {grid} blocks in clusters of {cluster}")
        if len(args) != len(kernel.params):
            raise ValueError(f"{name}: {len(args)} arguments for {len(kernel.params)} parameters")
        with _lock:
            _Launch(self, kernel, grid, block, cluster, shared_bytes).run(args, memory)


class _Launch:
    def __init__(self, module: Module, kernel: Kernel, grid, block, cluster, shared_bytes: int):
        self.module, self.kernel, self.shared_bytes = module, kernel, shared_bytes
        self.grid, self.block, self.cluster = grid, block, cluster
        self.ranks = math.prod(cluster)
        self.regions: list[native.Region] = []
        self.names: list[str] = []
        self.shifts: dict[int, int] = {}  # how far the device's copy of some memory lies from it
        self.copies: list[tuple[np.ndarray, np.ndarray]] = []
        self.alive: list = []

    def run(self, args, memory) -> None:
        module, emulator, shared = self.module, self.module.emulator, _shared()
        engines = [module._rank(r) for r in range(self.ranks)]
        flags, used = self._shared_regions(shared)
        self._global_regions(args, memory)
        for name, size in module.code.globals.items():
            for engine in engines:
                self._region(engine.get_global_value_address(name), size, f"@{name}", False)
        arguments = self._arguments(args)
        entries = [e.get_function_address(f"simt.entry.{self.kernel.name}") for e in engines]
        regions = (native.Region * len(self.regions))(*self.regions)
        report = native.Report()
        launch = native.Launch(
            ctypes.cast((native.pointer * self.ranks)(*entries), native.pointer),
            ctypes.cast(arguments, native.pointer),
            *(native.triple(*d) for d in (self.grid, self.block, self.cluster)),
            emulator.order,
            emulator.seed,
            ctypes.addressof(regions),
            len(regions),
            emulator.check,
            flags.ctypes.data,
            used,
            shared.clusters,
            ctypes.pointer(report),
        )
        failed = native.library().simt_launch(ctypes.byref(launch))
        shared.clusters += math.prod(self.grid) // self.ranks
        for home, away in self.copies:
            np.copyto(home, away)
        if failed:
            raise self._error(report)

    # ---- memory ------------------------------------------------------------------------------------------
    def _region(self, base, size, name, writable, granule=2, cells=None, flags=None) -> None:
        data = [None if a is None else a.ctypes.data for a in (cells, flags)]
        self.regions.append(native.Region(base, size, *data, granule, writable))
        self.names.append(name)
        if len(self.regions) > native.MAX_REGIONS:
            raise ValueError(f"{self.kernel.name}: more than {native.MAX_REGIONS} arrays")

    def _shared_regions(self, shared: _Shared) -> tuple[np.ndarray, int]:
        module, used = self.module, 0
        arrays = [a for a in module.code.shared if a.name in self.kernel.mentions]
        if self.shared_bytes and not any(a.dynamic for a in arrays):
            raise ValueError(
                f"{self.kernel.name}: {self.shared_bytes} bytes of dynamic shared memory, but no array for it"
            )
        flags = np.zeros(native.ARENA, np.uint8)
        total = 0
        for a in arrays:
            at, size = module.offsets[a.name], self.shared_bytes if a.dynamic else a.size
            used, total = max(used, at + size + 128), total + size
            flags[at : at + size] = 1
        if total > 227 << 10 or used > native.ARENA:
            raise ValueError(f"{self.kernel.name}: {total} bytes of shared memory; a block has 227 KiB at most")
        for r in range(self.ranks):
            base = shared.base + r * native.ARENA
            self._region(base, native.ARENA, "shared memory", True, 2, shared.cells[r], shared.flags[r])
        self.alive.append(flags)
        return flags, used

    def _global_regions(self, args, memory) -> None:
        """Group the arrays by the memory they lie in; copy what is not the device's."""
        views = [(a, f"argument {i}") for i, a in enumerate(args) if isinstance(a, np.ndarray)]
        views += [(a.array, f"the tensor of argument {i}") for i, a in enumerate(args) if isinstance(a, TensorMap)]
        views += [(a, f"memory {i}") for i, a in enumerate(memory)]
        groups: dict[int, list] = {}
        for a, name in views:
            groups.setdefault(id(_root(a)), []).append((*np.lib.array_utils.byte_bounds(a), a, name))
        for key, members in groups.items():
            root, shift = _root(members[0][2]), 0
            if not isinstance(root, _Memory):
                low, high = min(m[0] for m in members), max(m[1] for m in members)
                start = root.ctypes.data if isinstance(root, np.ndarray) else low
                away = device_array(high - low, np.uint8, (low - start) % 256)
                home = np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))
                away[:] = home
                if any(m[2].flags.writeable for m in members):
                    self.copies.append((home, away))
                self.alive.append(away)
                shift = away.ctypes.data - low
            self.shifts[key] = shift
            self._regions_of(sorted(members, key=lambda m: m[:2]), shift)

    def _regions_of(self, members, shift: int) -> None:
        """One region for views that overlap."""
        while members:
            low, high, a, name = members.pop(0)
            writable, item = a.flags.writeable, a.itemsize
            while members and members[0][0] < high:
                _, more, other, label = members.pop(0)
                high, writable, item = max(high, more), writable or other.flags.writeable, min(item, other.itemsize)
                name += f" and {label}"
            granule = 1 if item == 2 else 2  # bytes share a word: what is remembered has a mask
            cells = None
            if self.module.emulator.check:
                cells = np.zeros((((high - low) >> granule) + 1) * native.CELL, np.uint8)
                self.alive.append(cells)
            self._region(low + shift, high - low, name, writable, granule, cells)

    def _arguments(self, args):
        """The array of addresses of the argument values."""
        out = (native.pointer * max(len(args), 1))()
        for i, (a, type) in enumerate(zip(args, self.kernel.params)):
            if isinstance(a, np.ndarray | TensorMap) != (type.startswith("ptr") and not isinstance(a, int)):
                raise TypeError(
                    f"{self.kernel.name}: argument {i} is {a.__class__.__name__} for a parameter of type {type}"
                )
            if isinstance(a, np.ndarray):
                value = ctypes.c_void_p(a.__array_interface__["data"][0] + self.shifts[id(_root(a))])
            elif isinstance(a, TensorMap):
                at = a.array.__array_interface__["data"][0] + self.shifts[id(_root(a.array))]
                encoded = a.encode(at)
                self._region(encoded.ctypes.data, 128, f"the tensor map of argument {i}", False)
                self.alive.append(encoded)
                value = ctypes.c_void_p(encoded.ctypes.data)
            elif type.startswith("ptr"):
                value = ctypes.c_void_p(a)
            elif type in _CTYPES:
                value = _CTYPES[type](a)
            else:
                raise TypeError(f"{self.kernel.name}: a parameter of type {type}")
            self.alive.append(value)
            out[i] = ctypes.addressof(value)
        self.alive.append(out)
        return out

    # ---- errors ------------------------------------------------------------------------------------------
    def _where(self, report: native.Report) -> str:
        if report.region < 0:
            return f": {report.size} bytes at address {report.offset & (1 << 64) - 1:#x}" if report.size else ""
        offset, name = report.offset, self.names[report.region]
        if report.region < self.ranks:
            own = [a for a in self.module.code.shared if a.name in self.kernel.mentions]
            before = [a for a in own if self.module.offsets[a.name] <= offset]
            if before:
                nearest = max(before, key=lambda a: self.module.offsets[a.name])
                size = self.shared_bytes if nearest.dynamic else nearest.size
                offset, name = offset - self.module.offsets[nearest.name], f"@{nearest.name} ({size} bytes)"
        else:
            name += f" ({self.regions[report.region].size} bytes)"
        return f": {report.size} bytes at {name} + {offset}"

    def _error(self, report: native.Report) -> EmulationError:
        sites = self.module.code.sites
        text = re.sub(r"\{site (\d+)\}", lambda m: f"`{sites[int(m[1])]}`", report.text.decode())
        kind, block = KINDS[report.kind], tuple(report.block)
        who = f"kernel {self.kernel.name}, block {block}"
        if report.thread < 0:
            return EmulationError(kind, f"{who}: {kind}{text}", None, block)
        t = report.thread
        message = f"{who}, thread {t} (warp {t // 32}, lane {t % 32}): {kind}: {text}{self._where(report)}"
        if report.site:
            message += f"\n  here:  {sites[report.site]}"
        if report.other_site:
            message += f"\n  there: {sites[report.other_site]}"
        return EmulationError(kind, message, t, block)
