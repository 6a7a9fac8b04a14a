"""Random nests with random affine indices, masks, predicates and bindings: compiled = kernel evaluator, every bit.

More of them: `EMIT_RANDOM=500 pytest tests/test_emit_random.py`.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from kernels_by_hand import at, put
from test_emit import HERE, random_inputs, run_all

from pullback.graph.types import bf16, bool_, f32, f64, i32, i64, u8
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import (
    Affine,
    Apply,
    AxisValue,
    Buffer,
    Checked,
    Const,
    Expr,
    Kernel,
    Loop,
    Mask,
    Stmt,
    apply,
)

COUNT = int(os.environ.get("EMIT_RANDOM", "25"))
SIZE = 1200
"""Elements of each global buffer: more than any index below."""


class Nest:
    """A random kernel of one statement per loop nest."""

    def __init__(self, seed: int):
        self.r = random.Random(seed)
        self.dtype = self.r.choice([f32, f32, f32, f64, i32, i64, u8, bf16])
        self.inputs = [Buffer(f"x{i}", (SIZE,), self.dtype) for i in range(2)]
        self.flags, self.indices = Buffer("flags", (SIZE,), bool_), Buffer("indices", (SIZE,), i32)
        self.y = Buffer("y", (SIZE,), self.dtype)
        self.t = Buffer("t", (24, 36), self.dtype, self.r.choice(["register", "local"]))
        self.axes: dict[str, int] = {}

    def affine(self, low: int, high: int) -> Affine:
        """Random, with all its values in low <= a < high."""
        terms, lo, hi = [], 0, 0
        for axis, extent in sorted(self.axes.items()):
            k = self.r.choice([0, 0, 1, 1, 1, 2, 3, -1, 16, 20])
            reach = k * (extent - 1)
            if k and max(hi, hi + reach) - min(lo, lo + reach) < high - low:
                terms.append((axis, k))
                lo, hi = min(lo, lo + reach), max(hi, hi + reach)
        return Affine(self.r.randint(low - lo, high - 1 - hi), tuple(terms))

    def masks(self) -> tuple[Mask, ...]:
        count = self.r.choice([0, 0, 1, 1, 2])
        return tuple((self.affine(-40, 60), self.r.choice([-3, 0, 1, 8, 16, 17, 32, 48])) for _ in range(count))

    def number(self):
        return self.r.choice([0, 1, 7]) if self.dtype.kind != "f" else self.r.choice([0.0, -1.5, 7.0])

    def load(self) -> Expr:
        buffer, masks = self.r.choice(self.inputs), self.masks()
        reach = (-60, SIZE + 60) if masks and self.r.random() < 0.3 else (0, SIZE)
        index = self.affine(*reach)
        if reach[0] < 0:  # outside of the buffer, but masked there
            masks += ((index, SIZE), (index * -1, 1))
        if self.r.random() < 0.15:
            index = Checked(at(self.indices, self.affine(0, SIZE), masks=self.masks()), 7)
        return at(buffer, index, masks=masks, other=self.number() if masks else 0)

    def value(self, depth: int = 2) -> Expr:
        if depth == 0 or self.r.random() < 0.2:
            kind = self.r.random()
            if kind < 0.15:
                return Const(self.number(), self.dtype)
            if kind < 0.3:
                return Apply("cast", (AxisValue(self.affine(-40, 90), i64),), self.dtype)
            return self.load()
        fn = self.r.choice(["add", "sub", "mul", "maximum", "minimum", "select"])
        args = [self.value(depth - 1) for _ in range(2)]
        if fn == "select":
            return Apply("select", (self.predicate(), *args), self.dtype)
        return apply(fn, *args, dtype=self.dtype)

    def predicate(self) -> Expr:
        if self.r.random() < 0.5:
            return at(self.flags, self.affine(0, SIZE), masks=self.masks(), other=True)
        return apply("lt", self.value(0), self.value(0))

    def store(self, buffer: Buffer, index, value: Expr) -> Stmt:
        if self.r.random() < 0.25:
            return put(buffer, index, value, self.masks(), where=self.predicate())
        masks = self.masks()
        return put(buffer, index, value, masks, self.r.choice(["keep", self.number()]) if masks else "keep")

    def loops(self, bindings: list[str], body) -> Stmt:
        """A nest with these bindings around what `body()` makes inside."""
        names = [f"a{len(self.axes) + i}" for i in range(len(bindings))]
        extents = [
            self.r.choice([1, 3, 7, 8, 13, 16, 23, 32, 33, 36] if b == "vector" else [1, 2, 3]) for b in bindings
        ]
        self.axes |= dict(zip(names, extents))
        stmts = body()
        for n, e, b in reversed(list(zip(names, extents, bindings))):
            stmts = (Loop(n, e, "parallel", stmts, b),)
            del self.axes[n]
        return stmts[0]

    def kernel(self) -> Kernel:
        def tile() -> tuple[Stmt, ...]:
            """Into the tile and from there, moving with the lanes."""
            rows, lane = list(self.axes)[-2], list(self.axes)[-1]
            fill = put(self.t, (rows, lane), self.value())
            update = put(self.t, (rows, lane), apply("add", at(self.t, rows, lane), self.value(1), dtype=self.dtype))
            masked = self.store(self.t, (rows, lane), apply("maximum", at(self.t, rows, lane), self.value(1)))
            return fill, update, masked, self.store(self.y, (self.affine(0, SIZE),), at(self.t, rows, lane))

        def plain() -> tuple[Stmt, ...]:
            return (self.store(self.y, (self.affine(0, SIZE),), self.value()),)

        outer = self.r.choice([["block"], ["block", "block"], ["serial"], []])
        inner = self.r.choice([["vector"], ["serial", "vector"], ["unroll", "vector"], ["serial", "unroll"]])
        if self.r.random() < 0.4:
            inner, body = ["unroll", "vector"], tile
        else:
            body = plain
        nest = self.loops(outer, lambda: (self.loops(inner, body),)) if outer else self.loops(inner, body)
        return Kernel("random", (*self.inputs, self.flags, self.indices, self.y), (self.t,), (nest,))


@pytest.mark.parametrize("level", HERE)
def test_random_nests(level):
    kernels = [Nest(seed).kernel() for seed in range(COUNT)]
    inputs = [random_inputs(k, seed) for seed, k in enumerate(kernels)]
    for seed, (k, given, got) in enumerate(zip(kernels, inputs, run_all(kernels, inputs, level))):
        np.testing.assert_array_equal(got["y"], evaluate(k, given, lockstep=False)["y"], f"seed {seed}")


def test_the_nests_are_of_every_sort():
    text = "".join(repr(Nest(seed).kernel()) for seed in range(COUNT))
    for part in (
        "'vector'",
        "'unroll'",
        "Checked(",
        "where=Apply",
        "where=Load",
        "other='keep'",
        "'local'",
        "'select'",
    ):
        assert part in text
