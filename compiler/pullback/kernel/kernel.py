"""IR 2: a kernel is a loop nest over buffers.

Loops carry an axis, an extent, a *role* (what the loop means: parallel | reduce | ordered) and a
*binding* (how it runs: serial | unroll | vector | block; on a GPU also thread | warp | lane).  Stores and
loads have affine or checked integer-valued indices; a mask says where an access happens, and `other` what
holds outside of it: masks are never derived from context.  Axes and buffers are strings, in two separate
namespaces; a peeled copy of a loop keeps its axis name, so that later steps apply to all copies.
Everything is frozen; a schedule step is a function kernel -> kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ..graph.types import DType, bool_, f32, i64
from .scalars import SCALARS


# ---- indices --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Affine:
    """const + sum of coefficient * axis; `terms` sorted by axis, no zero coefficients."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(x: Affine | int | str) -> Affine:
        return x if isinstance(x, Affine) else Affine(x) if isinstance(x, int) else Affine(0, ((x, 1),))

    def __add__(self, other: Affine | int | str) -> Affine:
        if isinstance(other, int):
            return Affine(self.const + other, self.terms)
        other, d = Affine.of(other), dict(self.terms)
        for n, c in other.terms:
            d[n] = d.get(n, 0) + c
        return Affine(self.const + other.const, tuple(sorted((n, c) for n, c in d.items() if c)))

    def __mul__(self, k: int) -> Affine:
        return Affine(self.const * k, tuple((n, c * k) for n, c in self.terms) if k else ())

    def __sub__(self, other: Affine | int | str) -> Affine:
        return self + Affine.of(other) * -1

    def subst(self, env: dict[str, Affine]) -> Affine:
        if not any(n in env for n, _ in self.terms):
            return self
        r = Affine(self.const)
        for n, c in self.terms:
            r = r + Affine.of(env.get(n, n)) * c
        return r

    def coef(self, axis: str) -> int:
        for n, c in self.terms:
            if n == axis:
                return c
        return 0

    @property
    def axes(self) -> frozenset[str]:
        return frozenset(n for n, _ in self.terms)

    def __str__(self) -> str:
        s = [n if c == 1 else f"{n}*{c}" for n, c in sorted(self.terms, key=lambda t: -abs(t[1]))]
        return " + ".join(s + ([str(self.const)] if self.const or not s else []))


Mask = tuple[Affine, int]
"""(a, bound): the access happens where a < bound.  a >= 0 is written (a * -1, 1)."""


# ---- expressions ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Const:
    """A scalar constant: bool, int or float as the dtype says."""

    value: float | int | bool
    dtype: DType = f32


@dataclass(frozen=True, slots=True)
class Load:
    """One element; where a mask fails, `other` (without touching memory)."""

    buffer: str
    index: tuple[Index, ...]
    dtype: DType
    masks: tuple[Mask, ...] = ()
    other: float | int | bool = 0


@dataclass(frozen=True, slots=True)
class Apply:
    """A scalar function of `kernel/scalars.py`; `dtype` is the result's."""

    fn: str
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class AxisValue:
    """The value of an affine index as a number (arange, one-hot, random counters)."""

    index: Affine
    dtype: DType = i64


@dataclass(frozen=True, slots=True)
class Checked:
    """An integer that must lie in 0 <= value < bound: else the step fails with a status that names `site`
    (a number within the kernel) and the value, and 0 is used instead, so memory stays safe."""

    value: Expr
    bound: int
    site: int = 0

    @property
    def dtype(self) -> DType:
        return self.value.dtype


Expr = Const | Load | Apply | AxisValue | Checked
Index = Affine | Checked
"""An index component of a load or store: affine, or a checked integer expression."""


# ---- statements -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Store:
    """buffer[index] = value where all masks hold.  Elsewhere `other`: 'keep' the old value, a number to
    store, or 'any' (nobody reads it; evaluators store NaN).  `where`: a boolean predicate, else keep.

    `asynchronous`: a copy from a parameter that nobody stores to into shared memory, which is on its way from here to
    the `Wait` that covers it; the element is not to be read, nor stored to, until then."""

    buffer: str
    index: tuple[Index, ...]
    value: Expr
    masks: tuple[Mask, ...] = ()
    other: float | int | str = "keep"
    where: Expr | None = None
    asynchronous: bool = False


