"""`pullback train`: data files, splits, metrics, and checkpoints that survive kill -9 to the bit.

`python tests/test_training.py 100` kills a run a hundred times (CI: ten).
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import pullback_runtime as rt
from pullback_runtime.command import main as train_command
from pullback_runtime.data import load_data
from pullback_runtime.errors import DataError
from pullback_runtime.training import fit, measure, split

SCRIPT = """
import pullback as pb
from pullback import nn, optim

model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 4))
optimizer = optim.Adam(model, lr=optim.cosine(1e-2, steps=200, warmup=5))
batch = pb.dim("batch")

@pb.function(pb.f32[batch, 3], pb.i32[batch], training=True)
def train(x, y):
    loss = nn.cross_entropy(model(x), y)
    optimizer.minimize(loss)
    return {"norm": pb.sum(x), "loss": loss}

@pb.function({"a": pb.f32[batch, 3], "b": (pb.f32[batch], pb.f32[batch])})
def evaluate(parts):
    return pb.mean(parts["a"]) + pb.mean(parts["b"][1])

@pb.function(pb.f32[batch, 3])
def predict(x):
    return pb.argmax(model(x), axis=-1)

@pb.function(pb.f32[batch, 3], pb.i32[batch])
def check(x, y):
    return [nn.cross_entropy(model(x), y)]

@pb.function(pb.f32[batch, 3])
def train_quietly(x):
    optimizer.minimize(pb.mean(model[0](x) ** 2))

@pb.function(pb.f32[batch, 3], pb.f32[3])
def unbatched(x, w):
    return x * w
