"""`ptxas`, NVIDIA's assembler: where it is, and what it says of PTX (registers, spills, errors).

It comes with CUDA, or from PyPI: `pip install nvidia-cuda-nvcc-cu12` (40 MB; the extra `test` has it).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest


@cache
def ptxas() -> str | None:
    """The assembler: of $PATH, $CUDA_HOME, /usr/local/cuda, or NVIDIA's wheels; None if there is none."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(h) / "bin" for h in homes if h]
    folders += [*sorted(site.glob("cu[0-9]*/bin"), reverse=True), site / "cuda_nvcc" / "bin"]
    return shutil.which("ptxas") or next((str(f / "ptxas") for f in folders if os.access(f / "ptxas", os.X_OK)), None)


MISSING = "ptxas was not found: install CUDA, or `pip install nvidia-cuda-nvcc-cu12`"
needs_ptxas = pytest.mark.skipif(ptxas() is None, reason=MISSING)


@dataclass(frozen=True)
class Assembled:
    """What ptxas reports of one kernel; memory in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    cubin: bytes


class AssemblerError(Exception):
    """ptxas refuses a module."""


def assemble(ptx: str, gpu: str) -> dict[str, Assembled]:
    """Assemble PTX for one chip; kernel -> its figures."""
    tool = ptxas()
    if tool is None:
        raise FileNotFoundError(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "module.ptx", Path(folder) / "module.cubin"
        source.write_text(ptx)
        done = subprocess.run([tool, f"-arch={gpu}", "-v", "-o", str(out), str(source)], capture_output=True, text=True)
        message = done.stdout + done.stderr
        if done.returncode:
            raise AssemblerError(f"ptxas -arch={gpu}: {message.strip()}")
        return _figures(message, out.read_bytes())


def _figures(message: str, cubin: bytes) -> dict[str, Assembled]:
    def number(pattern: str, text: str) -> int:
        m = re.search(pattern, text)
        return int(m[1]) if m else 0

    parts = re.split(r"Compiling entry function '([\w.$-]+)'", message)
    return {
        name: Assembled(
            number(r"Used (\d+) registers", text),
            number(r"(\d+) bytes spill stores", text),
            number(r"(\d+) bytes spill loads", text),
            number(r"(\d+) bytes stack frame", text),
            number(r"(\d+) bytes smem", text),
            cubin,
        )
        for name, text in zip(parts[1::2], parts[2::2])
    }
