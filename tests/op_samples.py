"""Sample inputs for every op: what the one data-driven op test runs, and other tests may reuse.

A sample is a function of tensors that makes (mostly) one node, and arrays to call it on.  `evaluations` lists the
ways to compute a graph that must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pullback.dsl import array as xp
from pullback.dsl.control import scan
from pullback.dsl.promotion import dtype_of
from pullback.dsl.tensor import Tensor, emit
from pullback.dsl.transforms import custom_vjp
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, make
from pullback.graph.types import DTYPES, DType, bf16, bool_, f16, f32, f64, i32, i64, u32
from pullback.kernel.scalars import SCALARS
from pullback.ops import contract, elementwise, indexing, leaf, movement, ordered, random, reduction
from pullback.ops.op import OPS, Elementwise, Op


@dataclass(frozen=True)
class Sample:
    """`build` on tensors of the arrays' values.  smooth: twice differentiable around them; `dtypes`: those of the
    arrays where numpy cannot say (bf16)."""

    name: str
    build: Callable[..., Tensor]
    arrays: tuple[np.ndarray, ...] = ()
    smooth: bool = True
    dtypes: tuple[DType, ...] = ()

    def graph(self, floats: DType | None = None) -> Graph:
        """The sample as a graph (its float inputs as `floats`, if given)."""
        inputs = []
        for i, x in enumerate(self.arrays):
            dtype = self.dtypes[i] if self.dtypes else dtype_of(x.dtype)
            dtype = floats if floats is not None and dtype.is_float else dtype
            inputs.append(make(leaf.Input(f"x{i}", dtype, x.shape)))
        out = self.build(*map(Tensor, inputs))
        outputs = out if isinstance(out, tuple) else (out,)
        return Graph(self.name, tuple(inputs), tuple(t.node for t in outputs))


def evaluations(graph: Graph) -> Iterator[tuple[str, Callable[[list[np.ndarray]], list[np.ndarray]]]]:
    """(name, arrays -> results) for every way to compute `graph`; the first is the reference."""
    yield "reference evaluator", lambda arrays: evaluate(graph, arrays)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _op(op: Op) -> Callable[..., Tensor]:
    return lambda *xs: emit(op, *(x.node for x in xs))


# ---- element-wise -----------------------------------------------------------------------------------------
_RANGES = {"acosh": (1.2, 4), "acos": (-0.8, 0.8), "asin": (-0.8, 0.8), "atanh": (-0.8, 0.8)}
_POSITIVE = {"log", "log2", "log10", "sqrt", "pow"}
_NOT_SMOOTH = {"abs", "maximum", "minimum", "remainder", "copysign", "select"}
_SHAPES = ((), (1,), (3, 5), (2, 0), (2, 1, 3))


def _values(name: str, dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.is_integer:
        low = -8 if dtype.kind == "i" else 0
        low, high = (0, 6) if name in ("shl", "shr") else (max(low, -3), 6) if name == "pow" else (low, 9)
        return rng.integers(low, high, shape).astype(dtype.numpy)
    low, high = _RANGES.get(name, (0.3, 3.0) if name in _POSITIVE or name == "log1p" else (-2.5, 2.5))
    return dtype.round(rng.uniform(low, high, shape) + 0.01)


def _elementwise(cls: type[Elementwise]) -> Iterator[Sample]:
    name, entry = cls.name, SCALARS.get(cls.name)
    kinds = entry.kinds if entry else "f"
    rng = _rng(name)
    for dtype in DTYPES.values():
        if dtype.kind not in kinds or (name == "mulhi" and dtype is not u32):
            continue
        if name == "nextafter" and dtype.bits == 16:
            continue  # the evaluators hold such floats in a wider type, which has other neighbours
        for shape in _SHAPES if dtype in (f64, i32) else ((3, 5),):
            n = entry.arity if entry else 1
            arrays = tuple(_values(name, dtype, shape, rng) for _ in range(n))
            dtypes = (dtype,) * n
            if name == "select":
                arrays, dtypes = (rng.random(shape) < 0.5, *arrays[1:]), (bool_, dtype, dtype)
            smooth = name not in _NOT_SMOOTH
            yield Sample(f"{name}-{dtype}-{shape}", _op(cls()), arrays, smooth, dtypes)
    if "f" in kinds and name not in ("select", "nextafter"):
        specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0], np.float32)
        n = entry.arity if entry else 1
        grids = np.meshgrid(*[specials] * n, indexing="ij")
        yield Sample(f"{name}-special", _op(cls()), tuple(g.ravel() for g in grids), False, (f32,) * n)


def _casts() -> Iterator[Sample]:
    for source in DTYPES.values():
        for target in DTYPES.values():
            x = _values("cast", source, (3, 4), _rng(f"{source}{target}"))
            yield Sample(f"cast-{source}-{target}", _op(elementwise.Cast(target)), (x,), True, (source,))
    edge = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 127.9, -128.9, 255.5, 4294967295.0, -0.9], np.float32)
    for target in DTYPES.values():
        if target.is_integer:
            yield Sample(f"cast-edge-{target}", _op(elementwise.Cast(target)), (edge,), False)
    for source, target in ((f32, i32), (i32, f32), (u32, f32), (f64, i64), (f32, u32)):
        x = _values("bitcast", source, (3, 4), _rng("bitcast"))
        yield Sample(f"bitcast-{source}-{target}", _op(elementwise.Bitcast(target)), (x,), True, (source,))


# ---- the other families -----------------------------------------------------------------------------------
def _x(*shape: int, seed: str = "x") -> np.ndarray:
    return _rng(f"{seed}{shape}").uniform(-2, 2, shape)


def _leaves() -> Iterator[Sample]:
    yield Sample("input", lambda x: x, (_x(3, 2),))
    for value, dtype in ((1.5, f32), (float("nan"), f64), (-0.0, f32), (7, i32), (True, bool_)):
        yield Sample(f"fill-{value}-{dtype}", lambda v=value, d=dtype: emit(leaf.Fill(v, d, (2, 3))))
    for dtype in DTYPES.values():
        data = _values("constant", dtype, (3, 4), _rng("constant"))
        yield Sample(f"constant-{dtype}", lambda a=data, d=dtype: emit(leaf.Constant.of(a, d)))
        if dtype is not bool_:
            yield Sample(f"iota-{dtype}", lambda d=dtype: emit(leaf.Iota(d, (2, 5, 1), 1)))


def _movement() -> Iterator[Sample]:
    m = movement
    for shape, new in (((2, 6), (2, 3, 2)), ((2, 6), (12,)), ((1, 4), (4,)), ((), (1, 1)), ((4,), (2, 1, 2)),
                       ((0, 3), (3, 0)), ((2, 3, 4), (6, 4)), ((6, 1), (2, 3))):  # fmt: skip
        yield Sample(f"reshape-{shape}-{new}", _op(m.Reshape(new)), (_x(*shape),))
    for shape, axes in (((2, 3, 4), (2, 0, 1)), ((2, 3), (1, 0)), ((5,), (0,)), ((1, 0, 2), (1, 2, 0))):
        yield Sample(f"permute-{shape}-{axes}", _op(m.Permute(axes)), (_x(*shape),))
    for shape, new, axes in (((3,), (2, 3), (1,)), ((3,), (3, 2), (0,)), ((), (2, 2), ()),
                             ((1, 3), (4, 3), (0, 1)), ((2, 1), (2, 5, 3), (0, 2)), ((0,), (2, 0), (1,)),
                             ((2, 1, 3), (2, 4, 3), (0, 1, 2))):  # fmt: skip
        yield Sample(f"broadcast-{shape}-{new}", _op(m.Broadcast(new, axes)), (_x(*shape),))
    for shape, start, stop, step in (((5, 6), (1, 2), (4, 6), (1, 1)), ((7,), (1,), (7,), (3,)),
                                     ((4,), (2,), (2,), (1,)), ((5, 8), (0, 1), (5, 8), (2, 3)),
                                     ((1,), (0,), (1,), (5,))
                                     ):  # fmt: skip
        yield Sample(f"slice-{shape}-{start}-{step}", _op(m.Slice(start, stop, step)), (_x(*shape),))
    for shape, axes in (((3, 4), (0,)), ((3, 4), (0, 1)), ((2, 1, 3), (2,)), ((0, 2), (0,))):
        yield Sample(f"flip-{shape}-{axes}", _op(m.Flip(axes)), (_x(*shape),))
    for shape, low, high, value in (((3,), (2,), (1,), 0.0), ((2, 3), (0, 1), (2, 0), 7.5), ((0,), (1,), (2,), -1.0),
                                    ((2, 2), (0, 0), (0, 0), 1.0)):  # fmt: skip
        yield Sample(f"pad-{shape}-{low}-{high}", _op(m.Pad(low, high, value)), (_x(*shape),))
    yield Sample("pad-bool", _op(m.Pad((1,), (1,), True)), (np.array([False, True]),))
    for axis, shapes in ((0, [(2, 3), (1, 3), (4, 3)]), (1, [(2, 3), (2, 0), (2, 2)]), (0, [(3,)]), (0, [(0,), (2,)])):
        arrays = tuple(_x(*s, seed=str(i)) for i, s in enumerate(shapes))
        yield Sample(f"concat-{axis}-{shapes}", _op(m.Concat(axis)), arrays)


def _reductions() -> Iterator[Sample]:
    r = reduction
    for cls in (r.Sum, r.Prod, r.Max, r.Min):
        extremum = cls in (r.Max, r.Min)
        for shape, axes in (((3, 4), (0,)), ((3, 4), (1,)), ((3, 4), (0, 1)), ((2, 3, 4), (0, 2)), ((2, 1), (1,)),
                            ((5,), ()), ((0, 3), (1,)), ((2, 40), (1,)), ((40, 2), (0,))):  # fmt: skip
            yield Sample(f"{cls.name}-{shape}-{axes}", _op(cls(axes)), (_x(*shape),), not extremum)
        if not extremum:
            yield Sample(f"{cls.name}-empty", _op(cls((0,))), (_x(0, 3),))
        for dtype in DTYPES.values():
            if dtype.kind in cls.kinds:
                x = _values("prod", dtype, (3, 4), _rng(cls.name))
                yield Sample(f"{cls.name}-{dtype}", _op(cls((0,))), (x,), False, (dtype,))
    with_zeros = np.array([[1.5, 0.0, 2.0], [0.0, 0.0, 3.0], [1.0, -2.0, 0.5]])
    yield Sample("prod-zeros", _op(r.Prod((1,))), (with_zeros,))
    special = np.array([[1, np.nan, np.inf], [-np.inf, 2, 2], [3, 3, -0.0]], np.float32)
    for cls in (r.Max, r.Min):
        yield Sample(f"{cls.name}-special", _op(cls((1,))), (special,), False)
    for cls in (r.ArgMax, r.ArgMin):
        for dtype in DTYPES.values():
            x = _values("arg", dtype, (4, 7), _rng(cls.name))
            yield Sample(f"{cls.name}-{dtype}", _op(cls(1)), (x,), False, (dtype,))
        yield Sample(f"{cls.name}-special", _op(cls(1)), (special,), False)
        yield Sample(f"{cls.name}-ties", _op(cls(0)), (np.array([[1, 5], [2, 5], [2, 1]], np.int32),), False)


def _contractions() -> Iterator[Sample]:
    sizes = dict(i=3, j=4, k=5, b=2, c=1, z=0)
    for lhs, rhs, out in (("ik", "kj", "ij"), ("ik", "jk", "ij"), ("ki", "kj", "ij"), ("bik", "bkj", "bij"),
                          ("k", "k", ""), ("i", "j", "ji"), ("bik", "kj", "jbi"), ("ikj", "kj", "i"), ("ik", "ik", "i"),
                          ("cik", "ck", "ic"), ("iz", "zj", "ij"), ("zk", "kj", "zj"), ("ij", "ij", "ij")):  # fmt: skip
        a, b = (_x(*(sizes[c] for c in s), seed=s) for s in (lhs, rhs))
        yield Sample(f"contract-{lhs},{rhs}-{out}", _op(contract.Contract(lhs, rhs, out)), (a, b))
    for dtype in DTYPES.values():
        if dtype is not bool_:
            a, b = (_values("contract", dtype, s, _rng("contract")) for s in ((3, 5), (5, 2)))
            op = contract.Contract("ik", "kj", "ij")
            yield Sample(f"contract-{dtype}", _op(op), (a, b), dtype.is_float, (dtype, dtype))
    for dtype in (bf16, f16):
        a, b = (_values("contract", dtype, s, _rng("contract")) for s in ((3, 5), (2, 5)))
        op = contract.Contract("ik", "jk", "ij", wide=True)
        yield Sample(f"contract-{dtype}-wide", _op(op), (a, b), True, (dtype, dtype))
    a, b = (_values("contract", f32, s, _rng("tf32")) for s in ((5, 3), (5, 2)))
    yield Sample("contract-tf32", _op(contract.Contract("ki", "kj", "ij", tf32=True)), (a, b), False)


def _indexing() -> Iterator[Sample]:
    ix = indexing
    for axis, shape, indices in ((0, (4, 3), [3, 0, 0, 2]), (1, (4, 3), [[2, 1], [0, 2]]), (0, (4,), 2),
                                 (1, (2, 3, 2), [1]), (0, (4, 3), []), (2, (2, 2, 5), [4, 4])):  # fmt: skip
        index = np.array(indices, np.int32)
        yield Sample(f"gather-{axis}-{shape}-{indices}", _op(ix.Gather(axis)), (_x(*shape), index))
        updates = _x(*shape[:axis], *index.shape, *shape[axis + 1 :])
        yield Sample(f"scatter_add-{axis}-{indices}", _op(ix.ScatterAdd(axis, shape[axis])), (index, updates))
    for dtype in ("i64", "u8", "u32", "i8"):
        index = np.array([2, 0], DTYPES[dtype].numpy)
        yield Sample(f"gather-{dtype}", _op(ix.Gather(0)), (_x(3, 2), index))
    for axis, shape, indices in ((1, (3, 4), [[3], [0], [2]]), (1, (2, 4), [[3, 3, 0], [1, 2, 3]]),
                                 (0, (3, 2), [[2, 0]]), (0, (3, 2), [[2, 0], [2, 1], [0, 0], [1, 1]])):  # fmt: skip
        op = ix.GatherAlong(axis)
        yield Sample(f"gather_along-{axis}-{indices}", _op(op), (_x(*shape), np.array(indices, np.int32)))


def _ordered() -> Iterator[Sample]:
    o = ordered
    for shape, axis in (((3, 5), 0), ((3, 5), 1), ((1,), 0), ((2, 0), 1), ((2, 3, 4), 1)):
        for reverse in (False, True):
            yield Sample(f"cumsum-{shape}-{axis}-{reverse}", _op(o.CumSum(axis, reverse)), (_x(*shape),))
            yield Sample(f"sort-{shape}-{axis}-{reverse}", _op(o.Sort(axis, reverse)), (_x(*shape),))
            yield Sample(f"argsort-{shape}-{axis}-{reverse}", _op(o.ArgSort(axis, reverse)), (_x(*shape),), False)
    for dtype in DTYPES.values():
        x = _values("sort", dtype, (3, 9), _rng("sort"))
        for descending in (False, True):
            yield Sample(f"sort-{dtype}-{descending}", _op(o.Sort(1, descending)), (x,), False, (dtype,))
            yield Sample(f"argsort-{dtype}-{descending}", _op(o.ArgSort(1, descending)), (x,), False, (dtype,))
        if dtype is not bool_:
            yield Sample(f"cumsum-{dtype}", _op(o.CumSum(1, False)), (x,), False, (dtype,))
    special = np.array([np.nan, 1, -np.inf, np.nan, np.inf, 0.0, -0.0, 1], np.float32)
    for descending in (False, True):
        yield Sample(f"argsort-special-{descending}", _op(o.ArgSort(0, descending)), (special,), False)


def _others() -> Iterator[Sample]:
    seed, step = np.array([3, 4000000000], np.uint32), np.array(7, np.uint32)
    yield Sample("random", _op(random.Random(12, (2, 3))), (seed, step))
    yield Sample("random-iteration", _op(random.Random(0, (5,))), (seed, step, step))

    def cell(h, x):
        h = xp.tanh(h * 0.5 + x)
        return h, (h * x, xp.sum(x))

    def loop(reverse):
        def build(h, xs):
            last, (ys, sums) = scan(cell, h, xs, reverse=reverse)
            return last, ys, sums

        return build

    yield Sample("scan", loop(False), (_x(3), _x(4, 3)))
    yield Sample("scan-reverse", loop(True), (_x(3), _x(4, 3)))
    yield Sample("scan-empty", loop(False), (_x(3), _x(0, 3)))
    yield Sample("scan-length", lambda w, h: scan(lambda c, _: (c * w + c, None), h, None, length=3)[0], (_x(2), _x(2)))

    sine = custom_vjp(lambda x: xp.sin(x))
    sine.defvjp(lambda x: (xp.sin(x), x), lambda x, ct: (ct * xp.cos(x),))
    yield Sample("custom_vjp", lambda x: sine(x), (_x(3),))


def samples() -> list[Sample]:
    """Every op is in the graph of at least one of them (a test checks it)."""
    result: list[Sample] = []
    for cls in OPS.values():
        if issubclass(cls, Elementwise) and cls not in (elementwise.Cast, elementwise.Bitcast):
            result += _elementwise(cls)
    for family in (_casts, _leaves, _movement, _reductions, _contractions, _indexing, _ordered, _others):
        result += family()
    return result
