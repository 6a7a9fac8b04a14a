"""The runtime in its process: Ctrl-C, fork, exit, unloading, other threads, without the compiler."""

import _ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import artifact_by_hand as hand
import numpy as np
import pytest

import pullback as pb
import pullback_runtime as rt
from pullback.driver import compile_program, write
from pullback.dsl.trace import trace_functions

N = hand.N


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return hand.build(tmp_path_factory.mktemp("artifact") / "demo.so")


@pytest.fixture(autouse=True)
def interrupts():
    """Ctrl-C as a terminal gives it: jobs in the background of a shell inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def tasks() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def after(seconds: float, action) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_within_a_step(path, threads):
    p = rt.load(path, threads=threads)
    start = time.perf_counter()
    p.slow()
    whole = time.perf_counter() - start
    before = p.context.state.copy()
    timer = after(whole / 8, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        p.slow()
    assert time.perf_counter() - start < whole
    timer.join()
    assert np.array_equal(p.context.state, before)
    assert signal.set_wakeup_fd(-1) == -1  # nothing is left behind
    p.slow()
    assert p.state["w"][0] == before[:4].view(np.float32)[0] + 1


def test_a_signal_whose_handler_returns_does_not_fail_the_step(path):
    p, seen = rt.load(path, threads=1), []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    signal.set_wakeup_fd(writer)  # as asyncio does
    try:
        timer = after(0.02, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        p.slow()
        timer.join()
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert seen == [1] and p.state["w"][0] == 1
    assert os.read(reader, 8) == bytes([signal.SIGUSR1])  # handed on to whom it belongs
    os.close(reader)
    os.close(writer)


def test_steps_in_another_thread_are_not_stopped(path):
    p, done = rt.load(path, threads=2), []
    thread = threading.Thread(target=lambda: done.append(p.slow()))
    thread.start()
    time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    thread.join()
    assert done == [None] and p.state["w"][0] == 1


def test_child_of_fork_has_workers_of_its_own(path):
    p, x, i = rt.load(path, threads=2), np.ones(N, np.float32), np.zeros(N, np.int32)
    first = p.train(x=x, i=i)
    assert tasks() >= 2
    child = os.fork()
    if child == 0:
        alone = tasks() == 1
        good = all(p.train(x=x, i=i)[0] == first[0] * (k + 2) for k in range(50))
        p.threads = 3
        good &= p.train(x=x, i=i)[0] == first[0] * 52
        os._exit(0 if alone and good and tasks() == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert p.train(x=x, i=i)[0] == 2 * first[0]  # the child's steps were the child's


def test_fork_while_another_thread_is_in_a_step(path):
    p = rt.load(path, threads=2)
    thread = threading.Thread(target=p.slow)
    thread.start()
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        p.init(0)
        ones = np.ones(N, np.float32)
        os._exit(0 if p.train(x=ones, i=np.zeros(N, np.int32))[0] == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


def test_threads_end_with_the_program_and_with_the_library(path):
    gc.collect()  # what other tests left in cycles
    before = tasks()
    p = rt.load(path, threads=4)
    p.train(x=np.ones(N, np.float32), i=np.zeros(N, np.int32))
    assert tasks() == before + 3
    p.close()
    assert tasks() == before
    p.threads = 2
    p.train(x=np.ones(N, np.float32), i=np.zeros(N, np.int32))
    assert tasks() == before + 1
    train = p.train
    p = None
    train(x=np.ones(N, np.float32), i=np.zeros(N, np.int32))
    assert tasks() == before + 1
    train = None  # the last user: everything goes at once, without the garbage collector
    assert tasks() == before


def run(code: str, *args: str, env: dict | None = None, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, env=env, **kwargs
    )


def test_unloading_stops_the_threads(tmp_path):
    path = hand.build(tmp_path / "own.so")
    p = rt.load(path, threads=3)
    p.train(x=np.ones(N, np.float32), i=np.zeros(N, np.int32))
    before, handle = tasks(), p.context.library.lib._handle
    p.context.is_open = False  # its memory goes, nobody closes it: the library has to see to its threads itself
    _ctypes.dlclose(handle)
    assert tasks() == before - 2
    assert "own.so" not in Path("/proc/self/maps").read_text()


def test_exit_in_the_middle_of_a_step(path):
    code = (
        "import sys, threading, time, pullback_runtime as rt\n"
        "p = rt.load(sys.argv[1], threads=2)\n"
        "threading.Thread(target=p.slow, daemon=True).start()\n"
        "time.sleep(0.03)\n"
    )
    done = run(code, str(path), env={**os.environ, "PYTHONPATH": "runtime"}, cwd=_root())
    assert done.returncode == 0, done.stderr


def test_runs_without_the_compiler(path):
    code = (
        "import sys\n"
        "for name in ('pullback', 'llvmlite', 'networkx', 'safetensors', 'ml_dtypes'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np, pullback_runtime as rt\n"
        "p = rt.load(sys.argv[1])\n"
        "print(p.train(x=np.ones(64), i=np.zeros(64, int))[0])\n"
        "try: p.save('x')\n"
        "except ImportError as e: print(e)\n"
    )
    done = run(code, str(path), env={**os.environ, "PYTHONPATH": "runtime"}, cwd=_root())
    assert done.stdout.splitlines() == [
        "5.0",
        "saving and loading state needs the package safetensors: pip install safetensors",
    ], done.stderr


def test_replacing_a_loaded_artifact_is_safe(tmp_path):
    path = hand.build(tmp_path / "a.so")
    x, i = np.ones(N, np.float32), np.zeros(N, np.int32)
    old = rt.load(path, threads=1)
    hand.build(path)
    new = rt.load(path, threads=1)
    assert old.train(x=x, i=i)[0] == new.train(x=x, i=i)[0] == 5
    assert os.listdir(tmp_path) == ["a.so"]


def test_a_replaced_artifact_is_loaded_anew(tmp_path):
    """Edit, build, load again, as in a notebook: the loader would give the old code for the same name."""
    path = tmp_path / "a.so"

    def scale(factor: float) -> None:
        function = pb.function(pb.f32[3], name="f")(lambda x: x * factor)
        write(path, compile_program(trace_functions([function]), pb.Options(cache=False)))

    for factor in (2.0, 3.0, 4.0):
        scale(factor)
        assert rt.load(path, threads=1).f(x=np.ones(3, np.float32)).tolist() == [factor] * 3
    assert os.listdir(tmp_path) == ["a.so"]


def test_two_loads_of_one_file_have_their_own_state(path):
    a, b = rt.load(path, threads=1), rt.load(path, threads=1)
    a.state["w"] = np.ones(N)
    assert not b.state["w"].any()


def test_a_tiny_step_costs_little(path):
    """Loose, because other processes may run beside; the documents have the exact figures."""
    p, x, i = rt.load(path, threads=1), np.ones(N, np.float32), np.zeros(N, np.int32)
    p.train(x=x, i=i)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(500):
            p.train(x=x, i=i)
        best = min(best, (time.perf_counter() - start) / 500)
    assert best < 10e-6


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
