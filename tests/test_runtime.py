"""The runtime: calls, conversions, messages, state, on artifacts made by hand."""

import functools
import inspect
import pickle
import pydoc
import re
import threading
from types import SimpleNamespace

import artifact_by_hand as hand
import numpy as np
import pytest

import pullback_runtime as rt
from pullback.graph.program import Print
from pullback.graph.types import TensorType, bf16, f32
from pullback.kernel.plan import FIRST_ARGUMENT, FunctionPlan
from pullback_runtime.arrays import convert
from pullback_runtime.files import check_writable
from pullback_runtime.format import Manifest, StateEntry
from pullback_runtime.state import KINDS, State

N = hand.N


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return hand.build(tmp_path_factory.mktemp("artifact") / "demo.so")


@pytest.fixture
def demo(path):
    return rt.load(path, threads=1)


@pytest.fixture
def x():
    return np.linspace(-1, 1, N, dtype=np.float32)


@pytest.fixture
def index():
    return np.zeros(N, np.int32)


# ---- calls ----------------------------------------------------------------------------------------------
def test_call_by_keyword_and_by_position(demo, x, index):
    want = hand.train_reference(np.zeros(N, np.float32), x)
    assert np.array_equal(demo.train(x=x, i=index), want)
    again = hand.train_reference(want, x)
    assert np.array_equal(demo.train(x, index), again)
    assert np.array_equal(demo.train(x, i=index), hand.train_reference(again, x))


def test_results_are_fresh_arrays(demo, x, index):
    first = demo.train(x=x, i=index)
    kept = first.copy()
    demo.train(x=x, i=index)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_do_not_change_results(path, x, index, threads):
    p, w = rt.load(path, threads=threads), np.zeros(N, np.float32)
    for _ in range(200):
        w = hand.train_reference(w, x)
        assert np.array_equal(p.train(x=x, i=index), w)


def test_threads_can_change_between_steps(demo, x, index):
    w = np.zeros(N, np.float32)
    for threads in (1, 3, 2, 1, 4):
        demo.threads = threads
        assert demo.threads == threads
        for _ in range(3):
            w = hand.train_reference(w, x)
            assert np.array_equal(demo.train(x=x, i=index), w)
    with pytest.raises(ValueError, match="threads must be an integer from 1 to 256, got 0"):
        demo.threads = 0


def accepted(x):
    torch_like = np.from_dlpack(x)
    wide = np.empty((N, 2), np.float32)
    wide[:, 0] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "f64": x.astype(np.float64),
        "list": x.tolist(),
        "strided": wide[:, 0],
        "reversed": x[::-1][::-1],
        "read-only": frozen,
        "big endian": x.astype(">f4"),
        "dlpack": torch_like,
    }


@pytest.mark.parametrize("kind", ["f64", "list", "strided", "reversed", "read-only", "big endian", "dlpack"])
def test_inputs_are_converted(demo, x, index, kind):
    got = demo.train(x=accepted(x)[kind], i=index)
    assert np.array_equal(got, hand.train_reference(np.zeros(N, np.float32), x))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i8", "u8", "?"])
def test_integers_are_converted_to_integers_and_floats(demo, x, index, dtype):
    want = hand.train_reference(np.zeros(N, np.float32), np.ones(N, np.float32))
    assert np.array_equal(demo.train(x=np.ones(N, dtype), i=index.astype(dtype)), want)


def test_misaligned_input_is_copied(demo, x, index):
    raw = np.zeros(4 * N + 1, np.uint8)
    odd = raw[1:].view(np.float32)
    odd[...] = x
    assert np.array_equal(demo.train(x=odd, i=index), hand.train_reference(np.zeros(N, np.float32), x))


def test_torch_tensor_by_dlpack(demo, x, index):
    torch = pytest.importorskip("torch")
    assert np.array_equal(
        demo.train(x=torch.from_numpy(x), i=torch.from_numpy(index)), hand.train_reference(np.zeros(N, np.float32), x)
    )


