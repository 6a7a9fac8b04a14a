"""The double of NVIDIA's driver is like the real one where that can be told without a GPU: names, parameters, values;
every call that the runtime makes is taken by the real package up to the driver's door.  It refuses what is wrong."""

from __future__ import annotations

import inspect
import re
from enum import EnumMeta, IntEnum

import numpy as np
import pytest
from cuda_double import Double
from cuda_double_base import CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY3D, Handle, R
from cuda_programs import words
from simt.native import needs_emulator

import pullback_runtime as rt

FUNCTIONS = sorted(n for n in vars(Double) | vars(Double.__mro__[1]) if re.match(r"cu[A-Z]", n))
ENUMS = sorted(n for n in dir(Double) if isinstance(getattr(Double, n), EnumMeta))
HANDLES = {
    "dev": "CUdevice", "ctx": "CUcontext", "hStream": "CUstream", "hEvent": "CUevent", "hmod": "CUmodule",
    "hfunc": "CUfunction", "hGraph": "CUgraph", "hGraphExec": "CUgraphExec", "hNode": "CUgraphNode",
    "func": "CUfunction",
}  # fmt: skip


@pytest.fixture(scope="module")
def real():
    return pytest.importorskip("cuda.bindings.driver")


@pytest.fixture(scope="module")
def word(tmp_path_factory):
    return words(tmp_path_factory.mktemp("cuda") / "words.so")


def parameters(f) -> list[str]:
    return [n for n in inspect.signature(f).parameters if n != "self"]


