"""PTX -> the instructions of a GPU, by NVIDIA's assembler and disassembler, where they are found: for readers only.

They come with CUDA, or from PyPI: `pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from ..errors import BuildError


def cuda_tool(name: str) -> str | None:
    """A program of CUDA's: from $PATH, $CUDA_HOME, /usr/local/cuda, or a wheel of NVIDIA's; None if there is none."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(h) / "bin" for h in homes if h]
    folders += [*sorted(site.glob("cu[0-9]*/bin"), reverse=True), *site.glob("cuda_*/bin")]
    return shutil.which(name) or next((str(f / name) for f in folders if os.access(f / name, os.X_OK)), None)


def sass(ptx: str, gpu: str) -> str:
    """The instructions that a module of PTX becomes on `gpu`."""
    tools = {name: cuda_tool(name) for name in ("ptxas", "nvdisasm")}
    if missing := [name for name, path in tools.items() if path is None]:
        raise BuildError(
            f"sass needs {' and '.join(missing)} of CUDA, not found on PATH, in $CUDA_HOME or in Python's packages: "
            "pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm"
        )
    with tempfile.TemporaryDirectory(prefix="pullback-") as folder:
        source, cubin = Path(folder) / "module.ptx", Path(folder) / "module.cubin"
        source.write_text(ptx)
        _run([tools["ptxas"], f"-arch={gpu}", "-o", str(cubin), str(source)])
        return _run([tools["nvdisasm"], "-c", str(cubin)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
