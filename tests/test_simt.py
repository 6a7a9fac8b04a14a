"""The emulator of GPU kernels: kernels give numpy's numbers in every order of threads, operations what PTX says."""

from __future__ import annotations

import time

import numpy as np
import pytest
from simt import hopper, kernels
from simt.emulator import EmulationError, Emulator, TensorMap, UnsupportedError, device_array
from simt.intrinsics import INTRINSICS
from simt.kernels import Text
from simt.native import needs_emulator

pytestmark = needs_emulator
ORDERS = ("forward", "reverse", "random:1")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16, rounded to nearest even."""
    u = x.view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def f32(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def run(text: str, *args, grid=1, block=32, order: str = "forward", **options) -> None:
    Emulator(order).load(text).launch("kernel", grid, block, args, **options)


# ---- whole kernels --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
def test_simple_kernels(order):
    x, y, z = normal(1000), normal(1000, seed=1), np.full(1000, np.nan, np.float32)
    run(kernels.vector_add(), x, y, z, 1000, grid=4, block=256, order=order)
    np.testing.assert_array_equal(z, x + y)
    x, y = normal(3 * 256), np.full(3, np.nan, np.float32)
    run(kernels.block_sum(), x, y, grid=3, block=256, order=order)
    np.testing.assert_allclose(y, x.reshape(3, 256).sum(1), atol=1e-4)


@pytest.fixture(scope="module")
def products():
    return {
        "f32": Emulator().load(kernels.sgemm(128, 256, 64)),
        "bf16": Emulator().load(kernels.bf16_gemm(256, 128, 96)),
    }


@pytest.mark.parametrize("order", ORDERS)
def test_matrix_products(products, order):
    a, b, c = normal(128, 64), normal(64, 256, seed=1), np.full((128, 256), np.nan, np.float32)
    products["f32"].emulator = Emulator(order)
    products["f32"].launch("kernel", (2, 1), 256, [a, b, c])
    np.testing.assert_allclose(c, a @ b, atol=1e-4)
    a, b, c = bf16(normal(256, 96)), bf16(normal(96, 128, seed=1)), np.full((256, 128), np.nan, np.float32)
    products["bf16"].emulator = Emulator(order)
    products["bf16"].launch("kernel", (1, 2), 256, [a, b, c], shared_bytes=3 * 16384)
    np.testing.assert_allclose(c, f32(a) @ f32(b), atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_copies_and_mbarriers(order):
    x = normal(128, 64)
    y, z = np.full(64, np.nan, np.float32), np.full_like(x, np.nan)
    maps = TensorMap(x, (32, 64)), TensorMap(z, (32, 64))
    run(hopper.column_sums(128), *maps, y, block=96, shared_bytes=16384, order=order)
    np.testing.assert_allclose(y, x.sum(0), atol=1e-4)
    np.testing.assert_array_equal(z, 2 * x)


@pytest.mark.parametrize("transposed", [False, True])
def test_warpgroup_products(transposed):
    a, b = bf16(normal(128, 256)), bf16(normal(256, 128, seed=1))
    module = Emulator().load(hopper.wgmma_gemm(256, transposed))
    maps = TensorMap(a, (128, 64), 128), TensorMap(b, (64, 64), 128)
    if not transposed:
        maps = maps[0], TensorMap(np.ascontiguousarray(b.T), (128, 64), 128)
    for order in ORDERS:
        c = np.full((128, 128), np.nan, np.float32)
        module.emulator = Emulator(order)
        module.launch("kernel", 1, 384, [*maps, c], shared_bytes=4 * 16384)
        np.testing.assert_allclose(c, f32(a) @ f32(b), atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_cluster_shares_memory(order):
    x, y = normal(128), np.full(128, np.nan, np.float32)
    run(hopper.cluster_exchange(), x, y, grid=4, cluster=2, order=order)
    np.testing.assert_array_equal(y.reshape(2, 2, 32), x.reshape(2, 2, 32)[:, ::-1])


def test_speed():
    """Budgets: 0.2 ms for a reduction of 256 threads, 8 ms for a tile of 128^3; a busy machine gets five times that."""
    x, y = normal(256), np.zeros(1, np.float32)
    a, b, c = bf16(normal(128, 128)), bf16(normal(128, 128)), np.zeros((128, 128), np.float32)
    cases = [(kernels.block_sum(), [x, y], 0, 1e-3), (kernels.bf16_gemm(), [a, b, c], 3 * 16384, 40e-3)]
    for text, args, shared, limit in cases:
        module, best = Emulator().load(text), np.inf
        for _ in range(5):
            start = time.perf_counter()
            module.launch("kernel", 1, 256, args, shared_bytes=shared)
            best = min(best, time.perf_counter() - start)
        assert best < limit


# ---- operations of warps --------------------------------------------------------------------------------------
def by_lane(result: str, body, lanes: int = 32, order: str = "random:3", inputs: int = 1) -> np.ndarray:
    """What each lane gets from `body(t, *values)`: the values are integers of the lane, from a fixed sequence."""
    t = Text(", ".join([f"ptr addrspace(1) %x{i}" for i in range(inputs)] + ["ptr addrspace(1) %y"]))
    tid = t.sreg("tid.x")
    values = [t.op(f"load i32, ptr addrspace(1) {t.at(f'%x{i}', tid, 'i32', 1)}") for i in range(inputs)]
    r = body(t, *values)
    if result != "i32":
        r = t.op(f"{'zext' if result == 'i1' else 'bitcast'} {result} {r} to i32")
    t.do(f"store i32 {r}, ptr addrspace(1) {t.at('%y', tid, 'i32', 1)}")
    y = np.zeros(lanes, np.uint32)
    run(t.module(), *(sequence(lanes, i) for i in range(inputs)), y, block=lanes, order=order)
    return y


def sequence(lanes: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, lanes, np.uint32)


@pytest.mark.parametrize(("mode", "bounds"), [("up", 0), ("down", 31), ("bfly", 31), ("idx", 31)])
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(mode, bounds, width):
    x, lane = sequence(), np.arange(32)
    c, base = (32 - width) << 8 | bounds, lane & ~(width - 1)
    source = {"up": lane - 3, "down": lane + 3, "bfly": lane ^ 3, "idx": base + 3 % width}[mode]
    inside = (source >= base) & (source < base + width)
    want = x[np.where(inside, source, lane)]
    args = ("i32 -1", "i32 {}", "i32 3", f"i32 {c}")
    got = by_lane("i32", lambda t, v: t.call("i32", f"shfl.sync.{mode}.i32", *(a.format(v) for a in args)))
    np.testing.assert_array_equal(got, want)

    def predicate(t, v):
        f = t.op(f"bitcast i32 {v} to float")
        operands = [a.format(v) for a in args]
        operands[1] = f"float {f}"
        return t.parts(t.call("{ float, i1 }", f"shfl.sync.{mode}.f32p", *operands), "{ float, i1 }", 2)[1]

    np.testing.assert_array_equal(by_lane("i1", predicate), inside)


def test_votes_and_reductions():
    x = sequence()
    signed, even = x.view(np.int32), x % 2 == 0
    ballot = int(np.sum(even * (np.uint64(1) << np.arange(32, dtype=np.uint64))))

    def vote(name, result):
        def body(t, v):
            p = t.op(f"icmp eq i32 {t.i32('and', v, 1)}, 0")
            return t.call(result, f"vote.{name}.sync", "i32 -1", f"i1 {p}")

        return by_lane(result, body)

    assert set(vote("ballot", "i32")) == {ballot}
    assert set(vote("any", "i1")) == {1} and set(vote("all", "i1")) == {0} and set(vote("uni", "i1")) == {0}
    wants = {
        "add": x.sum(dtype=np.uint32),
        "umax": x.max(),
        "umin": x.min(),
        "max": signed.max(),
        "min": signed.min(),
        "and": np.bitwise_and.reduce(x),
        "or": np.bitwise_or.reduce(x),
        "xor": np.bitwise_xor.reduce(x),
    }
    for name, want in wants.items():
        got = by_lane("i32", lambda t, v, n=name: t.call("i32", f"redux.sync.{n}", f"i32 {v}", "i32 -1"))
        assert set(got) == {np.uint32(np.int64(want) & 0xFFFFFFFF)}, name
    got = by_lane("i32", lambda t, v: t.call("i32", "match.any.sync.i32", "i32 -1", f"i32 {t.i32('and', v, 3)}"))
    for lane in range(32):
        assert got[lane] == sum(1 << o for o in range(32) if x[o] % 4 == x[lane] % 4)


def test_partial_masks():
    """Two halves of a warp shuffle on their own; lanes that have exited are not waited for."""

    def body(t, v):
        tid = t.sreg("tid.x")
        mask = t.op(f"select i1 {t.op(f'icmp ult i32 {tid}, 12')}, i32 4095, i32 -4096")
        return t.call("i32", "redux.sync.add", f"i32 {v}", f"i32 {mask}")

    x = sequence()
    want = [x[:12].sum(dtype=np.uint32)] * 12 + [x[12:].sum(dtype=np.uint32)] * 20
    np.testing.assert_array_equal(by_lane("i32", body), want)
    elected = "{ i32, i1 }"
    got = by_lane("i1", lambda t, v: t.parts(t.call(elected, "elect.sync", "i32 -1"), elected, 2)[1])
    np.testing.assert_array_equal(got, np.arange(32) == 0)


def test_barrier_reductions():
    def body(t, v):
        p = t.op(f"icmp slt i32 {v}, 0")
        return t.call("i32", "barrier.cta.red.popc.aligned.all", "i32 0", f"i1 {p}")

    assert set(by_lane("i32", body, lanes=96)) == {np.sum(sequence(96).view(np.int32) < 0)}


def test_special_registers():
    t = Text("ptr addrspace(1) %y")
    names = [f"{n}.{axis}" for n in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["laneid", "warpid"]
    values = [t.sreg(n) for n in names]
    block = t.add(values[6], t.mul(values[9], t.add(values[7], t.mul(values[10], values[8]))))
    thread = t.add(values[0], t.mul(values[3], t.add(values[1], t.mul(values[4], values[2]))))
    row = t.mul(t.add(t.mul(block, 48), thread), len(names))
    for i, v in enumerate(values):
        t.do(f"store i32 {v}, ptr addrspace(1) {t.at('%y', t.add(row, i), 'i32', 1)}")
    y = np.zeros((2 * 3 * 2, 48, len(names)), np.int32)
    run(t.module(), y, grid=(2, 3, 2), block=(4, 3, 4), order="random:5")
    for b in range(12):
        for thread in range(48):
            where = (thread % 4, thread // 4 % 3, thread // 12), (b % 2, b // 2 % 3, b // 6)
            assert tuple(y[b, thread]) == (*where[0], 4, 3, 4, *where[1], 2, 3, 2, thread % 32, thread // 32)


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrix_loads_and_stores(trans):
    """ldmatrix: lane l has elements 2 (l % 4) and the next of row l / 4 of each matrix; stmatrix puts them back."""
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %y, ptr addrspace(1) %z")
    t.head.append("@s = internal addrspace(3) global [256 x i16] poison, align 16")
    t.head.append("@r = internal addrspace(3) global [256 x i16] poison, align 16")
    tid, four = t.sreg("tid.x"), "{ i32, i32, i32, i32 }"
    here = t.at("@s", t.mul(tid, 8), "i16")
    row = t.op(f"load <4 x i32>, ptr addrspace(1) {t.at('%x', t.mul(tid, 8), 'i16', 1)}, align 16")
    t.do(f"store <4 x i32> {row}, ptr addrspace(3) {here}, align 16")
    t.call("void", "bar.warp.sync", "i32 -1")
    v = t.parts(t.call(four, f"ldmatrix.sync.aligned.m8n8.x4{trans}.b16.p3", f"ptr addrspace(3) {here}"), four, 4)
    for k in range(4):
        t.do(f"store i32 {v[k]}, ptr addrspace(1) {t.at('%y', t.add(t.mul(tid, 4), k), 'i32', 1)}")
    there = t.at("@r", t.mul(tid, 8), "i16")
    name = f"stmatrix.sync.aligned.m8n8.x4{trans}.b16.p3"
    t.call("void", name, f"ptr addrspace(3) {there}", *(f"i32 {r}" for r in v))
    t.call("void", "bar.warp.sync", "i32 -1")
    row = t.op(f"load <4 x i32>, ptr addrspace(3) {there}, align 16")
    t.do(f"store <4 x i32> {row}, ptr addrspace(1) {t.at('%z', t.mul(tid, 8), 'i16', 1)}, align 16")
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    y, z = np.zeros((32, 4, 2), np.uint16), np.zeros_like(x)
    run(t.module(), x, y, z, order="random:2")
    m = x.swapaxes(1, 2) if trans else x
    for lane in range(32):
        np.testing.assert_array_equal(y[lane], m[:, lane // 4, lane % 4 * 2 :][:, :2])
    np.testing.assert_array_equal(z, x)


@pytest.mark.parametrize("kind", ["f16", "tf32", "f16 sums"])
def test_products_of_other_types(kind):
    """One mma; fragments as the PTX manual draws them: group g = lane / 4, t = lane % 4."""
    depth = 8 if kind == "tf32" else 16
    g, t4 = np.arange(32) // 4, np.arange(32) % 4
    dtype = np.float32 if kind == "tf32" else np.float16
    a, b, c = normal(16, depth).astype(dtype), normal(depth, 8, seed=1).astype(dtype), normal(16, 8, seed=2)
    if kind == "tf32":
        frag_a = np.stack([a[g + i % 2 * 8, t4 + i // 2 * 4] for i in range(4)], 1)
        frag_b = np.stack([b[t4 + i * 4, g] for i in range(2)], 1)
    else:
        frag_a = np.stack([a[g + i // 2 % 2 * 8, t4 * 2 + i % 2 + i // 4 * 8] for i in range(8)], 1)
        frag_b = np.stack([b[t4 * 2 + i % 2 + i // 2 * 8, g] for i in range(4)], 1)
    sums = np.float16 if kind == "f16 sums" else np.float32
    frag_c = np.stack([c[g + i // 2 * 8, t4 * 2 + i % 2] for i in range(4)], 1).astype(sums)
    t = Text("ptr addrspace(1) %a, ptr addrspace(1) %b, ptr addrspace(1) %c, ptr addrspace(1) %d")
    tid = t.sreg("tid.x")
    operand = "i32" if kind == "tf32" else "<2 x half>"
    acc, count = ("<2 x half>", 2) if kind == "f16 sums" else ("float", 4)

    def fragment(base, n, type):
        places = [t.at(base, t.add(t.mul(tid, n), i), "i32", 1) for i in range(n)]
        return [f"{type} {t.op(f'load {type}, ptr addrspace(1) {p}')}" for p in places]

    name = {"tf32": "m16n8k8.row.col.tf32", "f16": "m16n8k16.row.col.f32.f32", "f16 sums": "m16n8k16.row.col.f16.f16"}[
        kind
    ]
    result = "{ " + ", ".join([acc] * count) + " }"
    r = t.call(
        result, f"mma.{name}", *fragment("%a", 4, operand), *fragment("%b", 2, operand), *fragment("%c", count, acc)
    )
    for i, v in enumerate(t.parts(r, result, count)):
        t.do(f"store {acc} {v}, ptr addrspace(1) {t.at('%d', t.add(t.mul(tid, count), i), 'i32', 1)}")
    d = np.zeros_like(frag_c)
    run(t.module(), *(np.ascontiguousarray(f).view(np.uint32) for f in (frag_a, frag_b, frag_c)), d.view(np.uint32))
    if kind == "tf32":
        a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    want = a.astype(np.float64) @ b.astype(np.float64) + c.astype(sums)
    got = np.zeros((16, 8))
    for i in range(4):
        got[g + i // 2 * 8, t4 * 2 + i % 2] = d[:, i]
    np.testing.assert_allclose(got, want, atol=2e-2 if kind == "f16 sums" else 1e-5)


# ---- numbers --------------------------------------------------------------------------------------------------
def elementwise(source: str, target: str, body: str, x: np.ndarray, dtype) -> np.ndarray:
    text = f"""
    declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
    define ptx_kernel void @kernel(ptr addrspace(1) %x, ptr addrspace(1) %y) {{
      %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
      %p = getelementptr {source}, ptr addrspace(1) %x, i32 %t
      %q = getelementptr {target}, ptr addrspace(1) %y, i32 %t
      %v = load {source}, ptr addrspace(1) %p
      {body}
      store {target} %r, ptr addrspace(1) %q
      ret void
    }}
    """
    y = np.zeros(x.shape, dtype)
    for i in range(0, len(x), 1024):
        run(text, x[i : i + 1024], y[i : i + 1024], block=len(x[i : i + 1024]))
    return y


def test_sixteen_bit_numbers():
    """Conversions that x86 lacks: every half and its neighbours, bfloat halves rounded to even."""
    special = np.array([0, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0xFC00, 0x3C00, 0x3555], np.uint16)
    halves = np.concatenate([special, np.random.default_rng(0).integers(0, 0x7C00, 502).astype(np.uint16)])
    x = halves.view(np.float16).astype(np.float32)
    near = np.concatenate([x, np.nextafter(x, np.float32(1)), (x * np.float32(1.0003)).astype(np.float32), x / 2])[
        :1024
    ]
    got = elementwise("float", "half", "%r = fptrunc float %v to half", near, np.float16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, near.astype(np.float16))
    np.testing.assert_array_equal(elementwise("half", "float", "%r = fpext half %v to float", halves, np.float32), x)
    got = elementwise("float", "bfloat", "%r = fptrunc float %v to bfloat", near, np.uint16)
    np.testing.assert_array_equal(got, bf16(near))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("ex2.approx.f32", np.exp2),
        ("lg2.approx.f", np.log2),
        ("rsqrt.approx.f", lambda x: 1 / np.sqrt(x)),
        ("sqrt.approx.f", np.sqrt),
        ("rcp.approx.ftz.f", lambda x: 1 / x),
        ("sin.approx.f", np.sin),
        ("cos.approx.f", np.cos),
    ],
)
def test_approximations_are_exact(name, want):
    x = np.linspace(0.1, 9, 64, dtype=np.float32)
    body = f"%r = call float @llvm.nvvm.{name}(float %v)\n"
    declared = f"declare float @llvm.nvvm.{name}(float)\n"
    t = Text("ptr addrspace(1) %x")
    p = t.at("%x", t.sreg("tid.x"), "float", 1)
    t.do(f"%v = load float, ptr addrspace(1) {p}")
    t.do(body)
    t.do(f"store float %r, ptr addrspace(1) {p}")
    y = x.copy()
    assert declared.strip() in t.module()
    run(t.module(), y, block=64)
    np.testing.assert_allclose(y, want(x), rtol=2e-6)


# ---- memory and launches --------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order):
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %n")
    i = t.add(t.mul(t.sreg("ctaid.x"), 64), t.sreg("tid.x"))
    v = t.op(f"load i32, ptr addrspace(1) {t.at('%x', i, 'i32', 1)}")
    t.do(f"%old = atomicrmw add ptr addrspace(1) {t.at('%n', v, 'i32', 1)}, i32 1 monotonic")
    x, n = np.random.default_rng(0).integers(0, 7, 256).astype(np.int32), np.zeros(7, np.int32)
    run(t.module(), x, n, grid=4, block=64, order=order)
    np.testing.assert_array_equal(n, np.bincount(x, minlength=7))


@pytest.mark.parametrize("order", ORDERS)
def test_the_last_block_adds_up(order):
    """Blocks publish partial sums by a fence and an atomic counter; the one that comes last reads them all."""
    run_last_block(order)


def run_last_block(order: str, publish: bool = True, learn: bool = True) -> None:
    t = Text("ptr addrspace(1) %part, ptr addrspace(1) %count, ptr addrspace(1) %sum")
    block = t.sreg("ctaid.x")
    t.do(f"store i32 {t.add(block, 10)}, ptr addrspace(1) {t.at('%part', block, 'i32', 1)}")
    if publish:
        t.call("void", "membar.gl")
    t.do("%old = atomicrmw add ptr addrspace(1) %count, i32 1 monotonic")
    if learn:
        t.call("void", "membar.gl")
    end = t.if_(t.op("icmp eq i32 %old, 3"))
    total = "0"
    for i in range(4):
        total = t.add(total, t.op(f"load i32, ptr addrspace(1) {t.at('%part', i, 'i32', 1)}"))
    t.do(f"store i32 {total}, ptr addrspace(1) %sum")
    t.fi(end)
    part, count, total = np.zeros(4, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    run(t.module(), part, count, total, grid=4, block=1, order=order)
    assert total[0] == 46


@pytest.mark.parametrize(("publish", "learn"), [(False, True), (True, False)])
def test_counters_need_fences(publish, learn):
    with pytest.raises(EmulationError, match="another block") as e:
        run_last_block("forward", publish, learn)
    assert e.value.kind == "race"


@pytest.mark.parametrize("order", ORDERS)
def test_polling_lets_others_run(order):
    """Thread 64 waits for a flag in shared memory that thread 0 sets after its data."""
    t = Text("ptr addrspace(1) %y")
    t.head += [f"@{n} = internal addrspace(3) global i32 poison, align 4" for n in ("flag", "data")]
    tid = t.sreg("tid.x")
    first = t.op(f"icmp eq i32 {tid}, 0")
    end = t.if_(first)
    t.do("store i32 0, ptr addrspace(3) @flag")
    t.fi(end)
    t.barrier()
    end = t.if_(first)
    t.do("store i32 7, ptr addrspace(3) @data")
    t.call("void", "membar.cta")
    t.do("%old = atomicrmw xchg ptr addrspace(3) @flag, i32 1 monotonic")
    t.fi(end)
    end = t.if_(t.op(f"icmp eq i32 {tid}, 64"))
    t.go("poll")
    t.label("poll")
    t.do("%f = load atomic i32, ptr addrspace(3) @flag monotonic, align 4")
    t.do("%set = icmp eq i32 %f, 1")
    t.do("br i1 %set, label %seen, label %poll")
    t.label("seen")
    t.call("void", "membar.cta")
    t.do(f"store i32 {t.op('load i32, ptr addrspace(3) @data')}, ptr addrspace(1) %y")
    t.fi(end)
    y = np.zeros(1, np.int32)
    run(t.module(), y, block=96, order=order)
    assert y[0] == 7


@pytest.mark.parametrize("order", ORDERS)
def test_named_barriers_between_roles(order):
    """Warp 0 writes and arrives; warp 1 waits and reads; they take turns."""
    t = Text("ptr addrspace(1) %y")
    t.head.append("@s = internal addrspace(3) global [32 x i32] poison, align 4")
    tid = t.sreg("tid.x")
    lane = t.i32("and", tid, 31)
    slot, writes = t.at("@s", lane, "i32"), t.op(f"icmp ult i32 {tid}, 32")
    full, empty = ("i32 1", "i32 64"), ("i32 2", "i32 64")
    total = "0"
    for turn in range(3):
        end = t.if_(writes)
        if turn:
            t.call("void", "barrier.cta.sync.aligned.count", *empty)
        t.do(f"store i32 {t.add(lane, turn)}, ptr addrspace(3) {slot}")
        t.call("void", "barrier.cta.arrive.aligned.count", *full)
        t.fi(end)
        end = t.if_(t.op(f"xor i1 {writes}, true"))
        t.call("void", "barrier.cta.sync.aligned.count", *full)
        v = t.op(f"load i32, ptr addrspace(3) {t.at('@s', t.i32('xor', lane, 1), 'i32')}")
        t.do(f"%sum{turn} = add i32 {v}, 0")
        at = t.at("%y", t.add(t.mul(lane, 3), turn), "i32", 1)
        t.do(f"store i32 %sum{turn}, ptr addrspace(1) {at}")
        if turn < 2:
            t.call("void", "barrier.cta.arrive.aligned.count", *empty)
        t.fi(end)
    assert total == "0"
    y = np.zeros((32, 3), np.int32)
    run(t.module(), y, block=64, order=order)
    np.testing.assert_array_equal(y, (np.arange(32) ^ 1)[:, None] + np.arange(3))


def test_masked_accesses():
    text = """
    declare <4 x float> @llvm.masked.load.v4f32.p1(ptr addrspace(1), i32, <4 x i1>, <4 x float>)
    declare void @llvm.masked.store.v4f32.p1(<4 x float>, ptr addrspace(1), i32, <4 x i1>)
    define ptx_kernel void @kernel(ptr addrspace(1) %x, ptr addrspace(1) %y) {
      %v = call <4 x float> @llvm.masked.load.v4f32.p1(ptr addrspace(1) %x, i32 4, <4 x i1> MASK, <4 x float> poison)
      call void @llvm.masked.store.v4f32.p1(<4 x float> %v, ptr addrspace(1) %y, i32 4, <4 x i1> MASK)
      ret void
    }
    """
    three = "<i1 true, i1 true, i1 true, i1 false>"
    x, y = normal(3), np.zeros(3, np.float32)
    run(text.replace("MASK", three), x, y, block=1)
    np.testing.assert_array_equal(y, x)
    with pytest.raises(EmulationError) as e:
        run(text.replace("MASK", "<i1 true, i1 true, i1 true, i1 true>"), x, y, block=1)
    assert e.value.kind == "bounds"


def test_constants_tables_and_pointers_in_memory():
    text = """
    @table = internal unnamed_addr addrspace(4) constant [3 x float] [float 1.0, float 2.0, float 4.0], align 4
    declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
    define ptx_kernel void @kernel(ptr %arrays) {
      %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
      %slot = getelementptr ptr, ptr %arrays, i32 %t
      %array = load ptr, ptr %slot
      %c = getelementptr float, ptr addrspace(4) @table, i32 %t
      %v = load float, ptr addrspace(4) %c
      store float %v, ptr %array
      ret void
    }
    """
    targets = [device_array(1), device_array((2, 2))]
    arrays = np.array([a.ctypes.data for a in targets], np.int64)
    module = Emulator().load(text)
    module.launch("kernel", 1, 2, [arrays], memory=targets)
    assert targets[0][0] == 1 and targets[1][0, 0] == 2
    with pytest.raises(EmulationError) as e:
        module.launch("kernel", 1, 2, [arrays], memory=targets[:1])
    assert (e.value.kind, e.value.thread) == ("bounds", 1)
    with pytest.raises(EmulationError) as e:
        module.launch("kernel", 1, 3, [np.append(arrays, arrays[0])], memory=targets)
    assert e.value.kind == "race"


def test_views_of_one_array_stay_together():
    arena = np.zeros(96, np.float32)
    arena[:32], arena[32:64] = normal(32), normal(32, seed=1)
    module = Emulator().load(kernels.vector_add())
    module.launch("kernel", 1, 32, [arena[:32], arena[32:64], arena[64:], 32])
    np.testing.assert_array_equal(arena[64:], arena[:32] + arena[32:64])
    module.launch("kernel", 1, 32, [arena[:32], arena[32:64], arena[:32], 32])
    np.testing.assert_array_equal(arena[:32], arena[64:])


def test_unknown_parts_are_named():
    load = Emulator().load
    clock = "declare i64 @llvm.nvvm.read.ptx.sreg.clock64()\ndefine ptx_kernel void @kernel() {\n"
    with pytest.raises(UnsupportedError, match=r"no @llvm.nvvm.read.ptx.sreg.clock64 \(in @kernel\)"):
        load(clock + "  %c = call i64 @llvm.nvvm.read.ptx.sreg.clock64()\n  ret void\n}\n")
    with pytest.raises(UnsupportedError, match=r"inline assembly outside of an @pb\. wrapper, in @kernel"):
        load('define ptx_kernel void @kernel() {\n  call void asm sideeffect "nop;", ""()\n  ret void\n}\n')
    with pytest.raises(UnsupportedError, match="neither shared nor constant: @g"):
        load("@g = addrspace(1) global i32 0\ndefine ptx_kernel void @kernel() {\n  ret void\n}\n")
    with pytest.raises(RuntimeError, match="constant invalid"):
        load("define ptx_kernel void @kernel() {\n  %a = add i32 1, 2.0\n  ret void\n}\n")


def test_launches_that_make_no_sense():
    module, x = Emulator().load(kernels.block_sum()), np.zeros(256, np.float32)
    for kwargs, message in [
        (dict(name="other"), "no kernel 'other', only kernel"),
        (dict(block=128), "compiled for"),
        (dict(args=[x]), "1 arguments for 2 parameters"),
        (dict(args=[x, 2.0]), "argument 1 is float for a parameter of type ptr"),
        (dict(cluster=2), "in clusters of"),
        (dict(shared_bytes=64), "no array for it"),
    ]:
        call = dict(name="kernel", grid=1, block=256, args=[x, x]) | kwargs
        with pytest.raises((ValueError, TypeError), match=message):
            module.launch(**call)
    with pytest.raises(ValueError, match="expected forward, reverse or random:SEED"):
        Emulator("sideways")
    for box, swizzle, message in [
        ((8, 300), 0, "1 to 256"),
        ((8, 64), 128, "at most 128"),
        ((8, 3), 0, "multiple of 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            TensorMap(np.zeros((64, 512), np.float32), box, swizzle)


def test_every_emulated_intrinsic_is_llvms():
    """The table's signatures are what LLVM's verifier accepts, and LLVM knows every name."""
    import llvmlite.binding as llvm

    calls, declarations = [], []
    for i, (name, shim) in enumerate(INTRINSICS.items()):
        number = "32" if name.startswith("setmaxnreg") else "0"
        values = dict.fromkeys(("i1", "i16", "i32", "i64"), number) | {"float": "0.0"}
        args = ", ".join(
            f"{p} {values.get(p) or ('null' if p.startswith('ptr') else 'zeroinitializer')}" for p in shim.params
        )
        declarations.append(f"declare {shim.result} @llvm.nvvm.{name}({', '.join(shim.params)})")
        calls.append(f"  {'' if shim.result == 'void' else f'%r{i} = '}call {shim.result} @llvm.nvvm.{name}({args})")
    text = "\n".join([*declarations, "define void @f() {", *calls, "  ret void", "}"])
    module = llvm.parse_assembly(text)
    module.verify()
    assert "Unknown intrinsic" not in str(module)
