"""What users get wrong, one test for each kind: the message says where, what was expected and what came; state is as
it was before, bit for bit; the process lives and the next step works."""

from __future__ import annotations

import re
import shutil
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import pullback as pb
import pullback_runtime as rt
from pullback import nn, optim
from pullback.dsl.trace import parse_dims, trace_script
from pullback.errors import PullbackError
from pullback_runtime.command import main as command
from pullback_runtime.errors import RuntimeFailure
from pullback_runtime.format import FEATURES

# ---- mistakes in scripts --------------------------------------------------------------------------------
SCRIPT = """\
import numpy as np
import pullback as pb
from pullback import nn, optim

model = nn.Linear(3, 2)
optimizer = optim.SGD(model, lr=0.1)
batch = pb.dim("batch")

"""

IN_SCRIPTS = {
    "shape mismatch": (
        "@pb.function(pb.f32[4, 3], pb.f32[5, 3])\ndef f(x, y):\n    return x + y  # <-",
        r"shapes do not broadcast: \[4, 3\] and \[5, 3\]",
    ),
    "shape mismatch in a layer": (
        "@pb.function(pb.f32[4, 5])\ndef f(x):\n    return model(x)  # <-",
        r"linear: expected input \[..., 3\] for weight \[2, 3\], got \[4, 5\]",
    ),
    "shape mismatch in a product": (
        "@pb.function(pb.f32[4, 5], pb.f32[4, 5])\ndef f(x, y):\n    return x @ y  # <-",
        r"matmul: .*\[4, 5\].*\[4, 5\]",
    ),
    "dtype mismatch": (
        "@pb.function(pb.f32[4], pb.i32[4])\ndef f(x, y):\n    return x & y  # <-",
        "and: expected signed integer, unsigned integer, bool, got f32",
    ),
    "dtype mismatch of labels": (
        "@pb.function(pb.f32[4, 3], pb.f32[4])\ndef f(x, y):\n    return pb.take(x, y, axis=0)  # <-",
        "expected integer indices, got f32",
    ),
    "if that depends on data": (
        "@pb.function(pb.f32[4])\ndef f(x):\n    if pb.sum(x) > 0:  # <-\n        return x\n    return -x",
        r"the truth value of Tensor\(bool\[\]\) is not known while the program is built.*where\(condition, a, b\)",
    ),
    "loop that depends on data": (
        "@pb.function(pb.i32[()])\ndef f(n):\n    return [i for i in range(n)]  # <-",
        r"the value \(as a size, range or Python index\) of Tensor\(i32\[\]\) is not known while the program is built",
    ),
    "number taken out of a tensor": (
        "@pb.function(pb.f32[4])\ndef f(x):\n    return x * float(pb.sum(x))  # <-",
        r"the float value of Tensor\(f32\[\]\) is not known while the program is built",
    ),
    "parameter outside of a function": (
        "double = model.weight * 2  # <-",
        r"parameter f32\[2,3\] is read outside of a function",
    ),
    "loss that is no scalar": (
        "@pb.function(pb.f32[4, 3], training=True)\ndef f(x):\n    optimizer.minimize(model(x))  # <-",
        r"minimize: the loss must be a scalar, got f32\[4, 2\]: take its mean or sum",
    ),
    "gradient of what is no scalar": (
        "@pb.function(pb.f32[4])\ndef f(x):\n    return pb.grad(x * x, x)  # <-",
        r"grad: expected a scalar loss, got f32\[4\]: take its sum or mean first",
    ),
    "dimension that nobody bound": (
        "@pb.function(pb.f32[batch, 3])  # <-\ndef f(x):\n    return x",
        "dimension 'batch' of f .* is not bound: pass --dim batch=SIZE; the functions' dimensions are: batch",
    ),
}


@pytest.mark.parametrize("name", IN_SCRIPTS)
def test_scripts(name, tmp_path, capsys):
    """Both the exception's text and the command's one line name the line that is marked."""
    body, message = IN_SCRIPTS[name]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + body + "\n")
    (line,) = [k for k, text in enumerate((SCRIPT + body).splitlines(), 1) if "# <-" in text]
    with pytest.raises(PullbackError, match=message) as e:
        trace_script(script)
    assert f"{script}:{line}" in str(e.value)
    assert command(["build", str(script), "-o", str(tmp_path / "out.so")]) == 1
    err = capsys.readouterr().err
    assert err == f"pullback: {e.value}\n"
    assert not (tmp_path / "out.so").exists()


def test_unknown_dimension(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "@pb.function(pb.f32[batch, 3])\ndef f(x):\n    return x\n")
    with pytest.raises(PullbackError, match="unknown dimension 'bach'; the functions' dimensions are: batch"):
        trace_script(script, dims=parse_dims(["bach=4"]))


