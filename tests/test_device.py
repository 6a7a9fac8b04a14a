"""On a GPU: every op and its derivatives, every layer, optimizer and example, and the runtime's promises, compared with
the processor bit for bit.

Runs where there is a GPU; `PULLBACK_DEVICE=double pytest tests/test_device.py` runs it on the double of the driver.
`benchmarks/device.py` runs it with everything else that is to be done when a GPU is at hand.
"""

from __future__ import annotations

import functools

import gpu_machine
import numpy as np
import pytest
import test_gpu_models as models
from emulated import same_bits
from op_samples import samples
from test_ops import derivative_graph, differentiated

import pullback as pb
import pullback_runtime as rt
from pullback import nn, optim
from pullback.dsl.trace import trace_functions
from pullback.graph.graph import Graph, make
from pullback.graph.program import SEED, Argument, Function, Program, State
from pullback.graph.types import TensorType, bf16, u32
from pullback.ops.leaf import Input
from pullback_runtime.arrays import numpy_dtype

MACHINE = gpu_machine.machine()
if isinstance(MACHINE, str):
    pytest.skip(MACHINE, allow_module_level=True)
pytestmark = pytest.mark.gpu
PARTS = 16


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    """What tests of the emulated GPU ask for."""
    monkeypatch.setattr(models, "follow", MACHINE.follow)
    monkeypatch.setattr(models, "gpu_build", lambda program, **options: MACHINE.build(program, **options))


