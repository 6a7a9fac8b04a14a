"""What each NVPTX intrinsic, and each `@pb.*` wrapper of inline assembly, does here: a function of LLVM IR ("shim").

A shim has the intrinsic's parameters and one more, the number of the call's place in the program.  Most pass their
operands on to a C function: constants first, then the operands as integers and pointers, an array for results that
are structures, the place last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = {"float": "i32", "<2 x half>": "i32", "<2 x bfloat>": "i32", "i1": "i32", "i16": "i32", "i8": "i32"}
P1, P3, P7, PTR = "ptr addrspace(1)", "ptr addrspace(3)", "ptr addrspace(7)", "ptr"


def _parts(result: str) -> list[str]:
    return [p.strip() for p in result.strip("{} ").split(",")]


def _to_word(type: str, value: str, name: str) -> tuple[str, str]:
    """(lines, operand) of a value as an integer or pointer."""
    if type not in _WORD:
        return "", f"{type} {value}"
    op = "zext" if type[0] == "i" else "bitcast"
    return f"  {name} = {op} {type} {value} to i32\n", f"i32 {name}"


def _from_word(type: str, value: str, name: str) -> str:
    if type == "i32":
        return f"  {name} = add i32 {value}, 0\n"
    return f"  {name} = {'trunc' if type[0] == 'i' else 'bitcast'} i32 {value} to {type}\n"


def forward(
    symbol: str, result: str, params: Iterable[str], constants: Iterable[int] = (), packed: tuple[int, int] = (0, 0)
) -> str:
    """A shim that calls C.  The parameters `packed[0] <= i < packed[1]` go as one array of 32-bit words."""
    params, lines, operands = list(params), [], [f"i32 {c}" for c in constants]
    for i, type in enumerate(params):
        text, operand = _to_word(type, f"%a{i}", f"%w{i}")
        lines.append(text)
        if packed[0] <= i < packed[1]:
            if i == packed[0]:
                lines.insert(0, f"  %in = alloca [{packed[1] - packed[0]} x i32]\n")
                operands.append("ptr %in")
            lines.append(f"  %q{i} = getelementptr i32, ptr %in, i32 {i - packed[0]}\n  store {operand}, ptr %q{i}\n")
        else:
            operands.append(operand)
    returns, tail = "void", "  ret void\n"
    if result.startswith("{"):
        parts = _parts(result)
        lines.append(f"  %out = alloca [{len(parts)} x i32]\n")
        operands.append("ptr %out")
        tail, last = "", "poison"
        for i, type in enumerate(parts):
            tail += f"  %p{i} = getelementptr i32, ptr %out, i32 {i}\n  %r{i} = load i32, ptr %p{i}\n"
            tail += _from_word(type, f"%r{i}", f"%t{i}") + f"  %s{i} = insertvalue {result} {last}, {type} %t{i}, {i}\n"
            last = f"%s{i}"
        tail += f"  ret {result} {last}\n"
    elif result != "void":
        returns = _WORD.get(result, result)
        same = returns == result
        tail = ("" if same else _from_word(result, "%r", "%t")) + f"  ret {result} {'%r' if same else '%t'}\n"
    operands.append("i32 %site")
    called = f"call {returns} @{symbol}({', '.join(operands)})"
    return "".join(lines) + f"  {'' if returns == 'void' else '%r = '}{called}\n{tail}"


class Shim:
    """`body` is the text between the braces; `needs` are declarations of LLVM intrinsics that it uses."""

    def __init__(self, result: str, params: Iterable[str], body: str, needs: str = ""):
        self.result, self.params, self.body, self.needs = result, tuple(params), body, needs
        self.symbols = tuple(dict.fromkeys(re.findall(r"@(simt_\w+)", body)))

    def definition(self, name: str) -> str:
        params = ", ".join([f"{t} %a{i}" for i, t in enumerate(self.params)] + ["i32 %site"])
        return f"define internal {self.result} @{name}({params}) noinline {{\n{self.body}}}\n"


def _table() -> dict[str, Shim]:
    table: dict[str, Shim] = {}

    def add(name, result, params, symbol, *constants, packed=(0, 0)):
        params = params.split(", ") if params else []
        table[name] = Shim(result, params, forward(symbol, result, params, constants, packed))

    def inline(names, result, params, body, needs=""):
        for name in names.split():
            table[name] = Shim(result, params.split(", ") if params else [], body, needs)

    # who am I
    sreg = "read.ptx.sreg."
    groups = "tid ntid ctaid nctaid clusterid nclusterid cluster.ctaid cluster.nctaid"
    for g, group in enumerate(groups.split()):
        for a, axis in enumerate("xyz"):
            add(f"{sreg}{group}.{axis}", "i32", "", "simt_register", 3 * g + a)
    rest = "laneid warpid warpsize cluster.ctarank cluster.nctarank lanemask.eq lanemask.lt lanemask.ge"
    for i, name in enumerate(rest.split()):
        add(sreg + name, "i32", "", "simt_register", 24 + i)
    add("activemask", "i32", "", "simt_active_mask")
    add("exit", "void", "", "simt_exit")
    table["nanosleep"] = Shim("void", ["i32"], "  call void @simt_yield(i32 %site)\n  ret void\n")

    # barriers: mode 1 arrives only, mode 2 needs whole warps
    for aligned in ("", ".aligned"):
        mode = 2 if aligned else 0
        barrier = f"barrier.cta.{{}}{aligned}.{{}}"
        body = f"  call void @simt_barrier(i32 %a0, i32 0, i32 {mode}, i32 0, i32 %site)\n  ret void\n"
        table[barrier.format("sync", "all")] = Shim("void", ["i32"], body)
        for act, extra in (("sync", 0), ("arrive", 1)):
            body = f"  call void @simt_barrier(i32 %a0, i32 %a1, i32 {mode + extra}, i32 0, i32 %site)\n  ret void\n"
            table[barrier.format(act, "count")] = Shim("void", ["i32", "i32"], body)
        for o, op in enumerate(("popc", "and", "or")):
            back, result = (
                ("  ret i32 %r\n", "i32") if op == "popc" else ("  %t = trunc i32 %r to i1\n  ret i1 %t\n", "i1")
            )
            for name, params, count in (("all", ["i32", "i1"], 0), ("count", ["i32", "i32", "i1"], "%a1")):
                last = len(params) - 1
                call = f"call i32 @simt_barrier_reduce(i32 {o}, i32 {mode}, i32 %a0, i32 {count}, i32 %w, i32 %site)"
                body = f"  %w = zext i1 %a{last} to i32\n  %r = {call}\n{back}"
                table[f"barrier.cta.red.{op}{aligned}.{name}"] = Shim(result, params, body)
        add(f"barrier.cluster.arrive{aligned}", "void", "", "simt_cluster_arrive", 0)
        add(f"barrier.cluster.arrive.relaxed{aligned}", "void", "", "simt_cluster_arrive", 1)
        add(f"barrier.cluster.wait{aligned}", "void", "", "simt_cluster_wait")

    # warps
    add("bar.warp.sync", "void", "i32", "simt_warp_sync")
    for m, mode in enumerate(("up", "down", "bfly", "idx")):
        for short, type in (("i32", "i32"), ("f32", "float")):
            params = f"i32, {type}, i32, i32"
            add(f"shfl.sync.{mode}.{short}p", f"{{ {type}, i1 }}", params, "simt_shuffle", m)
            call = f"call void @simt_shuffle(i32 {m}, i32 %a0, i32 %w, i32 %a2, i32 %a3, ptr %out, i32 %site)"
            body = f"  %out = alloca [2 x i32]\n  %w = bitcast {type} %a1 to i32\n  {call}\n"
            body += f"  %r = load {type}, ptr %out\n  ret {type} %r\n"
            table[f"shfl.sync.{mode}.{short}"] = Shim(type, params.split(", "), body)
    for m, mode in enumerate(["add", "or", "and", "xor", "max", "min", "umax", "umin"]):
        add(f"redux.sync.{mode}", "i32", "i32, i32", "simt_vote", m)
    for m, mode in enumerate(["ballot", "any", "all", "uni"]):
        result = "i32" if mode == "ballot" else "i1"
        back = "  ret i32 %r\n" if mode == "ballot" else "  %t = trunc i32 %r to i1\n  ret i1 %t\n"
        body = f"  %w = zext i1 %a1 to i32\n  %r = call i32 @simt_vote(i32 {8 + m}, i32 %w, i32 %a0, i32 %site)\n{back}"
        table[f"vote.{mode}.sync"] = Shim(result, ["i32", "i1"], body)
    add("match.all.sync.i32p", "{ i32, i1 }", "i32, i32", "simt_match", 1)
    add("elect.sync", "{ i32, i1 }", "i32", "simt_elect")
    body = "  %out = alloca [2 x i32]\n  call void @simt_match(i32 0, i32 %a0, i32 %a1, ptr %out, i32 %site)\n"
    table["match.any.sync.i32"] = Shim("i32", ["i32", "i32"], body + "  %r = load i32, ptr %out\n  ret i32 %r\n")

    # matrices
    for n in (1, 2, 4):
        result = "i32" if n == 1 else "{ " + ", ".join(["i32"] * n) + " }"
        for t, trans in enumerate(("", ".trans")):
            ld, st = f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.b16.p3", f"stmatrix.sync.aligned.m8n8.x{n}{trans}.b16.p3"
            add(ld, result, P3, "simt_ldmatrix", n, t)
            if n == 1:
                call = f"  call void @simt_ldmatrix(i32 1, i32 {t}, {P3} %a0, ptr %out, i32 %site)\n"
                body = f"  %out = alloca i32\n{call}  %r = load i32, ptr %out\n  ret i32 %r\n"
                table[ld] = Shim("i32", [P3], body)
            add(st, "void", ", ".join([P3] + ["i32"] * n), "simt_stmatrix", n, t, packed=(1, 1 + n))

    def mma(name, kind, k, a, count, acc="float", n_acc=4):
        params = [a] * count + [acc] * n_acc
        result = "{ " + ", ".join([acc] * n_acc) + " }"
        add(f"mma.{name}", result, ", ".join(params), "simt_mma", kind, k, packed=(0, len(params)))

    for k in (8, 16):
        mma(f"m16n8k{k}.row.col.bf16", 0, k, "i32", k * 3 // 8)
        mma(f"m16n8k{k}.row.col.f32.f32", 1, k, "<2 x half>", k * 3 // 8)
        mma(f"m16n8k{k}.row.col.f16.f16", 3, k, "<2 x half>", k * 3 // 8, "<2 x half>", 2)
        mma(f"m16n8k{k // 2}.row.col.tf32", 2, k // 2, "i32", k * 3 // 8)

    # asynchronous copies
    for cache, size in (("cg", 16), ("ca", 16), ("ca", 8), ("ca", 4)):
        name = f"cp.async.{cache}.shared.global.{size}"
        add(name + ".s", "void", f"{P3}, {P1}, i32", "simt_copy", size)
        call = f"  call void @simt_copy(i32 {size}, {P3} %a0, {P1} %a1, i32 {size}, i32 %site)\n  ret void\n"
        table[name] = Shim("void", [P3, P1], call)
    add("cp.async.commit.group", "void", "", "simt_copy_commit")
    add("cp.async.wait.group", "void", "i32", "simt_copy_wait")
    add("cp.async.wait.all", "void", "", "simt_copy_wait_all")
    add("cp.async.mbarrier.arrive.shared", "void", P3, "simt_copy_arrive", 1)
    add("cp.async.mbarrier.arrive.noinc.shared", "void", P3, "simt_copy_arrive", 0)
    add("cp.async.bulk.commit.group", "void", "", "simt_bulk_commit")
    add("cp.async.bulk.wait.group", "void", "i32", "simt_bulk_wait")
    add("cp.async.bulk.wait.group.read", "void", "i32", "simt_bulk_wait")

    # mbarriers
    one = "  %r = call i64 @simt_mbarrier_arrive({p} %a0, i32 1, i32 %site)\n  ret i64 %r\n"
    add("mbarrier.init.shared", "void", f"{P3}, i32", "simt_mbarrier_init")
    add("mbarrier.inval.shared", "void", P3, "simt_mbarrier_invalidate")
    table["mbarrier.arrive.shared"] = Shim("i64", [P3], one.format(p=P3))
    for scope in ("cta", "cluster"):
        where = f".scope.{scope}.space.cta"
        add(f"mbarrier.arrive{where}", "i64", f"{P3}, i32", "simt_mbarrier_arrive")
        add(f"mbarrier.arrive.drop{where}", "i64", f"{P3}, i32", "simt_mbarrier_drop")
        add(f"mbarrier.arrive.expect.tx{where}", "i64", f"{P3}, i32", "simt_mbarrier_arrive_expect")
        add(f"mbarrier.expect.tx{where}", "void", f"{P3}, i32", "simt_mbarrier_expect")
        for m, wait in enumerate(("test", "try")):
            add(f"mbarrier.{wait}.wait{where}", "i1", f"{P3}, i64", "simt_mbarrier_wait", 2 * m)
            body = "  %s = zext i32 %a1 to i64\n"
            body += f"  %r = call i32 @simt_mbarrier_wait(i32 {2 * m + 1}, {P3} %a0, i64 %s, i32 %site)\n"
            parity = Shim("i1", [P3, "i32"], body + "  %t = trunc i32 %r to i1\n  ret i1 %t\n")
            table[f"mbarrier.{wait}.wait.parity{where}"] = parity
        remote = f".scope.{scope}.space.cluster"
        call = f"  %r = call i64 @simt_{{}}({P7} %a0, i32 %a1, i32 %site)\n  ret void\n"
        table[f"mbarrier.arrive{remote}"] = Shim("void", [P7, "i32"], call.format("mbarrier_arrive"))
        table[f"mbarrier.arrive.expect.tx{remote}"] = Shim("void", [P7, "i32"], call.format("mbarrier_arrive_expect"))
        add(f"mbarrier.expect.tx{remote}", "void", f"{P7}, i32", "simt_mbarrier_expect")

    # bulk copies and tensors
    load = f"  call void @simt_bulk_load({P7} %a0, {P3} %a1, {P1} %a2, i32 %a3, i32 %site)\n  ret void\n"
    params = [P7, P3, P1, "i32", "i16", "i64", "i1", "i1"]
    table["cp.async.bulk.global.to.shared.cluster"] = Shim("void", params, load)
    store = f"  call void @simt_bulk_store({P1} %a0, {P3} %a1, i32 %a2, i32 %site)\n  ret void\n"
    table["cp.async.bulk.shared.cta.to.global"] = Shim("void", [P1, P3, "i32", "i64", "i1"], store)
    for rank in range(1, 6):
        at = "".join(
            f"  %q{d} = getelementptr i32, ptr %at, i32 {d}\n  store i32 %a{{{d}}}, ptr %q{d}\n" for d in range(rank)
        )
        at = f"  %at = alloca [{rank} x i32]\n{at}"
        first = [3 + d for d in range(rank)]
        params = [P7, P3, PTR, *["i32"] * rank, "i16", "i64", "i1", "i1", "i32"]
        multicast = f"  %m = zext i16 %a{3 + rank} to i32\n  %u = zext i1 %a{5 + rank} to i32\n"
        operands = f"i32 {rank}, {P7} %a0, {P3} %a1, ptr %a2, ptr %at, i32 %m, i32 %u, i32 %site"
        body = at.format(*first) + multicast + f"  call void @simt_tensor_load({operands})\n  ret void\n"
        table[f"cp.async.bulk.tensor.g2s.tile.{rank}d"] = Shim("void", params, body)
        params = [P3, PTR, *["i32"] * rank, "i64", "i1"]
        call = f"  call void @simt_tensor_store(i32 {rank}, {P3} %a0, ptr %a1, ptr %at, i32 %site)\n  ret void\n"
        table[f"cp.async.bulk.tensor.s2g.tile.{rank}d"] = Shim(
            "void", params, at.format(*[2 + d for d in range(rank)]) + call
        )

    # blocks of a cluster lie next to each other
    mapa = "  %r = call i64 @simt_map_rank({p} %a0, i32 %a1, i32 %site)\n  %q = inttoptr i64 %r to {q}\n  ret {q} %q\n"
    table["mapa"] = Shim(PTR, [PTR, "i32"], mapa.format(p=PTR, q=PTR))
    table["mapa.shared.cluster"] = Shim(P7, [P3, "i32"], mapa.format(p=P3, q=P7))

    # wgmma's frame, fences, hints
    add("wgmma.fence.sync.aligned", "void", "", "simt_wgmma_fence")
    add("wgmma.commit_group.sync.aligned", "void", "", "simt_wgmma_commit")
    add("wgmma.wait_group.sync.aligned", "void", "i64", "simt_wgmma_wait_group")
    for space in (".async", ".async.global", ".async.shared_cta", ".async.shared_cluster"):
        add(f"fence.proxy{space}", "void", "", "simt_fence_proxy")
    inline(
        "fence.mbarrier_init.release.cluster griddepcontrol.wait griddepcontrol.launch.dependents",
        "void",
        "",
        "  ret void\n",
    )
    for name, device in (("membar.cta", 0), ("membar.gl", 1), ("membar.sys", 1), ("fence.sc.cluster", 0)):
        add(name, "void", "", "simt_fence", device)
    inline("setmaxnreg.inc.sync.aligned.u32 setmaxnreg.dec.sync.aligned.u32", "void", "i32", "  ret void\n")
    inline("prefetch.tensormap.p0", "void", PTR, "  ret void\n")

    # arithmetic
    def math(names, fn, wrap="  %r = call float @llvm.{fn}.f32(float %a0)\n  ret float %r\n"):
        inline(names, "float", "float", wrap.format(fn=fn), f"declare float @llvm.{fn}.f32(float)\n")

    math("ex2.approx.f32 ex2.approx.ftz.f32", "exp2")
    math("lg2.approx.f lg2.approx.ftz.f", "log2")
    math("sin.approx.f sin.approx.ftz.f", "sin")
    math("cos.approx.f cos.approx.ftz.f", "cos")
    math("sqrt.approx.f sqrt.approx.ftz.f sqrt.rn.f sqrt.rn.ftz.f", "sqrt")
    root = "  %s = call float @llvm.{fn}.f32(float %a0)\n  %r = fdiv float 1.0, %s\n  ret float %r\n"
    math("rsqrt.approx.f rsqrt.approx.ftz.f", "sqrt", root)
    inline("rcp.approx.ftz.f rcp.rn.f rcp.rn.ftz.f", "float", "float", "  %r = fdiv float 1.0, %a0\n  ret float %r\n")
    quotient = "  %r = fdiv float %a0, %a1\n  ret float %r\n"
    inline("div.approx.f div.approx.ftz.f div.full div.rn.f", "float", "float, float", quotient)
    for name, fn in (("fmax", "maxnum"), ("fmin", "minnum")):
        for nan, f in (("", fn), (".nan", fn.replace("num", "imum"))):
            needs = f"declare float @llvm.{f}.f32(float, float)\n"
            body = f"  %r = call float @llvm.{f}.f32(float %a0, float %a1)\n  ret float %r\n"
            inline(f"{name}{nan}.f {name}.ftz{nan}.f", "float", "float, float", body, needs)
    add("f2tf32.rna", "i32", "float", "simt_to_tf32")
    needs = "".join(
        f"declare float @llvm.{f}.f32({', '.join(['float'] * n)})\n"
        for f, n in (("fma", 3), ("fabs", 1), ("copysign", 2))
    )
    inline("fma.rn.ftz.f", "float", "float, float, float", _FMA_FTZ, needs)
    add("prmt", "i32", "i32, i32, i32", "simt_permute_bytes")
    return table


def _flush(x: str, out: str, size: str, bound: str) -> str:
    """Zero of x's sign where `size` is less than the bound."""
    return f"""  %{out}.m = call float @llvm.fabs.f32(float {size})
  %{out}.c = fcmp olt float %{out}.m, {bound}
  %{out}.z = call float @llvm.copysign.f32(float 0.0, float {x})
  %{out} = select i1 %{out}.c, float %{out}.z, float {x}
"""


