"""Kernels of Hopper in NVPTX LLVM IR, written by hand: TMA, mbarriers, warp roles, wgmma, clusters."""

from __future__ import annotations

from .kernels import Text

SHARED = "@sm = external addrspace(3) global [0 x i8], align 1024"
HINTS = ("i16 0", "i64 0", "i1 false", "i1 false", "i32 0")


def tensor_load(t: Text, target: str, mbarrier: str, tensor: str, *at: object) -> None:
    """A TMA load of a box at these coordinates, fastest first."""
    cluster = t.op(f"addrspacecast ptr addrspace(3) {target} to ptr addrspace(7)")
    where = [f"i32 {x}" for x in at]
    pointers = (f"ptr addrspace(7) {cluster}", f"ptr addrspace(3) {mbarrier}", f"ptr {tensor}")
    t.call("void", f"cp.async.bulk.tensor.g2s.tile.{len(at)}d", *pointers, *where, *HINTS)


def tensor_store(t: Text, source: str, tensor: str, *at: object) -> None:
    where = [f"i32 {x}" for x in at]
    name = f"cp.async.bulk.tensor.s2g.tile.{len(at)}d"
    t.call("void", name, f"ptr addrspace(3) {source}", f"ptr {tensor}", *where, "i64 0", "i1 false")


def expect(t: Text, mbarrier: str, size: int) -> None:
    t.call("i64", "mbarrier.arrive.expect.tx.scope.cta.space.cta", f"ptr addrspace(3) {mbarrier}", f"i32 {size}")


def arrive(t: Text, mbarrier: str) -> None:
    t.call("i64", "mbarrier.arrive.scope.cta.space.cta", f"ptr addrspace(3) {mbarrier}", "i32 1")


def start(t: Text, tid: str, counts: list[tuple[str, int]], fence: bool = True) -> None:
    """Thread 0 initialises mbarriers."""
    end = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    for at, count in counts:
        t.call("void", "mbarrier.init.shared", f"ptr addrspace(3) {at}", f"i32 {count}")
    if fence:
        t.call("void", "fence.mbarrier_init.release.cluster")
    t.fi(end)


