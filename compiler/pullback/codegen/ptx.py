"""NVIDIA GPUs: the functions around a kernel's body, as LLVM IR for PTX.

A kernel is a `ptx_kernel` function

    k_<key>_<isa>(param0, param1, ..., status, call)

with one pointer for each parameter of the kernel (16-byte aligned, device memory), the status record of the step, and
the call's number.  The grid has a block for each block of the kernel, all in x; a block has `threads_of(kernel)`
threads.  A launch within loops of the plan (`looped`) is another function of the same body,

    k_<key>_<isa>_loop(param0, param1, ..., status, call, counters, strides)

that adds `counters[l] * strides[4 * i + l]` bytes to parameter i.  All arguments are constant, so a launch is captured
once into a CUDA graph.  docs/gpu.md says what the runtime does around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from math import prod

from ..errors import BuildError, VerifyError
from ..kernel.concurrent import Copy, box, side_by_side
from ..kernel.content import free_block
from ..kernel.kernel import Kernel, walk
from ..kernel.plan import MAX_LOOPS, Call, Plan, Repeat, Step
from . import inline, ptx_process, scalar, wgmma
from .builder import I64, PTR, Builder, Value
from .compile import check_intrinsics
from .cpu import symbol
from .target import Target
from .tensor_maps import tensor_maps as maps_of
from .threads import ThreadEmitter, threads_of

__all__ = [
    "call_number",
    "emit_kernel",
    "gpu_target",
    "launch_shape",
    "loop_symbol",
    "module",
    "shared_bytes",
    "symbol",
    "tensor_maps",
]

TRIPLE = "nvptx64-nvidia-cuda"
LAYOUT = "e-p6:32:32-i64:64-i128:128-i256:256-v16:16-v32:32-n16:32:64"
STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a kernel may declare; more is asked for at the launch."""
ALIGNMENT = 128
"""Of arrays in shared memory."""
SWIZZLED = 1024
"""Of arrays that bulk copies fill: after so many bytes the exchange of pieces repeats."""
IN_SHARED = ("shared", "token")
"""Spaces of kernel IR that are shared memory."""
STATUS_WORDS = 4
"""The status record, i64: number of the first failed call + 1 (0: none), its check's site, the value, nothing."""

# LLVM's least PTX version lacks what later chips have; the assembler of CUDA 13 reads all of these.  And KiB of shared
# memory for a block (CUDA C++ programming guide, compute capabilities).
_GPUS = {
    "sm_80": ("", 163),
    "sm_86": ("", 99),
    "sm_89": ("", 99),
    "sm_90": ("+ptx83", 227),
    "sm_90a": ("+ptx83", 227),
    "sm_100": ("+ptx86", 227),
    "sm_120": ("", 99),
}

_CHECK_FAILED = """
define internal void @pb_check_failed(ptr %status, i64 %call, i64 %site, i64 %value) noinline nounwind {
entry:
  %number = and i64 %call, 4294967295
  %mark = add i64 %number, 1
  %pair = cmpxchg ptr %status, i64 0, i64 %mark monotonic monotonic
  %first = extractvalue { i64, i1 } %pair, 1
  br i1 %first, label %report, label %done
report:
  %p = getelementptr i64, ptr %status, i64 1
  store i64 %site, ptr %p, align 8
  %q = getelementptr i64, ptr %status, i64 2
  store i64 %value, ptr %q, align 8
  br label %done
done:
  ret void
}
"""


@cache
def gpu_target(name: str) -> Target:
    """An architecture of NVIDIA's, as `ptxas` calls it: `sm_80`, `sm_90`, `sm_90a`, `sm_120`, ..."""
    if name not in _GPUS:
        raise BuildError(f"unknown GPU {name!r}: expected one of {', '.join(_GPUS)}")
    features, shared = _GPUS[name]
    return Target(
        name,
        name,
        TRIPLE,
        name,
        features,
        vector_bits=128,  # the widest access of one thread
        registers=255,
        has_fma=True,
        has_f16=True,
        l1=48 << 10,  # what a block may have of shared memory without asking
        l2=40 << 20,
        l3=40 << 20,
        shared=shared << 10,
        spaces=(("global", 1), ("shared", 3), ("local", 5), *((("token", 3),) if name == "sm_90a" else ())),
        ids=(("block", "ctaid.x"), ("thread", "tid.x"), ("warp", "tid.x / 32"), ("lane", "tid.x mod 32")),
        barrier="barrier.cta.sync.aligned.all",
    )


