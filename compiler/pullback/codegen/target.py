"""What the emitter and the schedules must know of a machine: one frozen `Target`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import llvmlite.binding as llvm

from ..errors import BuildError


@dataclass(frozen=True, slots=True)
class Target:
    """`isa` is the suffix of the kernels' names; cache sizes in bytes and per core are what schedules plan for.

    A GPU is another Target: its address spaces by buffer space, the intrinsics that give block and thread
    numbers by loop binding, and its barrier; the CPU has one address space, one thread per block, no barrier.
    """

    name: str
    isa: str
    triple: str
    cpu: str
    features: str = ""
    tune: str = ""
    vector_bits: int = 128
    registers: int = 16
    has_fma: bool = False
    has_f16: bool = False
    has_scalef: bool = False
    has_bf16_dot: bool = False
    """VDPBF16PS on 512 bits: pairs of products of bf16, added in f32."""
    masked: bool = False
    """Masked loads and stores are instructions for 32- and 64-bit elements."""
    l1: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 8 << 20
    shared: int = 0
    """The most bytes of shared memory that a launch can ask for, for a block (GPUs)."""
    spaces: tuple[tuple[str, int], ...] = ()
    ids: tuple[tuple[str, str], ...] = ()
    barrier: str = ""

    @property
    def is_gpu(self) -> bool:
        """Do blocks have threads?"""
        return bool(self.ids)

    def lanes(self, bits: int = 32) -> int:
        """How many elements of `bits` one vector register holds."""
        return max(1, self.vector_bits // bits)

    @property
    def attributes(self) -> str:
        """The attributes of every function for this machine."""
        parts = [f'"target-cpu"="{self.cpu}"']
        if self.features:
            parts.append(f'"target-features"="{self.features}"')
        if self.tune:
            parts.append(f'"tune-cpu"="{self.tune}"')
        return " ".join([*parts, f'"prefer-vector-width"="{self.vector_bits}"'])


_LINUX = "x86_64-unknown-linux-gnu"
_LEVELS = {
    "x86-64-v2": Target("x86-64-v2", "v2", _LINUX, "x86-64-v2"),
    "x86-64-v3": Target(
        "x86-64-v3", "v3", _LINUX, "x86-64-v3", vector_bits=256, has_fma=True, has_f16=True, masked=True
    ),
    "x86-64-v4": Target(
        "x86-64-v4",
        "v4",
        _LINUX,
        "x86-64-v4",
        vector_bits=512,
        registers=32,
        has_fma=True,
        has_f16=True,
        has_scalef=True,
        masked=True,
        l2=1 << 20,
    ),
}

# What each level adds to the one before, by LLVM's names (x86-64 psABI, section 3.1.1).
_NEEDS = {
    "x86-64-v2": ("cx16", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"),
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


@cache
def cpu_target(name: str = "native") -> Target:
    """`native`, or a level of the x86-64 psABI: `x86-64-v2` (SSE4.2), `-v3` (AVX2), `-v4` (AVX-512).

    `native` is the highest level that this machine has, and AVX-512-BF16 if it has that, scheduled for its own
    pipeline.
    """
    if name == "native":
        level, has = host_level(), llvm.get_host_cpu_features()
        native = replace(_LEVELS[level], name="native", isa="native", tune=llvm.get_host_cpu_name())
        dot = level == "x86-64-v4" and has.get("avx512bf16", False)
        return replace(native, has_bf16_dot=True, features="+avx512bf16") if dot else native
    full = name if name.startswith("x86-64-") else f"x86-64-{name}"
    if full not in _LEVELS:
        raise BuildError(f"unknown CPU target {name!r}: expected native, {', '.join(_LEVELS)}")
    return _LEVELS[full]


def host_level() -> str:
    """The highest level of the psABI that this machine has."""
    features, best = llvm.get_host_cpu_features(), None
    for level, needed in _NEEDS.items():
        if not all(features.get(f) for f in needed):
            break
        best = level
    if best is None:
        raise BuildError("this machine lacks x86-64-v2 (SSE4.2, 2009), the least that kernels are compiled for")
    return best
