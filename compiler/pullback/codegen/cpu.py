"""The CPU's functions around a kernel's body: calling convention, blocks, scratch memory.

A kernel is `void @k_<key>_<isa>(args, bases, loops, scratch, status, lo, hi)`: run the blocks lo <= b < hi.
That wrapper computes the address of each parameter from its row of `args` (base, offset, and a stride for
each loop of the plan) and calls an internal function that takes them as `noalias` pointers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod

from ..errors import VerifyError
from ..kernel.kernel import Kernel, written
from ..kernel.plan import MAX_LOOPS
from .builder import I64, PTR, Builder, Value, ty
from .emit import Emitter
from .target import Target

SIGNATURE = "ptr %args, ptr %bases, ptr %loops, ptr %scratch, ptr %status, i64 %lo, i64 %hi"
ROW = 2 + MAX_LOOPS
"""Words (i64) in one row of `args`: base, offset, strides."""

CHECK_FAILED = "declare hidden void @pb_check_failed(ptr, i64, i64) cold"


def scratch_layout(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Byte offsets of the local buffers in a worker's scratch memory, and how many bytes they take.

    Each starts on a cache line and has a vector's room behind it, where lanes that nobody reads may go.
    """
    offsets, end = {}, 0
    for b in kernel.locals:
        if b.space == "local":
            offsets[b.name] = end
            end += (b.size * b.dtype.size + 64 + 63) & ~63
        elif b.space != "register":
            raise VerifyError(f"kernel {kernel.name}: {b.name} is {b.space}, expected register or local on a CPU")
    return offsets, end


def symbol(key: str, target: Target) -> str:
    """The name of a kernel's function."""
    return f"k_{key}_{target.isa}"


def emit_kernel(key: str, kernel: Kernel, target: Target) -> str:
    """The two functions of one kernel."""
    name = symbol(key, target)
    return _body(name, kernel, target) + _wrapper(name, kernel, target)


def declarations() -> str:
    """What kernels call and the module must define or declare (intrinsics need no declaration)."""
    return CHECK_FAILED + "\n"


def header(target: Target) -> str:
    """The first lines of a module."""
    return f'target triple = "{target.triple}"\n'


def module(functions: Iterable[str], target: Target, check_failed: bool = True) -> str:
    """A module of kernels; `check_failed`: declare `pb_check_failed` (else some text defines it)."""
    return header(target) + "".join(functions) + (declarations() if check_failed else "")


def _argument_name(i: int, name: str) -> str:
    return f"%p{i}." + re.sub(r"[^\w.$-]", "_", name)


def _function(linkage: str, name: str, parameters: str, b: Builder, attributes: str) -> str:
    lines = "\n".join(b.lines)
    return f"define {linkage} void @{name}({parameters}) {attributes} {{\n{lines}\n  ret void\n}}\n"


def _body(name: str, kernel: Kernel, target: Target) -> str:
    b = Builder(target)
    names = [_argument_name(i, p.name) for i, p in enumerate(kernel.params)]
    pointers = {p.name: Value(n, PTR) for p, n in zip(kernel.params, names)}
    scratch = Value("%scratch", PTR)
    for local, at in scratch_layout(kernel)[0].items():
        pointers[local] = b.offset(scratch, "i8", at)
    emitter = Emitter(kernel, b, pointers, Value("%status", PTR))
    lo, hi = Value("%lo", I64), Value("%hi", I64)
    first = 0
    for chain, inner in kernel.ranges:
        if not chain:
            with b.when(b.icmp("slt", lo, hi)):
                emitter.body(inner)
            continue
        axes = [(s.axis, s.extent) for s in chain]
        count = prod(n for _, n in axes)
        if not count:
            continue
        low, high = lo, hi
        if len(kernel.ranges) > 1:  # this chain's part of the blocks, counted from its first
            low = b.sub(b.smax(lo, b.const(I64, first)), first)
            high = b.sub(b.smin(hi, b.const(I64, first + count)), first)
        first += count
        touched = [n for n in written(inner) if kernel.buffers[n].space != "register"]
        with b.loop(low, high, touched) as block:
            for a, n in axes:
                emitter.extents[a] = n
            for i, (a, n) in enumerate(axes):
                faster = prod(n for _, n in axes[i + 1 :])
                v = block if faster == 1 else b.udiv(block, faster)
                # (the outermost extent may be larger where equal kernels share code)
                emitter.env[a] = v if i == 0 else 0 if n == 1 else b.urem(v, n)
            emitter.body(inner)
    arguments = [f"ptr noalias {n}" for n in names]
    parameters = ", ".join([*arguments, "ptr noalias %scratch", "ptr %status", "i64 %lo", "i64 %hi"])
    return _function("internal", name + ".body", parameters, b, f"noinline nounwind {target.attributes}")


def _wrapper(name: str, kernel: Kernel, target: Target) -> str:
    b = Builder(target)
    args, bases, loops = Value("%args", PTR), Value("%bases", PTR), Value("%loops", PTR)
    counters = ty("i64", MAX_LOOPS)
    operands = []
    if kernel.params:
        counts = b.load(counters, loops, 8)
    for i in range(len(kernel.params)):
        base = b.load(I64, b.offset(args, "i64", ROW * i), 8)
        start = b.load(I64, b.offset(args, "i64", ROW * i + 1), 8)
        strides = b.load(counters, b.offset(args, "i64", ROW * i + 2), 8)
        moved = b.intrinsic("vector.reduce.add", b.mul(strides, counts), result=I64)
        pointer = b.load(PTR, b.offset(bases, "ptr", base), 8)
        operands.append(f"ptr {b.offset(pointer, 'i8', b.add(start, moved)).ref}")
    operands += ["ptr %scratch", "ptr %status", "i64 %lo", "i64 %hi"]
    b.line(f"call void @{name}.body({', '.join(operands)})")
    return _function("hidden", name, SIGNATURE, b, f"nounwind {target.attributes}")
