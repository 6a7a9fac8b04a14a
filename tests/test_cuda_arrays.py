"""Arrays that lie on a GPU already: used in place, ordered with other libraries' streams, and handed on."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_programs import built, state_of, words
from simt.native import needs_emulator

import pullback as pb
import pullback_runtime as rt
from pullback.dsl.trace import trace_functions
from pullback_runtime import dlpack
from pullback_runtime.arrays import is_on_gpu

pytestmark = needs_emulator
WORD, TARGET = np.array([0, 1, 2, 4], np.int32), np.full((4, 2), 2.0, np.float32)
NAMES = {"int32": "i32", "float32": "f32", "float64": "f64"}


@pytest.fixture(scope="module")
def word(tmp_path_factory):
    return words(tmp_path_factory.mktemp("cuda") / "words.so")


@pytest.fixture
def driver(word):
    with word.on() as double:
        yield double


@pytest.fixture
def program(driver, word):
    return rt.load(word.path, device="cuda")


class Library:
    """Another library with arrays on the device: it speaks DLPack, or `__cuda_array_interface__`, or both."""

    def __init__(self, driver, program):
        self.driver, self.context = driver, program.context
        with self.context.use():
            self.stream = driver.cuStreamCreate(0)[1]
        self.waited = []

    def array(self, data: np.ndarray, offset: int = 0, **interface):
        """`data` on the device, written by a copy that is still queued on the library's stream."""
        data = np.ascontiguousarray(data)
        with self.context.use():
            memory = self.driver.cuMemAlloc(data.nbytes + offset + 64)[1]
            self.driver.cuMemcpyHtoDAsync(int(memory) + offset, data.tobytes(), data.nbytes, self.stream)
        return self.wrapped(int(memory) + offset, data, **interface)

    def wrapped(self, address: int, data: np.ndarray, kind="interface", strides=None, device=0, **more):
        given = {"shape": data.shape, "typestr": data.dtype.str, "data": (address, False), "version": 3}
        given |= {"strides": strides, "stream": int(self.stream), **more}
        if kind == "interface":
            return type("Array", (), {"__cuda_array_interface__": given})()

        def to_dlpack(_, stream=None):
            assert stream == int(self.context.stream)
            with self.context.use():  # the consumer's stream waits for ours
                event = self.driver.cuEventCreate(0)[1]
                self.driver.cuEventRecord(event, self.stream)
                self.driver.cuStreamWaitEvent(stream, event, 0)
            return dlpack.capsule(address, (2, device), NAMES[data.dtype.name], data.shape, data)

        return type("Array", (), {"__dlpack__": to_dlpack, "__dlpack_device__": lambda _: (2, device)})()


@pytest.fixture
def library(driver, program):
    return Library(driver, program)


def copies(driver, count: int) -> list[str]:
    return [name for name, _ in driver.calls[count:] if name.startswith("cuMemcpy")]


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_arrays_of_other_libraries_are_used_in_place(program, driver, library, word, kind):
    """Also when they come from another place each time, and though what fills them is still queued elsewhere."""
    here = rt.load(word.path)
    for i in range(3):
        words_, target = (WORD + i) % 5, TARGET + i
        given = library.array(words_, kind=kind), library.array(target, kind=kind)
        count = len(driver.calls)
        loss = program.train(*given)
        assert copies(driver, count) == ["cuMemcpyDtoDAsync"]  # the result's
        assert isinstance(loss.dtype, str) and loss.shape == () and float(loss) == here.train(words_, target)
    assert state_of(here) == state_of(program)
    assert program.train(WORD, TARGET) == here.train(WORD, TARGET)  # and back to the host's


def test_libraries_may_write_to_what_a_step_has_read(program, driver, library, word):
    """Their next work on an array waits for the step, and a step's result is not overwritten while they may read it."""
    targets = [TARGET, TARGET + 1]
    here, memory = rt.load(word.path), library.array(TARGET)
    address = memory.__cuda_array_interface__["data"][0]
    losses = []
    for target in targets:
        with program.context.use():
            driver.cuMemcpyHtoDAsync(address, target.tobytes(), target.nbytes, library.stream)
        losses.append(program.train(WORD, memory))
    driver.cuCtxPushCurrent(program.context.device.context)
    driver.cuStreamSynchronize(library.stream)
    assert [float(x) for x in losses] == [here.train(WORD, t) for t in targets]
    for stream in (int(library.stream), 1):  # the library reads a result on one of these
        read, out = program.train(WORD, memory), np.zeros(1, np.float32)
        value, place = float(read), read.address
        array = dlpack.consume(read.__dlpack__(stream=stream))
        driver.cuMemcpyDtoDAsync(address, place, 4, stream)
        program.context.spare.clear()
        del read, array
        gc.collect()
        assert program.context.spare
        later = program.train(program.put(WORD), program.put(TARGET))
        program.synchronize()
        driver.cuStreamSynchronize(stream)
        driver.cuMemcpyDtoH(out.ctypes.data, address, 4)
        assert out[0] == np.float32(value) != float(later)


