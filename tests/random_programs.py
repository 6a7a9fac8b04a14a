"""Random programs for differential tests: a seed is a case, several cases are one `Program` with a function each.

A case is a graph that reads and writes state, and data for it.  Its kind says what it is made of and how exactly
its results must agree:

* exact: all types and ops, no sums of floats: bit for bit;
* f64: sums of all kinds, to 1e-10; f32: the same graphs in f32, as good as f32 allows; half: in bf16 or f16;
  rounded: in f32, with contractions of operands that are rounded to bf16 or tf32;
* gradient: an f64 graph, its loss and the loss's gradient, which finite differences check.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from random_builder import LOC, SIZES, GraphBuilder, random_array
from random_graphs import builder

from pullback import passes
from pullback.autodiff import pull
from pullback.dsl import array as xp
from pullback.dsl.tensor import Tensor
from pullback.errors import ScriptError
from pullback.graph.graph import Graph, Node, loc_scope, make, rewrite
from pullback.graph.program import SEED, Argument, Function, Program, State
from pullback.graph.types import DType, TensorType, bf16, bool_, f16, f32, f64, i8, i32, i64, u8, u32
from pullback.ops import elementwise, leaf, movement
from pullback.ops.op import Op
from pullback.ops.scan import Scan
from pullback.passes.precision import precision

KINDS = ("exact", "f64", "exact", "f32", "gradient")
WIDE = (1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 0)
"""Axes that fill vectors of all sizes, with and without a rest."""
COMMON, RARE = (f32, f64, f16, bf16, i32, u32, bool_), (i64, i8, u8)


@dataclass(frozen=True, eq=False)
class Case:
    """Graph inputs: arguments, then the states `reads`; outputs: results, then the new values of `writes`."""

    seed: int
    kind: str
    graph: Graph
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]

    @property
    def arguments(self) -> tuple[Node, ...]:
        return self.graph.inputs[: len(self.graph.inputs) - len(self.reads)]

    @property
    def states(self) -> dict[str, TensorType]:
        """All states, those that are written only too."""
        read = {n: x.type for n, x in zip(self.reads, self.graph.inputs[len(self.arguments) :], strict=True)}
        first = len(self.graph.outputs) - len(self.writes)
        return read | {n: x.type for n, x in zip(self.writes, self.graph.outputs[first:], strict=True)}

    @property
    def initial(self) -> dict[str, np.ndarray]:
        """The states' values before the first call (zero for those that nobody reads)."""
        given = dict(zip(self.reads, self.arrays[len(self.arguments) :], strict=True))
        return {n: given.get(n, np.zeros(t.shape, t.dtype.numpy)) for n, t in self.states.items()}


