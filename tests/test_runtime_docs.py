"""The Python blocks of docs/runtime.md and docs/artifact.md run, on the digits example."""

import os
import re
import subprocess
import sys
from pathlib import Path

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
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / f"docs/{name}.md").read_text(), re.S | re.M)
    scope: dict = {}
    for block in blocks:
        exec(compile(block, f"docs/{name}.md", "exec"), scope)
    out = capsys.readouterr().out
    assert blocks and printed in out
    if name == "runtime":
        assert "train: " in out and "is out of range; the state is as it was before" in out