def documented(f) -> list[str]:
    """The names in the first line of a docstring of the package: `cuMemAlloc(size_t bytesize)`."""
    line = re.sub(r"\[[^]]*\]", "", f.__doc__.splitlines()[0])
    inner = line[line.index("(") + 1 : line.rindex(")")]
    return [re.sub(r":.*", "", part).split()[-1].lstrip("*") for part in inner.split(",") if part.strip()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_parameters_of_the_real_ones(real, name):
    assert parameters(getattr(Double, name)) == documented(getattr(real, name))


@pytest.mark.parametrize("name", ENUMS)
def test_values_are_the_real_ones(real, name):
    for member in getattr(Double, name):
        assert getattr(getattr(real, name), member.name).value == member.value


def test_structures_have_the_fields_of_the_real_ones(real):
    for struct in (CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY3D):
        made = getattr(real, struct.__name__)()
        assert [n for n in vars(struct) if not n.startswith("_") and not hasattr(type(made), n)] == []
    assert real.CUtensorMap().getPtr() and int(real.cuuint64_t(5)) == int(real.cuuint32_t(5)) == 5


@needs_emulator
def test_the_real_package_takes_every_call(real, word):
    """Up to the driver, which is not there; where it is, calls with the double's addresses must not reach it."""
    try:
        real.cuInit(0)
    except RuntimeError:
        pass
    else:
        pytest.skip("this machine has a driver")
    with word.on() as double:
        program = rt.load(word.path, device="cuda")
        program.train(np.zeros(4, np.int32), program.put(np.ones((4, 2), np.float32)))
        program.train(np.zeros(4, np.int32), np.ones((4, 2), np.float32))
        with program.context.use() as c:
            c.let_wait(1)
        program.close()
    seen = {}
    for name, args in double.calls:
        seen.setdefault((name, tuple(type(a) for a in args)), args)
    assert len({name for name, _ in seen}) > 35
    for (name, _), args in seen.items():
        converted = [theirs(real, n, a) for n, a in zip(parameters(getattr(Double, name)), args)]
        with pytest.raises(RuntimeError):  # "no driver", neither TypeError nor anything else
            getattr(real, name)(*converted)


def theirs(real, name: str, value):
    """A value of the double as the real package would have given it."""
    if isinstance(value, IntEnum):
        return getattr(getattr(real, type(value).__name__), value.name)
    if isinstance(value, Handle):
        return getattr(real, HANDLES[name])(int(value))
    if isinstance(value, list):
        return [theirs(real, "hNode" if name == "dependencies" else "", v) for v in value]
    if isinstance(value, CUDA_KERNEL_NODE_PARAMS | CUDA_MEMCPY3D):
        made = getattr(real, type(value).__name__)()
        for n, v in vars(value).items():
            setattr(made, n, theirs(real, n, v))
        return made
    return value


# ---- what it refuses ----------------------------------------------------------------------------------------
@pytest.fixture
def double():
    made = Double({}, memory=10_000)
    assert made.cuInit(0) == (R.CUDA_SUCCESS,)
    device = made.cuDeviceGet(0)[1]
    made.cuCtxPushCurrent(made.cuDevicePrimaryCtxRetain(device)[1])
    return made


def test_misuse_of_memory(double):
    address = int(double.cuMemAlloc(100)[1])
    pinned = double.cuMemHostAlloc(100, 0)[1]
    stream = double.cuStreamCreate(1)[1]
    assert address % 256 == 0
    assert double.cuMemcpyHtoDAsync(address, pinned, 100, stream) == (R.CUDA_SUCCESS,)
    for bad in ((address, pinned, 101), (address + 1, pinned, 100), (pinned, pinned, 8)):
        assert double.cuMemcpyHtoDAsync(*bad, stream) == (R.CUDA_ERROR_INVALID_VALUE,)
    assert double.cuMemAlloc(0) == (R.CUDA_ERROR_INVALID_VALUE, None)
    assert double.cuMemAlloc(10_000) == (R.CUDA_ERROR_OUT_OF_MEMORY, None)
    assert double.cuMemFree(address + 16) == (R.CUDA_ERROR_INVALID_VALUE,)
    assert double.cuMemFree(address) == (R.CUDA_SUCCESS,)
    assert double.cuMemFree(address) == (R.CUDA_ERROR_INVALID_VALUE,)
    assert double.cuMemFreeHost(pinned) == (R.CUDA_SUCCESS,)
    double.cuStreamDestroy(stream)
    assert double.cuStreamSynchronize(stream) == (R.CUDA_ERROR_INVALID_HANDLE,)
    double.cuCtxPopCurrent()
    assert double.cuMemAlloc(16) == (R.CUDA_ERROR_INVALID_CONTEXT, None)
    assert Double({}).cuDeviceGetCount() == (R.CUDA_ERROR_NOT_INITIALIZED, None)


def test_streams_are_lazy_and_events_order_them(double):
    address, out = int(double.cuMemAlloc(16)[1]), np.zeros(16, np.uint8)
    first, second = (double.cuStreamCreate(1)[1] for _ in range(2))
    event = double.cuEventCreate(2)[1]
    double.cuMemsetD8Async(address, 7, 16, first)
    double.cuEventRecord(event, first)
    double.cuMemcpyDtoH(out.ctypes.data, address, 16)
    assert set(out) == {0xA5} and double.cuEventQuery(event) == (R.CUDA_ERROR_NOT_READY,)
    double.cuStreamSynchronize(second)
    assert double.cuEventQuery(event) == (R.CUDA_ERROR_NOT_READY,)
    double.cuStreamWaitEvent(second, event, 0)
    double.cuStreamSynchronize(second)
    double.cuMemcpyDtoH(out.ctypes.data, address, 16)
    assert set(out) == {7} and double.cuEventQuery(event) == (R.CUDA_SUCCESS,)


def test_misuse_of_graphs(double):
    one, two = (double.cuGraphCreate(0)[1] for _ in range(2))
    a, b = double.cuGraphAddEmptyNode(one, [], 0)[1], double.cuGraphAddEmptyNode(two, [], 0)[1]
    assert double.cuGraphAddEmptyNode(one, [a, a], 2)[0] == R.CUDA_ERROR_INVALID_VALUE
    assert double.cuGraphAddEmptyNode(one, [a], 2)[0] == R.CUDA_ERROR_INVALID_VALUE
    assert double.cuGraphAddEmptyNode(one, [b], 1)[0] == R.CUDA_ERROR_INVALID_VALUE
    run = double.cuGraphInstantiate(one, 0)[1]
    assert double.cuGraphExecKernelNodeSetParams(run, b, CUDA_KERNEL_NODE_PARAMS())[0] != R.CUDA_SUCCESS
    assert double.cuGraphLaunch(one, 1) == (R.CUDA_ERROR_INVALID_HANDLE,)
    assert double.cuGraphLaunch(run, 1) == (R.CUDA_SUCCESS,)
    double.cuGraphExecDestroy(run)
    assert double.cuGraphLaunch(run, 1) == (R.CUDA_ERROR_INVALID_HANDLE,)


@needs_emulator
@pytest.mark.parametrize("bug", ["no edges", "inputs that do not wait", "one place for inputs", "results too early"])
def test_planted_bugs_give_wrong_numbers(word, monkeypatch, bug):
    """What nothing but the order of work tells: each of these would be an error on a GPU, sooner or later."""
    word_, targets = np.array([0, 1, 2, 4], np.int32), [np.full((4, 2), 2.0 + i, np.float32) for i in range(4)]
    here = rt.load(word.path)
    want = [float(here.train(word_, t)) for t in targets]
    with word.on(check=False) as double:
        program = rt.load(word.path, device="cuda")
        if bug == "no edges":
            node = double._node
            monkeypatch.setattr(double, "_node", lambda graph, after, count, run: node(graph, [], 0, run))
        elif bug == "inputs that do not wait":
            copy = double.cuMemcpyHtoDAsync
            monkeypatch.setattr(double, "cuMemcpyHtoDAsync", lambda *args: copy(*args[:3], 1))
        elif bug == "one place for inputs":
            monkeypatch.setattr(double, "cuEventSynchronize", lambda event: (R.CUDA_SUCCESS,))
        else:
            monkeypatch.setattr(double, "cuStreamSynchronize", lambda stream: (R.CUDA_SUCCESS,))
        word_on_device = program.put(word_) if bug == "one place for inputs" else word_
        got = [program.train(word_on_device, t) for t in targets]
        assert [float(x) for x in got] != want
