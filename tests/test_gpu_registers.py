"""What the assembler says of GPU kernels that move memory: registers, spills, and how wide they read.

`pytest -s tests/test_gpu_registers.py` prints the table of docs/gpu.md.  Contractions: `test_ptx_contract.py`.
"""

from __future__ import annotations

import re

import pytest
import schedule_nests as nests
from simt.ptx import assemble, needs_ptxas
from test_gpu_schedules import loss, lowered, norm, norm_gradient
from test_ptx import op_kernels

import pullback as pb
from pullback.codegen.ptx import emit_kernel, gpu_target, launch_shape, module, symbol, translate
from pullback.kernel.kernel import Kernel
from pullback.schedule import schedule


def adamw(size: int) -> Kernel:
    """The update of one parameter."""

    @pb.function(*[pb.f32[size]] * 4)
    def update(p, g, m, v):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p * 0.99999 - 1e-3 * m / (pb.sqrt(v) + 1e-8), m, v

    return lowered(update)[0]


NAMED = {
    "softmax 8192x1024": (lambda: nests.softmax(8192, 1024), 128),
    "softmax 6144x256": (lambda: nests.softmax(6144, 256), 64),
    "layer norm 8192x1024": (lambda: norm(8192, 1024), 128),
    "layer norm backward 6144x256": (lambda: norm_gradient(6144, 256), 128),
    "layer norm backward 8192x1024": (lambda: norm_gradient(8192, 1024), 248),
    "layer norm backward 8192x640": (lambda: norm_gradient(8192, 640), 184),
    "softmax 4096x4096": (lambda: nests.softmax(4096, 4096), 48),
    "softmax 1024x16384": (lambda: nests.softmax(1024, 16384), 64),
    "layer norm 4096x8192": (lambda: norm(4096, 8192), 64),
    "cross-entropy 4096x1000": (lambda: loss(4096, 1000), 160),
    "AdamW 1M": (lambda: adamw(1 << 20), 64),
    "sums of columns 128x256": (lambda: nests.columns(128, 256, 128), 96),
    "scatter-add 50304x768": (lambda: nests.scatter(50304, 768, 4096), 64),
}
"""name -> (kernel, the most registers that a thread may take); none may spill."""


@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_named_kernels_do_not_spill(gpu):
    target = gpu_target(gpu)
    kernels = {f"n{i}": schedule(make(), target) for i, (make, _) in enumerate(NAMED.values())}
    ptx = translate(module([emit_kernel(key, k, target) for key, k in kernels.items()], target), target)
    texts = {symbol(key, target): ptx.split(f".entry {symbol(key, target)}(")[1].split("\n}")[0] for key in kernels}
    found = assemble(ptx, gpu)
    print(f"\n| {gpu} | grid | registers | shared | warps of a processor | widest access |\n|---|---|---|---|---|---|")
    for (key, kernel), (name, (_, most)) in zip(kernels.items(), NAMED.items(), strict=True):
        said = found[symbol(key, target)]
        blocks, threads = launch_shape(kernel)
        warps = min(64, 65536 // (-(-said.registers // 8) * 8 * 32) // (threads // 32) * (threads // 32))
        wide = max(
            (int(n) for n in re.findall(r"(?:ld|st)\.global\S*\.v(\d)\.", texts[symbol(key, target)])), default=1
        )
        print(f"| {name} | {blocks} x {threads} | {said.registers} | {said.shared} | {warps} | {4 * wide} bytes |")
        assert said.spill_stores == said.spill_loads == said.stack == 0, (name, said)
        assert said.registers <= most, (name, said)


@needs_ptxas
def test_all_kernels_of_ops():
    """Every sixth kernel of the ops: few may use local memory, none much of it."""
    target = gpu_target("sm_90")
    kernels = op_kernels()
    some = {key: schedule(kernels[key], target) for key in sorted(kernels)[::6]}
    found = assemble(translate(module([emit_kernel(k, x, target) for k, x in some.items()], target), target), "sm_90")
    assert len(found) == len(some)
    spilled = {name: x for name, x in found.items() if x.spill_stores or x.spill_loads}
    table = sorted(((x.registers, x.stack) for x in found.values()), reverse=True)
    print(f"\n{len(found)} kernels; most registers {table[:5]}; {len(spilled)} spill")
    assert not spilled
    assert sum(x.stack > 0 for x in found.values()) <= len(found) // 10