_FMA_FTZ = (
    "".join(_flush(f"%a{i}", f"x{i}", f"%a{i}", "0x3810000000000000") for i in range(3))
    + """  %r = call float @llvm.fma.f32(float %x0, float %x1, float %x2)
  %l0 = fmul float %x0, 0x41F0000000000000
  %l2 = fmul float %x2, 0x41F0000000000000
  %l = call float @llvm.fma.f32(float %l0, float %x1, float %l2)
"""
    + _flush("%r", "s", "%l", "0x3A10000000000000")
    + "  ret float %s\n"
)
"""Results that round to less than 2^-126 show in those that are 2^32 times as large."""

INTRINSICS = _table()
"""By the name that follows `llvm.nvvm.`."""

_ELEMENTS = {
    "f16": ("half", 2), "f32": ("float", 4), "f64": ("double", 8),
    "i8": ("i8", 1), "i16": ("i16", 2), "i32": ("i32", 4), "i64": ("i64", 8),
}  # fmt: skip
_WGMMA = re.compile(r"wgmma\.m64n(\d+)k(8|16)\.f32\.(bf16|f16|tf32)((?:\.ta|\.tb|\.ra)*)$")
_WGMMA_WAIT = re.compile(r"wgmma\.wait\.(\d+)\.f32x(\d+)$")


