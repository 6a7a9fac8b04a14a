"""The README is true: its commands and Python blocks run, in order, and print what it says.

`python tests/test_readme.py` writes the outputs and the table of options into it anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pullback.config import table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PARTS = re.compile(r"```(?P<language>sh|python)\n(?P<code>.*?)```|<!-- output -->\n```text\n(?P<output>.*?)```", re.S)
SET_UP = ("python3 -m venv", "pytest")
"""Commands that `.ci/run` runs."""


class Reader:
    """Does what the README says, in a folder with the examples."""

    def __init__(self, folder: Path):
        self.folder, self.names = folder, {"__name__": "readme"}
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "bin").mkdir()
        for name, module in (("pullback", "-m pullback_runtime"), ("python", "")):
            command = folder / "bin" / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            command.chmod(0o755)
        roots = os.pathsep.join([str(ROOT / "compiler"), str(ROOT / "runtime")])
        self.environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": roots}

    def run(self, language: str, code: str) -> str:
        return self._shell(code) if language == "sh" else self._python(code)

    def _shell(self, code: str) -> str:
        code = "\n".join(line for line in code.splitlines() if not line.startswith(SET_UP))
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail\n{code}"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _python(self, code: str) -> str:
        out, before = io.StringIO(), Path.cwd()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, "README.md", "exec"), self.names)
        finally:
            os.chdir(before)
        return out.getvalue()


def refreshed(text: str, folder: Path) -> str:
    """The README with the outputs and the table that belong into it."""
    reader, last = Reader(folder), ""

    def part(m: re.Match) -> str:
        nonlocal last
        if m["language"]:
            last = reader.run(m["language"], m["code"])
            return m[0]
        return f"<!-- output -->\n```text\n{last}```"

    text = PARTS.sub(part, text)
    return re.sub(r"(?<=<!-- options -->\n)(\n?\|.*?\n)*", "\n" + table().replace("\\", r"\\"), text, count=1)


def test_blocks_run_and_print_what_is_said(tmp_path):
    pytest.importorskip("sklearn")
    text = README.read_text()
    assert refreshed(text, tmp_path).splitlines() == text.splitlines()
    assert len(PARTS.findall(text)) > 12


def test_model_is_the_example():
    (model,) = re.findall(r"## A model script\n.*?```python\n(.*?)```", README.read_text(), re.S)
    assert model in (ROOT / "examples" / "digits.py").read_text()


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or ((ROOT / page).parent / target).exists(), target


def test_docs_are_listed():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md" and f"({p.name})" not in index] == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        README.write_text(refreshed(README.read_text(), Path(name)))
