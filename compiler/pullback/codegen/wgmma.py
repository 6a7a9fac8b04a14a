"""`wgmma`: the products of a warpgroup on sm_90a.  A tile of kernel IR (`products.py`) in, inline assembly out.

Operands lie in shared memory as copies leave them (`roles.py`): in lines of 128 bytes, 8 of which exchange pieces of
16 bytes; a wider operand is several of these side by side.  Warp w of a role has rows 16 w .. 16 w + 15 of the
accumulator.  Of these lane l has rows l / 4 and l / 4 + 8, and columns 2 (l mod 4) and the next of every 8, which is
how loops over `warp`, and two over `lane` (8 and 4), deal it out.

LLVM has no intrinsic for the instruction, so it stands in functions of its own; the emulator knows them by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..errors import VerifyError
from ..kernel.kernel import Affine, Kernel, Load, Loop, Stmt, Store, Tile, exprs, loads, walk
from ..kernel.products import DEPTH, GROUP, LINE, ROWS, Operand, Product, product
from .builder import FLOAT, I32, Value
from .roles import shared

if TYPE_CHECKING:
    from .threads import ThreadEmitter

_FRAGMENT = ({("warp", 16), ("lane", 1)}, {("lane", 2)})
"""How the rows and the columns of an accumulator move with threads: binding and coefficient."""

_CALLED = re.compile(r"@(pb\.wgmma\.[\w.]+)\(")
_NAME = re.compile(r"pb\.wgmma\.m64n(\d+)k(\d+)\.f32\.(bf16|f16|tf32)((?:\.ta|\.tb)*)$")
_WAIT = re.compile(r"pb\.wgmma\.wait\.(\d+)\.f32x(\d+)$")
_ATOM = 8 * LINE
"""Bytes of 8 lines: after these the exchange of pieces repeats."""


def emit(em: ThreadEmitter, tile: Tile) -> None:
    """All products of a tile, and the wait for them."""
    b, p = em.b, product(tile)
    if isinstance(p, str):
        raise VerifyError(f"kernel {em.kernel.name}: tile wgmma: {p}")
    if em.warps * 16 != p.rows:
        raise VerifyError(f"kernel {em.kernel.name}: {em.warps} warps multiply {16 * em.warps} rows, not {p.rows}")
    dtype = em.buffers[p.a.buffer].dtype
    step = DEPTH[dtype]
    kind = {"f32": "tf32"}.get(dtype.name, dtype.name)
    name = f"pb.wgmma.m{ROWS}n{p.columns}k{step}.f32.{kind}" + ".ta" * (not p.a.along_k) + ".tb" * (not p.b.along_k)
    group = b.zext(b.lshr(em.number("warp"), GROUP.bit_length() - 1), "i64") if em.warps > GROUP else None
    a, w = _descriptor(em, p.a, p, group), _descriptor(em, p.b, p, None)
    acc = em.buffers[p.acc]
    places = [b.offset(em.pointer(acc), "float", at) for at in _registers(p)]
    values = [b.load(FLOAT, q, 4, acc.name, True) for q in places]
    struct = _struct(len(values))
    b.line("call void @llvm.nvvm.wgmma.fence.sync.aligned()")
    for k in range(0, p.depth, step):
        operands = [_advance(em, d, x, k) for d, x in ((a, p.a), (w, p.b))]
        values = _call(em, struct, f"@{name}", values, f", {operands[0]}, {operands[1]}, i1 true")
    b.line("call void @llvm.nvvm.wgmma.commit_group.sync.aligned()")
    values = _call(em, struct, f"@pb.wgmma.wait.0.f32x{len(values)}", values, "")
    for q, v in zip(places, values, strict=True):
        b.store(v, q, 4, acc.name)


def check(kernel: Kernel) -> None:
    """All that touches an accumulator touches each thread's own elements."""
    products = [product(s) for s in walk(kernel.body) if isinstance(s, Tile) and s.name == "wgmma"]
    sums = {p.acc for p in products if isinstance(p, Product)}
    for x, around in _accesses(kernel.body, ()) if sums else ():
        if x.buffer in sums and not _own(x, around):
            index = ", ".join(map(str, x.index))
            raise VerifyError(f"kernel {kernel.name}: {x.buffer}[{index}] is not what wgmma leaves with each thread")


def _accesses(stmts: Iterable[Stmt], around: tuple[Loop, ...]) -> Iterator[tuple[Load | Store, tuple[Loop, ...]]]:
    """Every access outside of the products, with the loops around it."""
    for s in stmts:
        if isinstance(s, Store):
            yield s, around
            yield from ((x, around) for e in exprs(s) for x in loads(e))
        elif isinstance(s, Loop):
            yield from _accesses(s.body, (*around, s))
        elif isinstance(s, Tile) and s.name != "wgmma":
            yield from _accesses(s.body, around)