def test_one_on_the_device_one_on_the_host(program, driver, library, word):
    loss = program.train(WORD.tolist(), library.array(TARGET))
    assert float(loss) == rt.load(word.path).train(WORD, TARGET)


def test_what_is_not_aligned_is_copied(program, driver, library, word):
    given = library.array(WORD, offset=4)
    count = len(driver.calls)
    assert float(program.train(given, library.array(TARGET))) == rt.load(word.path).train(WORD, TARGET)
    assert copies(driver, count).count("cuMemcpyDtoDAsync") == 2


def test_inputs_live_until_they_are_read(program, driver, library):
    """Results too: each step's are its own, and their memory is used again only when nobody has them."""
    results = [program.train(program.put(WORD), program.put(TARGET + i)) for i in range(4)]
    assert len({r.address for r in results}) == 4
    values = [float(r) for r in results]
    assert len(set(values)) == 4 and [float(r) for r in results] == values
    given, address = (program.put(WORD), program.put(TARGET)), results[-1].address
    results.pop()
    assert program.train(*given).address == address
    program.synchronize()
    assert not program.context.in_flight


def test_padding_on_the_device(program, library, word):
    here, r = rt.load(word.path), np.random.default_rng(0)
    for n in (1, 2, 4, 7):
        given = {"word": r.integers(0, 5, n, dtype=np.int32), "scale": r.random((n, 2), dtype=np.float32)}
        want, got = here.predict(given), program.predict({k: library.array(v) for k, v in given.items()})
        assert got["y"].shape == (n, 2) and np.array_equal(want["y"], got["y"].numpy())
        assert np.array_equal(want["best"][0], got["best"][0])


def test_results_are_handed_on(program, driver, word):
    y = program.predict(
        {"word": program.put(np.arange(3, dtype=np.int32)), "scale": program.put(np.float32([[1, 2]] * 3))}
    )["y"]
    interface = y.__cuda_array_interface__
    assert interface["shape"] == (3, 2) and interface["typestr"] == "<f4" and interface["data"] == (y.address, False)
    assert interface["stream"] == int(program.context.stream) and interface["version"] == 3
    assert y.__dlpack_device__() == (2, 0) and is_on_gpu(y) and repr(y) == "<f32[3, 2] on cuda:0>"
    array = dlpack.consume(y.__dlpack__(stream=2))
    assert (array.address, array.dtype, array.shape, array.strides) == (y.address, "f32", (3, 2), None)
    assert driver.streams[2].waiting  # it will wait for ours
    with pytest.raises(BufferError):
        y.__dlpack__(copy=True)
    other = rt.load(word.path, device="cuda")  # another program on the device takes it without a copy
    count = len(driver.calls)
    got = other.predict({"word": other.put(np.arange(3, dtype=np.int32)), "scale": y})
    assert "cuMemcpyDtoH" not in copies(driver, count)
    want = rt.load(word.path).predict({"word": np.arange(3), "scale": np.asarray(y)})
    assert np.array_equal(got["y"], want["y"]) and got["y"].numpy().dtype == np.float32
    assert rt.load(word.path).predict({"word": np.arange(3), "scale": y})["y"].tobytes() == want["y"].tobytes()
    with pytest.raises(ValueError, match="without a copy"):
        np.array(y, copy=False)
    with pytest.raises(TypeError, match="without dimensions"):
        len(program.put(3.0))
    assert len(y) == 3 and int(program.put(7)) == 7 and np.asarray(y, np.float64).dtype == np.float64
    with pytest.raises(rt.ArgumentError, match="put: an array of complex128 has no place in a program"):
        program.put(np.ones(3, complex))


def test_everything_on_the_device(driver, word, library):
    program = rt.load(word.path, device="cuda", arrays="device")
    with pytest.raises(
        rt.ArgumentError, match=r"train: input 'word': expected an array on cuda:0 .*, got ndarray in host"
    ):
        program.train(WORD, TARGET)
    assert float(program.train(program.put(WORD), library.array(TARGET))) == rt.load(word.path).train(WORD, TARGET)


def test_wrong_arrays_on_the_device(program, library, driver):
    with pytest.raises(rt.ArgumentError, match=r"'word': expected i32, got i64 \(arrays on a GPU are not conv"):
        program.train(library.array(WORD.astype(np.int64)), TARGET)
    with pytest.raises(rt.ArgumentError, match=r"train: input 'word': expected i32, got f64"):
        program.train(library.array(WORD.astype(np.float64), kind="dlpack"), TARGET)
    with pytest.raises(rt.ArgumentShapeError, match=r"train: input 'target': expected shape \[4, 2\], got \[2, 2\]"):
        program.train(WORD, library.array(TARGET[:2]))
    with pytest.raises(rt.ArgumentError, match=r"'target': expected a C-contiguous array, got another order"):
        program.train(WORD, library.array(TARGET, strides=(4, 16)))
    with pytest.raises(rt.ArgumentError, match="lies on cuda:1, but the program on cuda:0"):
        program.train(WORD, library.array(TARGET, kind="dlpack", device=1))
    with pytest.raises(rt.ArgumentError, match="masked arrays are not taken"):
        program.train(WORD, library.array(TARGET, mask=object()))
    with pytest.raises(rt.ArgumentError, match="its stream 99 cannot be waited for: cuEventRecord failed"):
        program.train(WORD, library.array(TARGET, stream=99))
    broken = SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=lambda stream: object())
    with pytest.raises(rt.ArgumentError, match="SimpleNamespace does not give its memory: not a DLPack capsule"):
        program.train(WORD, broken)
    assert program.train(WORD, TARGET) > 0


