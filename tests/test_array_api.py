"""The DSL's array functions against numpy, on shapes with 0 and 1; promotion, indexing, errors at script lines."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import pullback as pb
from pullback.dsl import array as xp
from pullback.dsl import random
from pullback.dsl.promotion import dtype_of
from pullback.dsl.tensor import Tensor
from pullback.errors import DTypeError, ShapeError, TraceError
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, make
from pullback.graph.types import DTYPES, bf16, bool_, f16, f32, f64, i8, i32, i64, u8, u32
from pullback.ops.elementwise import Pow
from pullback.ops.leaf import Input
from pullback.ops.movement import Broadcast


def tensor(array: np.ndarray, name: str = "x") -> Tensor:
    return Tensor(make(Input(name, dtype_of(array.dtype), array.shape)))


def run(fn, *arrays):
    """fn on tensors with the values of `arrays`."""
    inputs = [tensor(a, f"x{i}") for i, a in enumerate(arrays)]
    out = fn(*inputs)
    outputs = list(out) if isinstance(out, tuple | list) else [out]
    values = evaluate(Graph("g", tuple(t.node for t in inputs), tuple(t.node for t in outputs)), list(arrays))
    return values if isinstance(out, tuple | list) else values[0]


def value(t: Tensor) -> np.ndarray:
    """The value of a tensor without inputs."""
    return evaluate(Graph("g", (), (t.node,)), [])[0]


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-3, 3, shape)


def check(fn, reference, *arrays):
    got, expected = run(fn, *arrays), reference(*arrays)
    if isinstance(expected, tuple | list):
        assert len(got) == len(expected)
    else:
        got, expected = [got], [expected]
    for g, e in zip(got, expected, strict=True):
        assert g.shape == np.shape(e)
        np.testing.assert_allclose(g.astype(np.float64), np.asarray(e, np.float64), rtol=1e-12, atol=1e-13)


SHAPES = [(), (1,), (5,), (0,), (3, 4), (1, 4), (2, 1, 3), (2, 0, 3), (2, 3, 4)]
PAIRS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((), (2, 2)),
    ((0, 3), (1, 3)),
    ((2, 1, 3), (4, 1)),
    ((1,), (1,)),
]

UNARY = {
    "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atanh": np.arctanh, "ceil": np.ceil, "cos": np.cos, "cosh": np.cosh, "exp": np.exp, "expm1": np.expm1,
    "floor": np.floor, "isfinite": np.isfinite, "isinf": np.isinf, "isnan": np.isnan, "log": np.log, "log10": np.log10,
    "log1p": np.log1p, "log2": np.log2, "logical_not": np.logical_not, "negative": np.negative, "positive": np.positive,
    "reciprocal": np.reciprocal, "round": np.round, "sign": np.sign, "signbit": np.signbit, "sin": np.sin,
    "sinh": np.sinh, "sqrt": np.sqrt, "square": np.square, "tan": np.tan, "tanh": np.tanh, "trunc": np.trunc,
}  # fmt: skip
BINARY = {
    "add": np.add, "atan2": np.arctan2, "copysign": np.copysign, "divide": np.divide, "equal": np.equal,
    "floor_divide": np.floor_divide, "greater": np.greater, "greater_equal": np.greater_equal, "hypot": np.hypot,
    "less": np.less, "less_equal": np.less_equal, "logaddexp": np.logaddexp, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "logical_xor": np.logical_xor, "maximum": np.maximum, "minimum": np.minimum,
    "multiply": np.multiply, "nextafter": np.nextafter, "not_equal": np.not_equal, "pow": np.power,
    "remainder": np.remainder, "subtract": np.subtract,
}  # fmt: skip
BITS = {
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
    "bitwise_left_shift": np.left_shift, "bitwise_right_shift": np.right_shift,
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    with np.errstate(all="ignore"):
        for shape in SHAPES:
            check(getattr(xp, name), UNARY[name], data(*shape))
        check(getattr(xp, name), UNARY[name], np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.5]))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    with np.errstate(all="ignore"):
        for a, b in PAIRS:
            check(getattr(xp, name), BINARY[name], data(*a), data(*b, seed=1))
        special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -2.0])
        if name != "floor_divide":  # numpy's goes through the remainder, and infinities become NaN
            check(getattr(xp, name), BINARY[name], special[:, None], special[None, :])


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_bits(name, dtype):
    a, b = np.arange(12, dtype=dtype).reshape(3, 4), np.array([1, 2, 0, 3], dtype)
    check(getattr(xp, name), BITS[name], a, b)
    check(xp.bitwise_invert, np.invert, a)


def test_operators():
    a, b = data(3, 4), data(4, seed=1) + 4
    for f in (
        lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x // y,
        lambda x, y: x % y, lambda x, y: abs(x) ** y, lambda x, y: -x + +y, lambda x, y: x < y, lambda x, y: x <= y,
        lambda x, y: x > y, lambda x, y: x >= y, lambda x, y: x == y, lambda x, y: x != y,
        lambda x, y: 2 - x, lambda x, y: 2.5 / y, lambda x, y: 7 // y, lambda x, y: 7 % y, lambda x, y: 2.0 ** y,
        lambda x, y: (x > 0) & (y > 5), lambda x, y: (x > 0) | (y > 5), lambda x, y: (x > 0) ^ ~(y > 5),
    ):  # fmt: skip
        check(f, f, a, b)
    n = np.arange(6, dtype=np.int32)
    for f in (lambda x: 3 & x, lambda x: x | 8, lambda x: x << 2, lambda x: 1 << x, lambda x: x >> 1, lambda x: 6 ^ x):
        check(f, f, n)
    check(lambda x, y: x @ y, np.matmul, a, b)
    check(lambda x: np.ones((2, 3)) @ x, lambda x: np.ones((2, 3)) @ x, a)
    check(lambda x: np.float64(2) * x + np.ones(4), lambda x: 2 * x + 1, a)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, -1, -2, -3, 0.5, -0.5, 1.5, 2.0])
def test_constant_powers(n):
    x = np.abs(data(3, 4)) + 0.2
    check(lambda t: t**n, lambda t: t ** float(n), x)
    cheap = n in (1, 2, 3, 4, -1, -2, 0.5, -0.5)
    assert isinstance((tensor(x) ** n).node.op, Pow) is not cheap


REDUCTIONS = {
    "sum": np.sum,
    "prod": np.prod,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "var": np.var,
    "std": np.std,
}


def axis_choices(ndim: int):
    singles = [*range(-ndim, ndim)]
    return [None, *singles, *itertools.permutations(range(ndim), 2)]


@pytest.mark.parametrize("name", [*REDUCTIONS, "any", "all", "count_nonzero", "logsumexp"])
def test_reductions(name):
    def logsumexp(x, axis, keepdims):
        return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))

    special = {"any": np.any, "all": np.all, "count_nonzero": np.count_nonzero, "logsumexp": logsumexp}
    reference = {**REDUCTIONS, **special}[name]
    for shape in SHAPES:
        for axis, keep in itertools.product(axis_choices(len(shape)), (False, True)):
            axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
            if not all(shape[a] for a in axes) and name not in ("sum", "prod", "any", "all", "count_nonzero"):
                continue
            x = data(*shape)
            x = x * (np.abs(x) > 1.5) if name in ("any", "all", "count_nonzero") else x
            check(
                lambda t, axis=axis, keep=keep: getattr(xp, name)(t, axis=axis, keepdims=keep),
                lambda a, axis=axis, keep=keep: reference(a, axis=axis, keepdims=keep),
                x,
            )


def test_reduction_details():
    x = data(3, 5)
    check(lambda t: xp.var(t, axis=0, correction=1), lambda a: np.var(a, axis=0, ddof=1), x)
    check(lambda t: t.std(1, correction=1.0, keepdims=True), lambda a: np.std(a, axis=1, ddof=1, keepdims=True), x)
    assert np.isnan(run(xp.mean, np.zeros((0,))))
    assert run(xp.logsumexp, np.array([-np.inf, -np.inf])) == -np.inf
    assert run(xp.logsumexp, np.array([np.inf, 0.0])) == np.inf
    assert run(xp.logsumexp, np.array([1000.0, 1000.0])) == pytest.approx(1000 + math.log(2))
    for dtype, total in ((bool_, i32), (i8, i32), (u8, u32), (i64, i64), (u32, u32), (f16, f16), (bf16, bf16)):
        t = xp.ones((3,), dtype=dtype)
        assert xp.sum(t).dtype is xp.prod(t).dtype is xp.cumulative_sum(t).dtype is total
    assert xp.sum(xp.ones((2,)), dtype=f64).dtype is f64
    assert value(xp.sum(xp.full((300,), 1, dtype=u8))) == 300


def test_arg_reductions_and_sorting():
    for shape in ((5,), (3, 4), (2, 3, 4), (1, 1)):
        x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float64)
        for axis in range(-len(shape), len(shape)):
            for name, reference in (("argmax", np.argmax), ("argmin", np.argmin)):
                for keep in (False, True):
                    check(
                        lambda t, n=name, a=axis, k=keep: getattr(xp, n)(t, axis=a, keepdims=k),
                        lambda v, r=reference, a=axis, k=keep: r(v, axis=a, keepdims=k),
                        x,
                    )
            check(lambda t, a=axis: xp.sort(t, axis=a), lambda v, a=axis: np.sort(v, axis=a), x)
            check(lambda t, a=axis: xp.argsort(t, axis=a), lambda v, a=axis: np.argsort(v, axis=a, kind="stable"), x)
            check(lambda t, a=axis: xp.sort(t, axis=a, descending=True), lambda v, a=axis: -np.sort(-v, axis=a), x)
            check(
                lambda t, a=axis: xp.argsort(t, axis=a, descending=True),
                lambda v, a=axis: np.argsort(-v, axis=a, kind="stable"),
                x,
            )
        check(lambda t: xp.argmax(t), lambda v: np.argmax(v), x)
        check(lambda t: xp.argmin(t, keepdims=True), lambda v: np.argmin(v, keepdims=True), x)


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted(side):
    a, v = np.array([1.0, 2.0, 2.0, 5.0]), np.array([[0.0, 2.0], [3.0, 9.0]])
    check(lambda x, y: xp.searchsorted(x, y, side=side), lambda x, y: np.searchsorted(x, y, side=side), a, v)
    order = np.array([3, 0, 2, 1], np.int32)
    check(
        lambda x, y, s: xp.searchsorted(x, y, side=side, sorter=s),
        lambda x, y, s: np.searchsorted(x, y, side=side, sorter=s),
        a[np.argsort(order)],
        v,
        order,
    )


def test_where_and_clip():
    for a, b in PAIRS:
        x, y = data(*a), data(*b, seed=2)
        check(lambda s, t: xp.where(s > 0, s, t), lambda s, t: np.where(s > 0, s, t), x, y)
    check(lambda t: xp.where(t > 0, t, 0), lambda v: np.where(v > 0, v, 0), data(3, 4))
    x = data(3, 4)
    for low, high in ((-1, 1), (None, 0.5), (-0.5, None), (None, None)):
        check(lambda t, lo=low, hi=high: xp.clip(t, lo, hi), lambda v, lo=low, hi=high: np.clip(v, lo, hi), x)
    check(lambda t, lo: xp.clip(t, lo), lambda v, lo: np.clip(v, lo, None), x, data(4, seed=3))
    assert xp.clip(xp.ones((2,)), 0, xp.ones((), dtype=f64)).dtype is f32


# ---- manipulation -----------------------------------------------------------------------------------------
X = data(2, 3, 4)
MANIPULATION = [
    (lambda x: xp.reshape(x, (4, -1)), lambda x: np.reshape(x, (4, -1)), X),
    (lambda x: x.reshape(6, 4), lambda x: x.reshape(6, 4), X),
    (lambda x: x.reshape((-1,)), lambda x: x.reshape(-1), X),
    (lambda x: x.flatten(), lambda x: x.flatten(), X),
    (lambda x: xp.reshape(x, (0, 5)), lambda x: np.reshape(x, (0, 5)), data(3, 0)),
    (lambda x: xp.permute_dims(x, (2, 0, 1)), lambda x: np.transpose(x, (2, 0, 1)), X),
    (lambda x: xp.permute_dims(x, (-1, 0, 1)), lambda x: np.transpose(x, (2, 0, 1)), X),
    (lambda x: x.mT, lambda x: np.swapaxes(x, 1, 2), X),
    (lambda x: x.T, lambda x: x.T, data(2, 3)),
    (lambda x: xp.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1), X),
    (lambda x: xp.moveaxis(x, (0, 2), (1, 0)), lambda x: np.moveaxis(x, (0, 2), (1, 0)), X),
    (lambda x: xp.broadcast_to(x, (5, 2, 3, 4)), lambda x: np.broadcast_to(x, (5, 2, 3, 4)), X),
    (lambda x: xp.broadcast_to(x, (2, 0)), lambda x: np.broadcast_to(x, (2, 0)), data(1, 1)),
    (lambda x: xp.expand_dims(x, axis=1), lambda x: np.expand_dims(x, 1), X),
    (lambda x: xp.expand_dims(x, axis=(0, -1)), lambda x: np.expand_dims(x, (0, -1)), X),
    (lambda x: xp.squeeze(x, axis=(0, 2)), lambda x: np.squeeze(x, (0, 2)), data(1, 3, 1)),
    (lambda x: xp.flip(x), lambda x: np.flip(x), X),
    (lambda x: xp.flip(x, axis=(0, -1)), lambda x: np.flip(x, (0, -1)), X),
    (lambda x: xp.concat([x, x + 1], axis=1), lambda x: np.concatenate([x, x + 1], 1), X),
    (lambda x: xp.concat([x, x], axis=None), lambda x: np.concatenate([x, x], None), X),
    (lambda x: xp.concat([x, x[:, :0]], axis=-2), lambda x: x, X),
    (lambda x: xp.stack([x, -x], axis=-1), lambda x: np.stack([x, -x], -1), X),
    (lambda x: xp.stack([x, -x]), lambda x: np.stack([x, -x]), np.array(2.0)),
    (lambda x: xp.unstack(x, axis=1), lambda x: [x[:, i] for i in range(3)], X),
    (lambda x: xp.repeat(x, 3, axis=1), lambda x: np.repeat(x, 3, 1), X),
    (lambda x: xp.repeat(x, 2), lambda x: np.repeat(x, 2), X),
    (lambda x: xp.repeat(x, [1, 0, 2], axis=1), lambda x: np.repeat(x, [1, 0, 2], 1), X),
    (lambda x: xp.repeat(x, np.array([2]), axis=-1), lambda x: np.repeat(x, [2], -1), X),
    (lambda x: xp.repeat(x, 0, axis=0), lambda x: np.repeat(x, 0, 0), X),
    (lambda x: xp.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), X),
    (lambda x: xp.tile(x, (2,)), lambda x: np.tile(x, (2,)), X),
    (lambda x: xp.tile(x, (2, 2)), lambda x: np.tile(x, (2, 2)), data(3)),
    (lambda x: xp.roll(x, 2), lambda x: np.roll(x, 2), X),
    (lambda x: xp.roll(x, -1, axis=1), lambda x: np.roll(x, -1, 1), X),
    (lambda x: xp.roll(x, (1, 5), axis=(0, 2)), lambda x: np.roll(x, (1, 5), (0, 2)), X),
    (lambda x: xp.roll(x, 3), lambda x: x, data(0)),
    (lambda x: xp.tril(x), lambda x: np.tril(x), X),
    (lambda x: xp.triu(x, k=1), lambda x: np.triu(x, 1), X),
    (lambda x: xp.tril(x, k=-1), lambda x: np.tril(x, -1), data(4, 2)),
    (lambda x: xp.diff(x), lambda x: np.diff(x), X),
    (lambda x: xp.diff(x, axis=1, n=2), lambda x: np.diff(x, 2, 1), X),
    (lambda x: xp.diff(x, prepend=x[:1]), lambda x: np.diff(x, prepend=x[:1]), data(5)),
    (lambda x: xp.diff(x), lambda x: np.diff(x), data(0)),
    (lambda x: xp.cumulative_sum(x, axis=1), lambda x: np.cumsum(x, 1), X),
    (lambda x: xp.cumulative_sum(x, include_initial=True), lambda x: np.cumsum([0, *x]), data(4)),
    (lambda x: xp.cumulative_prod(x, axis=-1), lambda x: np.cumprod(x, -1), X),
    (lambda x: xp.cumulative_prod(x, include_initial=True), lambda x: np.cumprod([1, *x]), data(7)),
    (lambda x: xp.pad(x, [(1, 0), (0, 2), (0, 0)]), lambda x: np.pad(x, [(1, 0), (0, 2), (0, 0)]), X),
    (lambda x: xp.one_hot(x, 4), lambda x: np.eye(4)[x], np.array([[0, 3], [2, 2]], np.int32)),
    (lambda x: xp.broadcast_arrays(x, x[0, :1, :1]), lambda x: np.broadcast_arrays(x, x[0, :1, :1]), X),
]


@pytest.mark.parametrize("case", range(len(MANIPULATION)))
def test_manipulation(case):
    fn, reference, x = MANIPULATION[case]
    check(fn, reference, x)


KEYS = [
    0, -1, slice(None), slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1), slice(4, 0, -2),
    slice(10, 20), slice(3, 1), ..., None, (0, 1), (0, ..., 1), (slice(None), None, -1), (..., None), (None, 0, None),
    (slice(1, 3), slice(None, None, 2), slice(None, None, -3)), (1, 2, 3), (..., slice(0, 0)), (),
    (slice(None), 1, slice(2, None)), (-1, slice(None, None, -1)), np.int64(1),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_basic_indexing(key):
    check(lambda x: x[key], lambda x: x[key], data(4, 5, 6))


def test_indexing_with_tensors():
    x = data(4, 5, 6)
    i, j = np.array([3, 0, 1], np.int32), np.array([[2, 4], [0, 1]], np.int64)
    for key in (lambda i, j: i, lambda i, j: j[1:], lambda i, j: (slice(None), j), lambda i, j: (..., i, slice(1, 3)),
                lambda i, j: (0, j), lambda i, j: (slice(None, None, -1), i, None)):  # fmt: skip
        check(lambda x, i, j, key=key: x[key(i, j)], lambda x, i, j, key=key: x[key(i, j)], x, i, j)
    check(lambda x, i: x[i, i], lambda x, i: x[i, i], x, i)
    check(lambda x, i, j: x[i[:2], j], lambda x, i, j: x[i[:2], j], x, i, j)
    check(lambda x: x[[0, -1]], lambda x: x[[0, -1]], x[:, 0, 0])
    with pytest.raises(IndexError):  # the flat position would be within x
        run(lambda x, i: x[i, i], np.zeros((3, 2)), np.array([0, 2], np.int32))


def test_iteration_and_length():
    check(lambda x: list(x), lambda x: list(x), data(3, 2))
    assert len(tensor(data(3, 2))) == 3


def test_take():
    x, i = data(4, 5), np.array([[1, 3], [0, 0]], np.int32)
    for axis in (0, 1, -1):
        check(lambda t, k, a=axis: xp.take(t, k, axis=a), lambda v, k, a=axis: np.take(v, k, axis=a), x, i)
        check(lambda t, a=axis: xp.take(t, [0, -1], axis=a), lambda v, a=axis: np.take(v, [0, -1], axis=a), x)
        index = np.argsort(x, axis=axis).astype(np.int32)
        check(
            lambda t, k, a=axis: xp.take_along_axis(t, k, axis=a),
            lambda v, k, a=axis: np.take_along_axis(v, k.astype(np.int64), axis=a),
            x,
            index,
        )
    check(
        lambda t, k: xp.take_along_axis(t, k, axis=1),
        lambda v, k: np.take_along_axis(np.broadcast_to(v, (3, 5)), k.astype(np.int64), axis=1),
        x[:1],
        np.array([[0], [4], [2]], np.int32),
    )
    updates = data(2, 2, 5)
    total = run(lambda k, u: xp.scatter_add(k, u, 0, 4), i, updates)
    expected = np.zeros((4, 5))
    np.add.at(expected, i, updates)
    np.testing.assert_allclose(total, expected)


# ---- creation ---------------------------------------------------------------------------------------------
CREATION = [
    (xp.zeros((2, 3)), np.zeros((2, 3), np.float32)),
    (xp.ones(3, dtype=i32), np.ones(3, np.int32)),
    (xp.full((2,), 7), np.full((2,), 7, np.int32)),
    (xp.full((), 1.5, dtype=f64), np.float64(1.5)),
    (xp.arange(5), np.arange(5, dtype=np.int32)),
    (xp.arange(2, 11, 3), np.arange(2, 11, 3, dtype=np.int32)),
    (xp.arange(5, 0, -2, dtype=i64), np.arange(5, 0, -2)),
    (xp.arange(0.0, 1.0, 0.25), np.arange(0, 1, 0.25, dtype=np.float32)),
    (xp.arange(3, dtype=f32), np.arange(3, dtype=np.float32)),
    (xp.arange(5, 5), np.zeros(0, np.int32)),
    (xp.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype=np.float32)),
    (xp.linspace(-2, 2, 4, endpoint=False, dtype=f64), np.linspace(-2, 2, 4, endpoint=False)),
    (xp.linspace(3, 9, 1), np.linspace(3, 9, 1, dtype=np.float32)),
    (xp.linspace(3, 9, 0), np.zeros(0, np.float32)),
    (xp.eye(3), np.eye(3, dtype=np.float32)),
    (xp.eye(2, 4, k=1, dtype=i32), np.eye(2, 4, 1, dtype=np.int32)),
    (xp.asarray([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]], np.int32)),
    (xp.asarray([1.0, 2.0]), np.array([1, 2], np.float32)),
    (xp.asarray([True, False]), np.array([True, False])),
    (xp.asarray(np.array([1.0, 2.0])), np.array([1.0, 2.0])),
    (xp.asarray(np.array([1.0, 2.0]), dtype=i32), np.array([1, 2], np.int32)),
    (xp.asarray(np.array([0, 2]), dtype=bool_), np.array([False, True])),
    (xp.asarray(3), np.int32(3)),
    (xp.asarray([xp.ones(2), xp.zeros(2)]), np.array([[1, 1], [0, 0]], np.float32)),
    (xp.asarray([[xp.ones(()), 2.0]]), np.array([[1, 2]], np.float32)),
    (xp.zeros_like(xp.ones((2,), dtype=i8)), np.zeros(2, np.int8)),
    (xp.full_like(xp.ones((2,)), 3), np.full(2, 3, np.float32)),
]


@pytest.mark.parametrize("case", range(len(CREATION)))
def test_creation(case):
    t, expected = CREATION[case]
    got = value(t)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(got, expected)


def test_linspace_ends_exactly():
    for stop in (0.1, 1 / 3, 1e6 + 0.1):
        t = value(xp.linspace(0, stop, 7, dtype=f64))
        assert t[0] == 0 and t[-1] == stop


@pytest.mark.parametrize("indexing", ["xy", "ij"])
def test_meshgrid(indexing):
    a, b, c = data(2), data(3), data(1)
    check(lambda *v: xp.meshgrid(*v, indexing=indexing), lambda *v: list(np.meshgrid(*v, indexing=indexing)), a, b, c)


# ---- linear algebra ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("a, b", [
    ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((1, 3, 4), (6, 4, 1)), ((0, 4), (4, 2)), ((3, 0), (0, 2)),
    ((2, 3, 4), (4,)), ((4,), (2, 4, 3)), ((1, 1), (1, 1)), ((1, 3, 1), (1, 1, 4)), ((2, 3, 1), (1, 1, 4)),
])  # fmt: skip
def test_matmul(a, b):
    check(xp.matmul, np.matmul, data(*a), data(*b, seed=1))


def test_other_products():
    a, b = data(3, 4, 5), data(4, 5, 2, seed=1)
    check(xp.tensordot, np.tensordot, a, b)
    check(lambda x, y: xp.tensordot(x, y, axes=0), lambda x, y: np.tensordot(x, y, 0), a[0, 0], b[0, 0])
    axes = ((2, 0), (1, 0))
    check(lambda x, y: xp.tensordot(x, y, axes=axes), lambda x, y: np.tensordot(x, y, axes), a, b[:3])
    check(lambda x, y: xp.vecdot(x, y), lambda x, y: np.sum(x * y, -1), a, a[0])
    check(lambda x, y: xp.vecdot(x, y, axis=-2), lambda x, y: np.sum(x * y, -2), a, a[:1] * 2)
    check(xp.outer, np.outer, a[0, 0], b[:, 0, 0])
    check(xp.matrix_transpose, lambda x: np.swapaxes(x, -1, -2), a)


@pytest.mark.parametrize("subscripts, shapes", [
    ("ij,jk->ik", [(2, 3), (3, 4)]), ("bij,bkj->bik", [(2, 3, 4), (2, 5, 4)]), ("ij,jk", [(2, 3), (3, 4)]),
    ("ij,kl->ikjl", [(2, 3), (1, 2)]), ("ijk,j->k", [(2, 3, 4), (3,)]), ("ij,ij->", [(2, 3), (2, 3)]),
    ("i,j->ji", [(2,), (3,)]), ("ijk->ki", [(2, 3, 4)]), ("ij->", [(2, 3)]), ("ij", [(2, 3)]), ("ba", [(2, 3)]),
    ("...ij,jk->...ik", [(5, 2, 3), (3, 4)]), ("...i,...i", [(2, 1, 3), (4, 3)]), ("i...->...", [(2, 3, 4)]),
    ("...,...->...", [(2, 3), ()]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]), ("iji,j->i", [(3, 2, 3), (2,)]),
    ("aaa->a", [(2, 2, 2)]), ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]), ("i,i,i,ij->j", [(3,), (3,), (3,), (3, 2)]),
    ("...a,ab,b...->...", [(5, 2), (2, 3), (3, 1)]), ("i,j,k->kji", [(2,), (3,), (4,)]),
])  # fmt: skip
def test_einsum(subscripts, shapes):
    arrays = [data(*s, seed=i) for i, s in enumerate(shapes)]
    check(lambda *x: xp.einsum(subscripts, *x), lambda *x: np.einsum(subscripts, *x), *arrays)


# ---- promotion --------------------------------------------------------------------------------------------
def test_promotion_agrees_with_numpy_where_the_standard_says():
    table = {d: d.numpy for d in DTYPES.values() if d is not bf16}
    for a, b in itertools.product(table, repeat=2):
        numeric = a.kind == b.kind or {a.kind, b.kind} == {"i", "u"}
        expected = np.promote_types(table[a], table[b])
        if numeric and expected != np.int16:
            assert xp.result_type(a, b).numpy == expected
        assert xp.result_type(a, b) is xp.result_type(b, a)
        assert xp.maximum(xp.ones(2, dtype=a), xp.ones(2, dtype=b)).dtype is xp.result_type(a, b)


@pytest.mark.parametrize("a, b, result", [
    (f16, bf16, f32), (bf16, f32, f32), (bf16, f64, f64), (i8, u8, i32), (u8, u32, u32), (u32, i32, i64),
    (bool_, i8, i8), (bool_, f16, f16), (i64, f32, f32), (u8, bf16, bf16), (f32, 2, f32), (f16, 2.5, f16),
    (bf16, True, bf16), (i8, 3, i8), (i64, 2.5, f32), (bool_, 3, i32), (bool_, 2.5, f32),
    (f32, np.float64(2), f32), (i32, np.int64(2), i32),
])  # fmt: skip
def test_promotion_of_mixed_kinds_and_weak_scalars(a, b, result):
    t = xp.ones((2,), dtype=a)
    other = b if isinstance(b, bool | int | float | np.generic) else xp.ones((2,), dtype=b)
    assert (t + other).dtype is (other + t).dtype is result
    assert xp.where(xp.ones(2, dtype=bool_), t, other).dtype is result


def test_integers_in_functions_of_reals_count_as_f32():
    n = xp.arange(3)
    for t in (xp.exp(n), n / 2, n / n, xp.mean(n), xp.atan2(n, n), xp.sqrt(n.astype(bool_)), n**0.5, xp.var(n)):
        assert t.dtype is f32
    assert (n**2).dtype is i32 and (n // 2).dtype is i32 and xp.floor(n).dtype is i32 and xp.clip(n, 0, 1).dtype is i32
    check(lambda x: 7 // x, lambda x: np.array([-4, 7, 2]), np.array([-2, 1, 3], np.int32))


def test_dtype_information():
    assert xp.isdtype(f32, "real floating") and xp.isdtype(u8, ("bool", "integral")) and not xp.isdtype(i8, bool_)
    assert xp.finfo(f32).eps == np.finfo(np.float32).eps and xp.finfo(bf16).eps == 2**-7 and xp.iinfo(i8).min == -128
    assert xp.can_cast(i8, i32) and xp.can_cast(xp.ones(2), f64) and not xp.can_cast(f32, bf16)
    for spec, dtype in (("f32", f32), (float, f32), (int, i32), (bool, bool_), (np.float64, f64), (np.dtype("u1"), u8)):
        assert dtype_of(spec) is dtype
    with pytest.raises(DTypeError, match="expected one of"):
        dtype_of(np.complex64)


# ---- errors -----------------------------------------------------------------------------------------------
V = tensor(data(3), "v")
M = tensor(data(3, 4), "m")
N = tensor(np.arange(3), "n")
ERRORS = [
    (lambda: V + tensor(data(4)), ShapeError, "[3] and [4]"),
    (lambda: M @ V, ShapeError, "[3, 4] @ [3]: expected the last axis of the first (4) to equal the last"),
    (lambda: xp.reshape(M, (5, -1)), ShapeError, "12 elements"),
    (lambda: xp.sum(M, axis=2), ShapeError, "axis 2 is out of range"),
    (lambda: xp.sum(M, axis=(0, 0)), ShapeError, "twice"),
    (lambda: M[5], ShapeError, "index 5 is out of range for axis 0 of [3, 4]"),
    (lambda: M[0, 0, 0], ShapeError, "3 indices"),
    (lambda: M[V], DTypeError, "integer indices, got f64"),
    (lambda: M[M > 0], TraceError, "where"),
    (lambda: M[: N[0]], TraceError, "slice bounds"),
    (lambda: M["a"], DTypeError, "integer indices"),
    (lambda: bool(V > 0), TraceError, "where(condition"),
    (lambda: float(V), TraceError, "not known while the program is built"),
    (lambda: int(N[0]), TraceError, "not known"),
    (lambda: list(range(N[0])), TraceError, "not known"),
    (lambda: np.asarray(V), TraceError, "numpy array"),
    (lambda: iter(V[0]), TraceError, "0-d"),
    (lambda: len(V[0]), TraceError, "0-d"),
    (lambda: 1.0 in V, TraceError, "membership"),
    (lambda: V.item(), TraceError, "item()"),
    (lambda: V.__setitem__(0, 1.0), TraceError, "in place"),
    (lambda: xp.take(V, [7]), ShapeError, "index 7 is out of range for an axis of size 3"),
    (lambda: xp.take(M, [0]), ShapeError, "which axis"),
    (lambda: xp.concat([V, M]), ShapeError, "axis 0"),
    (lambda: xp.stack([V, M]), ShapeError, "[[3], [3, 4]]"),
    (lambda: xp.squeeze(M, 0), ShapeError, "size 1"),
    (lambda: xp.broadcast_to(V, (4,)), ShapeError, "[3]"),
    (lambda: xp.tensordot(M, V, axes=1), ShapeError, "do not match"),
    (lambda: xp.einsum("ij,jk->ik", M, M), ShapeError, "axis j has sizes 4 and 3"),
    (lambda: xp.einsum("ij,jk->ik", M), ShapeError, "expected 2 operands as in 'ij,jk->ik', got 1"),
    (lambda: xp.einsum("ijk->i", M), ShapeError, "'ijk' does not name the axes of [3, 4]"),
    (lambda: xp.einsum("...ijk->i", M), ShapeError, "'...ijk' does not name the axes of [3, 4]"),
    (lambda: xp.einsum("...,...->...", M, V), ShapeError, "[3, 4] and [3]"),
    (lambda: xp.repeat(V, [1, 2]), ShapeError, "expected 3 counts for axis 0 of [3], got 2"),
    (lambda: xp.arange(N[0]), TraceError, "arange"),
    (lambda: N + 2**40 * 2**40, DTypeError, "out of range"),
    (lambda: xp.asarray(np.array(["a"])), DTypeError, "numbers"),
    (lambda: xp.asarray([1.5], dtype=i32), DTypeError, "integer"),
    (lambda: xp.asarray([[1.0], [1.0, 2.0]]), ShapeError, "equal lengths"),
    (lambda: V == None, DTypeError, "numbers"),  # noqa: E711
    (lambda: -(V > 0), DTypeError, "neg"),
    (lambda: V & V, DTypeError, "and"),
    (lambda: xp.max(xp.zeros((0,))), ShapeError, "at least one"),
    (lambda: V.T, ShapeError, "2 axes"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors_name_the_script_line(case):
    fn, error, text = ERRORS[case]
    with pytest.raises(error) as caught:
        fn()
    assert text in str(caught.value)
    assert str(caught.value).startswith(f"{__file__}:{fn.__code__.co_firstlineno}:")


def test_nodes_remember_the_script_line():
    def here():
        return xp.mean(V * 2, axis=0)

    node = here().node
    assert (node.loc.file, node.loc.line, node.loc.function) == (__file__, here.__code__.co_firstlineno + 1, "here")


def test_scalars_take_no_broadcast_node():
    assert not any(isinstance(x.op, Broadcast) for x in (V * 2.0).node.inputs)


# ---- random draws -----------------------------------------------------------------------------------------
def draw(fn, shape=(200, 50), seed=(1, 2), step=3, stream=4, **kwargs):
    def build(seed, step):
        return fn(seed, step, stream, shape, **kwargs)

    return run(build, np.array(seed, np.uint32), np.array(step, np.uint32))


def test_uniform():
    u = draw(random.uniform, low=-1.0, high=3.0)
    assert u.dtype == np.float32 and u.min() >= -1 and u.max() <= 3
    assert abs(u.mean() - 1) < 0.04 and abs(u.var() - 16 / 12) < 0.04
    assert len(np.unique(u)) > 9900
    assert np.array_equal(u, draw(random.uniform, low=-1.0, high=3.0))
    for other in ({"seed": (1, 3)}, {"step": 4}, {"stream": 5}):
        assert not np.any(draw(random.uniform, **other)[:3] == draw(random.uniform)[:3])
    assert draw(random.uniform, dtype=f64).dtype == np.float64
    assert draw(random.uniform, dtype=bf16).max() < 1


def test_normal():
    z = draw(random.normal, mean=2.0, std=3.0)
    assert abs(z.mean() - 2) < 0.1 and abs(z.std() - 3) < 0.1 and np.all(np.isfinite(z))
    assert abs(np.mean((z - 2) ** 3)) / 27 < 0.1 and abs(np.mean((z - 2) ** 4) / 81 - 3) < 0.2
    assert abs(np.corrcoef(z[:, 0], z[:, 1])[0, 1]) < 0.2


def test_bernoulli_and_randint():
    b = draw(random.bernoulli, p=0.3)
    assert b.dtype == np.bool_ and abs(b.mean() - 0.3) < 0.02
    n = draw(random.randint, low=-2, high=5)
    assert n.dtype == np.int32 and set(np.unique(n)) == set(range(-2, 5))


STANDARD = """
    abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_invert bitwise_or
    bitwise_right_shift bitwise_xor ceil clip copysign cos cosh divide equal exp expm1 floor floor_divide greater
    greater_equal hypot isfinite isinf isnan less less_equal log log1p log2 log10 logaddexp logical_and logical_not
    logical_or logical_xor maximum minimum multiply negative nextafter not_equal positive pow reciprocal remainder round
    sign signbit sin sinh square sqrt subtract tan tanh trunc
    cumulative_prod cumulative_sum max mean min prod std sum var all any diff count_nonzero
    argmax argmin searchsorted where argsort sort take take_along_axis matmul matrix_transpose tensordot vecdot
    broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat reshape roll squeeze stack tile
    unstack arange asarray empty empty_like eye full full_like linspace meshgrid ones ones_like tril triu zeros
    zeros_like astype can_cast finfo iinfo isdtype result_type e inf nan newaxis pi
"""
"""The array API standard 2024.12, but for complex numbers (conj, imag, real), results whose shape depends on data
(nonzero, unique_*), what other libraries hand over while a program runs (from_dlpack), and devices."""


def test_the_standards_functions_are_there():
    assert [name for name in STANDARD.split() if not hasattr(pb, name)] == []


def test_scalars_are_weak_and_arrays_are_not():
    x = xp.ones(3)
    assert (x * 2.5).dtype is f32 and (x * np.float64(2.5)).dtype is f32
    assert (x * np.array([1.0, 2.0, 3.0])).dtype is f64 and (x * np.ones(3, np.float32)).dtype is f32