def make_case(seed: int) -> Case:
    """The case that a seed stands for."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    exact = kind == "exact"
    dtypes = (*COMMON, *rng.sample(RARE, rng.randint(0, 2))) if exact else (f64, f64, f64, i32)
    sizes = WIDE if rng.random() < 0.5 else SIZES
    g = builder(rng, exact, dtypes, sizes=sizes)
    arguments = [g.input(f"x{i}") for i in range(rng.randint(1, 3))]
    first = TensorType(f64 if kind == "gradient" else rng.choice(dtypes), g.shape())
    reads = [g.input(f"s{i}", first if rng.random() < 0.6 else None) for i in range(rng.choice((0, 1, 1, 2, 3)))]
    g.grow(rng.randint(2, 24))
    results = _results(g)
    inputs = (*arguments, *reads)
    if kind == "gradient":
        results = [*gradient(rng, results, inputs), *results]
    writes = {f"s{i}": _new_value(g, x) for i, x in enumerate(reads) if rng.random() < 0.75}
    if rng.random() < 0.3:
        writes["written"] = rng.choice(g.tensors)
    graph = Graph(f"f{seed}", inputs, (*results, *writes.values()))
    data = np.random.default_rng(seed)
    special = exact or (kind != "gradient" and rng.random() < 0.3)
    arrays = tuple(
        # kinks and ties have no finite difference, so gradients get numbers that make none
        data.standard_normal(x.shape) if kind == "gradient" and x.dtype is f64 else random_array(data, x.type, special)
        for x in inputs
    )
    if kind == "f32":
        part = seed // len(KINDS) % 4
        kind, dtype = ("half", rng.choice((bf16, f16))) if part == 3 else ("f32", f32)
        graph = retyped(graph, (f64,), dtype)
        if part == 1:
            kind, graph = (
                "rounded",
                passes.run(graph, [passes.settle, *precision(rng.choice(("bf16", "bf16", "tf32")))]),
            )
        arrays = tuple(x.dtype.round(a) for a, x in zip(arrays, graph.inputs, strict=True))
    return Case(seed, kind, graph, tuple(f"s{i}" for i in range(len(reads))), tuple(writes), arrays)


def _results(g: GraphBuilder) -> list[Node]:
    """Tensors that nothing reads, so that nothing is idle, and something in the middle."""
    read = {x for n in g.pool for x in n.inputs}
    ends = [n for n in g.tensors if n not in read and n.inputs]
    return [*(ends or g.tensors)[-5:], *(g.rng.choice(g.tensors) for _ in range(g.rng.randint(0, 1)))]


def _new_value(g: GraphBuilder, old: Node) -> Node:
    """What a state becomes: a late tensor of its type, maybe another state or itself moved; else made for it."""
    if old.type.ndim and old.type.size > 1 and g.rng.random() < 0.3:
        moved = g.add(movement.Flip((old.type.ndim - 1,)), old)
        x, y = g.rng.sample((old, moved), 2)
        return g.add(elementwise.Select(), g.like(TensorType(bool_, old.shape)), x, y)
    fits = [n for n in g.tensors if n.type == old.type and n is not old]
    return g.rng.choice(fits[-6:]) if fits and g.rng.random() < 0.8 else g.like(old.type)


def gradient(rng: random.Random, results: Sequence[Node], inputs: Sequence[Node]) -> list[Node]:
    """A loss made of the results, and its gradient by every f64 input (zeros where it does not depend on one)."""
    with loc_scope(LOC):
        loss = Tensor(make(leaf.Fill(0.0, f64, ())))
        for n in results:
            if n.dtype is f64:
                loss = loss + xp.sum(xp.sin(Tensor(n) * rng.uniform(0.5, 1.5)))
        wrt = [x for x in inputs if x.dtype is f64]
        found = pull([(loss.node, Tensor(make(leaf.Fill(1.0, f64, ()))))], wrt)
        return [loss.node, *(found[x].node if x in found else make(leaf.Fill(0.0, f64, x.shape)) for x in wrt)]


def retyped(graph: Graph, old: Collection[DType], new: DType) -> Graph:
    """The graph with one dtype in place of others, everywhere."""

    def op(o: Op) -> Op:
        changes: dict[str, object] = {}
        if isinstance(o, leaf.Constant) and o.dtype in old:
            return leaf.Constant.of(o.evaluate().astype(new.numpy), new)
        if isinstance(o, Scan):
            changes["body"] = retyped(o.body, old, new)
        changes |= {f.name: new for f in fields(o) if isinstance(d := getattr(o, f.name), DType) and d in old}
        return replace(o, **changes) if changes else o

    inputs = {x: make(op(x.op), loc=LOC) for x in graph.inputs}
    outer = Graph(graph.name, (), graph.outputs)
    result = rewrite(outer, lambda n, xs: inputs[n] if n in inputs else make(op(n.op), *xs, loc=n.loc))
    return Graph(graph.name, tuple(inputs.values()), result.outputs)


def program(cases: Sequence[Case]) -> Program:
    """One program with function `f<k>` and states `c<k>.<name>` for each case."""
    states = {SEED: State(SEED, TensorType(u32, (2,)), "seed")}
    functions = []
    for k, c in enumerate(cases):
        states |= {f"c{k}.{n}": State(f"c{k}.{n}", t, "buffer") for n, t in c.states.items()}
        results = len(c.graph.outputs) - len(c.writes)
        functions.append(
            Function(
                f"f{k}",
                c.graph,
                tuple(Argument(x.op.label, x.type) for x in c.arguments),
                tuple(f"c{k}.{n}" for n in c.reads),
                tuple(f"c{k}.{n}" for n in c.writes),
                {x.op.label: i for i, x in enumerate(c.arguments)},
                list(range(results)),
            )
        )
    seed = make(leaf.Input(SEED, u32, (2,)), loc=LOC)
    rest = [s for s in states.values() if s.name != SEED]
    zeros = tuple(make(leaf.Fill(_zero(s.type.dtype), s.type.dtype, s.type.shape), loc=LOC) for s in rest)
    init = Function("init", Graph("init", (seed,), zeros), (), (SEED,), tuple(s.name for s in rest), {}, None)
    return Program("random", states, (*functions, init))


def _zero(dtype: DType) -> float | int | bool:
    return False if dtype.kind == "b" else 0.0 if dtype.is_float else 0


def flat(results: Sequence[np.ndarray], state: Mapping[str, np.ndarray], case: Case) -> list[np.ndarray]:
    """What a call leaves, in one list: its results, then every state of the case."""
    return [*results, *(state[n] for n in case.states)]


__all__ = ["KINDS", "Case", "ScriptError", "flat", "make_case", "program", "retyped"]