def test_a_gpus_array_for_a_program_on_the_processor(word, library):
    with pytest.raises(
        rt.ArgumentError, match=r"expected an array in host memory, got one on a GPU: load the program with"
    ):
        rt.load(word.path).train(WORD, library.array(TARGET))


# ---- DLPack -------------------------------------------------------------------------------------------------
class OnHost:
    def __init__(self, x: np.ndarray, dtype: str):
        self.x, self.dtype = x, dtype

    def __dlpack__(self, **_):
        return dlpack.capsule(self.x.ctypes.data, (dlpack.CPU, 0), self.dtype, self.x.shape, self)

    def __dlpack_device__(self):
        return dlpack.CPU, 0


def test_the_structures_are_those_of_other_libraries():
    """numpy and PyTorch read what we write, and we read what they write; memory lives as long as anyone has it."""
    torch = pytest.importorskip("torch")
    for x, dtype in [
        (np.arange(6, dtype=np.int32).reshape(2, 3), "i32"),
        (np.ones(3), "f64"),
        (np.array(3.5, np.float32), "f32"),
    ]:
        for take in (np.from_dlpack, torch.from_dlpack):
            y = take(OnHost(np.array(x), dtype))
            assert np.array_equal(np.asarray(y), x) and np.asarray(y).dtype == x.dtype
    for x in (
        np.zeros((3, 4), np.float32).T,
        torch.zeros((2, 5), dtype=torch.int8),
        torch.ones(3, dtype=torch.bfloat16),
    ):
        array = dlpack.consume(x.__dlpack__())
        assert array.shape == tuple(x.shape) and array.device == (dlpack.CPU, 0)
    assert dlpack.consume(np.zeros((3, 4), np.float32).T.__dlpack__()).strides == (1, 4)
    assert array.dtype == "bf16" and dlpack.consume(np.ones(2, complex).__dlpack__()).dtype == "complex128"
    for bad in (object(), 3):
        with pytest.raises(ValueError, match="not a DLPack capsule"):
            dlpack.consume(bad)
    capsule = np.ones(3).__dlpack__()
    dlpack.consume(capsule)
    with pytest.raises(ValueError, match="still to be consumed"):
        dlpack.consume(capsule)


def test_exported_memory_is_let_go():
    alive = []

    class Owner:
        def __init__(self):
            alive.append(self)
            alive[:] = [id(self)]

        def __del__(self):
            alive.clear()

    class Given(OnHost):
        def __init__(self, capsule):
            self.capsule = capsule

        def __dlpack__(self, **_):
            return self.__dict__.pop("capsule")

    x = np.ones(3)
    for take in (dlpack.consume, lambda capsule: np.from_dlpack(Given(capsule))):
        made = dlpack.capsule(x.ctypes.data, (dlpack.CPU, 0), "f64", (3,), Owner())
        held = take(made)
        del made
        assert alive and held.shape == (3,)
        del held
        assert not alive


# ---- large results ------------------------------------------------------------------------------------------
def test_large_results_are_written_where_they_stay(tmp_path):
    """Without a copy, for results that are read again within the step too; and on the host afterwards."""

    @pb.function(pb.f32[200, 100])
    def twice(x):
        y = pb.exp(x)
        return y, pb.sum(y, axis=0), pb.sum(pb.sum(y, axis=1) * 2.0)

    made = built(trace_functions([twice]), tmp_path / "twice.so")
    x = np.random.default_rng(0).random((200, 100), dtype=np.float32)
    with made.on() as driver:
        here, program = rt.load(made.path), rt.load(made.path, device="cuda")
        given = [program.put(x + i) for i in range(3)]
        program.twice(given[0])
        count = len(driver.calls)
        got = [program.twice(g) for g in given]
        assert copies(driver, count) == ["cuMemcpyDtoDAsync"] * 6  # the small ones
        for i, results in enumerate(got):
            for a, b in zip(results, here.twice(x + i)):
                assert np.array_equal(a, b)
        assert all(np.array_equal(a, b) for a, b in zip(program.twice(x), here.twice(x)))
        assert all(np.array_equal(a, b) for a, b in zip(got[1], here.twice(x + 1)))
