"""Roles, tokens and bulk copies on a GPU: statements of kernel IR's `concurrent.py` in; mbarriers and TMA out.

Blocks that run side by side (`Roles.blocks`) are a cluster: each brings its part of what all need and sends it to all;
so room in a stage is awaited from all of them.

The warps of a block are dealt to its roles, the largest role first, so that roles of whole warpgroups begin at one.
A role that only sends copies and waits is one thread's.  A token is an mbarrier, which is arrived at once by each warp
of a role (or by its only thread), and for each byte of a copy by the copy itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import VerifyError
from ..kernel.concurrent import (
    Arrive,
    Await,
    Copy,
    Role,
    Roles,
    arriving,
    box,
    brought_once,
    side_by_side,
    signals,
)
from ..kernel.kernel import Affine, Kernel, Loop, Stmt, Tile, walk
from ..kernel.products import LINE, Product, product
from .builder import I1, I32, PTR, Value
from .tensor_maps import tensor_map, tensor_maps

if TYPE_CHECKING:
    from .threads import ThreadEmitter

WARP = 32
GROUP = 4
"""Warps that change their number of registers together."""
MANY = 128
"""Columns of a product from which on its sums need more registers than even shares."""
REGISTERS = (56, 224)
"""Of each thread of a role that computes nothing, and of one that multiplies: in three groups 3 x 168 in all."""


def places(roles: Iterable[Role]) -> dict[str, int]:
    """role -> its first warp."""
    at, out = 0, {}
    for r in sorted(roles, key=lambda r: -r.warps):
        out[r.name] = at
        at += r.warps
    return out


def alone(role: Role) -> bool:
    """Is this a role for one thread?"""

    def simple(stmts: Iterable[Stmt]) -> bool:
        return all(
            isinstance(s, Copy | Arrive | Await)
            or (isinstance(s, Loop) and s.binding in ("serial", "unroll") and simple(s.body))
            for s in stmts
        )

    return simple(role.body)


def arrivals(together: Roles) -> dict[str, int]:
    """token array -> arrivals that end a phase."""
    count = {r.name: 1 if alone(r) else r.warps for r in together.body}
    common = of_all(together)
    return {
        token: sum(count[r] for r in names) * (together.blocks if token in common else 1)
        for token, names in arriving(together).items()
    }


def of_all(together: Roles) -> set[str]:
    """The tokens at which the roles of all blocks side by side arrive: those that copies wait for."""
    loaders = [r for r in together.body if together.blocks > 1 and any(isinstance(s, Copy) for s in walk(r.body))]
    return {s.token for s in signals(loaders) if isinstance(s, Await)}


def emit(em: ThreadEmitter, s: Roles | Role | Copy | Arrive | Await) -> None:
    """One statement."""
    if isinstance(s, Roles):
        _roles(em, s)
    elif isinstance(s, Copy):
        _copy(em, s)
    elif isinstance(s, Arrive):
        _arrive(em, s)
    else:
        assert isinstance(s, Await)
        _await(em, s)


def shared(em: ThreadEmitter, p: Value) -> Value:
    """A generic pointer as one to shared memory."""
    return em.b.pure(PTR, f"addrspacecast ptr {p.ref} to ptr addrspace(3)", p.depth)


def _token(em: ThreadEmitter, s: Copy | Arrive | Await) -> Value:
    return shared(em, em.place(em.buffers[s.token], s.index, s)[0])


# ---- roles ----------------------------------------------------------------------------------------------
def _roles(em: ThreadEmitter, s: Roles) -> None:
    b, counts, em.common = em.b, arrivals(s), of_all(s)
    with b.when(b.icmp("eq", em.number("thread"), 0)):
        for name, count in counts.items():
            for i in range(em.buffers[name].size):
                at = shared(em, b.offset(em.pointer(em.buffers[name]), "i64", i))
                b.line(f"call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) {at.ref}, i32 {count})")
        b.line("call void @llvm.nvvm.fence.mbarrier_init.release.cluster()")
    _meet(em, s)
    warp, first = em.number("warp"), places(s.body)
    products = [product(t) for t in walk(s.body) if isinstance(t, Tile) and t.name == "wgmma"]
    many = any(isinstance(p, Product) and p.columns >= MANY for p in products)
    changes = many and em.threads == 3 * GROUP * WARP and all(r.warps % GROUP == 0 for r in s.body)
    for r in sorted(s.body, key=lambda r: first[r.name]):
        mine = b.icmp("ult", b.sub(warp, first[r.name]), r.warps)
        with b.when(mine):
            if changes:
                how, n = ("dec", REGISTERS[0]) if alone(r) else ("inc", REGISTERS[1])
                b.line(f"call void @llvm.nvvm.setmaxnreg.{how}.sync.aligned.u32(i32 {n})")
            one = b.icmp("eq", em.number("thread"), first[r.name] * WARP) if alone(r) else None
            with b.when(one), em.only(first[r.name], r.warps):
                em.single = one is not None
                em.body(r.body)
                em.single = False
    if s.blocks > 1:
        _meet(em, s, ".relaxed")  # nobody leaves while others may still arrive at its tokens


def _meet(em: ThreadEmitter, s: Roles, order: str = "") -> None:
    """All threads of the block, or of the blocks side by side."""
    if s.blocks > 1:
        em.b.line(f"call void @llvm.nvvm.barrier.cluster.arrive{order}()")
        em.b.line("call void @llvm.nvvm.barrier.cluster.wait()")
    else:
        em.b.line("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")


def _map(em: ThreadEmitter, s: Copy) -> int:
    return tensor_maps(em.kernel).index(tensor_map(em.kernel, s)[0])


# ---- tokens ---------------------------------------------------------------------------------------------
def _arrive(em: ThreadEmitter, s: Arrive) -> None:
    b, at = em.b, _token(em, s)
    if not em.single:
        b.line("call void @llvm.nvvm.bar.warp.sync(i32 -1)")
    if s.token not in em.common:
        with b.when(None if em.single else b.icmp("eq", em.number("lane"), 0)):
            b.here(PTR, f"call i64 @llvm.nvvm.mbarrier.arrive.scope.cta.space.cta(ptr addrspace(3) {at.ref}, i32 1)")
        return
    blocks = side_by_side(em.kernel)[1]
    if em.single:
        raise VerifyError(f"kernel {em.kernel.name}: a role of one thread arrives at {s.token} of several blocks")
    with b.when(b.icmp("ult", em.number("lane"), blocks)):  # a lane for each of the blocks
        lane = em.number("lane")
        there = b.here(PTR, f"call ptr addrspace(7) @llvm.nvvm.mapa.shared.cluster(ptr addrspace(3) {at.ref}, {lane})")
        name = "llvm.nvvm.mbarrier.arrive.scope.cta.space.cluster"
        b.line(f"call void @{name}(ptr addrspace(7) {there.ref}, i32 1)")


def _await(em: ThreadEmitter, s: Await) -> None:
    """Try until it succeeds: each try is suspended for a while by the machine."""
    b, at, phase = em.b, _token(em, s), em.index(s.phase)
    parity = b.const(I32, phase & 1) if isinstance(phase, int) else b.and_(b.itrunc(phase, "i32"), 1)
    n = b.name()[1:]
    b.line(f"br label %try{n}")
    b.label(f"try{n}")
    name = "llvm.nvvm.mbarrier.try.wait.parity.scope.cta.space.cta"
    over = b.here(I1, f"call i1 @{name}(ptr addrspace(3) {at.ref}, {parity})")
    b.line(f"br i1 {over.ref}, label %over{n}, label %try{n}")
    b.label(f"over{n}")
    b.touch(em._written)


# ---- copies ---------------------------------------------------------------------------------------------
def _copy(em: ThreadEmitter, s: Copy) -> None:
    """One instruction for each line's width of the box; what is brought once, each block's part for all."""
    if not em.single:
        raise VerifyError(f"kernel {em.kernel.name}: copies are for roles that do nothing else")
    b, (chain, store, x) = em.b, box(s)
    outer, inner = chain
    target, size = em.buffers[store.buffer], em.buffers[store.buffer].dtype.size
    line = LINE // size
    if [i.axes for i in store.index[-2:]] != [{outer.axis}, {inner.axis}] or inner.extent % line:
        raise VerifyError(f"kernel {em.kernel.name}: a copy fills rows of {line} elements of {store.buffer}")
    _, order = tensor_map(em.kernel, s)
    token, n = _token(em, s), _map(em, s)
    saved = {t.axis: (em.env.get(t.axis), em.extents.get(t.axis)) for t in chain}
    em.env[outer.axis], em.env[inner.axis] = 0, 0
    blocks = side_by_side(em.kernel)[1] if brought_once(em.kernel, s) else 1
    part = outer.extent // blocks
    rank = b.zext(b.and_(em.number("block"), blocks - 1), "i64") if blocks > 1 else None
    others = f"i16 {(1 << blocks) - 1}, i64 0, i1 {'true' if blocks > 1 else 'false'}, i1 false, i32 0"
    to, _ = em.place(target, (*store.index[:-2], Affine(), Affine()), s.body)
    if rank is not None:
        em.env[outer.axis] = b.mul(rank, part)
        to = b.offset(to, "i8", b.mul(rank, part * LINE))
    for at in range(0, inner.extent, line):
        em.env[inner.axis] = at
        where = [em.index(x.index[d]) for d in reversed(order)]
        where = [b.const(I32, v) if isinstance(v, int) else b.itrunc(v, "i32") for v in where]
        p = shared(em, b.offset(to, f"i{8 * size}", at * outer.extent))
        q = b.pure(PTR, f"addrspacecast ptr addrspace(3) {p.ref} to ptr addrspace(7)", p.depth)
        expect = "llvm.nvvm.mbarrier.expect.tx.scope.cta.space.cta"
        b.line(f"call void @{expect}(ptr addrspace(3) {token.ref}, i32 {outer.extent * LINE})")
        b.line(
            f"call void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.{len(where)}d(ptr addrspace(7) {q.ref}, "
            f"ptr addrspace(3) {token.ref}, ptr %map{n}, {', '.join(map(str, where))}, {others})"
        )
    for axis, (value, extent) in saved.items():
        em.env[axis], em.extents[axis] = value, extent


def has_roles(kernel: Kernel) -> bool:
    return any(isinstance(s, Roles) for s in walk(kernel.body))
