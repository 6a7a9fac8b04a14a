"""LLVM: text IR in; object code, assembly, or functions in this process out.

Schedules and the emitter have decided everything, so LLVM verifies, runs SROA and generates code.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache

import llvmlite.binding as llvm
import numpy as np

from ..errors import BuildError
from .cpu import CHECK_FAILED, ROW, header
from .target import Target

_lock = threading.Lock()

# LLVM ends the process when it cannot select an intrinsic, so only these may reach it: on every x86-64
# level each becomes instructions, never a call to a library.
_SAFE = """fma sqrt floor ceil trunc roundeven fabs copysign smin smax umin umax fptosi.sat fptoui.sat cttz ctlz ctpop
    masked.load masked.store vector.reduce.add vector.reduce.or vector.reduce.and memcpy memset prefetch x86.sse2.pause
    x86.avx512.mask.scalef.ps.128 x86.avx512.mask.scalef.ps.256 x86.avx512.mask.scalef.ps.512
    x86.avx512.mask.scalef.pd.128 x86.avx512.mask.scalef.pd.256 x86.avx512.mask.scalef.pd.512
    x86.avx512bf16.dpbf16ps.512 fshl fshr"""
INTRINSICS = frozenset(_SAFE.split())
_INTRINSIC = re.compile(r"@llvm\.([\w.]+)\(")
_MANGLING = re.compile(r"(\.(v\d+)?[ifp]\d+)+$")


@cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def check_intrinsics(text: str, safe: frozenset[str] = INTRINSICS) -> None:
    """Raise `BuildError` for an intrinsic that is not known to be safe on every target."""
    for name in set(_INTRINSIC.findall(text)):
        if name not in safe and _MANGLING.sub("", name) not in safe:
            raise BuildError(f"the module calls @llvm.{name}, which is not in the list of safe intrinsics")


def _machine(target: Target, jit: bool = False) -> llvm.TargetMachine:
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=2,
        reloc="default" if jit else "pic",
        codemodel="jitdefault" if jit else "small",
    )


def _prepared(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """Parsed, verified, register arrays promoted."""
    check_intrinsics(text)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as e:
        raise BuildError(f"LLVM refuses the module: {e}") from e
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=0))
    passes.run(module, builder)
    return module


def compile_module(text: str, target: Target) -> bytes:
    """The object file (ELF, position independent) of a module."""
    with _lock:
        _initialise()
        machine = _machine(target)
        return machine.emit_object(_prepared(text, machine))


def assembly(text: str, target: Target) -> str:
    """The same as text, for people."""
    with _lock:
        _initialise()
        machine = _machine(target)
        return machine.emit_assembly(_prepared(text, machine))


class Loaded:
    """The kernels of a module in this process; call one by its symbol, on numpy arrays, without an artifact.

    For tests and benchmarks.  `object` is the code that runs; `failures` lists the failed
    checks (site, value) of the last call.
    """

    def __init__(self, text: str, target: Target):
        self.object = compile_module(text, target)
        self.failures: list[tuple[int, int]] = []
        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._failed = callback(lambda _, site, value: self.failures.append((site, value)))
        with _lock:
            module = llvm.parse_assembly(header(target) + CHECK_FAILED)
            self._engine = llvm.create_mcjit_compiler(module, _machine(target, jit=True))
            address = ctypes.cast(self._failed, ctypes.c_void_p).value
            self._engine.add_global_mapping(module.get_function("pb_check_failed"), address)
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(self.object))
            self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """Where a function lies."""
        address = self._engine.get_function_address(symbol)
        if not address:
            raise BuildError(f"the module has no function {symbol}")
        return address

    def function(self, symbol: str) -> Callable[..., None]:
        """The raw function of a kernel, by the calling convention."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, ctypes.c_int64, ctypes.c_int64)(self.address(symbol))

    def bind(self, symbol: str, arrays: Sequence[np.ndarray], blocks: int, scratch: int = 0) -> Callable[[], None]:
        """A call without arguments: all blocks of a kernel on these arrays (their memory, in parameter order)."""
        run = self.function(symbol)
        rows = np.zeros((max(len(arrays), 1), ROW), np.int64)
        rows[:, 0] = np.arange(len(rows))
        bases = np.array([a.ctypes.data for a in arrays] or [0], np.int64)
        loops = np.zeros(ROW - 2, np.int64)
        memory = np.zeros(scratch + 64, np.uint8)
        aligned = memory.ctypes.data + 63 & ~63
        alive = (rows, bases, loops, memory, list(arrays), self)
        operands = (rows.ctypes.data, bases.ctypes.data, loops.ctypes.data, aligned, 0, 0, blocks)

        def call(_alive=alive) -> None:
            self.failures.clear()
            run(*operands)

        return call


def load_kernels(text: str, target: Target) -> Loaded:
    """Compile a module into this process."""
    return Loaded(text, target)