def _own(x: Load | Store, around: tuple[Loop, ...]) -> bool:
    """Is this access of the elements that each thread has?"""
    loops = {s.axis: s for s in around}
    lanes = [s.axis for s in around if s.binding == "lane"]
    if [loops[a].extent for a in lanes] != [8, 4] or not all(isinstance(i, Affine) for i in x.index):
        return False
    (row, column), (high, low) = x.index, lanes
    rest = []
    for i, moves in ((row, _FRAGMENT[0]), (column, _FRAGMENT[1])):
        dealt = {n for n in i.axes if loops[n].binding in ("thread", "warp", "lane")}
        if {(loops[n].binding, i.coef(n)) for n in dealt} != moves:
            return False
        rest.append(Affine(i.const, tuple(t for t in i.terms if t[0] not in dealt)))
    pairs = [n for n, c in rest[1].terms if c % 8]
    if not row.coef(high) or not column.coef(low) or any(rest[1].coef(n) != 1 or loops[n].extent != 2 for n in pairs):
        return False
    return all(c % 8 == 0 for c in (rest[0].const, *(c for _, c in rest[0].terms))) and (
        len(pairs) < 2 and rest[1].const % 8 < (1 if pairs else 2)
    )


def _registers(p: Product) -> list[int]:
    """The elements of a thread in the instruction's order, in the accumulator without what moves with threads."""
    return [h * 8 * p.columns + t * 8 + e for t in range(p.columns // 8) for h in range(2) for e in range(2)]


def _call(em: ThreadEmitter, struct: str, name: str, values: list[Value], rest: str) -> list[Value]:
    b = em.b
    r = b.here(FLOAT, f"call {struct} {name}({', '.join(map(str, values))}{rest})")
    return [b.here(FLOAT, f"extractvalue {struct} {r.ref}, {i}") for i in range(len(values))]


def _struct(n: int) -> str:
    return "{ " + ", ".join(["float"] * n) + " }"


# ---- descriptors ----------------------------------------------------------------------------------------
def _descriptor(em: ThreadEmitter, x: Operand, p: Product, group: Value | None) -> Value:
    """Address, distances and layout of an operand; `group`: which 64 rows."""
    b, buffer = em.b, em.buffers[x.buffer]
    size = buffer.dtype.size
    index = (*x.at, Affine(), Affine())
    pointer, _ = em.place(buffer, index, x)
    if group is not None:
        stride = ROWS * LINE if x.along_k else ROWS * size // LINE * p.depth * LINE
        pointer = b.offset(pointer, "i8", b.mul(group, stride))
    q = shared(em, pointer)
    address = b.pure(I32, f"ptrtoint ptr addrspace(3) {q.ref} to i32", q.depth)
    low = b.zext(b.lshr(b.and_(address, 0x3FFFF), 4), "i64")
    lead = 1 if x.along_k else p.depth * LINE >> 4
    return b.or_(low, lead << 16 | _ATOM >> 4 << 32 | 1 << 62)


def _advance(em: ThreadEmitter, d: Value, x: Operand, k: int) -> Value:
    """The operand from k on: further along its lines, or lines further down."""
    size = em.buffers[x.buffer].dtype.size
    return em.b.add(d, (k * size if x.along_k else k * LINE) >> 4) if k else d


# ---- inline assembly ------------------------------------------------------------------------------------
def wrappers(text: str) -> str:
    """The definitions of the functions of this file that a module calls."""
    return "".join(_definition(name) for name in sorted(set(_CALLED.findall(text))))


def _definition(name: str) -> str:
    if m := _WAIT.match(name):
        pending, count = map(int, m.groups())
        return _function(name, count, [], f"wgmma.wait_group.sync.aligned {pending};", ",~{memory}", "")
    m = _NAME.match(name)
    assert m is not None, name
    n, k, kind, options = int(m[1]), int(m[2]), m[3], m[4].split(".")
    count = n // 2
    acc = ", ".join(f"${i}" for i in range(count))
    scale = f"{{ .reg .pred p; setp.ne.b32 p, ${2 * count + 2}, 0; "
    turned = f", {int('ta' in options)}, {int('tb' in options)}" if kind != "tf32" else ""
    shape = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind}"
    asm = f"{scale}{shape} {{{acc}}}, ${2 * count}, ${2 * count + 1}, p, 1, 1{turned}; }}"
    extend = "  %scale = zext i1 %x2 to i32\n"
    return _function(name, count, ["i64 %x0", "i64 %x1", "i32 %scale"], asm, ",l,l,r", extend)


def _function(name: str, count: int, extra: list[str], asm: str, constraints: str, before: str) -> str:
    """Accumulators go in and come out in the same registers."""
    struct, floats = _struct(count), [f"float %c{i}" for i in range(count)]
    tied = ",".join(["=f"] * count + [str(i) for i in range(count)])
    params = ", ".join(floats + [x.replace("i32 %scale", "i1 %x2") for x in extra])
    call = f'call {struct} asm sideeffect "{asm}", "{tied}{constraints}"({", ".join(floats + extra)}) convergent'
    body = f"{before}  %r = {call}\n  ret {struct} %r\n"
    return f"define internal {struct} @{name}({params}) alwaysinline convergent nounwind {{\n{body}}}\n"
