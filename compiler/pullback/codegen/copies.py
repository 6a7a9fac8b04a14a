"""Asynchronous copies from global to shared memory: a store of kernel IR in, `cp.async` out.

One instruction takes 16 bytes past the first-level cache where both addresses are known to be multiples of that, else
4 or 8; where the source's mask fails it writes zeros and reads nothing.  What fits no instruction (16-bit elements
that no vector holds together) is copied at once, which is early but right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..kernel.kernel import Load, Store
from .builder import I32, PTR, Value

if TYPE_CHECKING:
    from .threads import ThreadEmitter

_CACHES = {4: "ca", 8: "ca", 16: "cg"}
"""Only whole lines of 16 bytes may pass the first-level cache."""


def copy(em: ThreadEmitter, s: Store) -> None:
    """Send one asynchronous store on its way, for the threads and lanes at hand."""
    b, x, size = em.b, s.value, em.buffers[s.buffer].dtype.size
    assert isinstance(x, Load)
    condition, mask = em.conditions(s.masks)
    read, holes = em.conditions([m for m in x.masks if m not in s.masks])
    if condition is False:
        return
    target, source = em.buffers[s.buffer], em.buffers[x.buffer]
    (to, k), (at, j) = em.place(target, s.index, s), em.place(source, x.index, x)
    assert isinstance(to, Value) and isinstance(at, Value)
    together = size * em.width
    if k == j == 1 and mask is holes is None and min(em.alignment(target, s), em.alignment(source, x)) == together:
        pieces = [(to, at, None, read)]
    elif size in _CACHES:
        together = size
        active, filled = em.lane_values(mask), em.lane_values(holes)
        pieces = [
            (
                b.offset(to, f"i{size * 8}", i * k),
                b.offset(at, f"i{size * 8}", i * j),
                None if active[i] is True else active[i],
                _also(em, read, filled[i]),
            )
            for i in range(em.width)
            if active[i] is not False
        ]
    else:
        return em.store(replace(s, asynchronous=False))
    with b.when(condition):
        for to, at, some, read in pieces:
            with b.when(some):
                _copy(em, to, at, together, read)
    b.touch((s.buffer,))


def _also(em: ThreadEmitter, condition: Value | bool | None, lane: Value | bool) -> Value | bool | None:
    """Where a lane's source is read."""
    if condition is False or lane is False:
        return False
    return condition if lane is True else em.both(condition, lane)


def _copy(em: ThreadEmitter, to: Value, at: Value, size: int, read: Value | bool | None) -> None:
    """One instruction; `read`: whether the source is read (None: always), else zeros are written."""
    b = em.b
    p = b.pure(PTR, f"addrspacecast ptr {to.ref} to ptr addrspace(3)", to.depth)
    q = b.pure(PTR, f"addrspacecast ptr {at.ref} to ptr addrspace(1)", at.depth)
    name = f"llvm.nvvm.cp.async.{_CACHES[size]}.shared.global.{size}"
    operands = f"ptr addrspace(3) {p.ref}, ptr addrspace(1) {q.ref}"
    if read is None:
        return b.line(f"call void @{name}({operands})")
    taken = b.const(I32, 0) if read is False else b.select(read, b.const(I32, size), 0)
    b.line(f"call void @{name}.s({operands}, i32 {taken.ref})")
