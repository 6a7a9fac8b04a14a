"""Random well-typed graphs over all op families, and data for them: what the passes and lower levels are tested on.

`random_graph(rng, nodes, exact)` draws from a `random.Random`, so a seed is a graph.  Two kinds:

* exact: every element-wise op, movement, extremes, gathers, sorting, scans, sums of integers.  No sums of floats,
  so a transformation must keep every bit.
* sums: reductions and contractions, layers and normalisations with element-wise ops that do not amplify rounding, to
  be compared with a tolerance.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from inspect import signature

import numpy as np
from hypothesis import strategies as st
from random_builder import LOC, GraphBuilder, random_array

from pullback.dsl.tensor import Tensor
from pullback.graph.graph import Graph, Node, make
from pullback.graph.types import DType, TensorType, bf16, bool_, f16, f32, f64, i32, u32
from pullback.kernel.scalars import SCALARS
from pullback.ops import OPS
from pullback.ops import contract as C
from pullback.ops import elementwise as E
from pullback.ops import indexing as X
from pullback.ops import leaf as L
from pullback.ops import movement as M
from pullback.ops import ordered as O
from pullback.ops import reduction as R
from pullback.ops.random import Random
from pullback.ops.scan import Scan

ARITHMETIC = ("add", "sub", "mul", "div", "neg", "maximum", "minimum", "select", "lt", "eq", "remainder", "floordiv")
"""What most programs are made of."""
SMOOTH = ("add", "sub", "mul", "neg", "abs", "maximum", "minimum", "tanh", "sin", "cos", "sub", "add", "mul", "erf")
"""Element-wise ops that do not blow up a rounding error."""


def random_graph(rng: random.Random, nodes: int = 12, exact: bool = True, dtypes: tuple[DType, ...] = ()) -> Graph:
    """A graph of about `nodes` operations with one to three inputs and one to three outputs."""
    g = builder(rng, exact, dtypes or ((f32, f64, f16, bf16, i32, u32, bool_) if exact else (f64,)))
    inputs = [g.input(f"x{i}") for i in range(rng.randint(1, 3))]
    g.grow(nodes)
    tensors = g.tensors
    outputs = [tensors[-1]] + [rng.choice(tensors) for _ in range(rng.randint(0, 2))]
    return Graph("random", tuple(inputs), tuple(outputs))


def builder(rng: random.Random, exact: bool, dtypes: tuple[DType, ...], **kwargs) -> GraphBuilder:
    """An empty pool with the makers of its kind."""
    return GraphBuilder(rng, exact, dtypes, EXACT_MAKERS if exact else SUM_MAKERS, **kwargs)


def graphs(exact: bool = True, max_nodes: int = 14, **kwargs) -> st.SearchStrategy[Graph]:
    """Hypothesis strategy of `random_graph`."""
    return st.builds(
        lambda seed, nodes: random_graph(random.Random(seed), nodes, exact, **kwargs),
        st.integers(0, 2**32 - 1),
        st.integers(1, max_nodes),
    )


def traced(f: Callable, *types: TensorType, name: str = "model") -> Graph:
    """The graph of a Python function on DSL tensors; its parameters' names label the inputs."""
    labels = list(signature(f).parameters)
    inputs = [make(L.Input(k, t.dtype, t.shape), loc=LOC) for k, t in zip(labels, types, strict=True)]
    results = f(*[Tensor(x) for x in inputs])
    results = results if isinstance(results, tuple) else (results,)
    return Graph(name, tuple(inputs), tuple(r.node for r in results))


def random_inputs(graph: Graph, seed: int = 0, special: bool = True) -> list[np.ndarray]:
    """Arrays for a graph's inputs; `special`: some NaN, infinities and signed zeros among the floats."""
    rng = np.random.default_rng(seed)
    return [random_array(rng, x.type, special) for x in graph.inputs]


def elementwise(g: GraphBuilder) -> None:
    names = SMOOTH if not g.exact else ARITHMETIC if g.rng.random() < 0.4 else ELEMENTWISE
    cls = OPS[g.rng.choice(names)]
    entry = SCALARS[cls.name]
    if cls is E.Select:
        a = g.pick()
        b = g.like(a.type)
        g.add(cls(), g.like(TensorType(bool_, a.shape)), a, b)
        return
    x = g.pick(lambda n: n.dtype.kind in entry.kinds)
    others = [g.like(x.type) for _ in range(entry.arity - 1)]
    if cls is E.MulHi and x.dtype is not u32:
        return
    if g.exact and g.rng.random() < 0.2:
        others, x = [x, *others[1:]] if others else [], others[0] if others else x
    g.add(cls(), x, *others)


