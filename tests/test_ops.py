"""The one test of all ops, driven by `op_samples.py`: types, meaning, lowering hooks, derivatives."""

from __future__ import annotations

import numpy as np
import pages
import pytest
from op_samples import Sample, evaluations, samples

from pullback.autodiff import differentiable, pull, push
from pullback.dsl.tensor import Tensor
from pullback.errors import DTypeError, ScriptError, ShapeError
from pullback.graph.evaluate import evaluate
from pullback.graph.graph import Graph, Node, make
from pullback.graph.types import TensorType, bool_, f32, f64, i32, u8, u32
from pullback.kernel.kernel import A, Apply, AxisValue, Checked, Const, Load
from pullback.kernel.scalars import SCALARS
from pullback.ops import contract, elementwise, indexing, leaf, movement, ordered, random, reduction
from pullback.ops.elementwise import cast_array
from pullback.ops.leaf import Input, Item
from pullback.ops.op import OPS, NotAffine, Pointwise

SAMPLES = samples()


def by_name(sample: Sample) -> str:
    return sample.name


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def test_every_op_has_a_sample():
    assert {n.op.name for s in SAMPLES for n in s.graph().nodes} >= OPS.keys()


@pytest.mark.parametrize("sample", SAMPLES, ids=by_name)
def test_evaluates_to_the_inferred_type_in_every_way(sample: Sample):
    graph = sample.graph()
    reference = None
    for way, run in evaluations(graph):
        results = run(list(sample.arrays))
        for node, value in zip(graph.outputs, results, strict=True):
            assert (value.shape, value.dtype) == (node.shape, node.dtype.numpy), way
            assert equal(node.dtype.round(value), value), f"{way}: a value that {node.dtype} cannot hold"
        reference = reference or results
        for a, b in zip(reference, results, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7, err_msg=way)


# ---- lowering hooks ---------------------------------------------------------------------------------------
def run_expression(expr, env: dict[str, np.ndarray], buffers: list[np.ndarray]) -> np.ndarray:
    """A kernel expression on whole arrays of index values."""

    def at(index) -> np.ndarray:
        if isinstance(index, Checked):
            return run(index)
        return index.const + sum((env[axis] * c for axis, c in index.terms), np.zeros((), np.int64))

    def run(e):
        if isinstance(e, Const):
            return np.asarray(e.value, e.dtype.numpy)
        if isinstance(e, AxisValue):
            return cast_array(at(e.index), e.dtype)
        if isinstance(e, Checked):
            value = run(e.value).astype(np.int64)
            assert np.all((value >= 0) & (value < e.bound))
            return value
        if isinstance(e, Load):
            inside = np.asarray(True)
            for a, bound in e.masks:
                inside = inside & (at(a) < bound)
            index = tuple(np.where(inside, at(i), 0) for i in e.index)
            x = buffers[int(e.buffer)]
            other = np.asarray(e.other, x.dtype)
            return np.where(inside, x[index], other) if x.size else other
        args = [run(a) for a in e.args]
        if e.fn == "cast":
            return cast_array(args[0], e.dtype)
        if e.fn == "bitcast":
            return np.ascontiguousarray(args[0]).view(e.dtype.numpy)
        args = [a.astype(np.float32) if a.dtype == np.float16 else a for a in args]
        with np.errstate(all="ignore"):
            return e.dtype.round(SCALARS[e.fn].evaluate(*args))

    return run(expr)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if isinstance(s.graph().outputs[0].op, Pointwise)], ids=by_name)
def test_lowering_hook_means_the_same(sample: Sample):
    graph = sample.graph()
    node = graph.outputs[0]
    assert node.inputs == graph.inputs
    index = tuple(A(f"d{d}") for d in range(len(node.shape)))

    def read(i, index, masks=(), other=0):
        return Load(str(i), index, node.inputs[i].dtype, masks, other)

    try:
        expr = node.op.lower(node, index, read)
    except NotAffine:
        assert sample.name in ("reshape-(2, 6)-(12,)", "reshape-(2, 3, 4)-(6, 4)")
        return
    env = {f"d{d}": g for d, g in enumerate(np.indices(node.shape))}
    buffers = [x.type.dtype.round(a) for x, a in zip(graph.inputs, sample.arrays, strict=True)]
    value = np.broadcast_to(run_expression(expr, env, buffers), node.shape)
    assert equal(value, evaluate(graph, list(sample.arrays))[0])


