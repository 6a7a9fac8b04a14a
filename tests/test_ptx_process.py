"""PTX in a child process: what LLVM makes, what it refuses, and that the assembler takes it for every chip."""

from __future__ import annotations

import pytest
from simt import hopper, kernels
from simt.ptx import AssemblerError, assemble, needs_ptxas

from pullback.codegen.ptx_process import ptx
from pullback.errors import BuildError

WORSE = """
declare float @llvm.{0}.f32(float)
define ptx_kernel void @worse(ptr addrspace(1) %x) {{
  %a = load float, ptr addrspace(1) %x
  %r = call float @llvm.{0}.f32(float %a)
  store float %r, ptr addrspace(1) %x
  ret void
}}
"""


def test_ptx_names_its_chip():
    text = ptx(kernels.vector_add(), "sm_90a")
    assert ".target sm_90a" in text and ".version 8.3" in text and ".visible .entry kernel(" in text


@pytest.mark.parametrize("function", ["exp", "sin"])
def test_the_end_of_llvm_is_an_error_with_a_name(function):
    """One exits, the other aborts; this process lives, and the kernel is named among three."""
    good = "define ptx_kernel void @good{}() {{\n  ret void\n}}\n"
    text = good.format(1) + good.format(2) + WORSE.format(function) + good.format(3)
    with pytest.raises(BuildError, match=f"kernel worse, compiled to PTX for sm_80, ends LLVM .*f{function}"):
        ptx(text, "sm_80")


def test_what_llvm_refuses():
    for text, message in [
        (WORSE.format("exp").replace("load float", "load i32"), "(?s)is refused by LLVM: .*'%a' defined with type"),
        (
            WORSE.format("exp").replace("llvm.exp.f32", "llvm.nvvm.expo"),
            r"no intrinsic @llvm.nvvm.expo \(used in worse\)",
        ),
    ]:
        with pytest.raises(BuildError, match=message):
            ptx(text, "sm_90")
    with pytest.raises(BuildError, match="unknown GPU 'volta'"):
        ptx("", "volta")


def test_only_some_kernels():
    text = ptx(kernels.vector_add() + WORSE.format("exp"), "sm_80", only=("kernel",))
    assert ".entry kernel(" in text and "worse" not in text


@needs_ptxas
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_120"])
def test_kernels_assemble(gpu):
    for kernel in (kernels.bf16_gemm(), kernels.sgemm()):
        figures = assemble(ptx(kernel, gpu), gpu)["kernel"]
        assert 0 < figures.registers <= 128 and figures.spill_stores == figures.spill_loads == 0
        assert figures.cubin.startswith(b"\x7fELF")


@needs_ptxas
def test_hopper_kernels_assemble():
    for kernel in (
        hopper.column_sums(128),
        hopper.wgmma_gemm(128),
        hopper.wgmma_gemm(128, True),
        hopper.cluster_exchange(),
    ):
        figures = assemble(ptx(kernel, "sm_90a"), "sm_90a")["kernel"]
        assert figures.spill_stores == 0 and figures.registers <= 168


@needs_ptxas
def test_the_assembler_says_why():
    text = ptx(kernels.vector_add(), "sm_80").replace("add.rn.f32", "add.rn.f31")
    with pytest.raises(AssemblerError, match=r"ptxas -arch=sm_80: .*line \d+"):
        assemble(text, "sm_80")