def with_constant(g: GraphBuilder) -> None:
    """What `simplify` has rules for."""
    cls = g.rng.choice((E.Add, E.Sub, E.Mul, E.Div))
    x = g.pick(lambda n: n.dtype.kind in SCALARS[cls.name].kinds)
    values = (0.0, 0.0, -0.0, 1.0, -1.0, 2.0, 0.25, 3.0) if x.dtype.is_float else (0, 1, 2)
    c = g.add(L.Fill(g.rng.choice(values), x.dtype, x.shape))
    g.add(cls(), *(g.rng.choice(((x, c), (c, x)))))


def cast(g: GraphBuilder) -> None:
    g.add(E.Cast(g.rng.choice(g.dtypes)), g.pick())


def stop_gradient(g: GraphBuilder) -> None:
    g.add(E.StopGradient(), g.pick())


def reshape(g: GraphBuilder) -> None:
    x = g.pick()
    dims = [d for d in x.shape if d != 1 or g.rng.random() < 0.5]
    if len(dims) > 1 and g.rng.random() < 0.4:
        k = g.rng.randrange(len(dims) - 1)
        dims[k : k + 2] = [dims[k] * dims[k + 1]]
    elif dims and g.rng.random() < 0.4 and dims[0] == 4:
        dims[:1] = [2, 2]
    for _ in range(g.rng.randint(0, 2)):
        dims.insert(g.rng.randint(0, len(dims)), 1)
    g.add(M.Reshape(tuple(dims)), x)


