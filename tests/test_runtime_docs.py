"""The Python blocks of docs/runtime.md and docs/artifact.md run, on the digits example."""

import os
import subprocess
import sys
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "pullback.cli", "build", str(ROOT / "examples/digits.py")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'compiler'}{os.pathsep}{ROOT / 'runtime'}"}
    done = subprocess.run(
        [*command, "-o", str(out / "digits.so"), "--dim", "batch=64", "--no-cache"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    "name, printed", [("runtime", "expected shape [64, 64], got [64, 63]"), ("artifact", "comes from")]
)
def test_blocks_run(folder, monkeypatch, capsys, name, printed):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(folder)
    pages.run(name)
    out = capsys.readouterr().out
    assert printed in out
    if name == "runtime":
        assert "train: " in out and "is out of range; the state is as it was before" in out