@dataclass(frozen=True, slots=True)
class Loop:
    """`extent` may be affine in outer axes (triangles).  role: parallel | reduce | ordered."""

    axis: str
    extent: int | Affine
    role: str
    body: tuple[Stmt, ...]
    binding: str = "serial"


@dataclass(frozen=True, slots=True)
class Tile:
    """An intrinsic (transpose, fold, mma).  The body is its meaning and what the evaluator runs."""

    name: str
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Barrier:
    """All threads of the block have come here (GPU)."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The asynchronous stores since the last one are a group (GPU; it may be empty)."""


@dataclass(frozen=True, slots=True)
class Wait:
    """All groups but the latest `pending` have landed, each thread's own: others see them after a barrier (GPU)."""

    pending: int = 0


Stmt = Store | Loop | Tile | Barrier | Commit | Wait


# ---- buffers and kernels --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Buffer:
    """A named array.  space: global (a parameter) | local (memory of one worker) | register | shared | token
    (`concurrent.py`).  `strides` in elements; () means C-contiguous."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = f32
    space: str = "global"
    strides: tuple[int, ...] = ()

    @property
    def step(self) -> tuple[int, ...]:
        """The strides, spelled out."""
        return self.strides or tuple(prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

    @property
    def size(self) -> int:
        """Elements from the first to the last, holes included."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.step, strict=True)) if prod(self.shape) else 0

    def flat(self, index: Iterable[Affine]) -> Affine:
        """The element offset of an all-affine index."""
        r = Affine()
        for a, s in zip(index, self.step, strict=True):
            r = r + a * s
        return r


@dataclass(frozen=True)
class Kernel:
    """`params` are global buffers in the order of the arguments; what a kernel stores to is an output.

    What the scheduler deals out are blocks.  Where every top-level statement is a loop bound to `block`, each
    is a chain of perfectly nested block loops with constant extents; a block id is the flat number in its chain
    (innermost fastest), and the statements own consecutive ranges of ids in program order (a peeled tail is a range of
    its own).  Otherwise the whole body is one block.  Blocks do not depend on each other.
    """

    name: str
    params: tuple[Buffer, ...]
    locals: tuple[Buffer, ...]
    body: tuple[Stmt, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.params, self.locals, self.body))

    @cached_property
    def buffers(self) -> dict[str, Buffer]:
        return {b.name: b for b in self.params + self.locals}

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The names of the parameters that are stored to."""
        return frozenset(b.name for b in self.params) & written(self.body)

    @property
    def blocks(self) -> int:
        """How many blocks a launch deals out (1 where no loop is bound to blocks)."""
        return sum(prod(s.extent for s in chain) for chain, _ in self.ranges)

    @property
    def ranges(self) -> tuple[tuple[tuple[Loop, ...], tuple[Stmt, ...]], ...]:
        """The ranges of block ids: (chain of block loops, what one block runs) each."""
        if not all(isinstance(s, Loop) and s.binding == "block" for s in self.body):
            return (((), self.body),)
        out = []
        for s in self.body:
            chain: list[Loop] = []
            stmts: tuple[Stmt, ...] = (s,)
            while len(stmts) == 1 and isinstance(stmts[0], Loop) and stmts[0].binding == "block":
                chain.append(stmts[0])
                stmts = stmts[0].body
            out.append((tuple(chain), stmts))
        return tuple(out)


# ---- builders and walks ---------------------------------------------------------------------------------
A = Affine.of


def load(buffer: Buffer, *index: Affine | int | str) -> Load:
    return Load(buffer.name, tuple(A(i) for i in index), buffer.dtype)


def store(buffer: Buffer, index, value: Expr) -> Store:
    return Store(buffer.name, tuple(A(i) for i in index), value)


def loop(axis: str, extent: int, role: str, *body: Stmt) -> Loop:
    return Loop(axis, extent, role, tuple(body))


def apply(fn: str, *args: Expr, dtype: DType | None = None) -> Apply:
    """A scalar function; tests give bool, everything else its last argument's type, unless said."""
    if dtype is None:
        dtype = bool_ if SCALARS[fn].result == "bool" else args[-1].dtype
    return Apply(fn, args, dtype)


def children(e: Expr) -> tuple[Expr, ...]:
    """The expressions directly below, those in a load's checked indices included."""
    if isinstance(e, Apply):
        return e.args
    if isinstance(e, Checked):
        return (e.value,)
    if isinstance(e, Load):
        return tuple(i for i in e.index if isinstance(i, Checked))
    return ()


