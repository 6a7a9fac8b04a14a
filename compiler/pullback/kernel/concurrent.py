"""IR 2 for machines whose warps do different things: roles, tokens, and copies that complete on a token.

    full: i64[4] token              # an array of tokens: each counts phases
    roles                           # all of these run at the same time
      role load warps 4
        reduce k < 16
          await empty[..] phase ..  # until that phase of the token is over
          copy full[..]             # on its way from here to the end of the token's phase at hand
            parallel i < 128
              parallel j < 64
                xs[.., i, j] = x[.., ..]
          arrive full[..]           # this role has no more to say about the token's phase at hand

A *phase* of a token is over when each role that arrives at the token somewhere has arrived once and every copy on it
has landed; phases are numbered from 0, and -1 is over from the start.  What a copy writes is unknown until its token's
phase is over.  A role waits for the phase at hand or the one before, never for others: a machine keeps only the parity.

Roles make up the whole block.  Registers and locals belong to one role; shared memory is handed from role to role by
tokens.  Here: the statements (kinds of `Tile`, so that walks find what they hold) and the rules that `verify.py` asks
about.  `coroutines.py` is what they mean to the evaluator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..graph.types import i64
from .kernel import Affine, Apply, Barrier, Expr, Kernel, Load, Loop, Stmt, Store, Tile, exprs, loads, stores, walk


@dataclass(frozen=True, slots=True)
class Copy(Tile):
    """Nested parallel loops around one store, `shared[..] = parameter[..]`: a box of the parameter, zeros outside of
    its masks (f32 perhaps rounded to tf32), which lands before the phase at hand of the token is over."""

    token: str = ""
    index: tuple[Affine, ...] = ()

    def subst(self, env: dict[str, Affine]) -> Copy:
        return replace(self, index=tuple(i.subst(env) for i in self.index))


@dataclass(frozen=True, slots=True)
class Arrive:
    """The role has come here: what it did before is seen by those who await the phase."""

    token: str
    index: tuple[Affine, ...] = ()

    def subst(self, env: dict[str, Affine]) -> Arrive:
        return replace(self, index=tuple(i.subst(env) for i in self.index))


@dataclass(frozen=True, slots=True)
class Await:
    """The role goes on when this phase of the token is over."""

    token: str
    index: tuple[Affine, ...]
    phase: Affine

    def subst(self, env: dict[str, Affine]) -> Await:
        return replace(self, index=tuple(i.subst(env) for i in self.index), phase=self.phase.subst(env))


@dataclass(frozen=True, slots=True)
class Role(Tile):
    """What some warps of the block do; `warp` loops inside count these warps only."""

    warps: int = 1


@dataclass(frozen=True, slots=True)
class Roles(Tile):
    """Roles (the body) that run at the same time.

    `blocks`: so many neighbours along the innermost block loop run side by side on the machine, and what a copy brings
    to all of them alike is brought once.  That changes nothing of what they compute."""

    blocks: int = 1


Signal = Copy | Arrive | Await


def words(s: Stmt) -> str:
    """How the text of a tile, or of a statement on a token, begins."""
    if isinstance(s, Copy | Arrive | Await):
        index = f"[{', '.join(map(str, s.index))}]" if s.index else ""
        phase = f" phase {s.phase}" if isinstance(s, Await) else ""
        return f"{type(s).__name__.lower()} {s.token}{index}{phase}"
    if isinstance(s, Role):
        return f"role {s.name} warps {s.warps}"
    if isinstance(s, Roles):
        return "roles" if s.blocks == 1 else f"roles of {s.blocks} blocks"
    return f"tile {s.name}"


def signals(stmts: Iterable[Stmt]) -> list[Signal]:
    return [s for s in walk(stmts) if isinstance(s, Copy | Arrive | Await)]


def arriving(together: Roles) -> dict[str, tuple[str, ...]]:
    """token array -> the roles that arrive at it: so many arrivals end a phase."""
    out: dict[str, tuple[str, ...]] = {s.token: () for s in signals(together.body)}
    for r in together.body:
        for token in {s.token for s in walk(r.body) if isinstance(s, Arrive)}:
            out[token] += (r.name,)
    return out


def box(s: Copy) -> tuple[tuple[Loop, ...], Store, Load]:
    """The loops of a copy, its store, and what that loads (and perhaps rounds to tf32)."""
    chain: list[Loop] = []
    inner = s.body
    while len(inner) == 1 and isinstance(inner[0], Loop):
        chain.append(inner[0])
        inner = inner[0].body
    (store,) = inner
    return tuple(chain), store, _source(store)


def side_by_side(kernel: Kernel) -> tuple[str, int]:
    """The innermost block axis, and how many blocks along it run side by side (1: each on its own)."""
    for chain, stmts in kernel.ranges:
        if chain and isinstance(stmts[0], Roles) and stmts[0].blocks > 1:
            return chain[-1].axis, stmts[0].blocks
    return "", 1


def brought_once(kernel: Kernel, s: Copy) -> bool:
    """Does a copy bring the same to all blocks that run side by side?"""
    axis, blocks = side_by_side(kernel)
    chain, store, x = box(s)
    forms = [*s.index, *store.index, *x.index, *(m for m, _ in x.masks)]
    return blocks > 1 and not any(i.coef(axis) for i in forms) and chain[0].extent % (8 * blocks) == 0


def _source(s: Store) -> Expr:
    v = s.value
    return v.args[0] if isinstance(v, Apply) and v.fn == "tf32" else v


# ---- rules ----------------------------------------------------------------------------------------------
_DEALT = ("thread", "warp", "lane", "vector")
_PRIVATE = ("register", "local")


def broken_rule(kernel: Kernel) -> tuple[Stmt | None, str] | None:
    """A statement (None: the kernel as a whole) and the rule of roles and tokens that it breaks."""
    tokens = [b for b in kernel.locals if b.space == "token"]
    for s in _outside(kernel.body):
        return s, "stands in no role"
    ranges = kernel.ranges
    named: set[str] = set()
    for chain, stmts in ranges:
        for s in (s for s in walk(stmts) if isinstance(s, Roles)):
            if stmts != (s,):
                return s, "roles are all that a block holds"
            if s.blocks > 1 and (
                s.blocks not in (2, 4, 8) or len(ranges) > 1 or not chain or chain[-1].extent % s.blocks
            ):
                return s, f"the only, innermost block loop does not go in groups of {s.blocks}, which are 2, 4 or 8"
            if found := _roles(kernel, s):
                return found
            awaited = {t.token for t in signals(s.body) if isinstance(t, Await)}
            for token, names in arriving(s).items():
                if not names or token not in awaited:
                    return s, f"nobody {'awaits' if names else 'arrives at'} the token {token}"
                named.add(token)
    for b in tokens:
        if b.dtype != i64 or any(b.name in (x.buffer for x in (t, *_loaded(t))) for t in stores(kernel.body)):
            return None, f"the token {b.name} is an i64 that only copy, arrive and await name"
        if b.name not in named:
            return None, f"no role uses the token {b.name}"
    return None


def _outside(stmts: Iterable[Stmt]) -> Iterator[Stmt]:
    """What only roles may hold, outside of them."""
    for s in stmts:
        if isinstance(s, Copy | Arrive | Await | Role):
            yield s
        elif isinstance(s, Loop) or (isinstance(s, Tile) and not isinstance(s, Roles)):
            yield from _outside(s.body)


def _roles(kernel: Kernel, together: Roles) -> tuple[Stmt, str] | None:
    names: set[str] = set()
    owner: dict[str, str] = {}
    landing = {box(s)[1].buffer for s in signals(together.body) if isinstance(s, Copy) and not _not_a_box(kernel, s)}
    for r in together.body:
        if not isinstance(r, Role) or r.warps < 1 or r.name in names:
            return together, "its body is roles, of different names, of one or more warps each"
        names.add(r.name)
        if found := _within(kernel, r.body, ()):
            return found
        for t in walk(r.body):
            if isinstance(t, Store):
                if t.buffer in landing and not any(t in walk(s.body) for s in signals(r.body) if isinstance(s, Copy)):
                    return t, f"{t.buffer} is written by copies only"
                for name in (t.buffer, *(x.buffer for x in _loaded(t))):
                    if kernel.buffers[name].space in _PRIVATE and owner.setdefault(name, r.name) != r.name:
                        return t, f"{name} belongs to the role {owner[name]}"
    return None


def _within(kernel: Kernel, stmts: Iterable[Stmt], around: tuple[str, ...]) -> tuple[Stmt, str] | None:
    for s in stmts:
        found = None
        if isinstance(s, Roles | Role):
            return s, "roles hold no roles"
        if isinstance(s, Copy | Arrive | Await):
            if any(a in _DEALT for a in around):
                return s, "is for the role as a whole, not for some of its threads"
            if (b := kernel.buffers.get(s.token)) is None or b.space != "token":
                return s, f"{s.token} is no token"
        if isinstance(s, Copy):
            if reason := _not_a_box(kernel, s):
                return s, reason
        elif isinstance(s, Barrier):
            if "warp" not in around:
                return s, "a barrier of the whole block in a role: others never come here"
        elif isinstance(s, Loop):
            found = _within(kernel, s.body, (*around, s.binding))
        elif isinstance(s, Tile):
            found = _within(kernel, s.body, around)
        if found:
            return found
    return None


def _not_a_box(kernel: Kernel, s: Copy) -> str:
    """Why the body of a copy is not a box of a parameter."""
    inner = s.body
    axes: list[str] = []
    while len(inner) == 1 and isinstance(inner[0], Loop):
        if inner[0].role != "parallel" or not isinstance(inner[0].extent, int):
            return "a copy is nested parallel loops of constant extent"
        axes.append(inner[0].axis)
        inner = inner[0].body
    if len(inner) != 1 or not isinstance(inner[0], Store) or not isinstance(_source(inner[0]), Load):
        return "a copy holds one store of one load"
    t, x = inner[0], _source(inner[0])
    if t.masks or t.where is not None or x.dtype != kernel.buffers[t.buffer].dtype:
        return "a copy stores all of its box, of one type"
    if kernel.buffers[t.buffer].space != "shared":
        return f"a copy goes to shared memory, not to {t.buffer}"
    if kernel.buffers[x.buffer].space != "global" or x.buffer in kernel.outputs:
        return f"a copy comes from a parameter that nobody stores to, not from {x.buffer}"
    if not all(isinstance(i, Affine) for i in (*t.index, *x.index)):
        return "a copy has affine indices"
    if x.masks and x.other != 0:
        return f"a copy is 0 outside of its parameter, not {x.other}"
    for a in axes:
        if any(sum(i.coef(a) != 0 for i in y.index) != 1 or max(i.coef(a) for i in y.index) != 1 for y in (t, x)):
            return f"{a} walks one dimension of {t.buffer} and one of {x.buffer}, element by element"
    if any(m not in x.index for m, _ in x.masks):
        return "the masks of a copy bound its own indices"
    return ""


def _loaded(s: Store) -> list[Load]:
    return [x for e in exprs(s) for x in loads(e)]