"""


def build(folder: Path) -> Path:
    """An artifact with dropout, a schedule and a batch of 8, and x and y of 83 samples beside it."""
    from pullback.cli import main

    (folder / "model.py").write_text(SCRIPT)
    assert main(["build", str(folder / "model.py"), "-o", str(folder / "model.so"), "--dim", "batch=8", "-q"]) == 0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(83, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=(x > 0) @ np.array([1, 1, 1], np.int32))
    return folder / "model.so"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("training"))


@pytest.fixture
def program(artifact):
    return rt.load(artifact, threads=1)


@pytest.fixture(scope="module")
def data(artifact) -> dict[str, np.ndarray]:
    return dict(np.load(artifact.parent / "data.npz"))


def state_of(program) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in program.state.items()}


# ---- the loop -------------------------------------------------------------------------------------------
def test_fit_learns_and_measures(program, data):
    lines = []
    training, validation = split(data, 0.2, seed=3)
    history = fit(program, training, epochs=30, validation=validation, evaluate="predict", report=lines.append)
    assert history.loss[-1] < 0.7 * history.loss[0] and history.steps == 30 * 8
    assert history.validation[-1]["accuracy"] > 0.5
    assert lines[0] == "3 of 67 samples do not fill a batch of 8 and are left out of each epoch"
    assert lines[-1].startswith("epoch 30/30  loss ") and "validation accuracy" in lines[-1]


def test_split_is_a_partition_chosen_by_the_seed(data):
    training, validation = split(data, 0.25, seed=1)
    assert len(training["x"]) == 63 and len(validation["x"]) == 20
    rows = np.concatenate([training["x"], validation["x"]])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, data["x"]))
    assert all((a == b).all() for a, b in zip(split(data, 0.25, 1)[1].values(), validation.values(), strict=True))
    assert (split(data, 0.25, 2)[1]["x"] != validation["x"]).any()
    with pytest.raises(DataError, match="at least 0 and less than 1, got 1"):
        split(data, 1.0, 0)


def test_accuracy_counts_the_padded_rest(program, data):
    wrong = data["y"].copy()
    guesses = np.concatenate([program.predict(x=data["x"][i : i + 8]) for i in range(0, 83, 8)])
    wrong[:] = guesses
    wrong[80:] += 1  # in the last, partial batch
    assert measure(program, {"x": data["x"], "y": wrong}, "predict") == {"accuracy": 80 / 83}


def test_structured_inputs_and_scalar_results(program):
    parts = {"parts.a": np.ones((16, 3)), "parts.b.0": np.zeros(16), "parts.b.1": np.full(16, 2.0)}
    assert measure(program, parts) == {"loss": 3.0}


def test_epochs_differ_and_no_shuffle_keeps_the_order(artifact, data):
    runs = {}
    for shuffle in (True, False):
        program = rt.load(artifact, threads=1)
        runs[shuffle] = fit(program, data, epochs=2, shuffle=shuffle, report=lambda line: None).loss
    by_hand = rt.load(artifact, threads=1)
    losses = [float(by_hand.train(x=data["x"][i : i + 8], y=data["y"][i : i + 8])["loss"]) for i in range(0, 80, 8)]
    assert runs[False][0] == sum(losses) / 10
    assert runs[True] != runs[False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"function": "missing"},
            "has no function 'missing': it has train, evaluate, predict, check, train_quietly, unbatched",
        ),
        ({"function": "unbatched"}, "unbatched cannot be fed batches: .* unbatched.x: f32.8, 3., w: f32.3.."),
        (
            {"function": "predict"},
            r"predict cannot be trained: expected a scalar loss as its result, or .* got i32\[8\]",
        ),
        ({"function": "check"}, "check trains nothing: after an epoch all state is as it was"),
        ({"data": {"x": np.zeros((9, 3))}}, "train: no data for input 'y'; there is x"),
        ({"data": {"x": np.zeros((9, 3)), "y": np.zeros(8, int)}}, "different numbers of samples: {'x': 9, 'y': 8}"),
        ({"data": {"x": np.zeros((5, 3)), "y": np.zeros(5, int)}}, "train takes batches of 8 samples, the data has"),
    ],
)
def test_fit_says_what_does_not_fit(program, data, arguments, message):
    before = state_of(program)
    with pytest.raises(DataError, match=message):
        fit(program, **({"data": data} | arguments))
    assert state_of(program) == before


def test_a_function_that_trains_without_saying_so(program, data):
    """Neither training=True nor a loss: the state tells."""
    before = state_of(program)
    fit(program, {"x": data["x"]}, function="train_quietly", report=lambda line: None)
    assert state_of(program) != before


def test_torch_reads_what_is_saved_under_a_prefix(program, data, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    layers = torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4)
    theirs = torch.nn.Sequential(*layers).eval()
    fit(program, data, report=lambda line: None)
    program.save(tmp_path / "model.safetensors", kinds=["parameter", "buffer"], prefix="model.")
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = data["x"][:8]
    assert theirs(torch.from_numpy(x)).argmax(1).tolist() == program.predict(x=x).tolist()


# ---- checkpoints ----------------------------------------------------------------------------------------
def test_resumed_runs_have_the_same_bits(artifact, data, tmp_path):
    whole = rt.load(artifact, threads=1)
    history = fit(whole, data, epochs=4, report=lambda line: None)
    for stop_after in (1, 7, 10, 23):  # in the middle of an epoch, at its end, later
        folder, program = tmp_path / str(stop_after), rt.load(artifact, seed=stop_after, threads=2)
        program.init(0)
        with pytest.raises(Stop):
            fit(_Stopping(program, stop_after), data, epochs=4, checkpoint=folder, checkpoint_every=1)
        again = rt.load(artifact, seed=99, threads=1)
        resumed = fit(again, data, epochs=4, checkpoint=folder, report=lambda line: None)
        assert resumed.resumed == divmod(stop_after, 10)
        assert resumed.loss == history.loss and resumed.steps == 40
        assert state_of(again) == state_of(whole)


class Stop(Exception):
    """The end of a run, in the middle of it."""


class _Stopping:
    """A program that raises `Stop` in place of step number `steps` (from 0)."""

    def __init__(self, program, steps: int):
        self._program, self._left = program, steps
        train = program.functions["train"]
        self.functions = {"train": _Train(train, self._step)}

    def _step(self, train, kwargs):
        self._left -= 1
        if self._left < 0:
            raise Stop
        return train(**kwargs)

    def __getattr__(self, name):
        return getattr(self._program, name)


class _Train:
    def __init__(self, train, step):
        self._train, self._step = train, step

    def __call__(self, **kwargs):
        return self._step(self._train, kwargs)

    def __getattr__(self, name):
        return getattr(self._train, name)


def test_a_finished_run_does_nothing_more(artifact, program, data, tmp_path):
    fit(program, data, epochs=2, checkpoint=tmp_path)
    before = state_of(program)
    again = rt.load(artifact, threads=1)
    assert fit(again, data, epochs=2, checkpoint=tmp_path).steps == 20
    assert state_of(again) == before


def test_checkpoints_of_something_else_are_refused(artifact, program, data, tmp_path):
    fit(program, data, checkpoint=tmp_path, report=lambda line: None)
    other = {"x": data["x"] + 1, "y": data["y"]}
    for kwargs in ({"data": other}, {"data": data, "seed": 5}, {"data": data, "shuffle": False}):
        fresh = rt.load(artifact, threads=1)
        before = state_of(fresh)
        with pytest.raises(DataError, match="this checkpoint is of another program, other data"):
            fit(fresh, checkpoint=tmp_path, **kwargs)
        assert state_of(fresh) == before


def test_checkpoints_that_cannot_be_read(program, data, tmp_path):
    program.save(tmp_path / "state.safetensors")
    with pytest.raises(DataError, match="holds no training run"):
        fit(program, data, checkpoint=tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(rt.StateError, match=r"state.safetensors: not a readable safetensors file"):
        fit(program, data, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "file: a checkpoint is a folder, this is a file"),
        ("file/deeper", "Not a directory.*file/deeper"),
        ("taken", "Is a directory.*taken/state.safetensors"),
    ],
)
def test_checkpoints_that_cannot_be_written(program, data, tmp_path, folder, message):
    """Known before the first step."""
    (tmp_path / "file").write_text("here")
    (tmp_path / "taken" / "state.safetensors").mkdir(parents=True)
    before = state_of(program)
    with pytest.raises((DataError, OSError), match=message):
        fit(program, data, checkpoint=tmp_path / folder)
    assert state_of(program) == before


def test_one_run_at_a_time(program, data, tmp_path):
    seen = []

    def report(line):
        if "epoch 1" in line:
            with pytest.raises(DataError, match="another run is using this checkpoint folder") as e:
                fit(program, data, checkpoint=tmp_path)
            seen.append(e)

    fit(program, data, checkpoint=tmp_path, report=report)
    assert len(seen) == 1


# ---- kill -9 --------------------------------------------------------------------------------------------
def kill_and_resume(folder: Path, kills: int, seed: int) -> str:
    """Kill runs at random moments and start them again until `kills` hit; every finished run must have the
    bits of one that nobody disturbed."""
    artifact = build(folder)
    command = [sys.executable, "-u", "-m", "pullback_runtime", "train", str(artifact), "--data", folder / "data.npz"]
    command += ["--epochs", "6", "--checkpoint-every", "1", "--threads", "1", "--save", folder / "final.safetensors"]

    def start(name: str) -> subprocess.Popen:
        (folder / "final.safetensors").unlink(missing_ok=True)
        run = subprocess.Popen(
            [*map(str, command), "--checkpoint", str(folder / name)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert b"do not fill a batch" in run.stdout.readline()  # the next thing is to resume and train
        return run

    run = start("undisturbed")
    begin = time.perf_counter()
    out = run.communicate()[0]
    duration = time.perf_counter() - begin
    assert run.returncode == 0, out
    expected = (folder / "final.safetensors").read_bytes()

    rng, hits, finished, killed = random.Random(seed), 0, 0, False
    while hits < kills or killed:  # the last run that was killed is finished too
        run = start(f"run{finished}")
        if hits < kills:
            time.sleep(rng.uniform(0, 0.7 * duration))
            run.send_signal(signal.SIGKILL)
        out = run.communicate()[0]
        killed = run.returncode == -signal.SIGKILL
        if killed:
            hits += 1
            continue
        assert run.returncode == 0, out
        assert (folder / "final.safetensors").read_bytes() == expected
        finished += 1
    assert not list(folder.glob("run*/.*")), "unfinished files are left"
    return f"{hits} kills in a run of {duration:.2f} s, {finished} resumed runs finished with equal bits"


def test_kills_lose_nothing(tmp_path):
    print(kill_and_resume(tmp_path, 10, seed=1))


# ---- data files -----------------------------------------------------------------------------------------
SHAPES = {"x": (3,), "y": ()}


def test_data_of_every_kind(tmp_path, data):
    x, y = data["x"], data["y"]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    header = ["x.0", "x.1", "x.2", "y"]
    rows = [[*map(str, a), str(b)] for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "named.csv").write_text("\n".join(map(",".join, [header, *rows])))
    (tmp_path / "rest.csv").write_text("\n".join(map(",".join, [["a", "b", "c", "y"], *rows])))
    for sources in (
        [f"x={tmp_path}/x.npy", f"y={tmp_path}/y.npy"],
        [f"{tmp_path}/named.csv"],
        [f"{tmp_path}/rest.csv"],
    ):
        found = load_data(sources, SHAPES)
        np.testing.assert_array_equal(found["x"].astype(np.float32), x)
        np.testing.assert_array_equal(found["y"], y)
        assert found["y"].dtype.kind == "i"
    np.testing.assert_array_equal(load_data([f"{tmp_path}/x.npy"], {"x": (3,)})["x"], x)


def test_columns_that_are_missing_are_named(tmp_path):
    header = "x0,x1,x2,y\n1,2,3,0\n"
    (tmp_path / "d.csv").write_text(header)
    wanted = {"x": (3,), "z": (2, 32), "y": ()}
    with pytest.raises(
        DataError,
        match=r"d.csv: no columns for input 'x': expected x\.0, x\.1, x\.2 \(or.* 3 columns left over,.* there are 3\)",
    ):
        load_data([f"{tmp_path}/d.csv"], wanted)
    with pytest.raises(
        DataError, match=r"input 'z': expected z\.0, z\.1, z\.2, \.\.\., z\.63 .*; the header is x0, x1, x2, y"
    ):
        load_data([f"{tmp_path}/d.csv"], {"z": (2, 32), "y": ()})
    with pytest.raises(DataError, match=r"input 'label': expected label \(or.* 1 columns left over, .* are 4\)"):
        load_data([f"{tmp_path}/d.csv"], {"label": ()})
    assert load_data([f"{tmp_path}/d.csv"], SHAPES)["x"].tolist() == [[1, 2, 3]]


def test_data_that_is_given_twice(tmp_path, data):
    np.savez(tmp_path / "a.npz", **data, more=1)
    np.savez(tmp_path / "b.npz", x=data["x"], more=2)
    np.save(tmp_path / "x.npy", data["x"])
    for second in ("a.npz", "b.npz", "x=x.npy"):
        name = second.split("=")[-1]
        source = second.replace(name, str(tmp_path / name))
        with pytest.raises(DataError, match=rf"{name}: input 'x' was already read from .*a\.npz"):
            load_data([str(tmp_path / "a.npz"), source], SHAPES)
    with pytest.raises(DataError, match=r"x\.npy: there is no input 'z'; the inputs are x, y"):
        load_data([f"z={tmp_path}/x.npy"], SHAPES)


def test_the_command(artifact, tmp_path, capsys):
    where = ["train", str(artifact), "--data", str(artifact.parent / "data.npz")]
    options = ["--epochs", "3", "--validation", "0.2", "--evaluate", "predict", "--threads", "1"]
    assert train_command([*where, *options, "--save", str(tmp_path / "final.safetensors")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("epoch 1/3  loss ") and "validation accuracy" in out[1]
    assert out[-1].startswith("24 steps in ")
    program = rt.load(artifact, seed=5)
    assert len(program.load_state(tmp_path / "final.safetensors")) == len(program.state)
    assert program.state["optimizer.step"] == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz: cannot be read: No such file or directory"),
        (["--data", "data.txt"], "data.txt: expected a .npz, .npy or .csv file"),
        (["--data", "data.npz", "--function", "fit"], "has no function 'fit': it has train, evaluate, predict"),
        (["--data", "data.npz", "--validation", "2"], "the validation fraction must be"),
        (["--data", "data.npz", "--save", "no/folder/w.safetensors"], ": no/folder/w.safetensors: No such file or dir"),
        (["--data", "data.npz", "--save", "."], "pullback: .: Is a directory"),
        (["--data", "data.npz", "--checkpoint", "data.npz"], "data.npz: a checkpoint is a folder, this is a file"),
        (["--data", "data.npz", "--data", "data.npz"], "data.npz: input 'x' was already read from another --data"),
        (["--data", "data.npz", "--function", "predict"], "predict cannot be trained: expected a scalar loss"),
        (["--data", "data.npz", "--function", "check"], "check trains nothing"),
    ],
)
def test_mistakes_are_one_line(artifact, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(artifact.parent)
    assert train_command(["train", "model.so", *arguments]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("pullback: ") and message in err and err.count("\n") == 1
    assert "epoch" not in out.replace("each epoch", "")


def test_the_place_of_the_result_is_checked_first(artifact, capsys):
    assert train_command(["train", str(artifact), "--data", "nowhere.npz", "--save", "nowhere/w.safetensors"]) == 1
    assert capsys.readouterr().err == "pullback: nowhere/w.safetensors: No such file or directory\n"


@pytest.mark.parametrize("threads", ["0", "257", "-1", "two"])
def test_threads_of_the_command(artifact, threads, capsys):
    with pytest.raises(SystemExit) as e:
        train_command(["train", str(artifact), "--data", "x.npz", "--threads", threads])
    err = capsys.readouterr().err
    assert e.value.code == 2 and f"argument --threads: expected a number from 1 to 256, got '{threads}'" in err


def test_no_such_artifact(tmp_path, capsys):
    assert train_command(["train", str(tmp_path / "none.so"), "--data", "x.npz"]) == 1
    assert capsys.readouterr().err == f"pullback: {tmp_path}/none.so: No such file or directory\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(kill_and_resume(Path(name), int(sys.argv[1]), seed=int(time.time())))
