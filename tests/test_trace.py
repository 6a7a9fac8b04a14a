"""Tracing model scripts into programs: state, dimensions, structure of arguments and results, errors."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pages
import pytest
from interpreter import Interpreter, interpret, run

import pullback as pb
from pullback import nn, optim
from pullback.dsl.trace import parse_dims, trace_functions, trace_script
from pullback.errors import BuildError, DTypeError, ShapeError, TraceError
from pullback.graph.program import Print

RNG = np.random.default_rng(0)
EXAMPLES = Path(__file__).parent.parent / "examples"


def script(tmp_path, text: str, *argv, **dims):
    path = tmp_path / "script.py"
    path.write_text("import pullback as pb\nfrom pullback import nn, optim\n" + text)
    return trace_script(path, argv, dims)


def test_digits_traces_to_a_program():
    program = trace_script(EXAMPLES / "digits.py", [], {"batch": 64})
    train, predict, init = program.functions
    assert (program.name, train.name, predict.name, init.name) == ("digits", "train", "predict", "init")
    assert [str(a.type) for a in train.arguments] == ["f32[64,64]", "i32[64]"]
    assert [a.name for a in train.arguments] == ["image", "label"]
    weights = [f"model.{layer}.{p}" for layer in ("hidden", "out") for p in ("weight", "bias")]
    slots = [f"optimizer.{s}.{w}" for w in weights for s in ("exp_avg", "exp_avg_sq")]
    assert set(program.states) == {"rng.seed", "optimizer.step", *weights, *slots}
    assert set(train.reads) == set(train.writes) == {"optimizer.step", *weights, *slots}
    assert predict.reads == tuple(weights) and predict.writes == ()
    assert init.reads == ("rng.seed",) and set(init.writes) == set(program.states) - {"rng.seed"}
    assert (train.inputs, train.outputs) == ({"image": 0, "label": 1}, 0)
    assert (train.training, predict.training) == (True, None)
    assert (train.padded, predict.padded) == (None, "batch")
    assert [str(x.type) for x in predict.graph.outputs] == ["i32[64]"]
    assert program.options == {"script": "digits.py", "argv": [], "dims": {"batch": 64}}
    assert str(program.states["model.hidden.weight"].type) == "f32[128,64]"


def test_nodes_know_their_line():
    source = (EXAMPLES / "digits.py").read_text().splitlines()
    program = trace_script(EXAMPLES / "digits.py", [], {"batch": 8})
    lines = {(n.loc.line, n.loc.gradient) for n in program.functions[0].graph.nodes}
    loss = next(i for i, line in enumerate(source, 1) if "cross_entropy" in line)
    hidden = next(i for i, line in enumerate(source, 1) if "self.hidden(image)" in line)
    update = next(i for i, line in enumerate(source, 1) if "minimize" in line)
    assert {(loss, False), (loss, True), (hidden, False), (hidden, True), (update, False)} <= lines
    assert all(n.loc.file.endswith("digits.py") for f in program.functions for n in f.graph.nodes if n.loc.line)
    assert "self.out = nn.Linear" in source[program.states["model.out.bias"].loc.line - 1]


def test_script_sees_its_arguments_and_its_folder(tmp_path, monkeypatch):
    (tmp_path / "mylayers.py").write_text("WIDTH = 3\n")
    before = list(sys.argv), list(sys.path)
    program = script(
        tmp_path,
        """
import sys, argparse
from dataclasses import dataclass
import mylayers
@dataclass
class Config:
    width: "int"
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int)
config = Config(parser.parse_args().width)
assert __name__ == "__pullback__"
@pb.function(pb.f32[config.width, mylayers.WIDTH])
def double(x):
    return 2 * x
""",
        "--width",
        5,
    )
    assert program.functions[0].arguments[0].type.shape == (5, 3)
    assert program.options["argv"] == ["--width", "5"]
    assert (sys.argv, sys.path) == before and "__pullback__" not in sys.modules


def test_scripts_in_two_threads_do_not_mix(tmp_path):
    text = """
import sys, time
import pullback as pb

before = list(sys.argv)
time.sleep(0.01)
assert sys.argv == before and sys.modules[__name__].before is before

@pb.function(pb.f32[int(sys.argv[1])])
def f(x):
    return x
