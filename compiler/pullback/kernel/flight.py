"""The rules of asynchronous stores (kernel IR): what `verify.py` asks about copies that are on their way.

A copy goes from a parameter that the kernel only reads to shared memory; `Commit` and `Wait` are for all threads of a
block alike; and when a block ends, all that it sent has landed.  That nobody reads what is on its way, the evaluator
finds: such an element is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

from .kernel import Affine, Commit, Kernel, Load, Loop, Stmt, Store, Tile, Wait, stores, walk

_ONE_BY_ONE = ("thread", "warp", "lane", "vector")
"""Loops in which a statement does not stand for all threads of the block."""

_State = tuple[bool, bool]
"""Are there asynchronous stores that no `Commit` closed yet, and may there be groups that nobody waited for?"""


def broken_rule(kernel: Kernel) -> tuple[Stmt, str] | None:
    """A statement and the rule that it breaks."""
    if not any(b.space == "shared" for b in kernel.locals):
        return None
    sent = [s for s in stores(kernel.body) if s.asynchronous]
    for s in sent:
        if reason := _not_a_copy(kernel, s):
            return s, reason
    if found := _synchronisation(kernel.body, False):
        return found
    for _, stmts in kernel.ranges if sent else ():
        left, pending = _after(stmts, (False, False))
        if left or pending:
            last = [s for s in walk(stmts) if isinstance(s, Store) and s.asynchronous][-1]
            return last, f"is never {'part of a group: no commit follows' if left else 'waited for to the end'}"
    return None


def is_zero(number: float | int | bool) -> bool:
    """Is a number all zero bits, as copies fill in?"""
    return number == 0 and not str(number).startswith("-")


def _not_a_copy(kernel: Kernel, s: Store) -> str:
    """Why a store cannot be asynchronous."""
    x, target = s.value, kernel.buffers[s.buffer]
    if not isinstance(x, Load) or s.where is not None or x.dtype != target.dtype:
        return "an asynchronous store is a copy: its value is a load of the same type"
    if kernel.buffers[x.buffer].space != "global" or x.buffer in kernel.outputs:
        return f"an asynchronous store reads a parameter that nobody stores to, not {x.buffer}"
    if not all(isinstance(i, Affine) for i in (*x.index, *s.index)):
        return "an asynchronous store has affine indices"
    if x.masks and not is_zero(x.other):
        return f"an asynchronous copy is 0 where its masks fail, not {x.other}"
    return "" if s.other in ("keep", "any") else "an asynchronous store leaves alone what its own masks leave out"


def _synchronisation(stmts: Iterable[Stmt], dealt: bool) -> tuple[Stmt, str] | None:
    """The first `Commit` or `Wait` that not all threads of the block come to together."""
    for s in stmts:
        found = None
        if isinstance(s, Commit | Wait):
            if dealt:
                return s, "not all threads of the block come here together"
            if isinstance(s, Wait) and s.pending < 0:
                return s, "the groups that may be on their way are 0 or more"
        elif isinstance(s, Loop):
            found = _synchronisation(s.body, dealt or s.binding in _ONE_BY_ONE)
        elif isinstance(s, Tile):
            found = _synchronisation(s.body, dealt)
        if found is not None:
            return found
    return None


def _after(stmts: Iterable[Stmt], state: _State) -> _State:
    """What may be on its way behind these statements."""
    for s in stmts:
        if isinstance(s, Store):
            state = (state[0] or s.asynchronous, state[1])
        elif isinstance(s, Commit):
            state = (False, state[1] or state[0])
        elif isinstance(s, Wait):
            state = (state[0], state[1] and s.pending > 0)
        elif isinstance(s, Loop | Tile):
            before = state
            state = _after(s.body, state)
            if isinstance(s, Loop) and s.extent != 1:  # again, from what an iteration leaves
                again = _after(s.body, _either(before, state))
                state = _either(state, again)
                if not isinstance(s.extent, int) or s.extent < 1:
                    state = _either(before, state)
    return state


def _either(a: _State, b: _State) -> _State:
    return (a[0] or b[0], a[1] or b[1])