def permute(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    axes = list(range(x.type.ndim))
    g.rng.shuffle(axes)
    g.add(M.Permute(tuple(axes)), x)


def broadcast(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim <= 2)
    dims: list[tuple[int, int | None]] = [
        (g.rng.choice((2, 3)) if n == 1 and g.rng.random() < 0.5 else n, d) for d, n in enumerate(x.shape)
    ]
    for _ in range(g.rng.randint(1, 2)):
        dims.insert(g.rng.randint(0, len(dims)), (g.rng.choice([n for n in g.sizes if n]), None))
    axes = tuple(k for k, (_, d) in enumerate(dims) if d is not None)
    g.add(M.Broadcast(tuple(n for n, _ in dims), axes), x)


def slice_(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    bounds = []
    for n in x.shape:
        lo = g.rng.randint(0, n)
        bounds.append((lo, g.rng.randint(lo, n), g.rng.choice((1, 1, 2))) if g.rng.random() < 0.7 else (0, n, 1))
    g.add(M.Slice(*zip(*bounds, strict=True)), x)


def flip(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    g.add(M.Flip(tuple(d for d in range(x.type.ndim) if g.rng.random() < 0.6)), x)


def pad(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    value = L.checked_scalar(g.rng.choice((0, 1)), x.dtype)
    low, high = (tuple(g.rng.choice((0, 0, 1, 2)) for _ in x.shape) for _ in range(2))
    g.add(M.Pad(low, high, value), x)


def concat(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    axis = g.rng.randrange(x.type.ndim)
    if g.rng.random() < 0.3:  # in pieces and together again
        n, at = x.shape[axis], g.rng.randint(0, x.shape[axis])
        ends = [(0, at), (at, n)]
        full = [(0, m, 1) for m in x.shape]
        parts = [
            g.add(M.Slice(*zip(*[*full[:axis], (lo, hi, 1), *full[axis + 1 :]], strict=True)), x) for lo, hi in ends
        ]
    else:
        shape = list(x.shape)
        parts = [x]
        for _ in range(g.rng.randint(0, 2)):
            shape[axis] = g.rng.choice((*g.sizes, x.shape[axis]))
            parts.append(g.like(TensorType(x.dtype, tuple(shape))))
        g.rng.shuffle(parts)
    g.add(M.Concat(axis), *parts)


def _axes(g: GraphBuilder, x: Node, least: int = 0) -> tuple[int, ...]:
    axes = tuple(d for d in range(x.type.ndim) if g.rng.random() < 0.5)
    return axes if len(axes) >= least else (x.type.ndim - 1,)


def extreme(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1 and n.type.size > 0)
    if g.rng.random() < 0.5 and x.dtype.kind != "b":
        g.add(g.rng.choice((R.ArgMax, R.ArgMin))(g.rng.randrange(x.type.ndim)), x)
    else:
        g.add(g.rng.choice((R.Max, R.Min))(_axes(g, x)), x)


def _number(g: GraphBuilder) -> Callable[[Node], bool]:
    """What may be summed: integers wrap, so they stay exact in any order."""
    return lambda n: n.dtype.is_integer if g.exact else n.dtype.kind != "b"


def sum_(g: GraphBuilder) -> None:
    x = g.pick(_number(g))
    cls = R.Prod if g.rng.random() < 0.2 else R.Sum
    g.add(cls(_axes(g, x)), x)


def contract(g: GraphBuilder) -> None:
    number = _number(g)
    x = g.pick(lambda n: number(n) and 1 <= n.type.ndim <= 8)
    lhs = "abcefghi"[: x.type.ndim]
    sizes = dict(zip(lhs, x.shape, strict=True))
    own = [c for c in lhs if g.rng.random() < 0.4]  # labels that x alone has, so they stay
    shared = [c for c in lhs if c not in own]
    new = ["d"] if g.rng.random() < 0.7 else []
    rhs = shared + new
    g.rng.shuffle(rhs)
    if "d" in rhs:
        sizes["d"] = g.rng.choice(g.sizes)
    out = own + [c for c in shared if g.rng.random() < 0.4] + new
    g.rng.shuffle(out)
    y = g.like(TensorType(x.dtype, tuple(sizes[c] for c in rhs)))
    g.add(C.Contract(lhs, "".join(rhs), "".join(out)), x, y)


def _indices(g: GraphBuilder, shape: tuple[int, ...], size: int) -> Node:
    """i32 in range, whatever the data: the remainder by the size."""
    x = g.like(TensorType(i32, shape))
    return g.add(E.Remainder(), x, g.add(L.Fill(size, i32, shape)))


def gather(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    axis = g.rng.randrange(x.type.ndim)
    size = x.shape[axis]
    if size == 0 or i32 not in g.dtypes:
        return
    what = g.rng.random()
    if what < 0.5:
        g.add(X.Gather(axis), x, _indices(g, g.shape(g.rng.randint(0, 2)), size))
    else:
        shape = (*x.shape[:axis], g.rng.choice(g.sizes), *x.shape[axis + 1 :])
        g.add(X.GatherAlong(axis), x, _indices(g, shape, size))


def scatter(g: GraphBuilder) -> None:
    number = _number(g)
    x = g.pick(lambda n: number(n) and n.type.ndim >= 1)
    axis = g.rng.randrange(x.type.ndim)
    n = x.shape[axis]
    size = g.rng.randint(1, 4)
    where = np.random.default_rng(g.rng.randrange(100)).integers(0, size, n).astype(np.int32)
    g.add(X.ScatterAdd(axis, size), g.add(L.Constant.of(where, i32)), x)


def ordered(g: GraphBuilder) -> None:
    x = g.pick(lambda n: n.type.ndim >= 1)
    axis, flag = g.rng.randrange(x.type.ndim), g.rng.random() < 0.5
    g.add(g.rng.choice((O.Sort, O.ArgSort))(axis, flag), x)


def cumsum(g: GraphBuilder) -> None:
    number = _number(g)
    x = g.pick(lambda n: number(n) and n.type.ndim >= 1)
    g.add(O.CumSum(g.rng.randrange(x.type.ndim), g.rng.random() < 0.5), x)


def random_bits(g: GraphBuilder) -> None:
    if u32 in g.dtypes:
        g.add(Random(g.rng.randrange(5), g.shape()), g.like(TensorType(u32, (2,))), g.like(TensorType(u32, ())))


def scan(g: GraphBuilder) -> None:
    """A loop over a body that is a random graph of its own, maybe with loops; some of its results are left unread."""
    if not g.scans:
        return
    length = g.rng.choice((1, 2, 3, 0))
    constants, carries, xs = g.rng.randint(0, 2), g.rng.randint(1, 2), g.rng.randint(0, 2)
    outer = [g.pick() for _ in range(constants + carries)]
    for _ in range(xs):
        t = TensorType(g.rng.choice(g.dtypes), (length, *g.shape(g.rng.randint(0, 2))))
        outer.append(g.data(t) if g.rng.random() < 0.5 else g.like(t))
    inner = builder(g.rng, g.exact, g.dtypes, scans=g.scans - 1, sizes=g.sizes)
    fixed = constants + carries
    inputs = [
        inner.input(f"v{i}", x.type if i < fixed else TensorType(x.dtype, x.shape[1:])) for i, x in enumerate(outer)
    ]
    inner.grow(g.rng.randint(1, 5))
    outputs = [g.rng.choice([n for n in inner.tensors if n.type == x.type][-2:]) for x in inputs[constants:fixed]]
    outputs += [g.rng.choice([*inner.tensors[-2:], *inputs[fixed:]]) for _ in range(g.rng.randint(0, 2))]
    body = Graph("body", tuple(inputs), tuple(outputs))
    op = Scan(body, length, constants, carries, g.rng.random() < 0.3)
    loop = make(op, *outer, loc=LOC)
    for k in range(len(outputs)):
        if g.rng.random() < 0.7 or k == 0:
            g.add(L.Item(k), loop)


# ---- what models are made of ------------------------------------------------------------------------------
def _float_rows(g: GraphBuilder) -> tuple[Node, tuple[int, ...]]:
    x = g.pick(lambda n: n.dtype.is_float and n.type.ndim >= 1 and n.type.size > 0)
    last = x.type.ndim - 1
    return x, (last,) if g.rng.random() < 0.7 else tuple(sorted({g.rng.randrange(last + 1), last}))


def _over(g: GraphBuilder, cls, x: Node, axes: tuple[int, ...]) -> Node:
    """A reduction of x, broadcast to x again."""
    kept = tuple(d for d in range(x.type.ndim) if d not in axes)
    return g.add(M.Broadcast(x.shape, kept), g.add(cls(axes), x))


def softmax(g: GraphBuilder) -> None:
    x, axes = _float_rows(g)
    e = g.add(E.Exp(), g.add(E.Sub(), x, _over(g, R.Max, x, axes)))
    g.add(E.Div(), e, _over(g, R.Sum, e, axes))


def layer_norm(g: GraphBuilder) -> None:
    x, axes = _float_rows(g)
    n = int(np.prod([x.shape[a] for a in axes]))

    def mean(y: Node) -> Node:
        return g.add(E.Mul(), _over(g, R.Sum, y, axes), g.add(L.Fill(1.0 / n, y.dtype, y.shape)))

    centred = g.add(E.Sub(), x, mean(x))
    variance = mean(g.add(E.Mul(), centred, centred))
    spread = g.add(E.Sqrt(), g.add(E.Add(), variance, g.add(L.Fill(1.0, x.dtype, x.shape))))
    g.add(E.Div(), centred, spread)


def layer(g: GraphBuilder) -> None:
    """activation(x @ w + b)"""
    x = g.pick(lambda n: n.dtype.is_float and 1 <= n.type.ndim <= 3)
    k, n = x.shape[-1], g.rng.choice(g.sizes)
    transposed = g.rng.random() < 0.5
    w = g.like(TensorType(x.dtype, (n, k) if transposed else (k, n)))
    rows = "abc"[: x.type.ndim - 1]
    h = g.add(C.Contract(rows + "k", "nk" if transposed else "kn", rows + "n"), x, w)
    b = g.add(M.Broadcast(h.shape, (h.type.ndim - 1,)), g.like(TensorType(x.dtype, (n,))))
    h = g.add(E.Add(), h, b)
    if g.rng.random() < 0.7:
        g.add(OPS[g.rng.choice(("tanh", "erf", "abs"))](), h)


ELEMENTWISE = tuple(
    name
    for name, cls in OPS.items()
    if issubclass(cls, E.Scalar) and name not in ("pow", "fma")  # pow has a rule that rounds less
)
_MOVES = [reshape, permute, broadcast, slice_, flip, pad, concat]
_SUMS = [sum_, contract, scatter, cumsum]
EXACT_MAKERS = [
    *[elementwise] * 12, *[with_constant] * 4, cast, stop_gradient, *_MOVES, *[extreme] * 2, gather, ordered,
    random_bits, *[scan] * 2, *_SUMS,
]  # fmt: skip
SUM_MAKERS = [
    *[elementwise] * 8, *_MOVES, *[sum_] * 3, *[contract] * 3, *_SUMS, gather, extreme, *[scan] * 2,
    *[softmax, layer_norm, layer] * 2,
]  # fmt: skip


def same_values(a: list[np.ndarray], b: list[np.ndarray], tolerance: float = 0.0) -> bool:
    """Equal results: bit for bit (NaN equals NaN), or within `tolerance` of the largest finite element."""
    for x, y in zip(a, b, strict=True):
        if x.dtype != y.dtype or x.shape != y.shape:
            return False
        if x.dtype.kind != "f":
            if not np.array_equal(x, y):
                return False
            continue
        if tolerance:
            finite = np.abs(x[np.isfinite(x)])
            scale = max(1.0, finite.max()) if finite.size else 1.0
            if not np.allclose(x, y, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
                return False
        elif not (np.array_equal(x, y, equal_nan=True) and _signs(x, y)):
            return False
    return True


def _signs(x: np.ndarray, y: np.ndarray) -> bool:
    return bool(np.all((np.signbit(x) == np.signbit(y)) | np.isnan(x)))