def call_number(number: int, committed: bool) -> int:
    """The last argument of a launch.  After the commit point a kernel does nothing if a check has failed."""
    return number + (committed << 32)


def launch_shape(kernel: Kernel) -> tuple[int, int]:
    """(blocks, threads of each)."""
    return kernel.blocks, threads_of(kernel)


def shared_bytes(kernel: Kernel) -> int:
    """Dynamic shared memory of a block, in bytes, for its launch; arrays of at most 48 KiB are static."""
    total = _places(kernel)[1]
    return total if total > STATIC_SHARED else 0


def check_shared(kernel: Kernel, target: Target, where: str = "") -> None:
    """Raise `BuildError` for a kernel that asks for more shared memory than a block can have."""
    total = _places(kernel)[1]
    if total > target.shared:
        arrays = ", ".join(f"{x.name} {x.size * x.dtype.size}" for x in kernel.locals if x.space in IN_SHARED)
        raise BuildError(
            f"{where}kernel {kernel.name} needs {total} bytes of shared memory ({arrays}), but a block of "
            f"{target.name} has {target.shared}"
        )


def tensor_maps(kernel: Kernel) -> tuple[dict[str, object], ...]:
    """What the runtime must encode for the kernel's bulk copies, in the order of its arguments after `call`: the fields
    of `pullback_runtime.format.TensorMap`."""
    return tuple(map(asdict, maps_of(kernel)))


def loop_symbol(key: str, target: Target) -> str:
    """The name of the function for launches within loops."""
    return symbol(key, target) + "_loop"


def header(target: Target) -> str:
    return f'target triple = "{TRIPLE}"\ntarget datalayout = "{LAYOUT}"\n'


def module(functions: Iterable[str], target: Target) -> str:
    """A module of kernels; raises `BuildError` for what LLVM may be unable to translate."""
    text = "".join(functions)
    check_intrinsics(text, _SAFE)
    return (
        header(target)
        + text
        + inline.definitions(text)
        + wgmma.wrappers(text)
        + (_CHECK_FAILED if "@pb_check_failed(" in text else "")
    )


def plan_module(plan: Plan, target: Target) -> str:
    """All kernels of a plan, those that are launched in loops in both forms."""
    for c in (c for f in plan.functions for c in _calls(f.steps, True)):
        check_shared(plan.kernels[c.kernel], target, f"{c.loc}: ")
    looped = {c.kernel for f in plan.functions for c in _calls(f.steps, False)}
    forms = [(key, form) for key in plan.kernels for form in ((False, True) if key in looped else (False,))]
    return module([emit_kernel(key, plan.kernels[key], target, form) for key, form in forms], target)


def _calls(steps: Iterable[Step], inside: bool) -> Iterator[Call]:
    """The calls of launches within loops."""
    for s in steps:
        if isinstance(s, Repeat):
            yield from _calls(s.body, True)
        elif inside:
            yield from s.calls


def translate(text: str, target: Target) -> str:
    """The PTX of a module, made in a child process (LLVM ends a process that hands it what it cannot translate)."""
    return ptx_process.ptx(text, target.cpu)