"""
    (tmp_path / "script.py").write_text(text)
    with ThreadPoolExecutor(4) as pool:
        programs = pool.map(lambda n: trace_script(tmp_path / "script.py", [n]), range(1, 9))
    assert [p.functions[0].arguments[0].type.shape for p in programs] == [(n,) for n in range(1, 9)]


def test_errors_of_a_script_keep_their_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        script(tmp_path, "def bad():\n    return 1 / 0\nbad()\n")
    last = caught.traceback[-1]
    assert (Path(last.path).name, last.lineno + 1) == ("script.py", 4)
    with pytest.raises(SyntaxError, match=r"script\.py, line 3"):
        script(tmp_path, "def\n")
    with pytest.raises(BuildError, match="cannot read the script"):
        trace_script(tmp_path / "none.py")
    with pytest.raises(BuildError, match=r"script defines no @pb\.function"):
        script(tmp_path, "x = 1\n")


def test_dimensions_are_bound_by_name_and_per_function():
    batch, time = pb.dim("batch"), pb.dim("time")

    @pb.function(pb.f32[batch, time])
    def train(x):
        return pb.sum(x)

    @pb.function(pb.f32[batch, 3])
    def predict(x):
        return x.shape[0] * pb.sum(x, axis=1)

    program = trace_functions([train, predict], dims={"batch": 8, "predict.batch": (1, 4), "time": 2})
    shapes = [(f.name, f.dims, f.arguments[0].type.shape) for f in program.functions[:-1]]
    assert shapes == [
        ("train", {"batch": 8, "time": 2}, (8, 2)),
        ("predict", {"batch": 1}, (1, 3)),
        ("predict", {"batch": 4}, (4, 3)),
    ]
    with pytest.raises(BuildError, match=r'dimension .time. of train .* pass dims=\{"time": SIZE\}; .*: batch, time'):
        trace_functions([train, predict], dims={"batch": 8})
    with pytest.raises(BuildError, match=r"unknown dimension 'bath'; the functions' dimensions are: batch, time"):
        trace_functions([train, predict], dims={"bath": 8, "time": 2})
    with pytest.raises(BuildError, match=r"unknown dimension 'predict\.time'"):
        trace_functions([train, predict], dims={"batch": 8, "time": 2, "predict.time": 2})
    with pytest.raises(BuildError, match="dimension 'batch' of train is -1"):
        trace_functions([train, predict], dims={"batch": -1, "time": 2})
    with pytest.raises(BuildError, match=r"dimension 'batch' of train is \[\]: expected a size, or several"):
        trace_functions([train, predict], dims={"batch": (), "time": 2})
    for bad in (16.0, "16", True, [4, "5"]):
        with pytest.raises(
            BuildError, match=r"dimension 'batch' of train is '?(16.0|16|True|5)'?: expected a size, or s"
        ):
            trace_functions([train, predict], dims={"batch": bad, "time": 2})
    program = trace_functions([train], dims={batch: 8, time: np.int64(2)})
    assert program.functions[0].arguments[0].type.shape == (8, 2)


def test_dims_of_the_command_line():
    assert parse_dims(["batch=64", "predict.batch=1,64"]) == {"batch": (64,), "predict.batch": (1, 64)}
    assert parse_dims(None) == {}
    for bad in ("batch", "batch=", "batch=x", "batch=1,,2", "batch=-1"):
        with pytest.raises(BuildError, match="expected NAME=SIZE"):
            parse_dims([bad])
    with pytest.raises(BuildError, match="given twice"):
        parse_dims(["a=1", "a=2"])


def test_arguments_and_results_are_trees():
    @pb.function({"x": pb.f32[2], "y": (pb.f32[2], pb.i32[2])}, pb.f32[1])
    def f(data, z):
        x, (y, i) = data["x"], data["y"]
        return {"sum": x + y, "rest": [z, (i, None)], "const": 1.5, "table": np.arange(3)}

    program = interpret(f)
    built = program.function("f")
    assert [a.name for a in built.arguments] == ["data.x", "data.y.0", "data.y.1", "z"]
    assert built.inputs == {"data": {"x": 0, "y": (1, 2)}, "z": 3}
    assert built.outputs == {"sum": 0, "rest": [1, (2, None)], "const": 3, "table": 4}
    a, i = np.ones(2, np.float32), np.array([3, 4], np.int32)
    out = program("f", {"x": a, "y": (a, i)}, np.zeros(1, np.float32))
    np.testing.assert_array_equal(out["sum"], [2, 2])
    np.testing.assert_array_equal(out["rest"][1][0], [3, 4])
    assert out["rest"][1][1] is None and out["const"] == 1.5
    np.testing.assert_array_equal(out["table"], [0, 1, 2])


def test_state_is_read_and_written_in_program_order():
    w = nn.Parameter(2.0)
    optimizer = optim.SGD([w], lr=0.5)

    @pb.function()
    def step():
        before = w * 1
        optimizer.minimize(3 * w)
        return before, w * 10, w

    program = interpret(step)
    assert program("step") == (2.0, 5.0, 0.5)
    assert program("step") == (0.5, -10.0, -1.0)
    assert set(program.function("step").writes) == {"optimizer.step", "w"}


def test_functions_are_inlined_in_functions_and_keep_their_mode():
    drop = nn.Dropout(0.5)
    w = nn.Parameter(1.0)

    @pb.function(pb.f32[4], training=False)
    def features(x):
        return drop(x) * w

    @pb.function(pb.f32[4], training=True)
    def train(x):
        return features(x) + drop(x)

    program = interpret(features, train)
    out = program("train", np.ones(4, np.float32))
    assert set(np.unique(out)) <= {1.0, 3.0}
    assert program.function("train").reads[0] == "w"


def test_tied_weights_are_one_state_with_aliases():
    class Model(nn.Module):
        def __init__(self):
            self.embed = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

        def __call__(self, i):
            return self.out(self.embed(i))

    model = Model()

    @pb.function(pb.i32[2])
    def f(i):
        loss = pb.sum(model(i))
        return pb.grad(loss, dict(model.named_parameters()))

    program = interpret(f)
    state = program.program.states["model.embed.weight"]
    assert state.aliases == ("model.out.weight",)
    assert "model.out.weight" not in program.program.states
    grads = program("f", np.array([1, 3], np.int32))
    assert list(grads) == ["embed.weight"]
    assert np.abs(grads["embed.weight"]).sum(1).all()


def test_a_touched_module_is_saved_whole_and_others_not():
    class Two(nn.Module):
        def __init__(self):
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    model, other = Two(), nn.Linear(2, 2)

    @pb.function(pb.f32[2])
    def f(x):
        return model.used(x)

    program = trace_functions([f], {"model": model, "other": other})
    assert [n for n in program.states if n != "rng.seed"] == [
        f"model.{m}.{p}" for m in ("used", "unused") for p in ("weight", "bias")
    ]
    assert program.functions[0].reads == ("model.used.weight", "model.used.bias")


def test_modules_in_lists_dicts_and_cycles_have_names():
    class Node(nn.Module):
        def __init__(self, parent=None):
            self.weight = nn.Parameter(1.0)
            self.parent = parent
            self.extra = [{"a": nn.Parameter(2.0)}]

    root = Node()
    root.child = Node(root)
    models = {"net": [root], "data": [[0.0] * 100] * 100}
    models["self"] = models

    @pb.function()
    def f():
        return root.weight + root.child.extra[0]["a"]

    names = list(trace_functions([f], {"models": models}).states)
    assert names[1:] == [f"models.net.0.{n}" for n in ("weight", "extra.0.a", "child.weight", "child.extra.0.a")]


def test_trees_match_whatever_the_order_of_keys():
    tree = {"a": 1, "b": (2, [3, None])}
    assert pb.tree_map(lambda x, y: x - y, tree, {"b": (20, [30, None]), "a": 10}) == {"a": -9, "b": (-18, [-27, None])}
    for other in (
        {"a": 1},
        {"a": 1, "b": [2, [3, None]]},
        {"a": 1, "b": (2, [3, 4])},
        {"a": 1, "b": (2, [3])},
        1,
        None,
    ):
        with pytest.raises(ValueError, match="trees differ in structure"):
            pb.tree_map(lambda x, y: x, tree, other)


def test_carries_match_whatever_the_order_of_keys():
    def body(carry, x):
        return {"n": carry["n"] + 1.0, "sum": carry["sum"] + x}, None

    def total(x):
        return pb.scan(body, {"sum": pb.zeros(()), "n": pb.zeros(())}, x)[0]

    assert run(total, np.array([1, 2, 4], np.float32)) == {"sum": 7, "n": 3}


def test_debug_print_in_a_loop_says_what_to_do():
    def body(carry, x):
        pb.debug_print("{}", x)
        return carry, x

    with pytest.raises(TraceError, match="debug_print in the body of a scan: return the value as a y"):
        run(lambda x: pb.scan(body, 0.0, x), np.zeros(3, np.float32))


def test_debug_print_adds_hidden_results():
    @pb.function(pb.f32[3])
    def f(x):
        pb.debug_print("x {} sum {:.2f}", x, pb.sum(x))
        pb.debug_print("{}", 7)
        return {"y": x * 2}

    @pb.function(pb.f32[3])
    def wrong(x):
        pb.debug_print("{} {}", x)

    program = interpret(f)
    built = program.function("f")
    assert built.prints == (Print("x {} sum {:.2f}", (1, 2)), Print("{}", (3,)))
    assert built.outputs == {"y": 0} and len(built.graph.outputs) == 4
    with pytest.raises(TraceError, match="2 fields but 1 values"):
        interpret(wrong)


def test_random_numbers_inside_of_functions():
    @pb.function()
    def draw():
        return pb.random.uniform((1000,), -1, 1), pb.random.normal((1000,)), pb.random.bernoulli(0.3, (1000,))

    program = interpret(draw)
    u, n, b = program("draw")
    assert -1 <= u.min() < -0.9 and 0.9 < u.max() <= 1 and abs(n.std() - 1) < 0.1 and abs(b.mean() - 0.3) < 0.05
    assert not np.array_equal(u, program("draw")[0])
    assert draw.name == "draw"


def test_padding_is_allowed_where_rows_do_not_meet():
    rows = pb.dim("rows")
    layer, w = nn.Linear(3, 4), nn.Parameter(np.ones((3, 2), np.float32))

    def padded(fn, *specs):
        f = pb.function(*specs)(fn)
        return trace_functions([f], {"layer": layer, "w": w}, {"rows": 6}).functions[0].padded

    x = pb.f32[rows, 3]
    assert padded(lambda x: pb.softmax(layer(x)), x) == "rows"
    assert padded(lambda x: {"a": pb.argmax(x, axis=1), "b": (x @ w).mT.T}, x) == "rows"
    assert padded(lambda i: pb.take(w, i, axis=0), pb.i32[rows]) == "rows"
    assert padded(lambda x: nn.layer_norm(x, (3,)).reshape(-1, 3, 1), x) == "rows"
    assert padded(lambda x, y: pb.concat([x, y[:, ::-1]], axis=1)[:, 1:4], x, x) == "rows"
    assert padded(lambda x: pb.cumulative_sum(x, axis=1), x) == "rows"
    assert padded(lambda x, i: pb.take_along_axis(x, i[:, None], axis=1), x, pb.i32[rows]) == "rows"
    assert padded(lambda x: pb.softmax(x, axis=0), x) is None
    assert padded(lambda x: pb.sum(x), x) is None
    assert padded(lambda x: x.T, x) is None
    assert padded(lambda x: x @ x.T, x) is None
    assert padded(lambda x: x[::-1], x) is None
    assert padded(lambda x: x[:3], x) is None
    assert padded(lambda x: x.reshape(3, 6).T, x) is None
    assert padded(lambda x: x - pb.mean(x, axis=0), x) is None
    assert padded(lambda x: w, x) is None
    assert padded(lambda x, y: x + y, x, pb.f32[3]) is None


def test_rows_are_followed_through_scans():
    rows = pb.dim("rows")
    x, z = pb.f32[rows, 4, 3], pb.zeros

    def padded(fn, *specs):
        (f, _) = trace_functions([pb.function(*specs or (x,), name="f")(fn)], {}, {"rows": 6}).functions
        return f.padded or f.unpadded.partition(" at ")[0]

    def over_time(body, carry, **how):
        return lambda x: pb.scan(body, carry(x), pb.permute_dims(x, (1, 0, 2)), **how)

    assert padded(lambda x: over_time(lambda h, x: (pb.tanh(h + x), None), lambda x: z((6, 3)))(x)[0]) == "rows"
    every = over_time(lambda h, x: (h + x, h), lambda x: x[:, 0])
    assert padded(lambda x: pb.permute_dims(every(x)[1], (1, 0, 2))) == "rows"
    crossed = over_time(lambda c, x: ((c[1], x), None), lambda x: (z((6, 3)), z((6, 3))), reverse=True)
    assert padded(lambda x: crossed(x)[0][0]) == "rows"  # the second iteration moves the rows into the first carry
    inner = over_time(lambda h, x: (pb.scan(lambda a, i: (a + x, None), h, length=2)[0], None), lambda x: z((6, 3)))
    assert padded(lambda x: inner(x)[0]) == "rows"
    assert padded(every) == "not every result has the rows first"  # the stacked ys have time first
    assert (
        padded(lambda x: over_time(lambda h, x: (h + pb.mean(x, axis=0), None), lambda x: z((3,)))(x)[0])
        == "rows meet in sum"
    )
    assert (
        padded(lambda x: pb.scan(lambda h, x: (h + x, h), z((4, 3)), x)[1]) == "rows meet in scan"
    )  # a loop over the rows
    turned = pb.f32[rows, 6]
    assert padded(lambda x: pb.scan(lambda h, _: (h.T, None), x, length=2)[0], turned) == "rows meet in scan"
    assert padded(lambda x: pb.scan(lambda h, _: (h + 1, None), x, length=2)[0], turned) == "rows"


def test_rows_of_a_scan_are_the_same_with_padding():
    rows, cell = pb.dim("rows"), nn.Linear(5, 2)

    @pb.function(pb.f32[rows, 4, 3])
    def run(x):
        def step(h, x):
            return pb.tanh(cell(pb.concat([x, h], axis=1))), None

        return pb.scan(step, pb.zeros((x.shape[0], 2)), pb.permute_dims(x, (1, 0, 2)))[0]

    program = pb.build(run, dims={"rows": 8})
    x = RNG.standard_normal((8, 4, 3), np.float32)
    np.testing.assert_array_equal(program.run(x[:3]), program.run(x)[:3])


def one(fn, *specs, **kwargs):
    return trace_functions([pb.function(*specs, name="f", **kwargs)(fn)], kwargs.pop("namespace", None))


def test_state_outside_of_functions_is_an_error():
    layer = nn.Linear(2, 2)
    with pytest.raises(TraceError, match=r"test_trace.py:\d+: parameter f32\[2,2\] is read outside of a function"):
        layer.weight + 1
    with pytest.raises(TraceError, match="is read outside of a function"):
        layer(pb.ones((2,)))
    with pytest.raises(TraceError, match="is assigned outside of a function"):
        layer.weight.assign(pb.ones((2, 2)))
    with pytest.raises(TraceError, match="random numbers are drawn outside of a function"):
        nn.Dropout()(pb.ones(3))
    with pytest.raises(TraceError, match=r"hyper f32.* is read outside of a function"):
        pb.hyper("lr", 0.1) * 2


def test_state_without_a_name_is_an_error():
    def f(x):
        return nn.Linear(2, 2)(x)

    with pytest.raises(TraceError, match=r"the parameter f32\[2,2\] made at .*test_trace.py:\d+ has no name"):
        one(f, pb.f32[2])


def test_values_of_another_function_are_an_error():
    leaked = []

    @pb.function(pb.f32[2])
    def first(x):
        leaked.append(x)
        return x

    @pb.function(pb.f32[2])
    def second(y):
        return leaked[0] + y

    with pytest.raises(TraceError, match=r"second uses 'x' f32\[2\], which belongs to another function"):
        interpret(first, second)


def test_data_dependent_control_flow_is_an_error():
    def f(x):
        if pb.sum(x) > 0:
            return x
        return -x

    with pytest.raises(TraceError, match=r"test_trace.py:\d+: the truth value of .* is not known") as caught:
        one(f, pb.f32[2])
    assert caught.value.loc.function == "f"


def test_script_mistakes_say_where_and_what():
    with pytest.raises(ShapeError, match=r"test_trace.py:\d+: .*\[2\].*\[3\]"):
        one(lambda x, y: x + y, pb.f32[2], pb.f32[3])
    with pytest.raises(DTypeError, match="expected"):
        one(lambda x: pb.take(x, x), pb.f32[2])
    with pytest.raises(ShapeError, match="expected a scalar loss"):
        one(lambda x: pb.grad(x, x), pb.f32[2])
    with pytest.raises(TraceError, match="f returns str: expected arrays"):
        one(lambda x: "text", pb.f32[2])
    with pytest.raises(TraceError, match=r"f has 2 parameters \(x, y\) but @pb.function has 1 specs"):
        one(lambda x, y: x, pb.f32[2])
    with pytest.raises(TraceError, match="cannot take \\*xs"):
        one(lambda *xs: xs, pb.f32[2])
    with pytest.raises(TraceError, match=r"the spec of x is .*, expected e\.g\. pb\.f32\[64\]"):
        one(lambda x: x, (2, 3))
    for bad in ("batch", None, -1, 2.0, True):  # where the spec is written
        line = sys._getframe().f_lineno + 2
        with pytest.raises(ShapeError, match=rf"test_trace.py:{line}: f32\[{bad}, 3\]: '?{bad}'? is no dimension") as e:
            pb.f32[bad, 3]
        assert 'pb.dim("batch")' in str(e.value)
    with pytest.raises(BuildError, match="dim"):
        pb.dim("no name")


def test_names_must_be_unique():
    @pb.function(pb.f32[2])
    def f(x):
        return x

    g = pb.function(pb.f32[2], name="f")(lambda x: x)
    with pytest.raises(BuildError, match="two functions named 'f'"):
        interpret(f, g)
    with pytest.raises(BuildError, match="two functions named 'init'"):
        interpret(pb.function(pb.f32[2], name="init")(lambda x: x))
    a, b = pb.hyper("lr", 0.1), pb.hyper("lr", 0.2)
    with pytest.raises(BuildError, match="two states named 'lr'"):
        one(lambda x: x * a * b, pb.f32[2])


def test_mode_must_be_said_where_a_function_learns():
    drop, layer = nn.Dropout(), nn.Linear(2, 1)
    optimizer = optim.SGD(layer)

    def step(x):
        optimizer.minimize(pb.sum(layer(drop(x))))

    names = {"layer": layer, "optimizer": optimizer}
    with pytest.raises(TraceError, match=r"f calls minimize .* behaves differently in training .*training=True"):
        trace_functions([pb.function(pb.f32[2], name="f")(step)], names)
    for training in (True, False):
        trace_functions([pb.function(pb.f32[2], name="f", training=training)(step)], names)


def test_writes_check_shape_and_dtype():
    b = nn.Buffer(pb.zeros((2,)))
    with pytest.raises(ShapeError, match=r"buffer 'b' f32\[2\] cannot take a value of shape \[3\]"):
        one(lambda x: b.assign(x), pb.f32[3])
    with pytest.raises(DTypeError, match=r"buffer 'b' f32\[2\] cannot take a value of dtype f64"):
        one(lambda x: b.assign(x), pb.f64[2])


def test_decorator_without_parentheses():
    w = nn.Parameter(2.0)

    @pb.function
    def double():
        return 2 * w

    assert interpret(double)("double") == 4


def test_bare_arrays_and_parameters_as_results():
    w = nn.Parameter([1.0, 2.0])
    np.testing.assert_array_equal(run(lambda x: w, np.zeros(1, np.float32)), [1, 2])


def test_the_manual_is_one_script_that_traces(tmp_path):
    path = tmp_path / "manual.py"
    path.write_text("\n".join(pages.blocks("dsl")))
    program = trace_script(path, dims=parse_dims(["batch=64", "predict.batch=1,64"]))
    assert [f.name for f in program.functions] == [
        *("train", "predict", "predict", "scale", "penalty", "adapted"),
        *("recurrent", "square_root", "noisy", "regress", "init"),
    ]
    assert [f.name for f in program.functions if f.padded] == ["predict", "recurrent", "square_root"]
    assert {"lr", "rng.step", "counted.calls", "groups.momentum_buffer.small.bias"} <= set(program.states)
    evaluated = Interpreter(program)
    result = evaluated("adapted", RNG.standard_normal((8, 3)), RNG.standard_normal((8, 1)))
    assert list(result) == ["weight", "bias"]
    assert evaluated("scale", np.ones(2))[1] == 1
    x = np.linspace(1, 9, 64, dtype=np.float32)
    np.testing.assert_allclose(evaluated("square_root", x), np.sqrt(x), rtol=1e-6)
    assert [a.shape for a in evaluated("recurrent", np.ones((64, 20, 2))).values()] == [(64, 8), (64, 20)]
    first, second = (evaluated("noisy", np.ones((64, 2))) for _ in range(2))
    assert (first != second).any() and 0 < (first == 0).mean() < 0.3
