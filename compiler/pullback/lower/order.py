"""Pieces -> steps: which of them write their target in place, in which order, and which run side by side.

Dependences are: a value before its readers; a reader of an old state (or scan carry) before the piece that
overwrites it; and everything that can fail before the first write to state (the commit point).  Pieces of one
generation do not depend on each other and become one launch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from ..graph.types import TensorType
from ..kernel.alias import can_alias, merge_params
from ..kernel.kernel import Affine, Buffer, Kernel, Load, Loop, Stmt, Store, loop, read, written
from .groups import LoopPiece, Piece, Region, Value

Item = Piece | LoopPiece


@dataclass(eq=False, slots=True)
class Storage:
    """Where bytes lie: a base and an offset (the arena's are found last), and when they are needed."""

    base: int
    offset: int
    value: Value
    first: int = 1 << 60
    last: int = -1

    def touch(self, at: int) -> None:
        self.first, self.last = min(self.first, at), max(self.last, at)


@dataclass(frozen=True, slots=True)
class Located:
    """A value's storage and the bytes it moves on in each iteration of the loops around."""

    storage: Storage
    strides: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """`new` must end up at `at`; `old` is the region's input that lives there before (state, carry)."""

    new: Value
    at: Located
    old: Value | None = None
    state: bool = False


@dataclass(eq=False)
class Ordered:
    """A region ready to be laid out: generations of items, and where its targets' values lie."""

    generations: list[list[Item]]
    located: dict[Value, Located] = field(default_factory=dict)
    commits: set[int] = field(default_factory=set)
    """ids of the items that write state."""


def root(v: Value) -> Value:
    """The value that owns the bytes (a view shares its base's)."""
    while v.view_of is not None:
        v = v.view_of
    return v


def reads(item: Item) -> Iterable[Value]:
    if isinstance(item, Piece):
        outs = item.kernel.outputs
        return [root(v) for v, b in zip(item.arguments, item.kernel.params, strict=True) if b.name not in outs]
    outer = [o for o, _ in item.constants] + [c[0] for c in item.carries] + [o for o, _ in item.stacked_in]
    return [root(v) for v in outer]


def writes(item: Item) -> Iterable[Value]:
    if isinstance(item, Piece):
        outs = item.kernel.outputs
        return [root(v) for v, b in zip(item.arguments, item.kernel.params, strict=True) if b.name in outs]
    return [root(c[3]) for c in item.carries] + [root(o) for _, o in item.stacked_out]


def can_fail(item: Item) -> bool:
    return bool(item.sites) if isinstance(item, Piece) else any(map(can_fail, item.body.pieces))


@cache
def copy_kernel(type_: TensorType) -> Kernel:
    """y = x, element by element, on the flat bytes of one value."""
    n = type_.size
    x, y = Buffer("x0", (n,), type_.dtype), Buffer("y0", (n,), type_.dtype)
    i = (Affine.of("i0"),)
    body = loop("i0", n, "parallel", Store("y0", i, Load("x0", i, x.dtype)))
    return Kernel("copy", (x, y), (), (body,))


def order(region: Region, targets: Sequence[Target]) -> Ordered:
    """Choose in-place writes, add copies where there is no other way, and sort into generations."""
    refused: set[int] = set()  # targets that are not written where they are computed
    buffered: set[int] = set()  # targets that are copied through memory of their own: old values that change places
    olds = {root(t.old) for t in targets if t.old is not None}
    while True:
        items, located, overwrites, writers = _settle(region, targets, refused, buffered)
        generations, cyclic = _generations(items, _edges(items, overwrites, writers), writers)
        if not cyclic:
            return Ordered(generations, located, {id(items[w]) for w in writers})
        made = {v for item in cyclic for v in writes(item)}
        again = {k for k, t in enumerate(targets) if root(t.new) in located and root(t.new) in made} - refused
        if not again:
            crossed = {k for k, t in enumerate(targets) if root(t.new) in olds} - buffered
            if not crossed:
                raise AssertionError("pieces depend on each other in a circle")
            buffered |= crossed
        refused |= again


def _settle(region: Region, targets: Sequence[Target], refused: set[int], buffered: set[int]):
    """(items, where targets lie, [(old value, number of the item that overwrites it)], numbers of state writers)."""
    items: list[Item] = list(region.pieces)
    producer = {v: k for k, p in enumerate(items) for v in writes(p)}
    located: dict[Value, Located] = {}
    overwrites: list[tuple[Value, int]] = []
    writers: set[int] = set()
    for k, t in enumerate(targets):
        new, old = root(t.new), root(t.old) if t.old is not None else None
        if new is old:
            continue
        number = producer.get(new)
        direct = None
        if number is not None and new not in located and k not in refused and not (t.state and can_fail(items[number])):
            direct = _in_place(items[number], new, old)
        if direct is None:
            new = t.new
            for _ in range(2 if k in buffered else 1):
                source, new = new, Value(f"{t.new.name}.copy", t.new.type, t.new.loc)
                number = len(items)
                items.append(Piece(copy_kernel(t.new.type), (source, new), t.new.loc, "copy", (), ()))
        else:
            items[number] = direct
        located[new] = t.at
        if old is not None:
            overwrites.append((old, number))
        if t.state:
            writers.add(number)
    return items, located, overwrites, writers


def _in_place(item: Item, new: Value, old: Value | None) -> Item | None:
    """The item that writes `new` where `old` lies, or None if it cannot."""
    if old is None or old not in reads(item):
        return item
    if not isinstance(item, Piece):
        return None
    outs = item.kernel.outputs
    names = [b.name for b in item.kernel.params]
    sources = [n for n, v in zip(names, item.arguments, strict=True) if root(v) is old and n not in outs]
    made = [n for n, v in zip(names, item.arguments, strict=True) if root(v) is new and n in outs]
    if len(sources) != 1 or len(made) != 1:
        return None
    kernel = _merged(item.kernel, sources[0], made[0])
    if kernel is None:
        return None
    by_name = dict(zip(names, item.arguments, strict=True))
    return replace(item, kernel=kernel, arguments=tuple(by_name[b.name] for b in kernel.params))


@lru_cache(maxsize=256)
def _merged(kernel: Kernel, source: str, made: str) -> Kernel | None:
    """The kernel with `source` and `made` as one parameter, or None if they cannot be."""
    for k in (kernel, _stored_last(kernel, made)):
        if can_alias(k, source, made):
            return merge_params(k, source, made)
    return None


def _stored_last(kernel: Kernel, buffer: str) -> Kernel:
    """The kernel with the stores to `buffer` behind whatever may still need what it held, where that is possible."""

    def behind(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        kept: list[Stmt] = []
        last: list[Stmt] = []
        for k, s in enumerate(stmts):
            if isinstance(s, Store) and s.buffer == buffer and not read((s,)) & written(stmts[k + 1 :]):
                last.append(s)
            else:
                kept.append(replace(s, body=behind(s.body)) if isinstance(s, Loop) else s)
        return (*kept, *last)

    return replace(kernel, body=behind(kernel.body))


def _edges(items: list[Item], overwrites: list[tuple[Value, int]], writers: set[int]) -> dict[int, set[int]]:
    """item number -> the numbers of the items that must come before it."""
    producer = {v: k for k, p in enumerate(items) for v in writes(p)}
    readers: dict[Value, list[int]] = defaultdict(list)
    before: dict[int, set[int]] = {k: set() for k in range(len(items))}
    for k, p in enumerate(items):
        for v in reads(p):
            readers[v].append(k)
            if v in producer:
                before[k].add(producer[v])
    for old, writer in overwrites:
        before[writer].update(r for r in readers[old] if r != writer)
    fallible = [k for k, p in enumerate(items) if can_fail(p)] if writers else []
    for w in writers:
        before[w].update(f for f in fallible if f != w)
    return before


def _generations(
    items: list[Item], before: dict[int, set[int]], writers: set[int]
) -> tuple[list[list[Item]], list[Item]]:
    """As soon as possible, except that what depends on nothing waits until just before its first reader."""
    after: dict[int, list[int]] = defaultdict(list)
    for k, preds in before.items():
        for p in preds:
            after[p].append(k)
    waiting = {k: len(preds) for k, preds in before.items()}
    ready = [k for k, n in waiting.items() if n == 0]
    level: dict[int, int] = dict.fromkeys(ready, 0)
    done = 0
    while ready:
        k = ready.pop()
        done += 1
        for s in after[k]:
            level[s] = max(level.get(s, 0), level[k] + 1)
            waiting[s] -= 1
            if waiting[s] == 0:
                ready.append(s)
    if done < len(items):
        return [], [items[k] for k, n in waiting.items() if n > 0]
    for k, preds in before.items():
        if not preds and after[k] and k not in writers:
            level[k] = min(level[s] for s in after[k]) - 1
    generations: list[list[Item]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for k, p in enumerate(items):
        generations[level[k]].append(p)
    return [g for g in generations if g], []
