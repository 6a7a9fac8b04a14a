"""Small kernels in NVPTX LLVM IR, written by hand: what the emulator is tested with.

Each function gives the text of a module; options plant bugs.
"""

from __future__ import annotations

import re

from .intrinsics import INTRINSICS


def declaration(name: str) -> str:
    """The declaration of `llvm.<name>`."""
    if name == "fma.f32":
        return "declare float @llvm.fma.f32(float, float, float)"
    shim = INTRINSICS[name.removeprefix("nvvm.")]
    return f"declare {shim.result} @llvm.{name}({', '.join(shim.params)})"


class Text:
    """Writes one kernel: `op` an instruction with a result, `do` one without, `for_`/`end` a counted loop."""

    def __init__(self, params: str, attributes: str = "", name: str = "kernel"):
        self.lines = [f"define ptx_kernel void @{name}({params}) {attributes} {{", "entry:"]
        self.head: list[str] = []
        self.count, self.block = 0, "entry"

    def new(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def do(self, text: str) -> None:
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        r = self.new()
        self.do(f"{r} = {text}")
        return r

    def call(self, result: str, name: str, *args: str) -> str:
        text = f"call {result} @llvm.nvvm.{name}({', '.join(args)})"
        if result != "void":
            return self.op(text)
        self.do(text)
        return ""

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def go(self, label: str) -> None:
        self.do(f"br label %{label}")

    def i32(self, op: str, a, b) -> str:
        return self.op(f"{op} i32 {a}, {b}")

    def add(self, a, b) -> str:
        return self.i32("add", a, b)

    def mul(self, a, b) -> str:
        return self.i32("mul", a, b)

    def at(self, base: str, offset, type: str = "i8", space: int = 3) -> str:
        return self.op(f"getelementptr {type}, ptr addrspace({space}) {base}, i32 {offset}")

    def sreg(self, name: str) -> str:
        return self.call("i32", f"read.ptx.sreg.{name}")

    def barrier(self) -> None:
        self.call("void", "barrier.cta.sync.aligned.all", "i32 0")

    def parts(self, value: str, type: str, count: int) -> list[str]:
        return [self.op(f"extractvalue {type} {value}, {i}") for i in range(count)]

    def if_(self, condition: str) -> str:
        n = f"b{self.new()[2:]}"
        self.do(f"br i1 {condition}, label %{n}, label %{n}x")
        self.label(n)
        return n

    def fi(self, n: str) -> None:
        self.go(n + "x")
        self.label(n + "x")

    def wait(self, mbarrier: str, parity) -> None:
        """Spin until the phase of this parity is complete."""
        n = f"w{self.new()[2:]}"
        self.go(n)
        self.label(n)
        done = self.call(
            "i1", "mbarrier.try.wait.parity.scope.cta.space.cta", f"ptr addrspace(3) {mbarrier}", f"i32 {parity}"
        )
        self.do(f"br i1 {done}, label %{n}x, label %{n}")
        self.label(n + "x")

    def module(self) -> str:
        body = "\n".join([*self.lines, "  ret void", "}"])
        used = dict.fromkeys(re.findall(r"@llvm\.([\w.]+)\(", body))
        return "\n".join([*self.head, *map(declaration, used), body]) + "\n"


def vector_add(bound: str = "%n") -> str:
    t = Text(
        "ptr addrspace(1) noalias align 16 %x, ptr addrspace(1) noalias align 16 %y, "
        "ptr addrspace(1) noalias align 16 %z, i32 %n"
    )
    i = t.add(t.mul(t.sreg("ctaid.x"), t.sreg("ntid.x")), t.sreg("tid.x"))
    inside = t.if_(t.op(f"icmp slt i32 {i}, {bound}"))
    x, y = (t.op(f"load float, ptr addrspace(1) {t.at(a, i, 'float', 1)}") for a in ("%x", "%y"))
    t.do(f"store float {t.op(f'fadd float {x}, {y}')}, ptr addrspace(1) {t.at('%z', i, 'float', 1)}")
    t.fi(inside)
    return t.module()


def block_sum(barrier: bool = True, words: int = 8, mask: str = "-1", divergent: bool = False) -> str:
    """y[block] = the sum of 256 elements of x: shuffles within warps, shared memory between them."""
    t = Text("ptr addrspace(1) %x, ptr addrspace(1) %y", '"nvvm.reqntid"="256"')
    t.head.append(f"@s = internal addrspace(3) global [{words} x float] poison, align 4")
    tid, block = t.sreg("tid.x"), t.sreg("ctaid.x")
    v = t.op(f"load float, ptr addrspace(1) {t.at('%x', t.add(t.mul(block, 256), tid), 'float', 1)}")
    for step in (16, 8, 4, 2, 1):
        if divergent and step == 2:
            end = t.if_(t.op(f"icmp ult i32 {t.i32('and', tid, 31)}, 20"))
            t.call("float", "shfl.sync.bfly.f32", f"i32 {mask}", f"float {v}", "i32 2", "i32 31")
            t.fi(end)
            continue
        other = t.call("float", "shfl.sync.bfly.f32", f"i32 {mask}", f"float {v}", f"i32 {step}", "i32 31")
        v = t.op(f"fadd float {v}, {other}")
    end = t.if_(t.op(f"icmp eq i32 {t.i32('and', tid, 31)}, 0"))
    t.do(f"store float {v}, ptr addrspace(3) {t.at('@s', t.i32('lshr', tid, 5), 'float')}")
    t.fi(end)
    if barrier:
        t.barrier()
    end = t.if_(t.op(f"icmp eq i32 {tid}, 0"))
    total = "0.0"
    for w in range(8):
        word = t.op(f"load float, ptr addrspace(3) {t.at('@s', w, 'float')}")
        total = t.op(f"fadd float {total}, {word}")
    t.do(f"store float {total}, ptr addrspace(1) {t.at('%y', block, 'float', 1)}")
    t.fi(end)
    return t.module()


def sgemm(M: int = 128, N: int = 128, K: int = 128, first_barrier: bool = True, second_barrier: bool = True) -> str:
    """C = A B in f32: tiles of 128 x 128 x 16 in shared memory, 256 threads of 8 x 8 accumulators."""
    t = Text("ptr addrspace(1) %A, ptr addrspace(1) %B, ptr addrspace(1) %C", '"nvvm.reqntid"="256"')
    t.head.append("@a = internal addrspace(3) global [2048 x float] poison, align 16")  # [k, m]
    t.head.append("@b = internal addrspace(3) global [2048 x float] poison, align 16")  # [k, n]
    tid, m0, n0 = t.sreg("tid.x"), t.mul(t.sreg("ctaid.y"), 128), t.mul(t.sreg("ctaid.x"), 128)
    tm, tn = t.mul(t.i32("lshr", tid, 4), 8), t.mul(t.i32("and", tid, 15), 8)
    a_row, a_col = t.i32("lshr", tid, 1), t.mul(t.i32("and", tid, 1), 8)
    b_row, b_col = t.i32("lshr", tid, 4), t.mul(t.i32("and", tid, 15), 8)
    a_at, b_at = t.mul(t.add(m0, a_row), K), t.add(t.mul(b_row, N), t.add(n0, b_col))
    t.go("loop")
    t.label("loop")
    t.do("%k = phi i32 [ 0, %entry ], [ %k1, %loop ]")
    acc = [[f"%c{i}_{j}" for j in range(8)] for i in range(8)]
    for i in range(8):
        for j in range(8):
            t.do(f"{acc[i][j]} = phi float [ 0.0, %entry ], [ %d{i}_{j}, %loop ]")
    for h in (0, 4):
        at = t.add(t.add(a_at, a_col), t.add("%k", h))
        v = t.op(f"load <4 x float>, ptr addrspace(1) {t.at('%A', at, 'float', 1)}, align 16")
        for e in range(4):
            to = t.at("@a", t.add(t.mul(t.add(a_col, h + e), 128), a_row), "float")
            t.do(f"store float {t.op(f'extractelement <4 x float> {v}, i32 {e}')}, ptr addrspace(3) {to}")
        at = t.add(t.add(b_at, t.mul("%k", N)), h)
        v = t.op(f"load <4 x float>, ptr addrspace(1) {t.at('%B', at, 'float', 1)}, align 16")
        to = t.at("@b", t.add(t.mul(b_row, 128), t.add(b_col, h)), "float")
        t.do(f"store <4 x float> {v}, ptr addrspace(3) {to}, align 16")
    if first_barrier:
        t.barrier()
    for k in range(16):
        rows = []
        for array, first in (("@a", tm), ("@b", tn)):
            row = []
            for h in (0, 4):
                at = t.at(array, t.add(first, k * 128 + h), "float")
                v = t.op(f"load <4 x float>, ptr addrspace(3) {at}, align 16")
                row += [t.op(f"extractelement <4 x float> {v}, i32 {e}") for e in range(4)]
            rows.append(row)
        for i in range(8):
            for j in range(8):
                text = f"call float @llvm.fma.f32(float {rows[0][i]}, float {rows[1][j]}, float {acc[i][j]})"
                if k < 15:
                    acc[i][j] = t.op(text)
                else:
                    t.do(f"%d{i}_{j} = {text}")
    if second_barrier:
        t.barrier()
    t.do("%k1 = add i32 %k, 16")
    t.do(f"%more = icmp slt i32 %k1, {K}")
    t.do("br i1 %more, label %loop, label %out")
    t.label("out")
    for i in range(8):
        row = t.mul(t.add(t.add(m0, tm), i), N)
        for j in range(8):
            to = t.at("%C", t.add(t.add(row, t.add(n0, tn)), j), "float", 1)
            t.do(f"store float %d{i}_{j}, ptr addrspace(1) {to}")
    return t.module()


def bf16_gemm(M: int = 128, N: int = 128, K: int = 128, pending: int = 1, barrier: bool = True) -> str:
    """C (f32) = A B in bf16: tiles of 128 x 128 x 32, three stages of cp.async, ldmatrix from swizzled shared memory,
    mma.m16n8k16; eight warps of 64 x 32."""
    STAGE = 128 * 32 * 4  # bytes of a tile of A and one of B
    t = Text("ptr addrspace(1) %A, ptr addrspace(1) %B, ptr addrspace(1) %C", '"nvvm.reqntid"="256"')
    t.head.append("@sm = external addrspace(3) global [0 x i8], align 128")
    tid, m0, n0 = t.sreg("tid.x"), t.mul(t.sreg("ctaid.y"), 128), t.mul(t.sreg("ctaid.x"), 128)
    warp, lane = t.i32("lshr", tid, 5), t.i32("and", tid, 31)
    wm, wn = t.mul(t.i32("and", warp, 1), 64), t.mul(t.i32("lshr", warp, 1), 32)

    def a_offset(row, chunk):  # 64 bytes a row, four pieces of 16
        return t.add(t.mul(row, 64), t.mul(t.i32("xor", chunk, t.i32("and", t.i32("lshr", row, 1), 3)), 16))

    def b_offset(row, chunk):  # 256 bytes a row, sixteen pieces of 16
        return t.add(t.add(t.mul(row, 256), t.mul(t.i32("xor", chunk, t.i32("and", row, 7)), 16)), 128 * 64)

    copies = []
    for j in range(2):
        i = t.add(tid, j * 256)
        row, chunk = t.i32("lshr", i, 2), t.i32("and", i, 3)
        copies.append(("%A", t.add(t.mul(t.add(m0, row), K), t.mul(chunk, 8)), 32, a_offset(row, chunk)))
        row, chunk = t.i32("lshr", i, 4), t.i32("and", i, 15)
        copies.append(("%B", t.add(t.mul(row, N), t.add(n0, t.mul(chunk, 8))), 32 * N, b_offset(row, chunk)))

    def issue(tile, stage):
        for array, at, step, to in copies:
            source = t.at(array, t.add(at, t.mul(tile, step)), "bfloat", 1)
            target = t.at("@sm", t.add(to, stage))
            t.call("void", "cp.async.cg.shared.global.16", f"ptr addrspace(3) {target}", f"ptr addrspace(1) {source}")

    low, high = t.i32("and", lane, 15), t.i32("lshr", lane, 4)
    a_at = [[a_offset(t.add(wm, t.add(low, 16 * i)), t.add(high, 2 * k)) for k in range(2)] for i in range(4)]
    chunk = t.add(t.i32("lshr", wn, 3), high)
    b_at = [[b_offset(t.add(low, 16 * k), t.add(chunk, 2 * j)) for k in range(2)] for j in range(2)]
    for s in range(2):
        issue(s, s * STAGE)
        t.call("void", "cp.async.commit.group")
    t.go("loop")
    t.label("loop")
    t.do("%tile = phi i32 [ 0, %entry ], [ %tile1, %next ]")
    t.do("%from = phi i32 [ 0, %entry ], [ %from1, %next ]")
    t.do(f"%to = phi i32 [ {2 * STAGE}, %entry ], [ %to1, %next ]")
    acc = [[[f"%c{i}_{j}_{r}" for r in range(4)] for j in range(4)] for i in range(4)]
    names = [(i, j, r) for i in range(4) for j in range(4) for r in range(4)]
    for i, j, r in names:
        t.do(f"{acc[i][j][r]} = phi float [ 0.0, %entry ], [ %d{i}_{j}_{r}, %next ]")
    t.call("void", "cp.async.wait.group", f"i32 {pending}")
    if barrier:
        t.barrier()
    ahead = t.add("%tile", 2)
    end = t.if_(t.op(f"icmp slt i32 {ahead}, {K // 32}"))
    issue(ahead, "%to")
    t.fi(end)
    t.call("void", "cp.async.commit.group")
    four, result = "{ i32, i32, i32, i32 }", "{ float, float, float, float }"
    for k in range(2):
        a, b = [], []
        for at in a_at:
            p = t.at("@sm", t.add(at[k], "%from"))
            v = t.call(four, "ldmatrix.sync.aligned.m8n8.x4.b16.p3", f"ptr addrspace(3) {p}")
            a.append(t.parts(v, four, 4))
        for at in b_at:
            p = t.at("@sm", t.add(at[k], "%from"))
            v = t.call(four, "ldmatrix.sync.aligned.m8n8.x4.trans.b16.p3", f"ptr addrspace(3) {p}")
            v = t.parts(v, four, 4)
            b += [v[:2], v[2:]]
        for i in range(4):
            for j in range(4):
                operands = [f"i32 {x}" for x in a[i] + b[j]] + [f"float {x}" for x in acc[i][j]]
                v = t.call(result, "mma.m16n8k16.row.col.bf16", *operands)
                if k:
                    for r in range(4):
                        t.do(f"%d{i}_{j}_{r} = extractvalue {result} {v}, {r}")
                else:
                    acc[i][j] = t.parts(v, result, 4)
    t.go("next")
    t.label("next")
    t.do("%tile1 = add i32 %tile, 1")
    for name in ("from", "to"):
        moved = t.add(f"%{name}", STAGE)
        t.do(f"%{name}1 = select i1 {t.op(f'icmp eq i32 {moved}, {3 * STAGE}')}, i32 0, i32 {moved}")
    t.do(f"%more = icmp slt i32 %tile1, {K // 32}")
    t.do("br i1 %more, label %loop, label %out")
    t.label("out")
    row, col = t.add(t.add(m0, wm), t.i32("lshr", lane, 2)), t.add(t.add(n0, wn), t.mul(t.i32("and", lane, 3), 2))
    for i, j, r in names:
        at = t.add(t.mul(t.add(row, 16 * i + r // 2 * 8), N), t.add(col, 8 * j + r % 2))
        t.do(f"store float %d{i}_{j}_{r}, ptr addrspace(1) {t.at('%C', at, 'float', 1)}")
    return t.module()