@pytest.mark.parametrize("shape, index", [((4, 3), "flip"), ((4, 3), "pad"), ((4, 3), "reshape"), ((4, 3), "slice")])
def test_movement_of_an_index_that_was_read_needs_memory(shape, index):
    x = make(Input("x", f32, shape))
    op = {
        "flip": movement.Flip((0,)),
        "pad": movement.Pad((1, 0), (0, 0), 0.0),
        "reshape": movement.Reshape((2, 2, 3)),
        "slice": movement.Slice((1, 0), (4, 3), (1, 1)),
    }[index]
    node = make(op, x)
    read_index = (Checked(Load("i", (), i32), 2), *(A(f"d{d}") for d in range(1, len(node.shape))))
    with pytest.raises(NotAffine):
        op.lower(node, read_index, lambda *a, **k: Const(0.0))


def test_reshape_groups_are_minimal():
    groups = movement.reshape_groups((2, 3, 1, 4), (6, 2, 2))
    assert [(list(a), list(b)) for a, b in groups] == [([0, 1], [0]), ([2], []), ([3], [1, 2])]


# ---- derivatives ------------------------------------------------------------------------------------------
def differentiated() -> list[Sample]:
    """Samples with a float input and a float output, in f64, away from the values that have no derivative."""
    result = []
    for s in SAMPLES:
        graph = s.graph()
        floats = [n for n in graph.inputs if n.dtype is f64]
        declared = any(n.op.name == "stop_gradient" for n in graph.nodes)  # not the derivative of its value
        if floats and any(n.dtype.is_float for n in graph.outputs) and not declared:
            result.append(s)
    return result


def tangent_inputs(nodes) -> dict[Node, Node]:
    return {n: make(Input(f"t{i}", f64, n.shape)) for i, n in enumerate(nodes) if n.dtype is f64}


def derivative_graph(sample: Sample) -> tuple[Graph, Graph]:
    """(inputs, input tangents -> output tangents) and (inputs, output cotangents -> input cotangents)."""
    graph = sample.graph(f64)
    tangents = tangent_inputs(graph.inputs)
    outputs = [n for n in graph.outputs if n.dtype is f64]
    pushed = push(outputs, {n: Tensor(t) for n, t in tangents.items()})
    forward = tuple(zeros(n) if t is None else t.node for n, t in zip(outputs, pushed, strict=True))
    cotangents = {n: make(Input(f"c{i}", f64, n.shape)) for i, n in enumerate(outputs)}
    found = pull([(n, Tensor(c)) for n, c in cotangents.items()], tangents)
    backward = tuple(found[n].node if n in found else zeros(n) for n in tangents)
    return (
        Graph("jvp", (*graph.inputs, *tangents.values()), forward),
        Graph("vjp", (*graph.inputs, *cotangents.values()), backward),
    )


def zeros(node: Node) -> Node:
    return make(leaf.Fill(0.0, f64, node.shape))


def along(graph: Graph, arrays: list[np.ndarray], directions: list[np.ndarray], h: float = 1e-5) -> list[np.ndarray]:
    """Central difference of a graph's f64 outputs; directions for its first f64 inputs."""
    moved = []
    for sign in (h, -h):
        left = iter(directions)
        xs = [x + sign * d if n.dtype is f64 and (d := next(left, None)) is not None else x
              for n, x in zip(graph.inputs, arrays, strict=True)]  # fmt: skip
        moved.append([v for n, v in zip(graph.outputs, evaluate(graph, xs), strict=True) if n.dtype is f64])
    return [(a - b) / (2 * h) for a, b in zip(*moved, strict=True)]