def test_unknown_option():
    known = ", ".join(["dims", "output", "seed", "threads", "device", *(f.name for f in fields(pb.Options))])
    with pytest.raises(pb.BuildError, match=rf"^pb.build has no option 'fuse': it has {known}$"):
        pb.build(train, fuse=False)


# ---- mistakes in calls ----------------------------------------------------------------------------------
model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
optimizer = optim.Adam(model, lr=0.1)


@pb.function(pb.i32[4], pb.f32[4, 2], training=True)
def train(word, target):
    loss = nn.mse_loss(model(word), pb.log(target))
    optimizer.minimize(loss)
    return loss


WORD, TARGET = np.array([0, 1, 2, 4], np.int32), np.ones((4, 2), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad_input")


@pytest.fixture(scope="module")
def programs(folder):
    """Two equal programs: the second one is for `--watch-nan`."""
    return [pb.build(train, threads=2), pb.build(train, threads=2, watch_nan=True)]


@pytest.fixture
def program(programs):
    yield from unharmed(programs[0])


@pytest.fixture
def watching(programs):
    yield from unharmed(programs[1])


def unharmed(program):
    """The program, one step after its initialisation; afterwards: that state still, and the same next step."""
    program.init(0)
    program.train(word=WORD, target=TARGET)
    before = bits(program)
    yield program
    assert bits(program) == before
    loss = program.train(word=WORD, target=TARGET)
    program.init(0)
    program.train(word=WORD, target=TARGET)
    assert program.train(word=WORD, target=TARGET) == loss


def bits(program) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in program.state.items()}


IN_CALLS = {
    "missing input": ({"word": WORD}, r"train: missing input 'target' \(f32\[4, 2\]\)"),
    "extra input": (
        {"word": WORD, "target": TARGET, "label": WORD},
        "train has no input 'label'; its inputs are word, target",
    ),
    "wrong shape": (
        {"word": WORD, "target": TARGET.T},
        r"train: input 'target': expected shape \[4, 2\], got \[2, 4\]",
    ),
    "wrong number of axes": (
        {"word": WORD[:, None], "target": TARGET},
        r"train: input 'word': expected shape \[4\], got \[4, 1\]",
    ),
    "wrong dtype": (
        {"word": WORD / 2, "target": TARGET},
        "train: input 'word': expected i32, got float64 .floating point data is not converted to integer",
    ),
    "no numbers at all": (
        {"word": np.array(list("abcd")), "target": TARGET},
        "train: input 'word': expected i32, got <U1",
    ),
    "integer that does not fit": (
        {"word": WORD.astype(np.int64) + 2**40, "target": TARGET},
        r"train: input 'word': value 1099511627780 does not fit into int32 \(-2147483648 to 2147483647\)",
    ),
    "no array": ({"word": WORD, "target": object()}, "train: input 'target': expected an array, got object"),
    "ragged list": ({"word": WORD, "target": [[1, 2], [3]]}, "train: input 'target': expected an array, got list"),
    "index out of range": (
        {"word": WORD + 1, "target": TARGET},
        r"train: .*test_bad_input.py:\d+: index 'word' of gather \(expected 0 to 4\): 5 is out of range; the state",
    ),
    "negative index": (
        {"word": WORD - 7, "target": TARGET},
        r"train: .*test_bad_input.py:\d+: index 'word' of gather \(expected 0 to 4\): -[1-7] is out of range",
    ),
}


@pytest.mark.parametrize("name", IN_CALLS)
def test_calls(program, name):
    kwargs, message = IN_CALLS[name]
    with pytest.raises(RuntimeFailure, match=message):
        program.train(**kwargs)


def test_too_many_inputs(program):
    with pytest.raises(TypeError, match=r"train takes 2 inputs \(word, target\), got 3"):
        program.train(WORD, TARGET, TARGET)
    with pytest.raises(TypeError, match=r"train\(\) got multiple values for argument 'target'"):
        program.train(WORD, TARGET, target=TARGET)


def test_index_names_the_line_that_looks_up(program):
    lines = Path(__file__).read_text().splitlines()
    with pytest.raises(rt.CheckError) as e:
        program.train(word=WORD + 1, target=TARGET)
    (line,) = {int(n) for n in re.findall(r"test_bad_input.py:(\d+)", str(e.value))}
    assert "model(word)" in lines[line - 1]