def map_expr(e: Expr, f: Callable[[Expr], Expr], done: dict[int, Expr] | None = None) -> Expr:
    """Rebuild an expression bottom-up through f, each shared part once (expressions are DAGs)."""
    done = {} if done is None else done
    new = done.get(id(e))
    if new is None:
        new = done[id(e)] = f(_map_children(e, f, done))
    return new


def _map_children(e: Expr, f: Callable[[Expr], Expr], done: dict[int, Expr]) -> Expr:
    if isinstance(e, Apply):
        args = tuple(map_expr(a, f, done) for a in e.args)
        return e if all(a is b for a, b in zip(args, e.args, strict=True)) else Apply(e.fn, args, e.dtype)
    if isinstance(e, Checked):
        return replace(e, value=map_expr(e.value, f, done))
    if isinstance(e, Load) and any(isinstance(i, Checked) for i in e.index):
        return replace(e, index=tuple(map_expr(i, f, done) if isinstance(i, Checked) else i for i in e.index))
    return e


def walk_expr(e: Expr, seen: set[int] | None = None) -> list[Expr]:
    """Every node of an expression from the top down, shared parts once."""
    seen = set() if seen is None else seen
    out, stack = [], [e]
    while stack:
        e = stack.pop()
        if id(e) not in seen:
            seen.add(id(e))
            out.append(e)
            if e.__class__ is Apply:
                stack.extend(e.args[::-1])
            elif below := children(e):
                stack.extend(below[::-1])
    return out


def loads(e: Expr) -> list[Load]:
    return [x for x in walk_expr(e) if isinstance(x, Load)]


def exprs(s: Store) -> tuple[Expr, ...]:
    """Every expression that a store holds: value, predicate, checked indices."""
    return (s.value, *((s.where,) if s.where is not None else ()), *(i for i in s.index if isinstance(i, Checked)))


def map_store(s: Store, f: Callable[[Expr], Expr]) -> Store:
    """Apply `map_expr` to every expression of a store."""
    return replace(
        s,
        value=map_expr(s.value, f),
        where=None if s.where is None else map_expr(s.where, f),
        index=tuple(map_expr(i, f) if isinstance(i, Checked) else i for i in s.index),
    )


def map_stmts(stmts: tuple[Stmt, ...], f: Callable[[Stmt], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """Rebuild a tree bottom-up; f maps a statement to the statements that replace it."""
    out: list[Stmt] = []
    for s in stmts:
        out += f(replace(s, body=map_stmts(s.body, f)) if isinstance(s, Loop | Tile) else s)
    return tuple(out)


def walk(stmts: Iterable[Stmt]) -> Iterator[Stmt]:
    for s in stmts:
        yield s
        if isinstance(s, Loop | Tile):
            yield from walk(s.body)


def stores(stmts: Iterable[Stmt]) -> list[Store]:
    return [s for s in walk(stmts) if isinstance(s, Store)]


def written(stmts: Iterable[Stmt]) -> set[str]:
    return {s.buffer for s in stores(stmts)}


def read(stmts: Iterable[Stmt]) -> set[str]:
    return {x.buffer for s in stores(stmts) for e in exprs(s) for x in loads(e)}


def subst_leaf(e: Expr, env: dict[str, Affine]) -> Expr:
    """Substitute axes in one expression node (the children are done already)."""
    if isinstance(e, Load):
        return replace(
            e,
            index=tuple(i.subst(env) if isinstance(i, Affine) else i for i in e.index),
            masks=tuple((m.subst(env), b) for m, b in e.masks),
        )
    return replace(e, index=e.index.subst(env)) if isinstance(e, AxisValue) else e


def subst(stmts: tuple[Stmt, ...], env: dict[str, Affine]) -> tuple[Stmt, ...]:
    """Replace axes by affine forms everywhere: indices, masks, extents, axis values."""

    def one(s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Store):
            s = map_store(s, lambda e: subst_leaf(e, env))
            return (
                replace(
                    s,
                    index=tuple(i.subst(env) if isinstance(i, Affine) else i for i in s.index),
                    masks=tuple((m.subst(env), b) for m, b in s.masks),
                ),
            )
        if isinstance(s, Loop) and isinstance(s.extent, Affine):
            return (replace(s, extent=s.extent.subst(env)),)
        if hasattr(s, "token"):  # (`concurrent.py`)
            return (s.subst(env),)
        return (s,)

    return map_stmts(stmts, one)