@pytest.mark.parametrize("sample", differentiated(), ids=by_name)
def test_derivatives(sample: Sample):
    rng = np.random.default_rng(1)
    forward, backward = derivative_graph(sample)
    graph, arrays = sample.graph(f64), list(sample.arrays)
    directions = [rng.normal(size=n.shape) for n in graph.inputs if n.dtype is f64]
    weights = [rng.normal(size=n.shape) for n in forward.outputs]

    tangents = evaluate(forward, arrays + directions)
    for expected, t in zip(along(graph, arrays, directions), tangents, strict=True):
        np.testing.assert_allclose(t, expected, rtol=1e-5, atol=1e-6, err_msg="jvp and finite difference")

    cotangents = evaluate(backward, arrays + weights)
    left = sum(np.vdot(w, t) for w, t in zip(weights, tangents, strict=True))
    right = sum(np.vdot(c, d) for c, d in zip(cotangents, directions, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-11, err_msg="<ct, jvp> = <vjp, t>")

    if sample.smooth:  # the vjp, differentiated once more, against its own finite difference
        wrt = tangent_inputs(graph_inputs := backward.inputs[: len(arrays)])
        pushed = push(backward.outputs, {n: Tensor(t) for n, t in wrt.items()})
        outputs = tuple(zeros(n) if t is None else t.node for n, t in zip(backward.outputs, pushed, strict=True))
        second = Graph("second", (*graph_inputs, *backward.inputs[len(arrays) :], *wrt.values()), outputs)
        given = evaluate(second, arrays + weights + directions)
        for expected, t in zip(along(backward, arrays + weights, directions), given, strict=True):
            np.testing.assert_allclose(t, expected, rtol=1e-4, atol=1e-5, err_msg="second derivative")


def test_equal_extremes_share_the_cotangent():
    for op in (elementwise.Maximum(), elementwise.Minimum()):
        x, y = (make(Input(n, f64, (2,))) for n in "xy")
        found = pull([(make(op, x, y), Tensor(make(leaf.Fill(1.0, f64, (2,)))))], [x, y])
        values = evaluate(Graph("g", (x, y), tuple(found[n].node for n in (x, y))), [np.ones(2), np.ones(2)])
        assert all(np.array_equal(v, [0.5, 0.5]) for v in values)


def test_only_floats_are_differentiable():
    assert differentiable(make(Input("x", f32, ()))) and not differentiable(make(Input("i", i32, ())))


# ---- details ----------------------------------------------------------------------------------------------
def test_scalars_that_compare_equal_make_different_ops():
    assert leaf.Fill(0.0, f32, ()) != leaf.Fill(-0.0, f32, ())
    assert leaf.Fill(float("nan"), f32, ()) == leaf.Fill(float("nan"), f32, ())
    assert movement.Pad((1,), (0,), 0.0) != movement.Pad((1,), (0,), -0.0)
    assert elementwise.Add() == elementwise.Add() != elementwise.Mul()


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32-10."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(int(w) for w in random.philox(counter, key)) == expected


F3, I3, F34 = TensorType(f32, (3,)), TensorType(i32, (3,)), TensorType(f32, (3, 4))
BAD = [
    (elementwise.Add(), (F3, F34), ShapeError, "[3] and [3, 4]"),
    (elementwise.Add(), (F3, I3), DTypeError, "f32 and i32"),
    (elementwise.Add(), (F3,), ShapeError, "expected 2"),
    (elementwise.Exp(), (I3,), DTypeError, "expected float, got i32"),
    (elementwise.And(), (F3, F3), DTypeError, "got f32"),
    (elementwise.MulHi(), (TensorType(u8, (3,)),) * 2, DTypeError, "expected u32, got u8"),
    (elementwise.Select(), (F3, F3, F3), DTypeError, "bool"),
    (elementwise.Select(), (TensorType(bool_, (3,)), F3, I3), DTypeError, "f32 and i32"),
    (elementwise.Select(), (TensorType(bool_, (4,)), F3, F3), ShapeError, "[4] and [3]"),
    (elementwise.Bitcast(f64), (F3,), DTypeError, "64 bits"),
    (leaf.Fill(1.5, i32, ()), (), DTypeError, "1.5"),
    (leaf.Fill(300, u8, ()), (), DTypeError, "300 is out of range for u8 (0 to 255)"),
    (leaf.Constant(b"12", f32, (1,)), (), ShapeError, "expected 4 bytes, got 2"),
    (leaf.Iota(f32, (2,), 1), (), ShapeError, "axis"),
    (Item(0), (F3,), ShapeError, "tuple"),
    (movement.Reshape((2, 2)), (F3,), ShapeError, "3 elements"),
    (movement.Permute((0, 0)), (F34,), ShapeError, "permutation"),
    (movement.Broadcast((2, 4), (1,)), (F3,), ShapeError, "[3]"),
    (movement.Slice((0,), (4,), (1,)), (F3,), ShapeError, "0..3"),
    (movement.Flip((1,)), (F3,), ShapeError, "[3]"),
    (movement.Pad((-1,), (0,), 0.0), (F3,), ShapeError, "widths"),
    (movement.Concat(0), (F3, I3), DTypeError, "f32 and i32"),
    (movement.Concat(0), (F34, TensorType(f32, (3, 5))), ShapeError, "axis 0 only"),
    (reduction.Sum((1,)), (F3,), ShapeError, "[3]"),
    (reduction.Sum((0,)), (TensorType(bool_, (3,)),), DTypeError, "got bool"),
    (reduction.Max((0,)), (TensorType(f32, (0,)),), ShapeError, "at least one"),
    (reduction.ArgMax(0), (TensorType(f32, (0, 2)),), ShapeError, "at least one"),
    (contract.Contract("ik", "kj", "ij"), (F34, F34), ShapeError, "axis k has sizes 4 and 3"),
    (contract.Contract("ik", "kj", "i"), (F34, TensorType(f32, (4, 2))), ShapeError, "not a contraction"),
    (contract.Contract("i", "i", ""), (F3, I3), DTypeError, "f32 and i32"),
    (indexing.Gather(0), (F3, F3), DTypeError, "integer indices, got f32"),
    (indexing.Gather(1), (F3, I3), ShapeError, "axis"),
    (indexing.GatherAlong(0), (F34, TensorType(i32, (2, 3))), ShapeError, "axis 0 only"),
    (indexing.ScatterAdd(0, 4), (I3, TensorType(f32, (2,))), ShapeError, "[3]"),
    (ordered.CumSum(1, False), (F3,), ShapeError, "axis"),
    (ordered.Sort(-1, False), (F3,), ShapeError, "axis"),
    (random.Random(0, (2,)), (F3, TensorType(u32, ())), DTypeError, "seed u32[2]"),
]


@pytest.mark.parametrize("op, types, error, text", BAD, ids=lambda v: getattr(v, "name", None))
def test_wrong_types_are_refused_with_expected_and_got(op, types, error, text):
    inputs = [make(Input(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    with pytest.raises(error) as caught:
        make(op, *inputs)
    assert isinstance(caught.value, ScriptError) and text in str(caught.value)
    assert __file__ in str(caught.value)


@pytest.mark.parametrize("op, arrays", [
    (indexing.Gather(0), (np.zeros(3), np.array([0, 3], np.int32))),
    (indexing.GatherAlong(0), (np.zeros(3), np.array([-1], np.int32))),
    (indexing.ScatterAdd(0, 3), (np.array([5], np.int32), np.zeros(1))),
])  # fmt: skip
def test_an_index_out_of_range_is_an_error_with_its_value(op, arrays):
    with pytest.raises(IndexError, match="out of range for an axis of size 3"):
        op.evaluate(*arrays)


def test_lowered_random_is_one_expression_of_its_counters():
    seed, step = make(Input("seed", u32, (2,))), make(Input("step", u32, ()))
    node = make(random.Random(1, (4, 3)), seed, step)
    expr = node.op.lower(node, (A("i"), A("j")), lambda i, index, **_: Load(str(i), index, u32))
    assert isinstance(expr, Apply) and expr.dtype is u32


def test_the_worked_example_of_the_documentation():
    try:
        sample = pages.run("adding-an-op")["sample"]
        test_evaluates_to_the_inferred_type_in_every_way(sample)
        test_lowering_hook_means_the_same(sample)
        test_derivatives(sample)
        assert evaluate(sample.graph(), list(sample.arrays))[0].tolist() == [[0.25] * 3] * 2
    finally:
        OPS.pop("squared_difference", None)
