"""A pool of well-typed nodes that grows: what `random_graphs.py` makes graphs with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from pullback.errors import ScriptError
from pullback.graph.graph import Loc, Node, make
from pullback.graph.types import DType, TensorType
from pullback.ops import elementwise as E
from pullback.ops import leaf as L
from pullback.ops import movement as M

SIZES = (1, 1, 2, 2, 3, 3, 4, 5, 0)
"""Axes are small, often 1, sometimes empty."""
LARGE = 1 << 16
"""Tensors have fewer elements than this, so that slow evaluators stay quick."""
FILLS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0, -1.5, float("inf"), float("nan"), 1e-3)
LOC = Loc("model.py", 1, "f")


def random_array(rng: np.random.Generator, t: TensorType, special: bool = True) -> np.ndarray:
    if t.dtype.kind == "b":
        return rng.integers(0, 2, t.shape).astype(np.bool_)
    if t.dtype.is_integer:
        low = 0 if t.dtype.kind == "u" else -6
        return rng.integers(low, 7, t.shape).astype(t.dtype.numpy)
    x = np.where(rng.random(t.shape) < 0.5, rng.standard_normal(t.shape), rng.integers(-3, 4, t.shape))
    if special:
        chosen = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], t.shape)
        x = np.where(rng.random(t.shape) < 0.15, chosen, x)
    return t.dtype.round(x)


class GraphBuilder:
    """A pool of nodes that grows by random operations on random members."""

    def __init__(
        self,
        rng: random.Random,
        exact: bool,
        dtypes: tuple[DType, ...],
        makers: Sequence[Callable[[GraphBuilder], object]],
        scans: int = 2,
        sizes: tuple[int, ...] = SIZES,
    ):
        """`makers` add random operations; `scans`: how deep loops nest; `sizes`: of axes."""
        self.makers = makers
        self.rng, self.exact, self.dtypes, self.scans, self.sizes = rng, exact, dtypes, scans, sizes
        self.pool: list[Node] = []

    @property
    def tensors(self) -> list[Node]:
        return [n for n in self.pool if isinstance(n.type, TensorType)]

    # -- choices
    def shape(self, ndim: int | None = None) -> tuple[int, ...]:
        return tuple(self.rng.choice(self.sizes) for _ in range(self.rng.randint(0, 3) if ndim is None else ndim))

    def pick(self, where: Callable[[Node], bool] = lambda n: True) -> Node:
        """A random member; a fresh leaf if none will do."""
        found = [n for n in self.pool if isinstance(n.type, TensorType) and where(n)]
        if found:
            return self.rng.choice(found[-8:] if self.rng.random() < 0.7 else found)
        for _ in range(200):
            n = self.leaf()
            if where(n):
                return n
        raise ScriptError("nothing fits", LOC)

    def add(self, op, *inputs: Node) -> Node:
        n = make(op, *inputs, loc=LOC)
        if isinstance(n.type, TensorType) and n.type.size >= LARGE:
            raise ScriptError("too large", LOC)
        self.pool.append(n)
        return n

    def input(self, label: str, t: TensorType | None = None) -> Node:
        t = t or TensorType(self.rng.choice(self.dtypes), self.shape())
        return self.add(L.Input(label, t.dtype, t.shape))

    def fill(self, dtype: DType, shape: tuple[int, ...]) -> Node:
        finite = [v for v in FILLS if self.exact or (v - v == 0 and abs(v) <= 2)]
        value = self.rng.choice(finite)
        if dtype.kind == "b":
            value = self.rng.random() < 0.5
        elif dtype.is_integer:
            value = self.rng.choice((0, 1, 2, 3) if dtype.kind == "u" else (0, 1, -1, 2, 3))
        return self.add(L.Fill(value, dtype, shape))

    def leaf(self) -> Node:
        t = TensorType(self.rng.choice(self.dtypes), self.shape())
        what = self.rng.random()
        if what < 0.3 and t.ndim and t.dtype.kind != "b":
            return self.add(L.Iota(t.dtype, t.shape, self.rng.randrange(t.ndim)))
        return self.data(t) if what < 0.6 else self.fill(t.dtype, t.shape)

    def data(self, t: TensorType) -> Node:
        """A constant with elements of its own."""
        array = random_array(np.random.default_rng(self.rng.randrange(1000)), t, self.exact)
        return self.add(L.Constant.of(array, t.dtype))

    def like(self, t: TensorType) -> Node:
        """A node of this type: there already, a constant, or broadcast or cast from another."""
        same = [n for n in self.pool if n.type == t]
        if same and self.rng.random() < 0.6:
            return self.rng.choice(same)
        if self.rng.random() < 0.5:
            return self.fill(t.dtype, t.shape)
        x = self.broadcast_to(t.shape)
        return x if x.dtype == t.dtype else self.add(E.Cast(t.dtype), x)

    def broadcast_to(self, shape: tuple[int, ...]) -> Node:
        def fits(n: Node) -> bool:
            return n.type.ndim <= len(shape) and all(
                a in (1, b) for a, b in zip(n.shape[::-1], shape[::-1], strict=False)
            )

        x = self.pick(fits)
        k = len(shape) - x.type.ndim
        return x if x.shape == shape else self.add(M.Broadcast(shape, tuple(range(k, len(shape)))), x)

    # -- growth
    def grow(self, nodes: int) -> None:
        target, tries = len(self.pool) + nodes, 0
        while len(self.pool) < target and tries < 10 * nodes:
            tries += 1
            kept = len(self.pool)
            try:
                self.rng.choice(self.makers)(self)
            except ScriptError:  # the draw did not fit; what it had made so far stays out
                del self.pool[kept:]
