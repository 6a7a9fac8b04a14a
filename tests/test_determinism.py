"""The same bits however a program is compiled and run, and a state that is as before or as after a step.

One model has it all: look-ups that are checked, a loop, dropout, a norm, clipping, a schedule, several optimizers'
worth of state.  It is trained for a few steps in every way; losses and states must be equal bit for bit.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pullback as pb
import pullback_runtime as rt
from pullback import nn, optim
from pullback_runtime import library

BATCH, LENGTH, WORDS, WIDTH, CLASSES, STEPS = 24, 5, 19, 40, 7, 6


class Model(nn.Module):
    """Embedding, a recurrent loop over the words, norm, dropout, a classifier."""

    def __init__(self):
        self.words = nn.Embedding(WORDS, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.25)
        self.out = nn.Linear(WIDTH, CLASSES)

    def __call__(self, sentence):
        def cell(h, x):
            h = pb.tanh(self.inner(h) + x)
            return h, pb.sum(h * h)

        x = pb.permute_dims(self.words(sentence), (1, 0, 2))
        h, energies = pb.scan(cell, pb.zeros((BATCH, WIDTH)), x)
        return self.out(self.dropout(nn.functional.gelu(self.norm(h)))), pb.mean(energies)


def built(threads: int = 1, **options) -> rt.Program:
    model = Model()
    optimizer = optim.AdamW(model, lr=optim.cosine(1e-2, steps=20, warmup=2))

    @pb.function(pb.i32[BATCH, LENGTH], pb.i32[BATCH], training=True)
    def train(sentence, label):
        logits, energy = model(sentence)
        loss = nn.cross_entropy(logits, label) + 1e-3 * energy
        optimizer.minimize(loss)
        return loss

    return pb.build(train, seed=3, threads=threads, cache=False, **options)


def data(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    sentence = rng.integers(0, WORDS, (BATCH, LENGTH)).astype(np.int32)
    return {"sentence": sentence, "label": (sentence.sum(axis=1) % CLASSES).astype(np.int32)}


def trained(program: rt.Program, first: int = 0, steps: int = STEPS) -> list[bytes]:
    """The losses' bits."""
    return [np.asarray(program.train(**data(k))).tobytes() for k in range(first, first + steps)]


def state_of(program: rt.Program) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in program.state.items()}


@pytest.fixture(scope="module")
def program() -> rt.Program:
    return built()


@pytest.fixture(scope="module")
def expected(program) -> tuple[list[bytes], dict[str, bytes]]:
    program.init(3)
    losses = trained(program)
    assert len(set(losses)) == STEPS and np.isfinite(np.frombuffer(b"".join(losses), np.float32)).all()
    return losses, state_of(program)


# ---- the same bits --------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_and_repetition(program, expected, threads):
    program.threads = threads
    program.init(3)
    assert (trained(program), state_of(program)) == expected


@pytest.mark.parametrize("options", [{"fusion": False}, {"recompute": False}, {"watch_nan": True}], ids=str)
def test_options(expected, options):
    p = built(2, **options)
    assert (trained(p), state_of(p)) == expected


def test_instruction_sets_with_fma(expected):
    """AVX2 and AVX-512 agree, and so does code that has to make up for the lack of fma."""
    for cpu in ("x86-64-v2", "x86-64-v3"):
        p = built(cpu=cpu)
        assert (trained(p), state_of(p)) == expected, cpu


def test_saved_and_loaded_in_the_middle(program, expected, tmp_path):
    program.init(3)
    half = STEPS // 2
    losses = trained(program, 0, half)
    program.save(tmp_path / "half.safetensors")
    program.init(99)
    program.load_state(tmp_path / "half.safetensors")
    assert (losses + trained(program, half, STEPS - half), state_of(program)) == expected


def test_another_seed_is_another_run(program, expected):
    program.init(4)
    assert trained(program) != expected[0]


# ---- before or after ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def before_and_after(program) -> tuple[dict[str, bytes], dict[str, bytes]]:
    program.threads = 2
    program.init(3)
    before = state_of(program)
    trained(program, 0, 1)
    return before, state_of(program)


def test_a_failure_at_every_launch(program, before_and_after):
    """A step that fails after n launches leaves state alone; from the commit point on it runs to its end."""
    before, after = before_and_after
    seen = []
    for n in range(200):
        program.init(3)
        program.context.inject(n)
        try:
            program.train(**data(0))
            seen.append(state_of(program) == after)
        except rt.RuntimeFailure:
            assert state_of(program) == before
            seen.append(None)
        finally:
            program.context.inject(None)
        if seen[-20:] == [True] * 20:
            break
    failed = seen.count(None)
    assert failed >= 10 and seen == [None] * failed + [True] * 20
    assert trained(program, 1, 2)  # and life goes on


class Stop:
    """Calls of the native step with a stop byte of our own."""

    def __init__(self, program: rt.Program):
        self.program, self.context = program, program.context
        self.byte = np.zeros(1, np.uint8)
        self.context.options.stop = self.byte.ctypes.data
        self.context.open(2)
        inputs, self.loss = data(0), np.empty((), np.float32)
        self.arrays = [inputs["sentence"], inputs["label"], self.loss]
        self.pointers = (ctypes.c_void_p * 3)(*(a.ctypes.data for a in self.arrays))

    def run(self) -> int:
        status = library.Status()
        lib = self.context.library
        return lib.run(self.context.address, 0, ctypes.addressof(self.pointers), ctypes.addressof(status))

    def close(self) -> None:
        self.context.options.stop = self.context.flag.address
        self.context.open(2)


@pytest.fixture
def stop(program) -> Iterator[Stop]:
    s = Stop(program)
    yield s
    s.close()


def test_a_stop_request_at_any_time(program, before_and_after, stop):
    before, after = before_and_after
    program.init(3)
    stop.byte[0] = 1
    assert stop.run() == library.STOPPED and state_of(program) == before
    stop.byte[0] = 0
    start = time.perf_counter()
    assert stop.run() == library.OK and state_of(program) == after
    step = time.perf_counter() - start
    outcomes = set()
    for k in range(60):
        stop.byte[0] = 0
        program.init(3)
        timer = threading.Timer(step * k / 40, stop.byte.__setitem__, (0, 1))
        timer.start()
        code = stop.run()
        timer.join()
        assert (code, state_of(program)) in ((library.STOPPED, before), (library.OK, after))
        outcomes.add(code)
    assert library.OK in outcomes


def test_an_index_out_of_range_leaves_state(program, before_and_after):
    before, _ = before_and_after
    program.init(3)
    wrong = data(0)
    wrong["sentence"][7, 3] = WORDS
    with pytest.raises(rt.CheckError, match=rf"test_determinism.py:\d+.*{WORDS}"):
        program.train(**wrong)
    assert state_of(program) == before


def test_watch_nan_names_the_line_and_leaves_state():
    weight = pb.nn.Linear(3, 3)
    optimizer = optim.SGD(weight, lr=0.1)

    @pb.function(pb.f32[4, 3])
    def train(x):
        y = weight(x)
        z = pb.log(x)  # the line to blame
        optimizer.minimize(pb.sum(z * y))

    line = next(k for k, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "the line to blame" in text)
    p = pb.build(train, watch_nan=True, cache=False)
    before = state_of(p)
    with pytest.raises(rt.NotFiniteError, match=rf"test_determinism.py:{line}"):
        p.train(x=-np.ones((4, 3), np.float32))
    assert state_of(p) == before
    p.train(x=np.ones((4, 3), np.float32))
    assert state_of(p) != before