def wrapper(name: str) -> Shim | None:
    """The shim of `@pb.<name>`, a function that holds inline assembly (docs/gpu-emulation.md lists them)."""
    if m := _WGMMA.match(name):
        n, kind, options = int(m[1]), ("bf16", "f16", "tf32").index(m[3]), m[4].split(".")
        if n % 8 or not 8 <= n <= 256 or (int(m[2]) == 8) != (kind == 2):
            return None
        flags = ("ta" in options) + 2 * ("tb" in options) + 4 * ("ra" in options)
        count, registers = n // 2, 4 if "ra" in options else 0
        words = ["float"] * count + ["i32"] * registers
        params = words + ([] if registers else ["i64"]) + ["i64", "i1"]
        body = forward("simt_wgmma", _struct(count), params, (kind, n, flags), packed=(0, len(words)))
        return Shim(_struct(count), params, body.replace("ptr %in, i64", "ptr %in, i64 0, i64") if registers else body)
    if m := _WGMMA_WAIT.match(name):
        count = int(m[2])
        body = forward("simt_wgmma_wait", _struct(count), ["float"] * count, (int(m[1]), count), packed=(0, count))
        return Shim(_struct(count), ["float"] * count, body)
    if m := re.match(r"store\.(?:v([24]))?(\w+)$", name):
        element, bytes = _ELEMENTS[m[2]]
        type, size = (f"<{m[1]} x {element}>", int(m[1]) * bytes) if m[1] else (element, bytes)
        body = "  br i1 %a2, label %yes, label %no\nyes:\n"
        body += f"  call void @simt_write(ptr %a1, i32 {size}, i32 {size}, i32 %site)\n"
        body += f"  store {type} %a0, ptr %a1, align {size}\n  br label %no\nno:\n  ret void\n"
        return Shim("void", [type, PTR, "i1"], body)
    if name == "tanh.approx.f32":
        body = "  %r = call float @llvm.tanh.f32(float %a0)\n  ret float %r\n"
        return Shim("float", ["float"], body, "declare float @llvm.tanh.f32(float)\n")
    return None


def _struct(count: int) -> str:
    return "{ " + ", ".join(["float"] * count) + " }"