def taken_over(test):
    """A test of the emulated GPU, without its condition that there is a C compiler."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        test(*args, **kwargs)

    run.pytestmark = [m for m in getattr(test, "pytestmark", []) if m.name != "skipif"]
    return run


_OF_LLVM = ("test_scans",)  # looks at the text of a module for sm_90
globals().update({n: taken_over(f) for n, f in vars(models).items() if n.startswith("test_") and n not in _OF_LLVM})


# ---- ops ----------------------------------------------------------------------------------------------------
def program_of(graphs: list[Graph]) -> Program:
    """A program with function `f<k>` for each graph."""
    functions = []
    for k, g in enumerate(graphs):
        arguments = tuple(Argument(f"x{i}", x.type) for i, x in enumerate(g.inputs))
        names = {a.name: i for i, a in enumerate(arguments)}
        functions.append(Function(f"f{k}", g, arguments, (), (), names, list(range(len(g.outputs)))))
    init = Function("init", Graph("init", (make(Input(SEED, u32, (2,))),), ()), (), (SEED,), (), {}, None)
    return Program("ops", {SEED: State(SEED, TensorType(u32, (2,)), "seed")}, (*functions, init))


def cases() -> list[tuple[str, Graph, list[np.ndarray]]]:
    """(name, graph, arrays): every sample of every op, and the derivatives of those that have one, in f32 too."""
    rng, out = np.random.default_rng(0), []
    for s in samples():
        out.append((s.name, s.graph(), list(s.arrays)))
    for s in differentiated():
        for g in derivative_graph(s):
            extra = [rng.standard_normal(x.shape) for x in g.inputs[len(s.arrays) :]]
            out.append((f"{g.name} of {s.name}", g, [*s.arrays, *extra]))
    return out


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("fusion", [True, False])
def test_ops(part, fusion):
    chosen = cases()[part::PARTS]
    program = MACHINE.build(program_of([g for _, g, _ in chosen]), fusion=fusion)
    here, there = MACHINE.load(program, device="cpu"), MACHINE.load(program)
    wrong = []
    for k, (name, _, arrays) in enumerate(chosen):
        for a, b in zip(gpu_machine.run(there, f"f{k}", arrays), gpu_machine.run(here, f"f{k}", arrays), strict=True):
            if not same_bits(a, b):
                wrong.append(f"{name}: {gpu_machine.distance(a, b)}")
    assert not wrong, "\n".join(wrong)


# ---- matrix products ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision, tolerance", [("f32", 1e-6), ("tf32", 1e-3), ("bf16", 8e-3)])
@pytest.mark.parametrize("shape", ["128x128x128", "97x131x75", "256x64x320", "33x8x40"])
def test_products(precision, tolerance, shape):
    """Both operands either way round, with what is fused before and behind."""
    m, n, k = (int(s) // (1 if MACHINE.double is None else 4) for s in shape.split("x"))
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)

    @pb.function(pb.f32[m, k], pb.f32[k, n])
    def products(a, b):
        return a @ b, nn.relu(a) @ b + 1.0, pb.matmul(a.T.T, b), pb.matmul(b.T, a.T)

    program = MACHINE.load(MACHINE.build(trace_functions([products]), precision=precision))
    exact = a.astype(np.float64) @ b
    wanted = exact, np.maximum(a, 0).astype(np.float64) @ b + 1, exact, exact.T
    for got, want in zip(program.products(a, b), wanted, strict=True):
        assert np.abs(got - want).max() < tolerance * k**0.5 * 4


def test_products_of_bf16_arrays():
    @pb.function(pb.bf16[64, 48], pb.bf16[48, 32])
    def product(a, b):
        return a @ b

    r, half = np.random.default_rng(2), numpy_dtype("bf16")
    a, b = r.standard_normal((64, 48)).astype(half), r.standard_normal((48, 32)).astype(half)
    got = MACHINE.load(MACHINE.build(trace_functions([product]))).product(a, b)
    assert got.dtype == half and np.abs(np.float32(got) - np.float32(a) @ np.float32(b)).max() < 0.1
    assert bf16.size == 2


# ---- the runtime --------------------------------------------------------------------------------------------
def words():
    model = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 16), nn.Dropout(0.1))
    optimizer = optim.AdamW(model, lr=0.01)

    @pb.function(pb.i32[32], pb.f32[32, 16], training=True)
    def train(word, target):
        loss = nn.mse_loss(model(word), target)
        optimizer.minimize(loss)
        return loss

    return trace_functions([train], {"model": model, "optimizer": optimizer})


WORD = np.random.default_rng(0).integers(0, 50, 32).astype(np.int32)
TARGET = np.random.default_rng(1).standard_normal((32, 16)).astype(np.float32)


def state(program: rt.Program) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in program.state.items()}


def test_two_runs_give_the_same_bits():
    build = MACHINE.build(words())
    runs = [MACHINE.load(build, seed=5) for _ in range(2)]
    for p in runs:
        for _ in range(50):
            p.train(WORD, TARGET)
    assert state(runs[0]) == state(runs[1])


def test_failed_checks_and_queued_steps():
    build = MACHINE.build(words())
    here, there = MACHINE.load(build, device="cpu"), MACHINE.load(build)
    before, messages = state(there), []
    for p in (here, there):
        with pytest.raises(rt.CheckError) as e:
            p.train(WORD + 49, TARGET)
        messages.append(re_value(str(e.value)))
    assert messages[0] == messages[1] and state(there) == before
    inputs = [(there.put(w), there.put(TARGET)) for w in (WORD, WORD - 60, WORD, WORD)]
    with pytest.raises(rt.CheckError, match="out of range"):
        for pair in inputs:  # whichever call notices it first
            there.train(*pair)
        there.synchronize()
    here.train(WORD, TARGET)
    assert state(here) == state(there)
    assert here.train(WORD, TARGET) == float(there.train(*inputs[0]))


def re_value(message: str) -> str:
    """Of several wrong indices, whichever came first is named."""
    return message.split(": ")[-3] + message[message.index("is out of range") :]


def test_arrays_of_torch():
    torch = pytest.importorskip("torch")
    if MACHINE.double is not None or not torch.cuda.is_available():
        pytest.skip("torch has no GPU here")
    build = MACHINE.build(words())
    here, there = MACHINE.load(build, device="cpu"), MACHINE.load(build, arrays="device")
    for i in range(20):
        target = torch.from_numpy(TARGET).cuda() * i
        loss = there.train(torch.from_numpy(WORD).cuda(), target)
        assert torch.from_dlpack(loss).item() == here.train(WORD, target.cpu().numpy())
    assert state(here) == state(there)
