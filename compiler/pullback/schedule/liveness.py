"""Which values of local buffers live from one place of a kernel of IR 2 to another: what the steps rely on."""

from __future__ import annotations

from collections.abc import Collection

from ..kernel.kernel import Affine, Buffer, Kernel, Loop, Stmt, Store, Tile, exprs, loads, stores


def covers(s: Store, buffer: Buffer, extents: dict[str, int]) -> bool:
    """Does a store under loops of these extents overwrite the whole buffer?"""
    if s.where is not None or (s.masks and s.other == "keep"):
        return False
    for n, i in zip(buffer.shape, s.index, strict=True):
        if not isinstance(i, Affine) or i.const or any(c < 0 or a not in extents for a, c in i.terms):
            return False
        reach = 0  # a dense mixed radix: each coefficient at most one past what the smaller ones reach
        for a, c in sorted(i.terms, key=lambda t: t[1]):
            if c > reach + 1:
                return False
            reach += c * (extents[a] - 1)
        if reach + 1 < n:
            return False
    return True


def live_in(stmts: Collection[Stmt], buffer: Buffer) -> bool:
    """May these statements read the buffer's value from before?  (True when in doubt.)"""

    def go(stmts, extents: dict[str, int]) -> bool | None:
        for s in stmts:
            if isinstance(s, Store):
                if any(x.buffer == buffer.name for e in exprs(s) for x in loads(e)):
                    return True
                if s.buffer == buffer.name:
                    return not covers(s, buffer, extents)
            elif isinstance(s, Loop | Tile):
                inside = extents
                if isinstance(s, Loop):
                    inside = {**extents, s.axis: s.extent} if isinstance(s.extent, int) and s.extent else {}
                if (r := go(s.body, inside)) is not None:
                    return r
        return None

    return go(stmts, {}) is True


def unmoved(s: Loop, local: Collection[str]) -> set[str]:
    """Local buffers that a loop stores to without moving along its axis."""
    return {
        t.buffer
        for t in stores(s.body)
        if t.buffer in local and not any(isinstance(i, Affine) and i.coef(s.axis) for i in t.index)
    }


def used_below(kernel: Kernel, axis: str) -> set[str]:
    """Buffers whose every access is below a loop over an axis."""
    outside: set[str] = set()

    def go(stmts):
        for s in stmts:
            if isinstance(s, Store):
                outside.add(s.buffer)
                outside.update(x.buffer for e in exprs(s) for x in loads(e))
            elif isinstance(s, Tile) or (isinstance(s, Loop) and s.axis != axis):
                go(s.body)

    go(kernel.body)
    return {b.name for b in kernel.locals} - outside


def dead_outside(s: Loop, local: dict[str, Buffer], inside: Collection[str]) -> set[str]:
    """Local buffers of which nobody reads what more iterations of a parallel loop would write: places outside
    of the buffer, and values that do not leave an iteration (`inside`: used below loops of this axis only)."""
    out: set[str] = set()
    if s.role != "parallel":
        return out
    for name in {t.buffer for t in stores(s.body) if t.buffer in local}:
        b = local[name]
        indices = [t.index for t in stores(s.body) if t.buffer == name]
        if not any(isinstance(i, Affine) and i.coef(s.axis) for index in indices for i in index):
            if name in inside and not live_in(s.body, b):
                out.add(name)
        elif all(
            any(
                isinstance(i, Affine)
                and i.coef(s.axis) > 0
                and all(c > 0 for _, c in i.terms)
                and i.const + i.coef(s.axis) * s.extent >= n
                for i, n in zip(index, b.shape, strict=True)
            )
            for index in indices
        ):
            out.add(name)
    return out