def emit_kernel(key: str, kernel: Kernel, target: Target, looped: bool = False) -> str:
    """The function of one kernel, and its arrays in shared memory.  `looped`: the one for launches within loops."""
    name = loop_symbol(key, target) if looped else symbol(key, target)
    check_shared(kernel, target)
    b = Builder(target)
    names = [_argument_name(i, p.name) for i, p in enumerate(kernel.params)]
    if looped:
        starts = _moved(b, names)
    else:
        starts = [b.pure(PTR, f"addrspacecast ptr addrspace(1) {n} to ptr", 0) for n in names]
    pointers = {p.name: v for p, v in zip(kernel.params, starts, strict=True)}
    arrays, shared = _shared(b, kernel, name)
    pointers |= shared
    b.block = "start"
    emitter = ThreadEmitter(kernel, b, pointers, Value("%status", PTR), aligned=not looped)
    _blocks(emitter, kernel)
    parameters = []
    for n, p in zip(names, kernel.params, strict=True):
        access = "" if p.name in kernel.outputs else "readonly "
        parameters.append(f"ptr addrspace(1) noalias {access}align {p.dtype.size if looped else 16} {n}")
    parameters += ["ptr %status", "i64 %call"]
    if looped:
        parameters += [f"ptr addrspace(1) noalias readonly align 8 %{n}" for n in ("counters", "strides")]
    maps = len(maps_of(kernel))
    if looped and maps:
        raise VerifyError(f"kernel {kernel.name}: tensor maps are for parameters that do not move")
    parameters += [f'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %map{i}' for i in range(maps)]
    lines = ["entry:", *b.allocas, *_GUARD, *b.scopes[0].lines, "  ret void"]
    attributes = f'nounwind "nvvm.reqntid"="{emitter.threads},1,1"'
    if (cluster := side_by_side(kernel)[1]) > 1:
        attributes += f' "nvvm.cluster_dim"="{cluster},1,1"'
    body = "\n".join(lines)
    return f"{arrays}define ptx_kernel void @{name}({', '.join(parameters)}) {attributes} {{\n{body}\n}}\n"


_GUARD = """  %late = icmp uge i64 %call, 4294967296
  br i1 %late, label %committed, label %start
committed:
  %failure = load i64, ptr %status, align 8
  %failed = icmp ne i64 %failure, 0
  br i1 %failed, label %stop, label %start
stop:
  ret void
start:""".splitlines()


