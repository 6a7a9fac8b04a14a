"""Kernels written by hand, emitted, compiled and run: against the kernel evaluator, bit for bit, and against numpy."""

from __future__ import annotations

import ctypes
import io
import re
import threading

import kernels_by_hand as by_hand
import numpy as np
import pages
import pytest
from elftools.elf.elffile import ELFFile

from pullback.codegen.compile import assembly, compile_module, load_kernels
from pullback.codegen.cpu import emit_kernel, module, scratch_layout, symbol
from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.target import cpu_target, host_level
from pullback.errors import BuildError, VerifyError
from pullback.graph.types import DType, f32, f64, i32, i64, u8
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import AxisValue, Buffer, Const, Kernel, Loop, apply, written

LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
HERE = LEVELS[: LEVELS.index(host_level()) + 1]


def bits(array: np.ndarray, dtype: DType) -> np.ndarray:
    """An array as it lies in memory."""
    if dtype.name != "bf16":
        return np.ascontiguousarray(array)
    return (dtype.round(array).view(np.uint32) >> 16).astype(np.uint16)


def elf_symbols(code: bytes) -> list:
    return list(ELFFile(io.BytesIO(code)).get_section_by_name(".symtab").iter_symbols())


def undefined(code: bytes) -> set[str]:
    """What an object file expects others to define."""
    return {s.name for s in elf_symbols(code) if s["st_shndx"] == "SHN_UNDEF" and s.name}


def run_all(
    kernels: list[Kernel], inputs: list[dict[str, np.ndarray]], level: str = "native", failures: list | None = None
) -> list[dict[str, np.ndarray]]:
    """Compile kernels in one module and run each on its arrays; returns what each stores to.

    The code must not call a library, and 64 bytes behind each array must survive.
    """
    target = cpu_target(level)
    text = module([emit_kernel(f"n{i}", k, target) for i, k in enumerate(kernels)], target)
    loaded, results = load_kernels(text, target), []
    assert undefined(loaded.object) <= {"pb_check_failed"}
    for i, (kernel, arrays) in enumerate(zip(kernels, inputs)):
        memory, guards = [], []
        for p in kernel.params:
            size = p.size * p.dtype.size
            raw = np.full(size + 64, 0xA5, np.uint8)
            body = raw[:size].view(np.uint16 if p.dtype.name == "bf16" else p.dtype.numpy)
            if p.name in arrays:
                body[...] = bits(arrays[p.name], p.dtype).reshape(-1)
            memory.append(body)
            guards.append(raw[size:])
        loaded.bind(symbol(f"n{i}", target), memory, kernel.blocks, scratch_layout(kernel)[1])()
        assert all((g == 0xA5).all() for g in guards), f"{kernel.name} wrote behind an array"
        if failures is not None:
            failures.append(list(loaded.failures))
        out = {}
        for p, m in zip(kernel.params, memory):
            if p.name in written(kernel.body):
                x = (m.astype(np.uint32) << 16).view(np.float32) if p.dtype.name == "bf16" else m
                out[p.name] = x.reshape(p.shape)
        results.append(out)
    return results


def run(kernel: Kernel, arrays: dict[str, np.ndarray], level: str = "native", failures: list | None = None):
    return run_all([kernel], [arrays], level, failures)[0]