@pytest.mark.parametrize("change", ["strided", "reversed", "Fortran order", "read-only", "big-endian", "unaligned"])
def test_arrays_of_another_layout_are_taken(program, change):
    """Not an error: copied where needed, with the same result; the caller's array is not written to."""
    target = np.random.default_rng(0).uniform(0.5, 1, (4, 2)).astype(np.float32)
    given = {
        "strided": np.repeat(np.repeat(target, 2, 0), 3, 1)[::2, ::3],
        "reversed": target[::-1, ::-1].copy()[::-1, ::-1],
        "Fortran order": np.asfortranarray(target),
        "read-only": target.copy(),
        "big-endian": target.astype(">f4"),
        "unaligned": np.frombuffer(b"\0" + target.tobytes(), np.float32, offset=1).reshape(4, 2),
    }[change]
    given.flags.writeable = False
    before = {n: a.copy() for n, a in program.state.items()}
    want = program.train(word=WORD, target=target)
    after = bits(program)
    for n, a in before.items():
        program.state[n][...] = a
    assert program.train(word=WORD, target=given) == want
    assert bits(program) == after
    np.testing.assert_array_equal(given, target)
    for n, a in before.items():
        program.state[n][...] = a


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.0])
def test_watch_nan(watching, value):
    """A NaN that comes in, one that is made here, an infinity that is made here."""
    target = TARGET.copy()
    target[2, 1] = value
    with pytest.raises(rt.NotFiniteError, match=r"train: .*test_bad_input.py:\d+.*is not finite; the state is as it"):
        watching.train(word=WORD, target=target)


def test_state_is_checked_too(program):
    with pytest.raises(rt.StateError, match=r"state 'model.0.weight': expected shape \[5, 3\], got \[3\]"):
        program.state["model.0.weight"] = np.ones(3)
    with pytest.raises(KeyError, match=r"no state 'weight'; there are rng.seed, model.0.weight"):
        program.state["weight"]


# ---- files ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "none.st|No such file"),
        (lambda p: p.write_bytes(b"not a state file"), "st: not a readable safetensors file"),
        (
            lambda p: save(p, {"model.0.weight": np.ones((5, 4), np.float32)}),
            r"model.0.weight: expected shape \[5, 3\], ",
        ),
        (lambda p: save(p, {"encoder.weight": np.ones(2)}), "the program has no state 'encoder.weight'"),
        (lambda p: save(p, {"model.0.weight": np.ones((5, 3), np.float32)}), "model.1.weight: not in the file"),
        (lambda p: save(p, {"optimizer.step": np.float32(1.5)}), "optimizer.step: expected i32, got float32"),
    ],
)
def test_wrong_state_file(program, tmp_path, write, message):
    path = tmp_path / "none.st"
    write(path)
    with pytest.raises((rt.StateError, FileNotFoundError), match=message):
        program.load_state(path)


def save(path, arrays) -> None:
    from safetensors.numpy import save_file

    save_file({n: np.asarray(a) for n, a in arrays.items()}, path)


def test_truncated_state_file(program, tmp_path):
    program.save(tmp_path / "whole.st")
    data = (tmp_path / "whole.st").read_bytes()
    for n in (0, 4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "part.st").write_bytes(data[:n])
        with pytest.raises(rt.StateError, match=r"part.st: not a readable safetensors file"):
            program.load_state(tmp_path / "part.st")


@pytest.fixture(scope="module")
def artifact(folder):
    script = folder / "script.py"
    script.write_text(
        SCRIPT
        + "@pb.function(pb.f32[4, 3], pb.f32[4, 2], training=True)\ndef train(x, y):\n"
        + "    loss = nn.mse_loss(model(x), y)\n    optimizer.minimize(loss)\n    return loss\n"
    )
    assert command(["build", str(script), "-o", str(folder / "script.so"), "-q"]) == 0
    return folder / "script.so"


