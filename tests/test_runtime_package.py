"""The runtime-only wheel: it holds the runtime, needs nothing of the compiler, and trains."""

import subprocess
import sys
import zipfile
from pathlib import Path

import artifact_by_hand as hand
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=ROOT / "runtime", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_the_runtime_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} == {"pullback_runtime", "pullback_runtime-0.1.0.dist-info"}
    sources = {p.name for p in (ROOT / "runtime/pullback_runtime").glob("*.py")}
    assert {n.split("/")[1] for n in names if n.startswith("pullback_runtime/")} == sources
    meta = zipfile.ZipFile(wheel).read("pullback_runtime-0.1.0.dist-info/METADATA").decode()
    needed = {
        line.split(">")[0][15:] for line in meta.splitlines() if line.startswith("Requires-Dist") and ";" not in line
    }
    assert needed == {"numpy", "safetensors"}


def test_wheel_works_where_the_compiler_is_not(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    artifact = hand.build(tmp_path / "demo.so")
    code = (
        "import sys\n"
        "for name in ('pullback', 'llvmlite', 'networkx'):\n"
        "    sys.modules[name] = None\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, pullback_runtime as rt\n"
        "assert rt.__file__.startswith(sys.argv[1]), rt.__file__\n"
        "from pullback_runtime import data, training  # everything imports\n"
        "p = rt.load(sys.argv[2])\n"
        "print(p.train(x=np.ones(64), i=np.zeros(64, int))[0])\n"
        "p.save(sys.argv[1] + '/w.safetensors')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), str(artifact)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "5.0\n", done.stderr


def test_versions_agree():
    import tomllib

    import pullback
    import pullback_runtime

    versions = {
        tomllib.loads((ROOT / p).read_text())["project"]["version"]
        for p in ("pyproject.toml", "runtime/pyproject.toml")
    }
    assert versions == {pullback.__version__} == {pullback_runtime.__version__}


def test_runtime_imports_nothing_of_the_compiler():
    code = (
        "import sys, pullback_runtime\n"
        "names = {m.split('.')[0] for m in sys.modules}\n"
        "print(sorted(names & {'pullback', 'llvmlite', 'networkx', 'safetensors', 'torch'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT / "runtime"
    )
    assert done.stdout == "[]\n", done.stderr
