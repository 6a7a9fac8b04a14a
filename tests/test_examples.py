"""The examples, compiled ahead of time and trained as a user would, also where the compiler does not exist."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

WITHOUT_COMPILER = """
import runpy
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pullback", "llvmlite", "networkx"):
            raise ImportError(f"{name} is blocked in this test")

sys.meta_path.insert(0, Blocked())
sys.argv = ["train_digits.py", sys.argv[2]]
runpy.run_path(EXAMPLE, run_name="__main__")
assert not {"pullback", "llvmlite", "networkx"} & {m.split(".")[0] for m in sys.modules}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """digits.so, built by the command line, and digits.npz beside it."""
    folder = tmp_path_factory.mktemp("digits")
    run("-m", "pullback.cli", "build", EXAMPLES / "digits.py", "-o", folder / "digits.so", "--dim", "batch=64")
    (image, label), _ = runpy.run_path(str(EXAMPLES / "train_digits.py"))["load_data"]()
    np.savez(folder / "train.npz", image=image, label=label)
    return folder


def run(*args) -> str:
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits_train_without_the_compiler(digits):
    """At least 97% of a held-out fifth, from the `.so` alone."""
    code = WITHOUT_COMPILER.replace("EXAMPLE", repr(str(EXAMPLES / "train_digits.py")))
    assert accuracy(run("-c", code, "--", digits / "digits.so")) >= 97.0


def accuracy(out: str) -> float:
    """The percentage that an example prints."""
    return float(out.split("accuracy")[1].split(":")[1].split("%")[0])


def test_train_command(digits, tmp_path):
    """`pullback train` learns, reports, saves, and goes on where it stopped."""
    common = [
        "-m",
        "pullback.cli",
        "train",
        digits / "digits.so",
        "--data",
        digits / "train.npz",
        "--validation",
        "0.2",
    ]
    out = run(*common, "--epochs", "10", "--checkpoint", tmp_path / "run", "--save", tmp_path / "w.safetensors")
    assert "do not fill a batch" in out and "validation accuracy" in out
    assert float(out.split("validation accuracy")[-1].split()[0]) > 0.9
    whole = (tmp_path / "w.safetensors").read_bytes()
    for epochs in ("4", "10"):
        again = run(
            *common, "--epochs", epochs, "--checkpoint", tmp_path / "again", "--save", tmp_path / "again.safetensors"
        )
    assert "resumed at epoch 5" in again
    assert (tmp_path / "again.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", ["xor", "digits", "spiral"])
def test_examples_run_as_scripts(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    if name == "xor":
        answers = [float(line.split("=")[1]) for line in done.stdout.splitlines() if "xor" in line]
        assert [round(a) for a in answers] == [0, 1, 1, 0]
    else:
        assert accuracy(done.stdout) >= 97.0
    if name == "spiral":
        assert (tmp_path / "spiral.png").stat().st_size > 10_000