def test_truncated_artifact(artifact, tmp_path):
    """Cut anywhere: refused, before any of it is loaded as code."""
    data, cut = artifact.read_bytes(), tmp_path / "cut.so"
    for n in (0, 3, 63, 64, 1000, len(data) // 2, len(data) - 100, len(data) - 1):
        cut.write_bytes(data[:n])
        with pytest.raises(rt.ArtifactError, match=r"cut.so: (truncated|not a Pullback artifact)"):
            rt.load(cut)


def test_foreign_files(tmp_path):
    import _ctypes

    (tmp_path / "text.so").write_text("hello")
    shutil.copy(_ctypes.__file__, tmp_path / "library.so")
    shutil.copy("/proc/self/exe", tmp_path / "program.so")
    for name, what in [("text", "no 64-bit ELF file"), ("library", "without section"), ("program", "")]:
        with pytest.raises(rt.ArtifactError, match=rf"{name}.so: not a Pullback artifact .*{what}"):
            rt.load(tmp_path / f"{name}.so")
    with pytest.raises(FileNotFoundError, match=r"nowhere.so"):
        rt.load(tmp_path / "nowhere.so")
    with pytest.raises(rt.ArtifactError, match="cannot be read"):
        rt.load(tmp_path)


def test_artifact_for_another_kind_of_machine(artifact, tmp_path, monkeypatch):
    data = bytearray(artifact.read_bytes())
    struct.pack_into("<H", data, 18, 183)  # ELF's e_machine
    (tmp_path / "arm.so").write_bytes(data)
    with pytest.raises(rt.ArtifactError, match=r"arm.so: code for aarch64, but the manifest says x86_64"):
        rt.load(tmp_path / "arm.so")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(rt.ArtifactError, match=r"script.so: built for x86_64, but this machine is aarch64"):
        rt.load(artifact)


def test_artifact_for_another_processor(artifact, tmp_path, monkeypatch):
    """Code that needs what no processor of today has: the file says what is missing."""
    from pullback import cli
    from pullback.artifact import write

    monkeypatch.setattr(write, "required_features", lambda target: FEATURES)
    script = artifact.with_suffix(".py")
    assert cli.main(["build", str(script), "-o", str(tmp_path / "new.so"), "--no-cache", "-q"]) == 0
    if all(f in (rt.inspect(artifact).levels[0].features) for f in FEATURES):
        pytest.skip("this processor has everything")
    with pytest.raises(rt.ArtifactError, match=r"new.so: built for .*, but this processor lacks "):
        rt.load(tmp_path / "new.so")


UNREADABLE = {
    "missing.npz": (None, "missing.npz: cannot be read: No such file or directory"),
    "text.npz": (b"hello, world", "text.npz: not a readable .npz file"),
    "empty.npy": (b"", "empty.npy: not a readable .npy file"),
    "words.csv": (b"x,y\n1,2\n3,four\n", "words.csv, line 3, column 'y': not a number: 'four'"),
    "short.csv": (b"x,y\n1,2\n3\n", "short.csv, line 3: expected 2 columns, got 1"),
    "header.csv": (b"x,y\n", "header.csv: expected a header and at least one row"),
    "binary.csv": (b"\xff\xfe\x00\x01", "binary.csv: not a readable .csv file"),
    "data.parquet": (b"", "data.parquet: expected a .npz, .npy or .csv file"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_data_file(artifact, tmp_path, name, capsys):
    data, message = UNREADABLE[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    prefix = "x=" if name.endswith("npy") else ""
    assert command(["train", str(artifact), "--data", f"{prefix}{tmp_path / name}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"pullback: {tmp_path}") and message in err and err.count("\n") == 1


def test_damaged_data_file(artifact, tmp_path, capsys):
    """Truncated, or with bytes that flipped: the archive's own checks tell."""
    np.savez_compressed(tmp_path / "good.npz", x=np.random.default_rng(0).normal(size=(8, 3)), y=np.ones((8, 2)))
    good = (tmp_path / "good.npz").read_bytes()
    middle = len(good) // 3
    for name, data in [("cut", good[:middle]), ("flipped", good[:middle] + b"\0\0\0\0" + good[middle + 4 :])]:
        (tmp_path / f"{name}.npz").write_bytes(data)
        assert command(["train", str(artifact), "--data", str(tmp_path / f"{name}.npz")]) == 1
        assert f"{name}.npz: not a readable .npz file" in capsys.readouterr().err


def test_data_that_does_not_fit(artifact, tmp_path, capsys):
    def train(**arrays) -> str:
        np.savez(tmp_path / "d.npz", **arrays)
        assert command(["train", str(artifact), "--data", str(tmp_path / "d.npz")]) == 1
        return capsys.readouterr().err

    x, y = np.ones((8, 3)), np.ones((8, 2))
    assert "no data for input 'y': " in train(x=x, z=y) and "d.npz has 'x', 'z'" in train(x=x, z=y)
    assert "input 'x': expected samples of shape [3], got [2]" in train(x=y, y=y)
    assert "inputs have different numbers of samples: {'x': 8, 'y': 6}" in train(x=x, y=y[:6])
    assert "input 'y': expected numbers, got an array of <U1" in train(x=x, y=np.full((8, 2), "a"))
    assert "train takes batches of 4 samples, the data has only 3" in train(x=x[:3], y=y[:3])
    assert "expected an array with the samples along its first axis, got a scalar" in train(x=x, y=1.0)
    assert "input 'x': expected numbers, got an array of complex128" in train(x=x * 1j, y=y)