def test_tensors_that_cannot_be_read_are_explained(demo, index):
    torch = pytest.importorskip("torch")
    with pytest.raises(rt.ArgumentError, match=r"input 'x': expected an array, got Tensor \(.*meta") as e:
        demo.train(x=torch.ones(N, device="meta"), i=index)
    assert "GPU" not in str(e.value)
    weight = torch.nn.Parameter(torch.ones(N))
    with pytest.raises(rt.ArgumentError, match=r"input 'x': expected an array, got Parameter \(.*requires grad"):
        demo.train(x=weight, i=index)
    with pytest.raises(rt.StateError, match=r"state 'w': expected an array, got Parameter \(.*requires grad.*detach"):
        demo.state["w"] = weight
    demo.state["w"] = weight.detach()
    assert (demo.state["w"] == 1).all()


def test_torch_bf16_tensor_by_dlpack(demo, x, index, monkeypatch):
    """numpy takes none; whatever the order and whichever part of the tensor, the numbers are the same."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    want = torch.from_numpy(x).bfloat16()
    wide = torch.zeros(N, 3, dtype=torch.bfloat16)
    wide[:, 1] = want
    for given in (want, wide[:, 1], torch.cat([want, want])[N:]):
        demo.init()
        got = demo.train(x=given, i=index)
        assert np.array_equal(got, hand.train_reference(np.zeros(N, np.float32), want.float().numpy()))
    with pytest.raises(rt.ArgumentError, match="input 'i': expected i32, got bfloat16"):
        demo.train(x=x, i=want)
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="train: input 'x': bf16 arrays need the package ml_dtypes: pip install"):
        demo.train(x=want, i=index)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_finite_numbers_do_not_become_infinite(dtype):
    if dtype == "bf16":
        pytest.importorskip("ml_dtypes")
    infinite = np.array([1.0, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(convert(infinite, dtype, "x").astype(np.float64), infinite)
    for value in (1e300, -1e39):
        with pytest.raises(rt.ArgumentError, match=f"x: value {re.escape(str(value))} does not fit into {dtype}: it"):
            convert(np.array([[1.0, np.inf], [value, 2.0]]), dtype, "x")
    assert not convert(np.zeros((0, 3)), dtype, "x").size


def test_integers_that_become_infinite():
    with pytest.raises(rt.ArgumentError, match="x: value 65520 does not fit into f16"):
        convert(np.array([3, 65520]), "f16", "x")
    assert convert(np.array(65519), "f16", "x") == 65504


def test_state_as_input_is_copied(demo, x, index):
    demo.state["w"][...] = x
    assert np.array_equal(demo.train(x=demo.state["w"], i=index), hand.train_reference(x, x))


# ---- mistakes -------------------------------------------------------------------------------------------
MISTAKES = {
    "missing": (lambda p, x, i: p.train(x=x), rt.ArgumentError, r"train: missing input 'i' \(i32\[64\]\)"),
    "unknown": (lambda p, x, i: p.train(x=x, j=i), rt.ArgumentError, "train has no input 'j'; its inputs are x, i"),
    "extra": (lambda p, x, i: p.train(x, i, i), rt.ArgumentError, r"train takes 2 inputs \(x, i\), got 3"),
    "twice": (lambda p, x, i: p.train(x, i, x=x), TypeError, "x"),
    "shape": (
        lambda p, x, i: p.train(x=x[:3], i=i),
        rt.ArgumentShapeError,
        r"train: input 'x': expected shape \[64\], got \[3\]",
    ),
    "rank": (lambda p, x, i: p.train(x=x[None], i=i), ValueError, r"expected shape \[64\], got \[1, 64\]"),
    "float for integer": (
        lambda p, x, i: p.train(x=x, i=x),
        TypeError,
        "train: input 'i': expected i32, got float32",
    ),
    "complex": (lambda p, x, i: p.train(x=x + 0j, i=i), rt.ArgumentError, "expected f32, got complex64"),
    "text": (lambda p, x, i: p.train(x=np.full(N, "a"), i=i), rt.ArgumentError, "expected f32, got <U1"),
    "object": (lambda p, x, i: p.train(x=object(), i=i), rt.ArgumentError, "input 'x': expected an array, got object"),
    "none": (lambda p, x, i: p.train(x=None, i=i), rt.ArgumentError, "input 'x': expected an array, got NoneType"),
    "ragged": (
        lambda p, x, i: p.train(x=[[1], [1, 2]], i=i),
        rt.ArgumentError,
        "input 'x': expected an array, got list",
    ),
    "range": (
        lambda p, x, i: p.train(x=x, i=np.full(N, 2**31)),
        rt.ArgumentError,
        r"input 'i': value 2147483648 does not fit into int32",
    ),
    "range of floats": (
        lambda p, x, i: p.train(x=np.where(np.arange(N) == 5, 1e300, x.astype(float)), i=i),
        rt.ArgumentError,
        r"train: input 'x': value 1e\+300 does not fit into f32: it would become infinite",
    ),
    "index": (
        lambda p, x, i: p.train(x=x, i=i + 9),
        IndexError,
        r"train: model.py:12: index of take\(table, i\): 9 is out of range; the state is as it was before",
    ),
    "function": (
        lambda p, x, i: p.predict(x),
        AttributeError,
        "has no function 'predict'; its functions are train, slow",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("threads", [1, 2])
def test_mistakes_are_explained_and_change_nothing(path, x, index, name, threads):
    call, error, message = MISTAKES[name]
    p = rt.load(path, threads=threads)
    p.train(x=x, i=index)
    before = p.context.state.copy()
    with pytest.raises(error, match=message):
        call(p, x, index)
    assert np.array_equal(p.context.state, before)
    assert np.array_equal(p.train(x=x, i=index), hand.train_reference(before[: 4 * N].view(np.float32), x))


def test_first_failure_is_reported_for_any_number_of_threads(path, x, index):
    index[[60, 33, 50]] = 60, -5, 7
    messages = set()
    for threads in (1, 2, 4):
        with pytest.raises(rt.CheckError) as e:
            rt.load(path, threads=threads).train(x=x, i=index)
        messages.add(str(e.value))
    assert len(messages) == 1 and "-5 is out of range" in messages.pop()


# ---- commit point ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_at_any_launch_leaves_state_before_or_after(path, x, index, threads):
    p = rt.load(path, threads=threads)
    seen = []
    for n in range(9):
        p.context.inject(None)
        p.init(0)
        p.train(x=x, i=index)
        before = p.context.state.copy()
        p.context.inject(n)
        try:
            p.train(x=x, i=index)
            after = hand.train_reference(before[: 4 * N].view(np.float32), x)
            assert np.array_equal(p.state["w"], after)
            seen.append("after")
        except rt.RuntimeFailure:
            assert np.array_equal(p.context.state, before)
            seen.append("before")
    assert seen == ["before"] * 6 + ["after"] * 3  # one check, one sum, three of the loop; then the commit point


# ---- shapes and structure -------------------------------------------------------------------------------
def row_sum(rows: int) -> FunctionPlan:
    """predict(x) -> x + x for a number of rows of four."""
    t = TensorType(f32, (rows, 4))
    return FunctionPlan(
        "predict", (t,), (t,), (hand.launch(hand.add(hand.IN0, hand.IN0, hand.IN1, rows * 4)),), 1, 0, 0
    )


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    plans = [row_sum(1), row_sum(8)]
    functions = [hand.function(p, ("x",), dims={"batch": p.inputs[0].shape[0]}, padded="batch") for p in plans]
    made = hand.program(*functions, hand.function(hand.INIT)), hand.plan(*plans, hand.INIT)
    return rt.load(hand.build(tmp_path_factory.mktemp("several") / "several.so", made), threads=1)


@pytest.mark.parametrize("rows", [8, 1, 5, 8, 2, 1])
def test_binding_is_chosen_by_shape_and_smaller_batches_are_padded(several, rows):
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    got = several.predict(x=x)
    assert got.shape == (rows, 4) and np.array_equal(got, x + x)


def test_uncompiled_shape_lists_the_compiled_ones(several):
    with pytest.raises(rt.ArgumentShapeError) as e:
        several.predict(x=np.zeros((9, 4), np.float32))
    assert str(e.value) == (
        "predict: not compiled for x [9, 4]; compiled for predict(x: f32[1, 4]); predict(x: f32[8, 4])"
    )
    with pytest.raises(rt.ArgumentShapeError, match=r"not compiled for x \[0, 4\]"):
        several.predict(x=np.zeros((0, 4), np.float32))


def test_what_the_fit_loop_asks_of_a_function(several):
    f = several.predict
    assert (f.batch_size, f.input_names, f.sample_shapes, f.padded) == (8, ("x",), {"x": (4,)}, True)
    assert len(several.fingerprint) == 64


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """f({"a": x, "b": [y, None]}, z) -> {"sum": x + y, "pair": (z + z, [x + z])}, and it prints two of them."""
    outputs = [
        hand.add(hand.IN0, hand.IN1, hand.arg(FIRST_ARGUMENT + 3)),
        hand.add(hand.IN2, hand.IN2, hand.arg(FIRST_ARGUMENT + 4)),
        hand.add(hand.IN0, hand.IN2, hand.arg(FIRST_ARGUMENT + 5)),
    ]
    p = FunctionPlan("f", (hand.VECTOR,) * 3, (hand.VECTOR,) * 3, (hand.launch(*outputs, chunk=7),), 1, 0, 0)
    f = hand.function(
        p,
        ("data.a", "data.b.0", "z"),
        inputs={"data": {"a": 0, "b": [1, None]}, "z": 2},
        outputs={"sum": 0, "pair": (1, [2])},
        prints=(Print("sum {0[0]} and {1[1]}", (0, 1)),),
    )
    made = hand.program(f, hand.function(hand.INIT)), hand.plan(p, hand.INIT)
    return rt.load(hand.build(tmp_path_factory.mktemp("nested") / "nested.so", made), threads=2)


def test_structure_is_kept(nested, capsys):
    x, y, z = (np.full(N, v, np.float32) for v in (1, 2, 3))
    got = nested.f(data={"a": x, "b": [y, None]}, z=z)
    assert list(got) == ["sum", "pair"] and type(got["pair"]) is tuple and type(got["pair"][1]) is list
    assert np.array_equal(got["sum"], x + y) and np.array_equal(got["pair"][0], z + z)
    assert np.array_equal(got["pair"][1][0], x + z)
    assert capsys.readouterr().out == "sum 3.0 and 6.0\n"


@pytest.mark.parametrize(
    "data, message",
    [
        ({"a": 0}, r"f: input 'data': expected keys \['a', 'b'\], got keys \['a'\]"),
        ([1], r"f: input 'data': expected keys \['a', 'b'\], got list"),
        ({"a": 0, "b": [1]}, "f: input 'data.b': expected a list of 2, got 1 elements"),
        ({"a": 0, "b": [1, 2]}, "f: input 'data.b.1': expected None, got int"),
    ],
)
def test_wrong_structure_is_explained(nested, data, message):
    with pytest.raises(rt.ArgumentError, match=message):
        nested.f(data=data, z=0)


def test_bf16_by_ml_dtypes(tmp_path, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    t = TensorType(bf16, (2 * N,))  # the same bytes as N floats, which `add` adds
    p = FunctionPlan("f", (t,), (t,), (hand.launch(hand.add(hand.IN0, hand.ZERO, hand.IN1)),), 1, 0, 0)
    made = hand.program(hand.function(p, ("x",)), hand.function(hand.INIT)), hand.plan(p, hand.INIT)
    q = rt.load(hand.build(tmp_path / "bf16.so", made), threads=1)
    x = np.linspace(1, 2, 2 * N).astype(ml_dtypes.bfloat16)
    got = q.f(x=x)
    assert got.dtype == x.dtype and np.array_equal(got, x)
    assert np.array_equal(q.f(x=x.astype(np.float32)), x)
    with pytest.raises(rt.ArgumentError, match="expected bf16, got <U1"):
        q.f(x=np.full(2 * N, "a"))
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="bf16 arrays need the package ml_dtypes"):
        q.f(x=x)


# ---- state ----------------------------------------------------------------------------------------------
def test_state_is_the_memory_itself(demo, x, index):
    w = demo.state["w"]
    w[...] = x
    assert np.array_equal(demo.train(x=x, i=index), hand.train_reference(x, x))
    assert np.array_equal(w, hand.train_reference(x, x))
    assert (
        np.shares_memory(w, demo.state["tied"]) and list(demo.state) == ["w", "m", "rng.seed"] and "tied" in demo.state
    )
    m = demo.state["m"]
    assert m.shape == (2, 3) and m.strides == (4, 8)  # stored transposed
    m[...] = np.arange(6).reshape(2, 3)
    assert demo.context.state[256:280].view(np.float32).tolist() == [0, 3, 1, 4, 2, 5]
    with pytest.raises(KeyError, match=r"no state 'v'; there are w, m, rng\.seed"):
        demo.state["v"]


def test_state_outlives_the_program(path):
    p = rt.load(path, threads=2)
    w = p.state["w"]
    w[...] = 3
    del p
    assert (w == 3).all()


def test_setting_state_checks(demo):
    demo.state["w"] = np.arange(N)
    assert demo.state["w"][5] == 5
    with pytest.raises(rt.StateError, match=r"state 'w': expected shape \[64\], got \[3\]"):
        demo.state["w"] = np.zeros(3)
    with pytest.raises(rt.StateError, match=r"state 'rng\.seed': expected u32, got float64"):
        demo.state["rng.seed"] = np.zeros(2)


def test_init_sets_seed_and_state(demo, x, index):
    demo.train(x=x, i=index)
    demo.init(2**40 + 7)
    assert demo.state["rng.seed"].tolist() == [7, 256] and not demo.state["w"].any()
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        demo.init(-1)


def test_save_and_load(demo, path, x, index, tmp_path):
    file = tmp_path / "state.safetensors"
    demo.train(x=x, i=index)
    demo.state["m"] = np.arange(6).reshape(2, 3)
    demo.save(file, metadata={"note": "hello"})
    other = rt.load(path, seed=5, threads=1)
    assert other.load_state(file) == ["w", "m", "rng.seed"]
    assert np.array_equal(other.context.state[:328], demo.context.state[:328])
    assert np.array_equal(other.train(x=x, i=index), demo.train(x=x, i=index))
    from pullback_runtime.state import read_metadata

    assert read_metadata(file)["note"] == "hello"


def test_weights_of_others(demo, tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "w.safetensors"
    save_file({"ied": np.ones(N, np.float16)}, file)  # "t" + "ied": an alias; half precision
    assert demo.load_state(file, prefix="t") == ["w"]
    assert (demo.state["w"] == 1).all()
    demo.save(file, kinds=("parameter",))
    demo.init(0)
    assert demo.load_state(file) == ["w"] and (demo.state["w"] == 1).all()


def test_only_what_is_under_a_prefix(nested_state, tmp_path):
    """What `save` writes under a prefix is what `load_state` reads under it."""
    from safetensors.numpy import load_file

    file = tmp_path / "p.safetensors"
    kept = {n: a.copy() for n, a in nested_state.state.items()}
    for prefix, kinds, names in [
        ("model.", None, {"weight": "model.weight", "tied": "other.tied", "mean": "model.mean"}),
        ("model.", ["parameter"], {"weight": "model.weight", "tied": "other.tied"}),
        ("model.", "buffer", {"mean": "model.mean"}),
        ("other.", ("parameter", "buffer"), {"tied": "other.tied"}),
        ("optimizer.", ["slot"], {"m.model.weight": "optimizer.m.model.weight"}),
        ("", ["parameter"], {"model.weight": "model.weight", "other.tied": "other.tied"}),
        ("optimizer.", ["parameter"], {}),
    ]:
        nested_state.save(file, kinds, prefix=prefix)
        found = load_file(file)
        assert found.keys() == names.keys()
        for short, name in names.items():
            np.testing.assert_array_equal(found[short], kept[name])
    nested_state.save(file, prefix="model.")
    for a in nested_state.state.values():
        a[...] = 0
    assert nested_state.load_state(file, prefix="model.") == ["model.weight", "other.tied", "model.mean"]
    assert all(np.array_equal(nested_state.state[n], kept[n]) for n in ("model.weight", "other.tied", "model.mean"))
    with pytest.raises(rt.StateError, match=r"no state's name begins with 'net\.'; there are model\.weight, other\.t"):
        nested_state.save(tmp_path / "none", prefix="net.")
    assert not (tmp_path / "none").exists()


@pytest.fixture
def nested_state():
    """Five states; one of another object is the model's, too."""
    entries = [
        ("model.weight", "parameter", ()), ("other.tied", "parameter", ("model.tied",)), ("model.mean", "buffer", ()),
        ("optimizer.m.model.weight", "slot", ()), ("optimizer.step", "counter", ()),
    ]  # fmt: skip
    state = tuple(
        StateEntry(name, kind, "f32", (2, 3), 64 * i, (3, 1), aliases)
        for i, (name, kind, aliases) in enumerate(entries)
    )
    program = rt.Program.__new__(rt.Program)
    program.context = SimpleNamespace(lock=threading.Lock())
    memory = np.arange(5 * 16, dtype=np.float32).view(np.uint8)
    program.state = State(Manifest("by hand", "", "", (), state, memory.nbytes, ()), memory)
    return program


