"""`pullback build | inspect`: every stage of a script and of an artifact, every option, every error in one line."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import zlib
from dataclasses import fields
from pathlib import Path

import pytest

import pullback_runtime as rt
from pullback.cli import _STAGES, main
from pullback.codegen import sass
from pullback.config import Options, flag, table
from pullback.graph.text import parse_program
from pullback.kernel.text import parse_kernel
from pullback_runtime.command import main as train_command
from pullback_runtime.format import PTX_SECTION
from pullback_runtime.sections import read_section

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.py"
BUILD = ["build", str(DIGITS), "--dim", "batch=64", "--no-cache"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with digits.so, its header, and the dump of every stage."""
    folder = tmp_path_factory.mktemp("cli")
    out = ["-o", str(folder / "digits.so"), "--header", str(folder / "digits.h"), "--dump-dir", str(folder / "dump")]
    assert main([*BUILD, *out, "-q"]) == 0
    return folder


def dumped(built: Path) -> dict[str, str]:
    """stage -> its text, of the files that --dump-dir wrote."""
    return {p.stem.split("-")[-1]: p.read_text() for p in sorted((built / "dump").iterdir())}


@pytest.fixture
def show(capsys):
    """Run a command that must succeed; its standard output."""

    def run(*argv) -> str:
        assert main([*map(str, argv)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def fails(capsys):
    """Run a command that must fail; its one line on standard error."""

    def run(*argv) -> str:
        assert main([*map(str, argv)]) == 1
        out = capsys.readouterr()
        assert out.err.startswith("pullback: ") and out.err.count("\n") == 1 and not out.out
        return out.err

    return run


# ---- build ----------------------------------------------------------------------------------------------
def test_build_writes_what_it_is_asked_for(built):
    assert rt.inspect(built / "digits.so").name == "digits"
    assert "train" in (built / "digits.h").read_text()
    assert list(dumped(built)) == [*_STAGES, "timings"]


def test_timings_show_stages_and_passes(built, show, tmp_path):
    out = show(*BUILD, "--timings", "-o", tmp_path / "d.so")
    assert re.search(r"digits.so|d.so: \d+ bytes, functions train, predict, [\d.]+ s", out)
    for text in (out, dumped(built)["timings"]):
        names = [line.split("ms")[1].strip() for line in text.splitlines() if " ms " in line]
        wanted = ["passes", "settle", "cse", "simplify", "dce", "checkpoint", "lower", "schedule and plan", "emit"]
        assert [n for n in names if n in wanted] == wanted and names[-3:] == ["llvm", "link", "total"]


def test_output_is_beside_nobody_by_default(show, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert show(*BUILD).startswith("digits.so: ")
    assert (tmp_path / "digits.so").exists()


def test_second_build_comes_from_the_cache(show, tmp_path):
    argv = ["build", DIGITS, "--dim", "batch=8", "--cache-dir", tmp_path / "cache", "-q", "-o"]
    show(*argv, tmp_path / "a.so")
    files = {p: p.read_bytes() for p in (tmp_path / "cache").glob("*/*")}
    assert files
    show(*argv, tmp_path / "b.so")
    assert {p for p in (tmp_path / "cache").glob("*/*")} == set(files)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()
    for p, data in files.items():  # half of each is lost: built again
        p.write_bytes(data[: len(data) // 2])
    show(*argv, tmp_path / "c.so")
    assert (tmp_path / "c.so").read_bytes() == (tmp_path / "a.so").read_bytes()
    assert {p: p.read_bytes() for p in (tmp_path / "cache").glob("*/*")} == files


def test_every_option_is_a_flag_and_changes_what_is_recorded(show, tmp_path):
    flags = {"cpu": ["--cpu", "v2"], "target": ["--target", "cpu,cpu"], "gpu": ["--gpu", "sm_80"]}
    flags |= {"precision": ["--precision", "bf16"], "fusion": ["--no-fusion"], "recompute": ["--no-recompute"]}
    flags |= {"watch_nan": ["--watch-nan"], "cache": ["--no-cache"], "cache_dir": ["--cache-dir", str(tmp_path)]}
    assert list(flags) == [f.name for f in fields(Options)]
    assert [f[0] for f in flags.values()] == [flag(f) for f in fields(Options)]
    show("build", DIGITS, "--dim", "batch=4", "-o", tmp_path / "o.so", *[w for words in flags.values() for w in words])
    options = rt.inspect(tmp_path / "o.so").options
    assert {n: options[n] for n in Options().content()} == {
        "cpu": "v2", "target": "cpu,cpu", "gpu": "sm_80", "precision": "bf16", "fusion": False, "recompute": False,
        "watch_nan": True,
    }  # fmt: skip


def test_documented_options_are_the_options():
    assert table() in (ROOT / "docs" / "options.md").read_text()


def test_script_arguments_are_recorded(show, tmp_path):
    script = tmp_path / "scaled.py"
    script.write_text(
        "import sys\nimport pullback as pb\n@pb.function(pb.f32[2])\ndef f(x):\n    return x * float(sys.argv[2])\n"
    )
    show("build", script, "-o", tmp_path / "s.so", "-q", "--", "--scale", "3")
    assert rt.load(tmp_path / "s.so").f(x=[1, 2]).tolist() == [3, 6]
    assert rt.inspect(tmp_path / "s.so").options["argv"] == ["--scale", "3"]


# ---- inspect --------------------------------------------------------------------------------------------
def test_graph_is_the_forward_part(built):
    text = dumped(built)["graph"]
    program = parse_program(text)
    train = program.functions[0]
    assert not any(n.loc.gradient for n in train.graph.nodes)
    assert "examples/digits.py:17 in __call__" in text and "optimizer.exp_avg.model.out.bias" not in train.reads
    assert [n.op.name for n in train.graph.nodes].count("contract") == 2
    whole = parse_program(dumped(built)["gradient"]).functions[0]
    assert any(n.loc.gradient for n in whole.graph.nodes) and len(whole.writes) == 13
    assert [n.op.name for n in whole.graph.nodes].count("contract") == 5


def test_optimized_is_smaller_than_gradient(built):
    sizes = {s: len(parse_program(dumped(built)[s]).functions[0].graph.nodes) for s in ("gradient", "optimized")}
    assert sizes["optimized"] < sizes["gradient"]


@pytest.mark.parametrize("stage", ["kernels", "schedule"])
def test_kernels_parse(built, stage):
    texts = re.split(r"\n(?=kernel )", dumped(built)[stage])
    kernels = [parse_kernel(t) for t in texts]
    assert len(kernels) > 5
    assert all("#" in t.splitlines()[0] for t in texts)  # where it comes from


def test_plan_memory_and_code(built):
    text = dumped(built)
    assert re.search(r"function train .*\n.*\n?.*commit", text["plan"]) and "reads" in text["plan"]
    levels = rt.inspect(built / "digits.so").levels
    assert f"arena {levels[-1].arena} bytes" in text["memory"]
    assert "model.hidden.weight: f32[128,64]" in text["memory"]
    assert len(re.findall(r"^define hidden void @k_\w+_native\(", text["llvm"], re.M)) > 5
    assert ".text" in text["asm"] and "vfmadd" in text["asm"]


@pytest.mark.parametrize("stage", _STAGES)
def test_stages_of_a_script_and_of_an_artifact(built, show, stage):
    whole = dumped(built)[stage]
    assert show("inspect", DIGITS, "--dim", "batch=64", "--stage", stage) == whole
    artifact = show("inspect", built / "digits.so", "--stage", stage)
    if stage in ("graph", "gradient"):  # without stop_gradient
        assert len(artifact.splitlines()) + whole.count("stop_gradient(") == len(whole.splitlines())
    else:
        assert artifact == whole


def test_one_function(built, show):
    text = show("inspect", built / "digits.so", "--stage", "gradient", "--function", "predict")
    assert [f.name for f in parse_program(text).functions] == ["predict"]


def test_several_instruction_sets(show, tmp_path):
    text = show("inspect", DIGITS, "--dim", "batch=4", "--stage", "llvm", "--function", "predict", "--cpu", "v2,v3,v4")
    assert re.findall(r"^; (v\d)$", text, re.M) == ["v2", "v3", "v4"]
    for name in ("v2", "v3", "v4"):
        assert f'"target-cpu"="x86-64-{name}"' in text
    asm = show("inspect", DIGITS, "--dim", "batch=4", "--stage", "asm", "--function", "predict", "--cpu", "v2,v4")
    assert "zmm" in asm.split("# v4")[1] and "ymm" not in asm.split("# v4")[0]


def test_scripts_own_derivatives_loops_and_prints_survive_in_an_artifact(show, tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        "import pullback as pb\n"
        "scale = pb.Parameter([2.0, 3.0])\n"
        "@pb.custom_vjp\n"
        "def steep(x):\n    return pb.tanh(x)\n"
        "steep.defvjp(lambda x: (pb.tanh(x), x), lambda x, ct: (2.0 * ct,))\n"
        "@pb.function(pb.f32[5, 2], training=True)\n"
        "def train(xs):\n"
        "    def body(c, x):\n        c = pb.tanh(c + x * scale)\n        return c, steep(c)\n"
        "    last, ys = pb.scan(body, pb.zeros(2), xs)\n"
        "    loss = pb.sum(ys) + pb.sum(pb.stop_gradient(last))\n"
        "    pb.debug_print('loss {:.2f}: it\\'s \"{}\"', loss, last)\n"
        "    return pb.grad(loss, scale)\n"
    )
    show("build", script, "-o", tmp_path / "loop.so", "-q")
    for stage in ("optimized", "kernels", "plan", "llvm"):
        assert show("inspect", tmp_path / "loop.so", "--stage", stage) == show("inspect", script, "--stage", stage)
    text = show("inspect", tmp_path / "loop.so", "--stage", "gradient")
    assert "body = graph" in text and 'print ["loss {:.2f}: it\'s \\"{}\\"", [1, 2]]' in text
    forward = show("inspect", script, "--stage", "graph", "--function", "train")
    assert "scan" in forward and "(gradient)" not in forward


def test_manifest(built, show):
    manifest = json.loads(show("inspect", built / "digits.so"))
    assert [f["name"] for f in manifest["functions"]] == ["train", "predict", "init"]
    assert manifest["options"]["dims"] == {"batch": [64]}


# ---- mistakes -------------------------------------------------------------------------------------------
def test_mistakes_are_one_line(built, fails, tmp_path):
    assert "nowhere.py: No such file or directory" in fails("build", "nowhere.py")
    assert "nowhere: No such file or directory" in fails("inspect", "nowhere")
    assert "dimension 'batch' of train" in fails("build", DIGITS, "-q")
    assert "unknown dimension 'bach'; the functions' dimensions are: batch" in fails("build", DIGITS, "--dim", "bach=4")
    assert "--dim 'batch': expected NAME=SIZE" in fails("build", DIGITS, "--dim", "batch")
    assert "unknown CPU target 'v9': expected native, x86-64-v2" in fails(*BUILD, "--cpu", "v9")
    assert "unknown CPU target ''" in fails(*BUILD, "--cpu", "v3,")
    assert "cannot write" in fails(*BUILD, "-o", tmp_path / "no" / "folder.so")
    assert "is no artifact, so it has no manifest" in fails("inspect", DIGITS, "--stage", "manifest")
    assert "--dim and arguments after -- are for scripts" in fails("inspect", built / "digits.so", "--dim", "batch=1")
    assert "no function 'f'; the program has train, predict, init" in fails(
        "inspect", built / "digits.so", "--stage", "plan", "--function", "f"
    )
    artifact = (
        f"{built / 'digits.so'} is no Python script but a binary: an artifact is for `pullback inspect` and `train`"
    )
    assert artifact in fails("build", built / "digits.so")
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04\x2d\0\0\0")
    for command in ("build", "inspect"):
        assert "data.npz is no Python script: it holds binary data" in fails(command, tmp_path / "data.npz")
    assert "cannot read the script" in fails("build", tmp_path)
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes((built / "digits.so").read_bytes()[:2000])
    assert "truncated" in fails("inspect", damaged, "--stage", "graph")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import pullback as pb\nundefined\n", "line 2, in <module>\n    undefined\nNameError: name 'undefined'"),
        ("x = (1\n", "line 1\n    x = (1\n        ^\nSyntaxError"),
        (
            "import pullback as pb\n@pb.function(pb.f32[2])\ndef f(x):\n    return x * (1 / 0)\n",
            "line 4, in f\n    return x * (1 / 0)\n",
        ),
    ],
)
def test_what_a_script_raises_is_shown_from_its_first_line_on(text, message, tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(text)
    assert main(["build", str(script)]) == 1
    shown = capsys.readouterr().err
    assert message in shown and f'File "{script}"' in shown
    assert "cli.py" not in shown and "trace.py" not in shown


def test_unknown_stage(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", str(DIGITS), "--stage", "tokens"])
    assert "graph, gradient" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("command", ["build", "inspect", "train"])
def test_unknown_flags_show_the_usage_of_the_command(command, capsys):
    with pytest.raises(SystemExit) as e:
        main([command, str(DIGITS), "--fast", *(["--data", "x.npz"] if command == "train" else [])])
    err = capsys.readouterr().err
    assert e.value.code == 2 and f"pullback {command}: error: unrecognized arguments: --fast\n" in err
    assert err.startswith(f"usage: pullback {command} ")


@pytest.mark.parametrize("run", [main, train_command])
def test_version(run, capsys):
    with pytest.raises(SystemExit) as e:
        run(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"pullback {rt.__version__}\n"


def test_ptx_of_a_script(show, fails, tmp_path):
    command = ("inspect", DIGITS, "--dim", "batch=4", "--function", "predict", "--target", "cuda")
    text = show(*command, "--gpu", "sm_80,sm_90", "--stage", "ptx")
    assert re.findall(r"^// (sm_\d+)$", text, re.M) == ["sm_80", "sm_90"]
    assert len(re.findall(r"^\.visible \.entry k_\w+_sm_80\($", text, re.M)) > 2
    lines = {int(n) for n in re.findall(r"^\t\.loc\t1 (\d+) 0$", text, re.M)}
    script = DIGITS.read_text().splitlines()
    assert f'.file\t1 "{DIGITS}"' in text and any("argmax" in script[n - 1] for n in lines)
    assert "thread" in show(*command, "--stage", "schedule")
    assert "unknown GPU 'sm_1': expected one of sm_80" in fails(*command, "--gpu", "sm_1", "--stage", "ptx")
    assert "--target tpu: expected cpu, cuda or cpu,cuda" in fails(*command[:-1], "tpu", "--stage", "ptx")


def test_artifacts_with_ptx(show, fails, tmp_path):
    """Code for GPUs alone, and beside a processor's; every stage can be looked at again."""
    for target in ("cuda", "cpu,cuda"):
        out = tmp_path / f"{target.replace(',', '_')}.so"
        command = [*BUILD, "-o", out, "--target", target, "--gpu", "sm_80, sm_90a,sm_80", "--timings"]
        assert re.search(r"ms  ptx$", show(*command), re.M)
        manifest = rt.inspect(out)
        assert [g.name for g in manifest.gpus] == ["sm_80", "sm_90a"]
        assert [x.name for x in manifest.levels] == (["native"] if "cpu" in target else [])
        text = show("inspect", out, "--stage", "ptx")
        for g in manifest.gpus:
            held = zlib.decompress(read_section(out, PTX_SECTION + g.name)[1]).decode()
            assert f"// {g.name}\n{held}" in text and f".version {g.ptx}\n.target {g.name}\n" in held
        assert '"gpus"' in show("inspect", out)
    message = fails(*BUILD, "--target", "cuda", "--header", tmp_path / "x.h")
    assert "--header is of code for processors, but the target is cuda" in message


def test_sass(show, fails, monkeypatch):
    command = ("inspect", DIGITS, "--dim", "batch=4", "--function", "predict", "--stage", "sass")
    assert "sass is of code for GPUs: --target cuda" in fails(*command)
    with monkeypatch.context() as m:
        m.setattr(sass, "cuda_tool", lambda name: None)
        assert "sass needs ptxas and nvdisasm of CUDA" in fails(*command, "--target", "cuda")
    if not all(map(sass.cuda_tool, ("ptxas", "nvdisasm"))):
        pytest.skip("ptxas and nvdisasm were not found")
    assert re.search(r"^// sm_90\n(.*\n)+.*\bEXIT\b", show(*command, "--target", "cuda"), re.M)


# ---- processes ------------------------------------------------------------------------------------------
def python(code: str, *args) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


LOADED = """
import sys
from pullback_runtime.command import main
try:
    status = main(sys.argv[1:])
except SystemExit as e:
    status = e.code
print(status, *sorted({"pullback.dsl", "llvmlite", "networkx", "numpy"} & set(sys.modules)), file=sys.stderr)
"""


def test_errors_and_help_do_not_import_llvm():
    done = python(LOADED, "build", DIGITS)
    assert done.stderr.splitlines()[-1] == "1 numpy pullback.dsl" and "is not bound" in done.stderr
    done = python(LOADED, "--help")
    assert done.stderr.splitlines()[-1] == "0 numpy pullback.dsl" and "build" in done.stdout


def test_train_does_not_import_the_compiler():
    done = python(LOADED, "train", "nowhere.so", "--data", "x.npz")
    assert done.stderr.splitlines()[-1] == "1 numpy"


def test_a_machine_without_the_compiler():
    blocked = 'import sys\nfor m in ("pullback", "llvmlite", "networkx"): sys.modules[m] = None\n'
    needs = "build and inspect need the compiler: pip install pullback"
    assert needs in python(blocked + LOADED, "--help").stdout
    assert python(blocked + LOADED, "--version").stdout == f"pullback {rt.__version__}\n"
    for command in ("build", "inspect"):
        done = python(blocked + LOADED, command, DIGITS)
        assert done.stderr.splitlines()[0] == f"pullback: {needs}" and done.stderr.splitlines()[-1].startswith("1")


def test_progress_is_for_terminals():
    """Stages are shown while they run, and the line is clean afterwards; a pipe gets nothing."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pullback.cli", *BUILD, "-o", "/dev/null/x.so"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    stages = re.findall(r"\r\x1b\[K([a-z ]+) \.\.\.", shown)
    assert stages == ["trace", "passes", "lower", "schedule and plan", "emit", "llvm", "link"]
    assert shown.splitlines()[-1] == "\x1b[Kpullback: cannot write /dev/null/x.so: Not a directory"
    assert done.returncode == 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("pullback: cannot write")


def test_a_reader_that_stops_early():
    command = f"{sys.executable} -m pullback.cli inspect {DIGITS} --dim batch=64 --stage llvm | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "; native\n" and done.stderr == ""