def column_sums(
    rows: int = 256,
    init_barrier: bool = True,
    wait_full: bool = True,
    wait_empty: bool = True,
    size: int = 32 * 64 * 4,
    fence: bool = True,
) -> str:
    """y = the column sums of x (f32[rows, 64]), and z = 2 x: warp 0 loads boxes of 32 rows by TMA into two stages;
    64 threads of warps 1 and 2 add them up, scale them in place, and one stores each box back by TMA."""
    t = Text(
        'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %x, '
        'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %z, ptr addrspace(1) %y',
        '"nvvm.reqntid"="96"',
    )
    t.head += [SHARED, "@full = internal addrspace(3) global [2 x i64] poison, align 8"]
    t.head.append("@empty = internal addrspace(3) global [2 x i64] poison, align 8")
    tid, boxes, bytes = t.sreg("tid.x"), rows // 32, 32 * 64 * 4
    full, empty = ([t.at(f"@{n}", i, "i64") for i in range(2)] for n in ("full", "empty"))
    stage = [t.at("@sm", i * bytes) for i in range(2)]
    start(t, tid, [(full[0], 1), (full[1], 1), (empty[0], 1), (empty[1], 1)])
    if init_barrier:
        t.barrier()
    producer = t.if_(t.op(f"icmp ult i32 {tid}, 32"))
    first = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    for box in range(boxes):
        s, phase = box % 2, box // 2
        if wait_empty and phase:
            t.wait(empty[s], phase - 1 & 1)
        expect(t, full[s], size)
        tensor_load(t, stage[s], full[s], "%x", 0, 32 * box)
    t.fi(first)
    t.fi(producer)
    consumers = t.if_(t.op(f"icmp uge i32 {tid}, 32"))
    total, me = "0.0", t.add(tid, -32)
    for box in range(boxes):
        s = box % 2
        if wait_full:
            t.wait(full[s], box // 2 & 1)
        for row in range(32):
            p = t.at(stage[s], t.add(me, 64 * row), "float")
            v = t.op(f"load float, ptr addrspace(3) {p}")
            total = t.op(f"fadd float {total}, {v}")
            t.do(f"store float {t.op(f'fadd float {v}, {v}')}, ptr addrspace(3) {p}")
        if fence:
            t.call("void", "fence.proxy.async.shared_cta")
        t.call("void", "barrier.cta.sync.aligned.count", "i32 1", "i32 64")
        one = t.if_(t.op(f"icmp eq i32 {me}, 0"))
        tensor_store(t, stage[s], "%z", 0, 32 * box)
        t.call("void", "cp.async.bulk.commit.group")
        t.call("void", "cp.async.bulk.wait.group", "i32 0")
        arrive(t, empty[s])
        t.fi(one)
    t.do(f"store float {total}, ptr addrspace(1) {t.at('%y', me, 'float', 1)}")
    t.fi(consumers)
    return t.module()


def descriptor(t: Text, at: str, lead: int, stride: int, mode: int) -> str:
    """The wgmma descriptor of a matrix at a shared address (i32): distances in bytes; mode 1 is 128-byte swizzle."""
    low = t.op(f"zext i32 {t.i32('lshr', t.i32('and', at, 0x3FFFF), 4)} to i64")
    rest = (lead >> 4) << 16 | (stride >> 4) << 32 | mode << 62
    return t.op(f"or i64 {low}, {rest - (1 << 64) if rest >> 63 else rest}")


def wgmma_call(t: Text, name: str, acc: list[str], *operands: str) -> list[str]:
    type = "{ " + ", ".join(["float"] * len(acc)) + " }"
    args = ", ".join([*(f"float {a}" for a in acc), *operands])
    return t.parts(t.op(f"call {type} @pb.{name}({args})"), type, len(acc))


def wgmma_declarations(n: int, transposed: bool) -> list[str]:
    """The wrappers as a compiler writes them: inline assembly, each in a function of its own."""
    count = n // 2
    struct, floats = "{ " + ", ".join(["float"] * count) + " }", ", ".join(f"float %c{i}" for i in range(count))
    acc, tied = ", ".join(f"${i}" for i in range(count)), ",".join(["=f"] * count + [str(i) for i in range(count)])
    args = ", ".join(f"float %c{i}" for i in range(count))
    shape = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16"
    scale, a, b = (f"${2 * count + i}" for i in (2, 0, 1))
    head = f"{{ .reg .pred p; setp.ne.b32 p, {scale}, 0; "
    mma = f"{head}{shape} {{{acc}}}, {a}, {b}, p, 1, 1, 0, {int(transposed)}; }}"
    name = f"pb.wgmma.m64n{n}k16.f32.bf16{'.tb' if transposed else ''}"
    return [
        f"define internal {struct} @{name}({floats}, i64 %a, i64 %b, i1 %s) alwaysinline {{\n"
        f"  %z = zext i1 %s to i32\n"
        f'  %r = call {struct} asm sideeffect "{mma}", "{tied},l,l,r"({args}, i64 %a, i64 %b, i32 %z) convergent\n'
        f"  ret {struct} %r\n}}",
        f"define internal {struct} @pb.wgmma.wait.0.f32x{count}({floats}) alwaysinline {{\n"
        f'  %r = call {struct} asm sideeffect "wgmma.wait_group.sync.aligned 0;", "{tied},~{{memory}}"({args})'
        f" convergent\n"
        f"  ret {struct} %r\n}}",
    ]


def wgmma_gemm(
    K: int = 256, transposed: bool = False, wait: bool = True, fence: bool = True, release_early: bool = False
):
    """C (f32[128, 128]) = A B in bf16, A f32[128, K] row by row; B is [128, K] (`transposed` false: rows are columns of
    the product) or [K, 128].  One producer warpgroup by TMA, two stages of 64 along K, two consumer warpgroups."""
    t = Text(
        'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %A, '
        'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %B, ptr addrspace(1) %C',
        '"nvvm.reqntid"="384"',
    )
    t.head += [SHARED, *wgmma_declarations(128, transposed)]
    t.head += [f"@{n} = internal addrspace(3) global [2 x i64] poison, align 8" for n in ("full", "empty")]
    tid, half = t.sreg("tid.x"), 128 * 64 * 2
    full, empty = ([t.at(f"@{n}", i, "i64") for i in range(2)] for n in ("full", "empty"))
    start(t, tid, [(full[0], 1), (full[1], 1), (empty[0], 256), (empty[1], 256)])
    t.barrier()
    producer = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    for k in range(K // 64):
        s = k % 2
        if k >= 2:
            t.wait(empty[s], k // 2 - 1 & 1)
        expect(t, full[s], 2 * half)
        tensor_load(t, t.at("@sm", 2 * s * half), full[s], "%A", 64 * k, 0)
        if transposed:  # 64 rows of K, twice 64 columns
            for h in range(2):
                tensor_load(t, t.at("@sm", (2 * s + 1) * half + h * 64 * 128), full[s], "%B", 64 * h, 64 * k)
        else:
            tensor_load(t, t.at("@sm", (2 * s + 1) * half), full[s], "%B", 64 * k, 0)
    t.fi(producer)
    consumers = t.if_(t.op(f"icmp uge i32 {tid}, 128"))
    group = t.add(t.i32("lshr", tid, 7), -1)
    base = t.op("ptrtoint ptr addrspace(3) @sm to i32")
    acc = ["0.0"] * 64
    for k in range(K // 64):
        s = k % 2
        t.wait(full[s], k // 2 & 1)
        if fence:
            t.call("void", "wgmma.fence.sync.aligned")
        for step in range(4):
            a = t.add(t.add(base, 2 * s * half + 32 * step), t.mul(group, 64 * 128))
            b = t.add(base, (2 * s + 1) * half + step * (16 * 128 if transposed else 32))
            descriptors = (
                descriptor(t, a, 16, 1024, 1),
                descriptor(t, b, 64 * 128 if transposed else 16, 1024, 1),
            )
            name = f"wgmma.m64n128k16.f32.bf16{'.tb' if transposed else ''}"
            acc = wgmma_call(t, name, acc, *(f"i64 {d}" for d in descriptors), f"i1 {'true' if k or step else 'false'}")
        t.call("void", "wgmma.commit_group.sync.aligned")
        if release_early:
            arrive(t, empty[s])
        if wait:
            acc = wgmma_call(t, "wgmma.wait.0.f32x64", acc)
        if not release_early:
            arrive(t, empty[s])
    warp, lane = t.i32("and", t.i32("lshr", tid, 5), 3), t.i32("and", tid, 31)
    row = t.add(t.add(t.mul(group, 64), t.mul(warp, 16)), t.i32("lshr", lane, 2))
    for r in range(64):
        at = t.add(t.mul(t.add(row, r // 2 % 2 * 8), 128), t.add(t.mul(t.i32("and", lane, 3), 2), r // 4 * 8 + r % 2))
        t.do(f"store float {acc[r]}, ptr addrspace(1) {t.at('%C', at, 'float', 1)}")
    t.fi(consumers)
    return t.module()


def cluster_exchange(second: bool = True) -> str:
    """y[block] = x of the other block of the pair, through distributed shared memory."""
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %y", '"nvvm.reqntid"="32" "nvvm.cluster_dim"="2,1,1"')
    t.head.append("@s = internal addrspace(3) global [32 x float] poison, align 4")
    tid, block, rank = t.sreg("tid.x"), t.sreg("ctaid.x"), t.sreg("cluster.ctarank")
    i = t.add(t.mul(block, 32), tid)
    v = t.op(f"load float, ptr addrspace(1) {t.at('%x', i, 'float', 1)}")
    mine = t.at("@s", tid, "float")
    t.do(f"store float {v}, ptr addrspace(3) {mine}")

    def meet():
        t.call("void", "barrier.cluster.arrive.aligned")
        t.call("void", "barrier.cluster.wait.aligned")

    meet()
    rank = t.i32("xor", rank, 1)
    other = t.call("ptr addrspace(7)", "mapa.shared.cluster", f"ptr addrspace(3) {mine}", f"i32 {rank}")
    v = t.op(f"load float, ptr addrspace(7) {other}")
    if second:
        meet()
    t.do(f"store float 0.0, ptr addrspace(3) {mine}")
    t.do(f"store float {v}, ptr addrspace(1) {t.at('%y', i, 'float', 1)}")
    return t.module()
