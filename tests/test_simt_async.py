"""The emulator's asynchronous copies and warpgroup products: every form gives what numpy says it should."""

from __future__ import annotations

import numpy as np
import pytest
from simt.emulator import EmulationError, Emulator, TensorMap
from simt.hopper import SHARED, descriptor, expect, start, tensor_load, tensor_store, wgmma_call
from simt.kernels import Text
from simt.native import needs_emulator

pytestmark = needs_emulator
ORDERS = ("forward", "reverse", "random:1")
MAP = 'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %{}'
BAR = "@bar = internal addrspace(3) global i64 poison, align 8"


def run(text: str, *args, order: str = "forward", **options) -> None:
    options = {"grid": 1, "block": 32} | options
    Emulator(order).load(text).launch("kernel", args=args, **options)


def copy_out(t: Text, tid: str, words: int, threads: int, to: str = "%y", first: object = 0) -> None:
    """The first words of shared memory, to global memory."""
    for i in range(0, words, threads):
        at = t.add(tid, i)
        v = t.op(f"load i32, ptr addrspace(3) {t.at('@sm', at, 'i32')}")
        t.do(f"store i32 {v}, ptr addrspace(1) {t.at(to, t.add(at, first), 'i32', 1)}")


# ---- copies ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "box", "at"),
    [((200,), (64,), (160,)), ((20, 64), (8, 32), (16, -8)), ((5, 6, 32), (2, 4, 16), (4, -1, 24))],
)
def test_boxes_of_tensors(shape, box, at):
    """One to three dimensions; what lies outside of the tensor arrives as zeros, and is not stored."""
    x = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    words = int(np.prod(box))
    t = Text(f"{MAP.format('x')}, {MAP.format('z')}, ptr addrspace(1) %y", '"nvvm.reqntid"="32"')
    t.head += [SHARED, BAR]
    tid = t.sreg("tid.x")
    start(t, tid, [("@bar", 1)])
    t.barrier()
    end = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    expect(t, "@bar", 4 * words)
    tensor_load(t, "@sm", "@bar", "%x", *at[::-1])
    t.fi(end)
    t.wait("@bar", 0)
    copy_out(t, tid, words, 32)
    end = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    tensor_store(t, "@sm", "%z", *at[::-1])
    t.call("void", "cp.async.bulk.commit.group")
    t.call("void", "cp.async.bulk.wait.group", "i32 0")
    t.fi(end)
    padded = np.pad(x, [(8 + max(b, 0), 8 + b) for b in box])
    inside = tuple(slice(8 + max(b, 0) + i, 8 + max(b, 0) + i + b) for i, b in zip(at, box))
    for order in ORDERS:
        y, z = np.full(box, np.nan, np.float32), np.zeros_like(x)
        run(t.module(), TensorMap(x, box), TensorMap(z, box), y, shared_bytes=4 * words, order=order)
        np.testing.assert_array_equal(y, padded[inside])
        kept = np.zeros_like(padded)
        kept[inside] = padded[inside]
        np.testing.assert_array_equal(z, kept[tuple(slice(8 + b, 8 + b + n) for n, b in zip(shape, box))])


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzled_boxes(swizzle):
    """Pieces of 16 bytes change places within a row: piece ^ (row mod pieces of 128 bytes), as the manual draws it."""
    rows, words = 16, swizzle // 4
    x = np.arange(rows * words, dtype=np.int32).reshape(rows, words)
    t = Text(f"{MAP.format('x')}, ptr addrspace(1) %y", '"nvvm.reqntid"="32"')
    t.head += [SHARED, BAR]
    tid = t.sreg("tid.x")
    start(t, tid, [("@bar", 1)])
    t.barrier()
    end = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    expect(t, "@bar", x.nbytes)
    tensor_load(t, "@sm", "@bar", "%x", 0, 0)
    t.fi(end)
    t.wait("@bar", 0)
    copy_out(t, tid, x.size, 32)
    y = np.zeros_like(x)
    run(t.module(), TensorMap(x, (rows, words), swizzle), y, shared_bytes=x.nbytes)
    pieces = x.reshape(-1, 4)
    for i, got in enumerate(y.reshape(-1, 4)):
        np.testing.assert_array_equal(got, pieces[i ^ i // 8 % (swizzle // 16)])


@pytest.mark.parametrize("order", ORDERS)
def test_multicast_to_a_cluster(order):
    """Block 0 loads one box into the shared memory of both; each waits on its own mbarrier."""
    t = Text(f"{MAP.format('x')}, ptr addrspace(1) %y", '"nvvm.reqntid"="32" "nvvm.cluster_dim"="2,1,1"')
    t.head += [SHARED, BAR]
    tid, rank = t.sreg("tid.x"), t.sreg("cluster.ctarank")
    start(t, tid, [("@bar", 1)])
    end = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    expect(t, "@bar", 256)
    t.fi(end)
    for half in ("arrive", "wait"):
        t.call("void", f"barrier.cluster.{half}.aligned")
    end = t.if_(t.op(f"icmp eq i32 {t.i32('or', rank, tid)}, 0"))
    cluster = t.op("addrspacecast ptr addrspace(3) @sm to ptr addrspace(7)")
    hints = ("i16 3", "i64 0", "i1 true", "i1 false", "i32 0")
    pointers = (f"ptr addrspace(7) {cluster}", "ptr addrspace(3) @bar", "ptr %x")
    t.call("void", "cp.async.bulk.tensor.g2s.tile.1d", *pointers, "i32 0", *hints)
    t.fi(end)
    t.wait("@bar", 0)
    copy_out(t, tid, 64, 32, first=t.mul(rank, 64))
    for half in ("arrive", "wait"):
        t.call("void", f"barrier.cluster.{half}.aligned")
    x, y = np.arange(64, dtype=np.int32), np.zeros((2, 64), np.int32)
    run(t.module(), TensorMap(x, (64,)), y, grid=2, cluster=2, shared_bytes=256, order=order)
    np.testing.assert_array_equal(y, [x, x])


def bulk(fence: bool = True, wait: bool = True) -> str:
    """y = x + 1 through shared memory, by bulk copies in and out."""
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %y", '"nvvm.reqntid"="32"')
    t.head += [SHARED, BAR]
    tid = t.sreg("tid.x")
    first = t.op(f"icmp eq i32 {tid}, 0")
    start(t, tid, [("@bar", 1)])
    t.barrier()
    end = t.if_(first)
    expect(t, "@bar", 128)
    cluster = t.op("addrspacecast ptr addrspace(3) @sm to ptr addrspace(7)")
    pointers = (f"ptr addrspace(7) {cluster}", "ptr addrspace(3) @bar", "ptr addrspace(1) %x")
    hints = ("i16 0", "i64 0", "i1 false", "i1 false")
    t.call("void", "cp.async.bulk.global.to.shared.cluster", *pointers, "i32 128", *hints)
    t.fi(end)
    t.wait("@bar", 0)
    p = t.at("@sm", tid, "i32")
    v = t.add(t.op(f"load i32, ptr addrspace(3) {p}"), 1)
    t.do(f"store i32 {v}, ptr addrspace(3) {p}")
    if fence:
        t.call("void", "fence.proxy.async.shared_cta")
    t.barrier()
    end = t.if_(first)
    pointers = ("ptr addrspace(1) %y", "ptr addrspace(3) @sm")
    t.call("void", "cp.async.bulk.shared.cta.to.global", *pointers, "i32 128", "i64 0", "i1 false")
    t.call("void", "cp.async.bulk.commit.group")
    if wait:
        t.call("void", "cp.async.bulk.wait.group", "i32 0")
    t.fi(end)
    return t.module()


@pytest.mark.parametrize("order", ORDERS)
def test_bulk_copies(order):
    x, y = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    run(bulk(), x, y, shared_bytes=128, order=order)
    np.testing.assert_array_equal(y, x + 1)
    for bug in (dict(fence=False), dict(wait=False)):
        with pytest.raises(EmulationError) as e:
            run(bulk(**bug), x, y, shared_bytes=128, order=order)
        assert e.value.kind == "async"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wait", [True, False])
def test_copies_that_arrive_on_an_mbarrier(order, wait):
    """cp.async by all lanes, with zeros past the end; the mbarrier completes when all have landed."""
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %y", '"nvvm.reqntid"="32"')
    t.head += [SHARED, BAR]
    tid = t.sreg("tid.x")
    start(t, tid, [("@bar", 32)])
    t.barrier()
    source, target = t.at("%x", t.i32("and", tid, 15), "i32", 1), t.at("@sm", tid, "i32")
    size = t.op(f"select i1 {t.op(f'icmp ult i32 {tid}, 20')}, i32 4, i32 0")
    pointers = (f"ptr addrspace(3) {target}", f"ptr addrspace(1) {source}")
    t.call("void", "cp.async.ca.shared.global.4.s", *pointers, f"i32 {size}")
    t.call("void", "cp.async.mbarrier.arrive.noinc.shared", "ptr addrspace(3) @bar")
    if wait:
        t.wait("@bar", 0)
    v = t.op(f"load i32, ptr addrspace(3) {t.at('@sm', t.i32('xor', tid, 31), 'i32')}")
    t.do(f"store i32 {v}, ptr addrspace(1) {t.at('%y', tid, 'i32', 1)}")
    x, y = np.arange(100, 116, dtype=np.int32), np.zeros(32, np.int32)
    if wait:
        run(t.module(), x, y, shared_bytes=128, order=order)
        lane = np.arange(32) ^ 31
        np.testing.assert_array_equal(y, np.where(lane < 20, x[lane % 16], 0))
    else:
        with pytest.raises(EmulationError) as e:
            run(t.module(), x, y, shared_bytes=128, order=order)
        assert e.value.kind in ("async", "uninitialised", "race")


# ---- warpgroup products: one m64n16 without swizzle, operands laid out here as the manual draws core matrices -------
def core_matrices(x: np.ndarray, transposed: bool) -> np.ndarray:
    """x[mn, k] as 8 x 16-byte core matrices, one after another: along k fastest (leading 128 bytes apart), then mn.

    Rows of a core matrix run along k; transposed, along mn.
    """
    per = 16 // x.itemsize
    rows, columns = (per, 8) if transposed else (8, per)
    y = x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns)
    return np.ascontiguousarray(y.transpose(0, 2, 3, 1) if transposed else y.transpose(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("bf16", ""), ("bf16", ".tb"), ("f16", ".ta.tb"), ("tf32", ""), ("bf16", ".ra"), ("tf32", ".ra")],
)
def test_warpgroup_product(kind, options):
    depth = 8 if kind == "tf32" else 16
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (n, depth)).astype(np.float16 if kind == "f16" else np.float32) for n in (64, 16))
    bits = [x if kind != "bf16" else (x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
    size = 64 * 32
    laid = [core_matrices(x, o in options) for x, o in zip(bits, (".ta", ".tb"))]
    image = np.concatenate([x.reshape(-1).view(np.uint32) for x in laid])
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %f, ptr addrspace(1) %y", '"nvvm.reqntid"="128"')
    name = f"wgmma.m64n16k{depth}.f32.{kind}{options}"
    struct = "{ " + ", ".join(["float"] * 8) + " }"
    floats, registers = ", ".join(["float"] * 8), "i32, i32, i32, i32, i64, i1" if ".ra" in options else "i64, i64, i1"
    t.head += [SHARED, f"declare {struct} @pb.{name}({floats}, {registers})"]
    t.head.append(f"declare {struct} @pb.wgmma.wait.0.f32x8({floats})")
    tid = t.sreg("tid.x")
    for i in range(0, image.size, 128):
        at = t.add(tid, i)
        v = t.op(f"load i32, ptr addrspace(1) {t.at('%x', at, 'i32', 1)}")
        t.do(f"store i32 {v}, ptr addrspace(3) {t.at('@sm', at, 'i32')}")
    t.call("void", "fence.proxy.async.shared_cta")
    t.barrier()
    base = t.op("ptrtoint ptr addrspace(3) @sm to i32")

    def describe(offset, transposed):
        distances = (128, 256)  # to the next core matrix along k, and along mn
        return descriptor(t, t.add(base, offset), *distances, 0)

    b_operand = f"i64 {describe(size, '.tb' in options)}"
    if ".ra" in options:
        places = [t.at("%f", t.add(t.mul(tid, 4), i), "i32", 1) for i in range(4)]
        operands = [f"i32 {t.op(f'load i32, ptr addrspace(1) {p}')}" for p in places]
    else:
        operands = [f"i64 {describe(0, '.ta' in options)}"]
    t.call("void", "wgmma.fence.sync.aligned")
    acc = wgmma_call(t, name, ["1.0"] * 8, *operands, b_operand, "i1 true")
    t.call("void", "wgmma.commit_group.sync.aligned")
    for r, v in enumerate(wgmma_call(t, "wgmma.wait.0.f32x8", acc)):
        t.do(f"store float {v}, ptr addrspace(1) {t.at('%y', t.add(t.mul(tid, 8), r), 'float', 1)}")
    thread = np.arange(128)
    row, t4 = thread // 32 * 16 + thread % 32 // 4, thread % 4
    wide = bits[0].view(np.uint32) if kind != "bf16" else np.ascontiguousarray(bits[0]).view(np.uint32)
    fragments = np.stack([wide[row + i % 2 * 8, t4 + i // 2 * 4] for i in range(4)], 1)
    y = np.zeros((128, 8), np.float32)
    run(t.module(), image, np.ascontiguousarray(fragments), y, block=128, shared_bytes=image.nbytes, order="random:4")
    got = np.zeros((64, 16), np.float32)
    for r in range(8):
        got[row + r // 2 % 2 * 8, r // 4 * 8 + t4 * 2 + r % 2] = y[:, r]
    np.testing.assert_array_equal(got, a.astype(np.float32) @ b.astype(np.float32).T + 1)