def _places(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Where each shared array begins, those that bulk copies fill first, and the bytes of all."""
    places, at, filled = {}, 0, _filled(kernel)
    for x in sorted(kernel.locals, key=lambda x: x.name not in filled):
        if x.space in IN_SHARED:
            align = SWIZZLED if x.name in filled else ALIGNMENT
            places[x.name] = at = -(-at // align) * align
            at += -(-x.size * x.dtype.size // ALIGNMENT) * ALIGNMENT
    return places, at


def _filled(kernel: Kernel) -> set[str]:
    """The arrays that bulk copies fill."""
    return {box(s)[1].buffer for s in walk(kernel.body) if isinstance(s, Copy)}


def _shared(b: Builder, kernel: Kernel, name: str) -> tuple[str, dict[str, Value]]:
    """The declarations of shared arrays, and their addresses: each its own, or all in one that the launch sizes."""
    filled = _filled(kernel)
    if not shared_bytes(kernel):
        text, at = "", {}
        for x in kernel.locals:
            if x.space in IN_SHARED:
                at[x.name] = f"@{name}.{_plain(x.name)}"
                array, align = f"[{x.size} x {scalar.memory(x.dtype)}]", SWIZZLED if x.name in filled else ALIGNMENT
                text += f"{at[x.name]} = internal addrspace(3) global {array} poison, align {align}\n"
        return text, {n: b.pure(PTR, f"addrspacecast ptr addrspace(3) {p} to ptr", 0) for n, p in at.items()}
    base = b.pure(PTR, f"addrspacecast ptr addrspace(3) @{name}_shared to ptr", 0)
    align = SWIZZLED if filled else ALIGNMENT
    text = f"@{name}_shared = external addrspace(3) global [0 x i8], align {align}\n"
    return text, {n: b.offset(base, "i8", at) for n, at in _places(kernel)[0].items()}


def _blocks(emitter: ThreadEmitter, kernel: Kernel) -> None:
    """Each range of blocks runs its statements; with several, the block's number says which."""
    b, first = emitter.b, 0
    ranges = kernel.ranges
    for chain, inner in ranges:
        axes = [(s.axis, s.extent) for s in chain]
        count = prod(n for _, n in axes)
        if not count:
            continue
        block = emitter.number("block")
        mine = None
        if len(ranges) > 1:
            mine = b.icmp("ult", b.sub(block, first) if first else block, count)
            block = b.sub(block, first) if first else block
        first += count
        with b.when(mine):
            emitter.decompose(block, axes, first_free=free_block(kernel) is not None)
            emitter.body(inner)


def _moved(b: Builder, names: list[str]) -> list[Value]:
    """The parameters, moved by the counters of the loops around the launch."""
    counters, strides = (b.pure(PTR, f"addrspacecast ptr addrspace(1) %{n} to ptr", 0) for n in ("counters", "strides"))
    out = []
    for i, n in enumerate(names):
        p = b.pure(PTR, f"addrspacecast ptr addrspace(1) {n} to ptr", 0)
        for level in range(MAX_LOOPS):
            count = b.load(I64, b.offset(counters, "i64", level), 8)
            stride = b.load(I64, b.offset(strides, "i64", MAX_LOOPS * i + level), 8)
            p = b.offset(p, "i8", b.mul(count, stride))
        out.append(p)
    return out


def _plain(name: str) -> str:
    return re.sub(r"[^\w.$-]", "_", name)


def _argument_name(i: int, name: str) -> str:
    return f"%p{i}.{_plain(name)}"


# ---- what LLVM may see --------------------------------------------------------------------------------------
_SAFE_NAMES = """fma sqrt floor ceil trunc roundeven fabs copysign smin smax umin umax fptosi.sat fptoui.sat
    masked.load masked.store nvvm.fma.rn.ftz.f
    nvvm.read.ptx.sreg.tid.x nvvm.read.ptx.sreg.ctaid.x nvvm.barrier.cta.sync.aligned.all nvvm.bar.warp.sync
    nvvm.cp.async.cg.shared.global.16 nvvm.cp.async.ca.shared.global.8 nvvm.cp.async.ca.shared.global.4
    nvvm.cp.async.cg.shared.global.16.s nvvm.cp.async.ca.shared.global.8.s nvvm.cp.async.ca.shared.global.4.s
    nvvm.cp.async.commit.group nvvm.cp.async.wait.group nvvm.f2tf32.rna
    nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3 nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16.p3
    nvvm.mma.m16n8k16.row.col.bf16 nvvm.mma.m16n8k16.row.col.f32.f32 nvvm.mma.m16n8k8.row.col.tf32
    nvvm.mbarrier.init.shared nvvm.fence.mbarrier_init.release.cluster nvvm.mbarrier.arrive.scope.cta.space.cta
    nvvm.mbarrier.expect.tx.scope.cta.space.cta nvvm.mbarrier.try.wait.parity.scope.cta.space.cta
    nvvm.cp.async.bulk.tensor.g2s.tile.2d nvvm.cp.async.bulk.tensor.g2s.tile.3d nvvm.cp.async.bulk.tensor.g2s.tile.4d
    nvvm.cp.async.bulk.tensor.g2s.tile.5d nvvm.setmaxnreg.inc.sync.aligned.u32 nvvm.setmaxnreg.dec.sync.aligned.u32
    nvvm.mapa.shared.cluster nvvm.barrier.cluster.arrive nvvm.barrier.cluster.arrive.relaxed
    nvvm.barrier.cluster.wait nvvm.mbarrier.arrive.scope.cta.space.cluster
    nvvm.wgmma.fence.sync.aligned nvvm.wgmma.commit_group.sync.aligned
    nvvm.shfl.sync.idx.i32 nvvm.shfl.sync.idx.f32 nvvm.shfl.sync.down.i32 nvvm.shfl.sync.down.f32"""
_SAFE = frozenset(_SAFE_NAMES.split())