def test_unknown_kinds_are_refused(demo, tmp_path):
    for kinds in (["param"], ("parameter", "param"), "param"):
        with pytest.raises(
            ValueError, match=r"unknown kind of state 'param'; the kinds are parameter, buffer, slot, h"
        ):
            demo.save(tmp_path / "w.safetensors", kinds=kinds)
    assert not list(tmp_path.iterdir())


def test_kinds_are_the_compilers(demo):
    from pullback.dsl import state

    kinds = {c.kind for c in vars(state).values() if isinstance(c, type) and isinstance(getattr(c, "kind", 0), str)}
    assert kinds and kinds | {"seed"} == set(KINDS)


@pytest.mark.parametrize("name", ["nowhere/w.safetensors", "folder", "file/w.safetensors"])
def test_files_that_cannot_be_written(demo, tmp_path, name):
    """The error names the file that the caller gave; checking says the same before there is anything to write."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("here")
    for write in (demo.save, check_writable):
        with pytest.raises(OSError) as e:
            write(tmp_path / name)
        assert e.value.filename == str(tmp_path / name) and e.value.strerror
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


BAD_STATE = {
    "shape": ({"w": np.zeros(3, np.float32)}, r"w: expected shape \[64\], got \[3\]"),
    "dtype": ({"w": np.zeros(N, np.int32), "rng.seed": np.zeros(2)}, "rng.seed: expected u32, got float64"),
    "unknown": ({"w": np.zeros(N, np.float32), "v": np.zeros(1)}, "v: the program has no state 'v'"),
    "missing": ({"m": np.zeros((2, 3), np.float32)}, "w: not in the file"),
    "tied": ({"w": np.zeros(N, np.float32), "tied": np.ones(N, np.float32)}, "another value for w"),
}


@pytest.mark.parametrize("name", BAD_STATE)
def test_wrong_state_file_changes_nothing(demo, tmp_path, name):
    from safetensors.numpy import save_file

    arrays, message = BAD_STATE[name]
    save_file(arrays, tmp_path / "bad.safetensors")
    demo.state["w"][...] = 7
    before = demo.context.state.copy()
    with pytest.raises(rt.StateError, match=message):
        demo.load_state(tmp_path / "bad.safetensors")
    assert np.array_equal(demo.context.state, before)


def test_unreadable_state_file(demo, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"nonsense")
    with pytest.raises(rt.StateError, match="not a readable safetensors file"):
        demo.load_state(tmp_path / "no.safetensors")
    with pytest.raises(FileNotFoundError, match="no state file"):
        demo.load_state(tmp_path / "nowhere.safetensors")


def test_partial_state_when_not_strict(demo, tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(N, np.float32), "other": np.ones(1)}, tmp_path / "p.safetensors")
    assert demo.load_state(tmp_path / "p.safetensors", strict=False) == ["w"]
    save_file({"other": np.ones(1)}, tmp_path / "p.safetensors")
    with pytest.raises(rt.StateError, match="none of the file's names is a state"):
        demo.load_state(tmp_path / "p.safetensors", strict=False)


# ---- processes and threads ------------------------------------------------------------------------------
def test_two_programs_in_two_threads(path, x, index):
    programs, failures = [rt.load(path, threads=2) for _ in range(2)], []

    def run(p, scale):
        w = np.zeros(N, np.float32)
        for _ in range(300):
            w = hand.train_reference(w, x * scale)
            if not np.array_equal(p.train(x=x * scale, i=index), w):
                failures.append(scale)
                return

    threads = [threading.Thread(target=run, args=(p, np.float32(s))) for p, s in zip(programs, (1, 3), strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_one_program_from_several_threads(path, index):
    p = rt.load(path, threads=2)
    ones = np.ones(N, np.float32)

    def run():
        for _ in range(200):
            p.train(x=ones, i=index)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert p.state["w"][0] == 600 * 5 and p.state["w"][-1] == 600 * 2


def test_closed_program_says_so(path, x, index):
    p = rt.load(path, threads=2)
    p.train(x=x, i=index)
    p.close()
    with pytest.raises(rt.RuntimeFailure, match="train: the context is not open"):
        p.train(x=x, i=index)
    assert p.state["w"].any()
    p.threads = 1
    p.train(x=x, i=index)


def test_pickling_is_refused(demo):
    with pytest.raises(TypeError, match=r"a loaded program cannot be pickled: load .* in the other process"):
        pickle.dumps(demo)


def test_repr_and_doc(demo):
    assert "demo" in repr(demo) and "train(x: f32[64], i: i32[64])" in repr(demo.train)
    assert demo.train.__doc__.startswith("Compiled from model.py:12")
    assert "train(x: f32[64], i: i32[64]) -> f32[64]" in pydoc.render_doc(demo.train)
    assert rt.inspect(demo.path).options == {"script_args": ["--width", "64"]}


def test_signatures(demo, nested, several):
    signature = inspect.signature(demo.train)
    assert str(signature) == "(x: 'f32[64]', i: 'i32[64]') -> 'f32[64]'"
    assert signature.bind(1, i=2).arguments == {"x": 1, "i": 2}
    text = "(data: '{a: f32[64], b: [f32[64], None]}', z: 'f32[64]') -> '{sum: f32[64], pair: (f32[64], [f32[64]])}'"
    assert str(inspect.signature(nested.f)) == text
    assert list(inspect.signature(several.predict).parameters) == ["x"]
    assert several.predict.__doc__.count("predict(x: f32[") == 2
    assert isinstance(demo.train, functools.partial)  # nothing of Python lies in a call's way
