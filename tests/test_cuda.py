"""Programs on a GPU, without one: on a double of the driver whose kernels run on the emulator (`cuda_double.py`).

The same steps, state, files and errors as on the processor, bit for bit.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shutil
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from cuda_double_base import R
from cuda_programs import Built, built, loops, state_of, words
from simt.native import needs_emulator

import pullback as pb
import pullback_runtime as rt
from pullback.dsl.trace import parse_dims, trace_functions, trace_script
from pullback_runtime import cuda_driver, cuda_graph
from pullback_runtime.command import main as command
from pullback_runtime.format import SECTION, parse_manifest
from pullback_runtime.sections import read_section
from pullback_runtime.training import fit

pytestmark = needs_emulator
DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"
WORD, TARGET = np.array([0, 1, 2, 4], np.int32), np.full((4, 2), 2.0, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def digits(folder) -> Built:
    program = trace_script(DIGITS, dims=parse_dims(["batch=16"]))
    return built(program, folder / "digits.so", gpu="sm_80,sm_90a")


@pytest.fixture(scope="module")
def word(folder) -> Built:
    return words(folder / "words.so")


@pytest.fixture
def driver(word):
    with word.on() as double:
        yield double


@pytest.fixture
def program(driver, word):
    return rt.load(word.path, device="cuda")


def batch(seed: int, n: int = 16) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    return r.random((n, 64), dtype=np.float32), r.integers(0, 10, n)


# ---- the same as on the processor ---------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["forward", "reverse", "random:7"])
def test_training_gives_the_bits_of_the_processor(digits, tmp_path, order):
    """Ten steps, in three orders of threads; state goes to and fro in files in the middle."""
    pytest.importorskip("safetensors")
    with digits.on(order=order):
        here, there = rt.load(digits.path, seed=3), rt.load(digits.path, device="cuda", seed=3)
        assert state_of(here) == state_of(there)
        for i in range(10):
            if i == 5:  # they change places
                here.save(tmp_path / "here.safetensors")
                there.save(tmp_path / "there.safetensors")
                here.init(1)
                there.init(2)
                here.load_state(tmp_path / "there.safetensors")
                there.load_state(tmp_path / "here.safetensors")
            image, label = batch(i)
            assert here.train(image, label).tobytes() == there.train(image, label).tobytes()
        assert state_of(here) == state_of(there)
        files = [tmp_path / n for n in ("a", "b")]
        here.save(files[0])
        there.save(files[1])
        assert files[0].read_bytes() == files[1].read_bytes()
        assert np.array_equal(here.predict(image[:5]), there.predict(image[:5]))


def test_structures_shapes_and_padding(program, word):
    here = rt.load(word.path)
    r = np.random.default_rng(0)
    for n in (8, 3, 2, 5, 8):  # two are compiled for, two are padded
        given = {"word": r.integers(0, 5, n), "scale": r.random((n, 2))}
        want, got = here.predict(given), program.predict(given=given)
        assert got["y"].shape == (n, 2) and isinstance(got["best"], tuple)
        assert all(np.array_equal(a, b) for a, b in zip((want["y"], *want["best"]), (got["y"], *got["best"])))
    with pytest.raises(
        rt.ArgumentShapeError, match=r"predict: not compiled for given.word \[9\], given.*\[9, 2\]; comp"
    ):
        program.predict({"word": np.zeros(9, np.int32), "scale": np.ones((9, 2))})


def test_loops_are_unrolled(folder):
    """The same kernel with and without a promise of alignment, and a loop in a loop, backwards."""
    made = loops(folder / "loops.so")
    r = np.random.default_rng(1)
    rows, steps = r.random((6, 8), dtype=np.float32), r.random((5, 3), dtype=np.float32)
    with made.on():
        want, program = rt.load(made.path).run(rows, steps), rt.load(made.path, device="cuda")
        got = program.run(rows, steps)
        for a, b in zip(want, got):
            assert all(np.array_equal(x, y) for x, y in zip(a, b))
        graph = program.context.graph(0)
        kinds = {graph._loops(n) for nodes in cuda_graph.levels(program.gpu, 0) for n in nodes if n.in_loop}
        assert kinds == {True, False} and graph.nodes > 6 + 5 * 5


def test_too_many_launches(folder, monkeypatch):
    made = loops(folder / "loops.so")
    monkeypatch.setattr(cuda_graph, "MAX_NODES", 20)
    with made.on():
        program = rt.load(made.path, device="cuda")
        with pytest.raises(rt.DeviceError, match=r"loops.so: run: its loops unroll to more than 20 launches"):
            program.run(np.ones((6, 8)), np.ones((5, 3)))


def test_state(program, word):
    here = rt.load(word.path)
    weight = program.state["model.1.weight"]
    with pytest.raises(ValueError, match="read-only"):
        weight += 1
    for p in (here, program):
        p.state["model.1.weight"] = weight * 2
        p.state["rate"] = 0.25
        p.state["optimizer.step"] = 7
    assert state_of(here) == state_of(program)
    assert here.train(WORD, TARGET) == program.train(WORD, TARGET)
    assert state_of(here) == state_of(program)
    program.state["model.1.weight"] = program.put(weight)
    assert np.array_equal(program.state["model.1.weight"], weight)
    with pytest.raises(rt.StateError, match=r"state 'model.1.weight': expected shape \[2, 3\], got \[3\]"):
        program.state["model.1.weight"] = np.ones(3)
    with pytest.raises(rt.StateError, match=r"expected a contiguous f32\[2, 3\] on the GPU, got f64\[2, 3\]"):
        program.state["model.1.weight"] = program.put(np.ones((2, 3)))
    with pytest.raises(KeyError, match="no state 'x'"):
        program.state["x"]


def test_fit_and_the_command_line(digits, tmp_path, capsys):
    pytest.importorskip("safetensors")
    image, label = batch(0, 70)
    np.savez(tmp_path / "data.npz", image=image, label=label)
    with digits.on(check=False):
        losses = []
        for device in ("cpu", "cuda"):
            program = rt.load(digits.path, device=device)
            losses.append(fit(program, {"image": image, "label": label}, epochs=1, report=lambda line: None).loss)
        assert losses[0] == losses[1]
        saved = []
        for device in ("cpu", "cuda:0"):
            args = ["train", digits.path, "--data", tmp_path / "data.npz", "--device", device, "--validation", "0.2"]
            args += ["--save", tmp_path / "s", "--checkpoint", tmp_path / device, "--checkpoint-every", "2"]
            assert command([*map(str, args)]) == 0
            saved.append((tmp_path / "s").read_bytes())
        lines = [re.sub(r"in .* s$", "", x) for x in capsys.readouterr().out.splitlines()]
        assert saved[0] == saved[1] and lines[: len(lines) // 2] == lines[len(lines) // 2 :]
        # the checkpoint of one device is gone on with on the other
        args = ["train", digits.path, "--data", tmp_path / "data.npz", "--validation", "0.2", "--epochs", "2"]
        assert command([*map(str, args), "--checkpoint", str(tmp_path / "cpu"), "--device", "cuda"]) == 0
        assert "resumed at epoch 2" in capsys.readouterr().out
        assert command([*map(str, args), "--device", "gpu"]) == 1
        assert "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'" in capsys.readouterr().err
        assert command([*map(str, args), "--device", "cuda", "--threads", "2"]) == 1
        assert "threads=2 is for device='cpu'" in capsys.readouterr().err


def test_built_and_run_from_python(tmp_path, capsys):
    @pb.function(pb.f32[5])
    def twice(x):
        pb.debug_print("sum {}", pb.sum(x))
        return x * 2

    made = built(trace_functions([twice]), tmp_path / "twice.so", target="cuda")
    with made.on():
        program = pb.build(twice, target="cuda", gpu="sm_80")
        assert program.device == "cuda:0" and program.twice(np.arange(5)).tolist() == [0, 2, 4, 6, 8]
        assert program.twice(program.put(np.arange(5, dtype=np.float32))).numpy()[4] == 8
        with pytest.raises(rt.DeviceError, match="no GPU cuda:7"):
            pb.build(twice, target="cuda", gpu="sm_80", device="cuda:7")
    assert capsys.readouterr().out == "sum 10.0\n" * 2


def test_programs_in_threads(word):
    """Two programs on one device, each in a thread of its own."""
    with word.on(check=False):
        programs = [rt.load(word.path, device="cuda", seed=s) for s in (1, 2)]
        losses = [[], []]

        def work(i: int) -> None:
            for _ in range(5):
                losses[i].append(float(programs[i].train(WORD, TARGET)))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for i, s in enumerate((1, 2)):
            here = rt.load(word.path, seed=s)
            assert losses[i] == [float(here.train(WORD, TARGET)) for _ in range(5)]


# ---- failed checks ------------------------------------------------------------------------------------------
def message(f) -> str:
    with pytest.raises(rt.RuntimeFailure) as e:
        f()
    return f"{type(e.value).__name__}: {e.value}"


def test_a_failed_check_is_the_processors_error_and_leaves_state(program, word):
    here = rt.load(word.path)
    for p in (here, program):
        p.train(WORD, TARGET)
    before = state_of(program)
    bad = [lambda p: p.train(WORD + 1, TARGET), lambda p: p.predict({"word": WORD[:3] - 9, "scale": np.ones((3, 2))})]
    for f in bad:
        assert message(lambda f=f: f(here)) == message(lambda f=f: f(program))
        assert state_of(program) == before
    assert here.train(WORD, TARGET) == program.train(WORD, TARGET)
    assert state_of(here) == state_of(program)


def test_watched_values(folder):
    watched = words(folder / "watched.so", watch_nan=True)
    with watched.on():
        here, program = rt.load(watched.path), rt.load(watched.path, device="cuda")
        before = state_of(program)
        text = message(lambda: program.train(WORD, -TARGET))
        assert text == message(lambda: here.train(WORD, -TARGET))
        assert text.startswith("NotFiniteError: train: ") and "is not finite; the state is as it was" in text
        assert state_of(program) == before
        assert program.train(WORD, TARGET) == here.train(WORD, TARGET)


def test_steps_behind_a_failed_one_change_nothing(program, driver):
    """A step whose inputs lie on the device returns before it has run; so its error comes later."""
    target = program.put(TARGET)
    before, count = state_of(program), len(driver.calls)
    lost = [program.train(program.put(WORD + 1), target), *(program.train(program.put(WORD), target) for _ in range(2))]
    assert not isinstance(lost[0], np.ndarray)
    assert "cuStreamSynchronize" not in [name for name, _ in driver.calls[count:]]
    text = message(lambda: float(lost[-1]))
    assert "5 is out of range; the state is as it was before" in text
    assert state_of(program) == before
    program.train(program.put(WORD), target)
    program.synchronize()
    assert state_of(program) != before
    program.train(program.put(WORD + 1), target)
    driver._drain()
    assert "out of range" in message(lambda: program.train(WORD, TARGET))  # the next call notices


# ---- what a machine may lack ----------------------------------------------------------------------------------
def refused(path: Path, **how) -> str:
    with pytest.raises(rt.RuntimeFailure) as e:
        rt.load(path, device=how.pop("device", "cuda"), **how)
    return str(e.value)


def test_without_the_package(word, monkeypatch):
    monkeypatch.setattr(cuda_driver, "BINDINGS", "cuda.bindings.no_driver")
    assert "needs NVIDIA's package cuda-bindings: pip install 'pullback[cuda]'" in refused(word.path)


def test_without_a_driver(word):
    """What the package raises where there is no libcuda."""
    with word.on() as double:
        double.cuInit = lambda flags: (_ for _ in ()).throw(RuntimeError("Failed to dlopen libcuda.so.1\nmore"))
        assert refused(word.path) == "no NVIDIA driver was found on this machine: Failed to dlopen libcuda.so.1"
        double.cuInit = lambda flags: (R.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,)
        assert "cannot be used: cuInit says CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (" in refused(word.path)


def test_without_a_device(word):
    with word.on(devices=0):
        assert "the NVIDIA driver finds no GPU on this machine" in refused(word.path)
    with word.on():
        assert "no GPU cuda:1: there is 1, numbered from 0" in refused(word.path, device="cuda:1")


def test_another_architecture(digits, word):
    with word.on(capability=(7, 5), name="Tesla T4"):
        what = "holds code for sm_80, which does not run on cuda:0 (Tesla T4, sm_75): build with --gpu sm_75"
        assert what in refused(word.path)
    with digits.on(capability=(9, 0), check=False):
        assert rt.load(digits.path, device="cuda").gpu.name == "sm_90a"  # made for it
    with digits.on(capability=(12, 0), check=False):
        assert rt.load(digits.path, device="cuda").gpu.name == "sm_80"  # "a" runs on its own only
    with digits.on(capability=(8, 9), check=False) as double:
        program = rt.load(digits.path, device="cuda")
        assert program.gpu.name == "sm_80" and repr(program).startswith("<program digits from ")
        program.close()
        assert not double.retained


def test_a_driver_that_is_too_old(digits):
    with digits.on(version=12000):
        text = "the code for sm_90a is PTX 8.3, which needs a driver for CUDA 12.3, but this machine's is for 12.0"
        assert text in refused(digits.path)
    with digits.on() as double:  # and what the driver itself says, if it knows better
        double.failures["cuModuleLoadDataEx"] = R.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        assert "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (unsupported ptx version); update the" in refused(digits.path)
        assert not double.retained and not double.arrays


def test_too_little_memory(word):
    with word.on(memory=1000) as double:
        text = refused(word.path)
        assert re.search(r"needs \d+ bytes of device memory \(\d+ for state, \d+ for the arena, \d+ for inputs", text)
        assert text.endswith("but cuda:0 (NVIDIA Double, sm_90) has 1000 free of 1000")
        assert not double.retained and "cuMemAlloc" not in [name for name, _ in double.calls]
        with pytest.raises(MemoryError):
            rt.load(word.path, device="cuda")
        double.memory, double.local_bytes = 1 << 30, 4096
        assert re.search(rf"results, {4096 * 132 * 2048} for threads\), but cuda:0", refused(word.path))
        assert not double.retained and not double.arrays
    with word.on() as double:
        program = rt.load(word.path, device="cuda")
        double.memory = program.device_bytes + 1024
        kept = program.put(np.ones(100))
        with pytest.raises(rt.DeviceMemoryError, match=r"1024 bytes for an array on cuda:0 .* has 0 free"):
            program.put(np.ones(100))
        del kept
        program.put(np.ones(100))  # in the same place
        program.put(np.ones(10))  # that place is given back first
        assert program.train(WORD, TARGET) > 0


def test_a_kernel_that_the_drivers_assembler_rejects(word):
    with word.on() as double:
        (text,) = double.kernels
        line = 1 + text.count("\n", 0, text.index("ld.global", text.rindex(".visible .entry")))
        symbol = re.findall(r"\.visible \.entry ([\w$.]+)\(", text)[-1]
        double.kernels.clear()
        double.log = f"ptxas application ptx input, line {line}; error   : Unknown modifier '.f31'"
        message = refused(word.path)
        assert re.search(rf"kernel {re.escape(symbol)} \(\w.*, .*cuda_programs.py:\d+\) is refused by the", message)
        assert "CUDA_ERROR_INVALID_PTX" in message and "Unknown modifier '.f31'" in message
        double.log = f"ptxas error   : Entry function '{symbol}' uses too much shared data (0x1c000 bytes)"
        assert f"kernel {symbol} (" in refused(word.path)
        double.log = ""
        assert "the code for sm_80 is refused by the driver's assembler for cuda:0" in refused(word.path)
        assert not double.retained and not double.arrays and not double.pinned


def test_artifacts_of_the_other_kind(folder, word, tmp_path):
    alone = words(folder / "alone.so", target="cuda")
    with pytest.raises(rt.ArtifactError, match=r"holds code for GPUs only \(sm_80\): load it with device='cuda'"):
        rt.load(alone.path)
    assert [f.name for f in rt.inspect(alone.path).functions] == ["train", "predict", "predict", "init"]
    with alone.on():
        assert rt.load(alone.path, device="cuda").train(WORD, TARGET) == rt.load(word.path).train(WORD, TARGET)
    host = words(folder / "host.so", target="cpu")
    with host.on():
        assert re.search(r"holds no code for GPUs \(x86-64\S* only\): build with --target cuda", refused(host.path))
    damaged = tmp_path / "damaged.so"
    shutil.copy(alone.path, damaged)
    data = bytearray(alone.path.read_bytes())
    at = data.rindex(b"\x78\x9c")  # the header of what zlib made at this level
    data[at + 20 : at + 40] = bytes(20)
    damaged.write_bytes(data)
    with alone.on() as double:
        assert "the code for sm_80 is damaged" in refused(damaged)
        assert not double.retained


def test_damaged_steps(folder):
    """Any value of what the manifest says of a GPU replaced by another one: refused, or as good as before."""
    made = loops(folder / "loops.so")
    _, data = read_section(made.path, SECTION)
    rng, refused = random.Random(0), 0
    for _ in range(300):
        raw = json.loads(data)
        spot = raw["gpus"][0][rng.choice(["steps", "steps", "kernels", "launches", "commits"])]
        while isinstance(spot, dict | list) and spot:
            key = rng.choice(list(spot) if isinstance(spot, dict) else range(len(spot)))
            holder, spot = spot, spot[key]
        holder[key] = rng.choice([-1, 10**6, None, "x", [], {}, True, 1.5])
        try:
            manifest = parse_manifest(json.dumps(raw).encode())
            cuda_graph.check_steps(manifest.gpus[0], manifest, "loops.so")
        except rt.ArtifactError as e:
            assert "the manifest is damaged" in str(e)
            refused += 1
            continue
        for _ in islice(cuda_graph.levels(manifest.gpus[0], 0), 100):
            pass
    assert refused > 100


def test_wrong_arguments_of_load(word):
    for how, text in [
        ({"device": "tpu"}, "device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"device": "cuda:x"}, "device must be"),
        ({"device": "cuda:"}, "device must be"),
        ({"device": "cuda", "threads": 2}, "threads=2 is for device='cpu', but the device is 'cuda'"),
        ({"arrays": "device"}, "arrays='device' is for device='cuda'"),
        ({"device": "cuda", "arrays": "host"}, "arrays must be None or 'device', got 'host'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(text)):
            rt.load(word.path, **how)


# ---- ends -------------------------------------------------------------------------------------------------
def test_everything_is_given_back(driver, word):
    program = rt.load(word.path, device="cuda")
    kept = program.train(program.put(WORD), TARGET)
    program.train(WORD, TARGET)
    program.close()
    program.close()
    assert not driver.arrays and not driver.pinned and not driver.retained
    kinds = ("module", "stream", "at", "nodes", "plan")
    assert not [h for h in driver.handles.values() if h.alive and any(hasattr(h, k) for k in kinds)]
    for use, args in ((program.train, (WORD, TARGET)), (float, (kept,)), (program.state.get, ("rate",))):
        with pytest.raises(rt.DeviceError, match="the program is closed"):
            use(*args)
    program = rt.load(word.path, device="cuda")
    program.train(program.put(WORD), TARGET)
    del program
    gc.collect()
    assert not driver.arrays and not driver.pinned and not driver.retained


def test_after_a_fault_the_process_lives(program, driver):
    driver.failures["cuStreamSynchronize"] = R.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(rt.DeviceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS .* this process cannot use the GPU any more"):
        program.train(WORD, TARGET)
    driver.failures.clear()
    assert program.train(WORD, TARGET) > 0
    for name in ("cuStreamSynchronize", "cuGraphDestroy", "cuModuleUnload", "cuMemFree", "cuCtxPopCurrent"):
        driver.failures[name] = R.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(rt.DeviceError, match="ILLEGAL_ADDRESS"):
        program.train(WORD, TARGET)
    driver.failures.pop("cuCtxPopCurrent")
    program.close()
    assert not program.context.is_open
    driver.failures.clear()
    assert cuda_driver.Driver(driver).text(12345) == "error 12345"


def test_fork(program):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            program.train(WORD, TARGET)
        except rt.DeviceError as e:
            os.write(write, str(e).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"a GPU cannot be used after fork: load the program in the child" in os.read(read, 1000)
    assert program.train(WORD, TARGET) > 0