def random_inputs(kernel: Kernel, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for everything (outputs too: some kernels keep parts); integers are small indices."""
    r, out = np.random.default_rng(seed), {}
    for p in kernel.params:
        if p.dtype.kind == "f":
            out[p.name] = p.dtype.round(r.standard_normal(p.shape)).astype(p.dtype.numpy)
        elif p.dtype.kind == "b":
            out[p.name] = r.random(p.shape) < 0.5
        else:
            out[p.name] = r.integers(0, 7, p.shape).astype(p.dtype.numpy)
    return out


def relu(x, y):
    return apply("maximum", apply("add", x, y), Const(0.0))


KERNELS = {
    "map": by_hand.map1("relu", 300, relu, [f32, f32], f32),
    "map whole": by_hand.map1("relu", 256, relu, [f32, f32], f32),
    "map scalar": by_hand.scalar_map("relu", 37, relu, [f32, f32], f32),
    "map short": by_hand.map1("relu", 45, relu, [f32, f32], f32, width=15, rows=1),
    "map long": by_hand.map1("relu", 1100, relu, [f32, f32], f32, width=1056, rows=1),
    "layer norm": by_hand.layer_norm(3, 128),
    "layer norm masked": by_hand.layer_norm(3, 100),
    "column sum": by_hand.column_sum(37, 70, 8),
    "column sum i32": by_hand.column_sum(37, 70, 8, i32),
    "column sum f64": by_hand.column_sum(32, 64, 8, f64),
    "matmul": by_hand.matmul(16, 64, 9),
    "matmul edges": by_hand.matmul(13, 43, 21),
    "matmul NT": by_hand.matmul(13, 43, 21, "NT"),
    "matmul TN": by_hand.matmul(13, 43, 21, "TN"),
    "matmul packed": by_hand.matmul(13, 43, 21, pack=True),
    "matmul NT packed": by_hand.matmul(13, 43, 21, "NT", pack=True),
    "matmul NT f64": by_hand.matmul(9, 20, 29, "NT", mr=4, nr=16, pack=True, dtype=f64),
    "embedding": by_hand.embedding(9, 7, 50),
    "pick": by_hand.pick(20, 7),
    "scatter add": by_hand.scatter_add(30, 7, 40),
    "histogram": by_hand.histogram(50, 7),
    "one hot": by_hand.one_hot(9, 20),
    "masked update": by_hand.masked_update(50),
    "shifted": by_hand.shifted(50, 3),
    "shifted back": by_hand.shifted(50, -20),
    "strided": by_hand.strided(45, 3),
    "triangle": by_hand.triangle(20),
    "transposed": by_hand.transposed(32, 48),
    "transposed edges": by_hand.transposed(37, 21),
    "transposed 8": by_hand.transposed(19, 26, 8),
    "transposed f64": by_hand.transposed(37, 21, 16, f64),
    "transposed u8": by_hand.transposed(37, 21, 16, u8),
    "argmax": by_hand.argmax(7, 100),
    "mixed precision": by_hand.mixed_precision(50),
}


@pytest.mark.parametrize("level", HERE)
def test_kernels_give_the_bits_of_the_evaluator(level):
    inputs = [random_inputs(k, i) for i, k in enumerate(KERNELS.values())]
    for (name, kernel), given, got in zip(KERNELS.items(), inputs, run_all(list(KERNELS.values()), inputs, level)):
        for buffer, want in evaluate(kernel, given).items():
            np.testing.assert_array_equal(got[buffer], want, f"{name}: {buffer}")


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("make", [by_hand.softmax_streamed, by_hand.softmax_register])
@pytest.mark.parametrize("n", [10, 100, 256])
def test_softmax(level, make, n):
    x = np.random.default_rng(n).standard_normal((5, n)).astype(np.float32) * 4
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(run(make(5, n), {"x": x}, level)["y"], e / e.sum(1, keepdims=True), rtol=2e-6)


def test_softmax_gives_the_same_bits_streamed_and_in_registers_and_evaluated():
    given = {"x": np.random.default_rng(3).standard_normal((4, 200)).astype(np.float32)}
    kernels = by_hand.softmax_streamed(4, 200), by_hand.softmax_register(4, 200)
    want = evaluate(kernels[0], given, functions=numpy_functions())["y"]
    for kernel in kernels:
        for level in HERE:
            np.testing.assert_array_equal(run(kernel, given, level)["y"], want)


def test_matmul_is_right():
    r = np.random.default_rng(0)
    for form in ("NN", "NT", "TN", "TT"):
        a, b = r.standard_normal((19, 30), np.float32), r.standard_normal((30, 50), np.float32)
        given = {"a": a.T if form[0] == "T" else a, "b": b.T if form[1] == "T" else b}
        got = run(by_hand.matmul(19, 50, 30, form, pack=form[1] == "T"), given)["c"]
        np.testing.assert_allclose(got, a @ b, rtol=1e-4, atol=1e-5)


# ---- checks -------------------------------------------------------------------------------------------------
def test_failed_checks_report_the_first_value_and_touch_nothing():
    kernel, given = by_hand.embedding(4, 7, 50), random_inputs(by_hand.embedding(4, 7, 50))
    given["index"] = np.array([2, 7, -1, 6], np.int32)
    failures: list = []
    got = run(kernel, given, failures=failures)["y"]
    assert {site for site, _ in failures[0]} == {3}
    assert list(dict.fromkeys(value for _, value in failures[0])) == [7, -1]
    np.testing.assert_array_equal(got, given["table"][[2, 0, 0, 6]])


@pytest.mark.parametrize("level", HERE)
def test_failed_checks_of_lanes(level):
    kernel = by_hand.pick(20, 7)
    given = random_inputs(kernel)
    given["label"][5], given["label"][6], given["label"][19] = 1 << 40, 99, -3
    failures: list = []
    got = run(kernel, given, level, failures)["y"]
    assert failures[0][0] == (1, 1 << 40) and failures[0][-1] == (1, -3)
    given["label"][[5, 6, 19]] = 0
    np.testing.assert_array_equal(got, given["x"][np.arange(20), given["label"]])


def test_masked_lanes_are_not_checked():
    kernel = by_hand.pick(17, 7)
    failures: list = []
    run(kernel, random_inputs(kernel), failures=failures)
    assert failures == [[]]


# ---- the calling convention ---------------------------------------------------------------------------------
def test_addresses_come_from_bases_offsets_and_loop_counters():
    kernel, target = by_hand.map1("relu", 64, relu, [f32, f32], f32, rows=1), cpu_target()
    loaded = load_kernels(module([emit_kernel("c", kernel, target)], target), target)
    r = np.random.default_rng(0)
    x, memory = r.standard_normal(400).astype(np.float32), np.zeros(400, np.float32)
    rows = np.array([[1, 4 * 10, 4, 400, 0, 0], [1, 0, 0, 0, 0, 8], [0, 4 * 100, -4, 0, 0, 0]], np.int64)
    bases = np.array([memory.ctypes.data, x.ctypes.data], np.int64)
    counters = np.array([3, 2, 7, 5], np.int64)
    call = loaded.function(symbol("c", target))
    for lo, hi in ((1, 2), (2, 4), (3, 3)):  # block 0 is nobody's
        call(rows.ctypes.data, bases.ctypes.data, counters.ctypes.data, None, None, ctypes.c_int64(lo), hi)
    want = np.maximum(x[10 + 3 + 200 :][:64] + x[10:74], 0)
    np.testing.assert_array_equal(memory[97 + 16 : 97 + 64], want[16:])
    assert not memory[: 97 + 16].any() and not memory[97 + 64 :].any()


def test_blocks_are_the_flat_number_of_the_nested_axes():
    y = Buffer("y", (3, 4, 5), i64)
    number = AxisValue(by_hand.A("i") * 100 + by_hand.A("j") * 10 + "k", i64)
    nest = by_hand.block("i", 3, by_hand.block("j", 4, by_hand.vec("k", 5, by_hand.put(y, ("i", "j", "k"), number))))
    i, j, k = np.indices((3, 4, 5))
    np.testing.assert_array_equal(run(Kernel("n", (y,), (), (nest,)), {})["y"], i * 100 + j * 10 + k)


# ---- what LLVM makes of it ----------------------------------------------------------------------------------
def vector_stack_accesses(asm: str) -> list[str]:
    return re.findall(r".*(?:\(%rsp\).*[xyz]mm|[xyz]mm.*\(%rsp\)).*", asm)


@pytest.mark.parametrize("level, mr, nr", [("x86-64-v4", 8, 32), ("x86-64-v4", 8, 48), ("x86-64-v3", 6, 16)])
def test_register_tiles_stay_in_registers(level, mr, nr):
    target, kernel = cpu_target(level), by_hand.matmul(mr * 4, nr * 2, 64, mr=mr, nr=nr)
    asm = assembly(module([emit_kernel("t", kernel, target)], target), target)
    assert asm.count("vfmadd231ps") + asm.count("vfmadd213ps") == mr * nr // target.lanes()
    assert vector_stack_accesses(asm) == []


def test_a_tile_too_large_for_the_registers_is_noticed_by_this_test():
    target, kernel = cpu_target("x86-64-v3"), by_hand.matmul(32, 64, 64, mr=8, nr=32)
    assert vector_stack_accesses(assembly(module([emit_kernel("t", kernel, target)], target), target))


def test_only_the_kernels_are_visible_and_only_inside_of_the_artifact():
    target = cpu_target("x86-64-v2")
    text = module([emit_kernel("n", KERNELS["pick"], target)], target)
    symbols = elf_symbols(compile_module(text, target))
    assert undefined(compile_module(text, target)) == {"pb_check_failed"}
    visible = [s for s in symbols if s["st_info"]["bind"] == "STB_GLOBAL" and s["st_shndx"] != "SHN_UNDEF"]
    assert [s.name for s in visible] == ["k_n_v2"] and visible[0]["st_other"]["visibility"] == "STV_HIDDEN"


def test_errors_are_errors_of_ours():
    target = cpu_target()
    with pytest.raises(BuildError, match=r"undefined value '%a'\n  %x = add i32 %a, 1"):
        compile_module("define void @f() {\nentry:\n  %x = add i32 %a, 1\n  ret void\n}\n", target)
    with pytest.raises(BuildError, match=r"@llvm.sin.f32, which is not in the list of safe intrinsics"):
        compile_module(
            "define float @f(float %x) {\n  %y = call float @llvm.sin.f32(float %x)\n  ret float %y\n}", target
        )
    with pytest.raises(BuildError, match="unknown CPU target 'pentium'"):
        cpu_target("pentium")
    shared = Kernel("k", (), (Buffer("s", (4,), f32, "shared"),), ())
    with pytest.raises(VerifyError, match="kernel k: s is shared"):
        emit_kernel("k", shared, target)
    store = by_hand.put(Buffer("y", (4,)), ("i",), Const(0.0), ((by_hand.A("i"), 2),), 1.0, Const(True))
    with pytest.raises(VerifyError, match="both `where` and `other`"):
        emit_kernel("k", Kernel("k", (Buffer("y", (4,)),), (), (Loop("i", 4, "parallel", (store,)),)), target)


def test_threads_compile_side_by_side():
    texts = [
        module([emit_kernel(f"n{i}", k, cpu_target())], cpu_target()) for i, k in enumerate(list(KERNELS.values())[:6])
    ]
    alone, together = [compile_module(t, cpu_target()) for t in texts], [b""] * len(texts)

    def work(i: int) -> None:
        together[i] = compile_module(texts[i], cpu_target())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone


def test_the_text_is_the_same_every_time():
    for kernel in KERNELS.values():
        assert emit_kernel("t", kernel, cpu_target("x86-64-v3")) == emit_kernel("t", kernel, cpu_target("x86-64-v3"))


def test_the_example_of_the_documentation():
    names = pages.run("llvm-ir")
    for llvm in pages.blocks("llvm-ir", "llvm"):
        assert llvm in names["text"]
