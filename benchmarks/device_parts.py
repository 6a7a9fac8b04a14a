"""One part of `device.py`, which starts it in a process of its own: a line of JSON for each figure once it is there.

A row has `what`, figures, and where there is one a `goal` for `ratio`.  In a dry run everything is done at tiny sizes
on the double of the driver (`tests/cuda_double.py`), so times mean nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import gpu_machine
import numpy as np
import workloads

import pullback as pb
import pullback_runtime as rt
from pullback import nn, optim
from pullback.dsl.trace import parse_dims, trace_functions, trace_script
from pullback_runtime.arrays import numpy_dtype
from pullback_runtime.cuda_graph import locate

ROOT = Path(__file__).parents[1]
DRY = os.environ.get("PULLBACK_DEVICE") == "double"
TORCH = importlib.util.find_spec("torch") is not None
RNG = np.random.default_rng(0)


def row(what: str, **figures) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def machine() -> gpu_machine.Machine:
    found = gpu_machine.machine()
    if isinstance(found, str):
        sys.exit(found)
    return found


def seconds(contestants: dict[str, tuple[Callable[[], object], Callable[[], object]]]) -> dict[str, float]:
    """name -> (what is queued, what waits): seconds of one, the median of rounds in which all take turns."""
    budget, rounds = (0.0, 1) if DRY else (0.2, 7)
    counts = {}
    for name, (run, wait) in contestants.items():
        for _ in range(1 if DRY else 3):
            run()
        wait()
        start = time.perf_counter()
        run()
        wait()
        counts[name] = max(1, min(int(budget / (time.perf_counter() - start)), 2000))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (run, wait) in contestants.items():
            wait()
            start = time.perf_counter()
            for _ in range(counts[name]):
                run()
            wait()
            times[name].append((time.perf_counter() - start) / counts[name])
    return {name: median(t) for name, t in times.items()}


def step_of(program: rt.Program, name: str, *inputs: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """The graph of a step alone, on arrays that are on the device."""
    binding = program.functions[name].bindings[0]
    gpu_machine.run(program, name, [program.put(x) for x in inputs])

    def run() -> None:
        with program.context.use() as c:
            c.run(binding.number)

    return run, program.synchronize


def torch_gpu():
    """PyTorch and the device to use; None without it."""
    if not TORCH:
        return None, None
    import torch

    if not DRY and not torch.cuda.is_available():
        return None, None
    return torch, "cpu" if DRY else "cuda"


def torch_wait(torch) -> Callable[[], None]:
    return (lambda: None) if DRY else torch.cuda.synchronize


# ---- matrix products ----------------------------------------------------------------------------------------
def products() -> None:
    """Cubes beside cuBLAS (through PyTorch), and 1 % of the result against it."""
    m, (torch, where) = machine(), torch_gpu()
    goals = {"bf16": 0.75, "tf32": 0.7, "f32": None}
    for n in (32,) if DRY else (4096, 8192):
        for kind, goal in goals.items():
            for form in ("NN", "NT"):
                try_product(m, torch, where, n, kind, form, goal)


def try_product(m, torch, where: str, n: int, kind: str, form: str, goal: float | None) -> None:
    dtype = pb.bf16 if kind == "bf16" else pb.f32

    @pb.function(dtype[n, n], dtype[n, n])
    def product(a, b):
        return a @ (b.T if form == "NT" else b)

    start = time.perf_counter()
    build = m.build(trace_functions([product]), target="cuda", precision="tf32" if kind == "tf32" else "f32")
    program = m.load(build)
    load_s = time.perf_counter() - start
    a, b = (RNG.standard_normal((n, n), np.float32).astype(numpy_dtype(dtype.name)) for _ in range(2))
    contestants = {"ours": step_of(program, "product", a, b)}
    if torch is not None:
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        half = torch.bfloat16 if kind == "bf16" else torch.float32
        x, y = (torch.from_numpy(v.astype(np.float32)).to(where, half) for v in (a, b))
        y = y.T if form == "NT" else y
        out = torch.empty(n, n, dtype=half, device=where)
        contestants["torch"] = (lambda: torch.mm(x, y, out=out)), torch_wait(torch)
    found = seconds(contestants)
    rate = {name: 2e-12 * n**3 / t for name, t in found.items()}
    figures = {f"{name}_tflops": r for name, r in rate.items()}
    if "torch" in rate:
        figures |= {"ratio": rate["ours"] / rate["torch"], "goal": goal}
        want = out.float().cpu().numpy()
        got = gpu_machine.run(program, "product", [a, b])[0].astype(np.float32)
        figures["error"] = float(np.abs(got - want).max() / np.abs(want).max())
    row(f"product {n} {kind} {form}", **figures, build_and_load_s=load_s)
    program.close()


# ---- kernels that memory bounds -------------------------------------------------------------------------------
def memory() -> None:
    """Fused kernels as a share of what a copy within the device moves in a second."""
    m = machine()
    rows, width, parameters = (8, 64, 512) if DRY else (32768, 2048, 64 << 20)
    copied = 4096 if DRY else 1 << 30

    @pb.function(pb.f32[rows, width])
    def layer_norm(x):
        return nn.layer_norm(x, (width,))

    @pb.function(pb.f32[rows, width])
    def softmax(x):
        return pb.softmax(x, axis=-1)

    weights = Weights(parameters)
    adamw = optim.AdamW(weights, lr=1e-3)

    @pb.function(pb.f32[parameters], training=True)
    def update(gradient):
        adamw.minimize(pb.sum(weights.w * gradient))

    program = m.load(m.build(trace_functions([layer_norm, softmax, update], {"m": weights, "o": adamw}), target="cuda"))
    x, g = RNG.standard_normal((rows, width), np.float32), RNG.standard_normal(parameters, np.float32)
    blocks = [program.put(np.zeros(copied, np.uint8)) for _ in range(2)]

    def copy() -> None:
        with program.context.use() as c:
            c.copy(blocks[0].address, blocks[1].address, copied)

    cases = {
        "copy": ((copy, program.synchronize), 2 * copied),
        "layer norm": (step_of(program, "layer_norm", x), 2 * x.nbytes),
        "softmax": (step_of(program, "softmax", x), 2 * x.nbytes),
        "AdamW": (step_of(program, "update", g), 28 * parameters),
    }
    found = seconds({name: how for name, (how, _) in cases.items()})
    rate = {name: 1e-9 * moved / found[name] for name, (_, moved) in cases.items()}
    row("copy", gb_s=rate.pop("copy"))
    limit = 2e-9 * copied / found["copy"]
    for name, r in rate.items():
        row(name, gb_s=r, ratio=r / limit, goal=0.85)


class Weights(nn.Module):
    def __init__(self, n: int):
        self.w = nn.Parameter(pb.zeros((n,)))


# ---- training steps -------------------------------------------------------------------------------------------
TINY_MLP = {"batch": 64, "dims": (784, 64, 64, 16)}
TINY_MLPDEEP = {"batch": 64, "width": 64, "layers": 1}


def steps() -> None:
    """`mlp` and `mlpdeep` beside PyTorch: compiled with CUDA graphs, and compiled in one CUDA graph by hand."""
    if DRY:
        workloads.MLP, workloads.MLPDEEP = TINY_MLP, TINY_MLPDEEP
    m = machine()
    for name in workloads.WORKLOADS:
        x, y = workloads.data(name)
        contestants, losses = {}, {}
        for precision in ("f32", "tf32", "bf16"):
            program = m.load(
                m.build(trace_script(ROOT / "benchmarks" / f"pullback_{name}.py", [], {}), precision=precision)
            )
            losses[f"ours {precision}"] = [float(program.train(x, y)) for _ in range(1 if DRY else 20)][-1]
            contestants[f"ours {precision}"] = step_of(program, "train", x, y)
            if precision == "f32":
                on_device = program.put(x), program.put(y)
                contestants["ours f32, calls"] = partial(program.train, *on_device), program.synchronize
                contestants["ours f32, numpy"] = partial(program.train, x, y), program.synchronize
        for way in ("eager", "max-autotune", "one graph"):
            for tf32 in (False, True):
                try:
                    found = torch_step(name, x, y, way, tf32)
                except (RuntimeError, ImportError) as e:
                    row(f"{name}, torch {way}", error_text=f"{type(e).__name__}: {e}"[:300])
                    continue
                if found:
                    contestants[f"torch {way} {'tf32' if tf32 else 'f32'}"] = found
        times = seconds(contestants)
        for kind in ("f32", "tf32"):
            peers = [t for n, t in times.items() if n.startswith("torch") and n.endswith(f" {kind}")]
            if peers:
                ratio = min(peers) / times[f"ours {kind}"]
                row(f"{name} {kind}, best peer's time / ours", ratio=ratio, goal=1.0)
        for who, t in times.items():
            row(f"{name}, {who}", microseconds=1e6 * t, **({"loss": losses[who]} if who in losses else {}))


def torch_step(name: str, x: np.ndarray, y: np.ndarray, way: str, tf32: bool):
    """(what is queued, what waits) of a training step in PyTorch."""
    torch, where = torch_gpu()
    if torch is None or (DRY and way != "eager"):
        return None
    from torch import nn as tnn
    from torch.nn import functional as F

    torch.manual_seed(0)
    if name == "mlp":
        sizes = workloads.MLP["dims"]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (tnn.Linear(a, b), tnn.ReLU())][:-1]
    else:
        width = workloads.MLPDEEP["width"]

        class Residual(tnn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.linear = tnn.LayerNorm(width), tnn.Linear(width, width)

            def forward(self, x):
                return x + F.gelu(self.linear(self.norm(x)), approximate="tanh")

        layers = [Residual() for _ in range(workloads.MLPDEEP["layers"])]
    model = tnn.Sequential(*layers).to(where)
    gpu = where == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=gpu)
    given, labels = torch.from_numpy(x).to(where), torch.from_numpy(y).long().to(where)

    def loss_of(x, y):
        return F.cross_entropy(model(x), y)

    modes = {"max-autotune": "max-autotune", "one graph": "max-autotune-no-cudagraphs"}
    forward = torch.compile(loss_of, mode=modes[way]) if way in modes else loss_of

    def step() -> None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        optimizer.zero_grad(set_to_none=True)
        forward(given, labels).backward()
        optimizer.step()

    if way != "one graph":
        return step, torch_wait(torch)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay, torch_wait(torch)


# ---- where the time of a step goes --------------------------------------------------------------------------
def profile() -> None:
    """The calls of a training step that take longest, each launched alone, many times in a row."""
    if DRY:
        workloads.MLP, workloads.MLPDEEP = TINY_MLP, TINY_MLPDEEP
    m, many, rounds = machine(), 2 if DRY else 200, 1 if DRY else 4
    for name, precision in itertools.product(workloads.WORKLOADS[: 1 if DRY else None], ("f32", "bf16")):
        script = ROOT / "benchmarks" / f"pullback_{name}.py"
        program = m.load(m.build(trace_script(script, [], {}), precision=precision))
        program.train(*workloads.data(name))
        found, number = [], program.functions["train"].bindings[0].number
        with program.context.use() as c:
            graph = c.graph(number)
            for k, (node, _) in enumerate(graph.launches):
                alone, times = graph.repeated(k, many), []
                for _ in range(rounds):
                    c.driver("cuStreamSynchronize", c.stream)
                    start = time.perf_counter()
                    c.driver("cuGraphLaunch", alone, c.stream)
                    c.driver("cuStreamSynchronize", c.stream)
                    times.append((time.perf_counter() - start) / many)
                c.driver("cuGraphExecDestroy", alone)
                found.append((median(times), node))
        row(f"{name} {precision}, all {len(found)} calls", microseconds=1e6 * sum(t for t, _ in found))
        for t, node in sorted(found, key=lambda x: -x[0])[:12]:
            kernel = program.gpu.kernels[node.kernel]
            call = program.gpu.call(*locate(program.gpu, node.call & 0xFFFFFFFF))
            what = f"{name} {precision}, {call.label}{' (gradient)' if call.gradient else ''}"
            place = f"{Path(call.file).name}:{call.line}"
            shape = {"blocks": node.blocks, "threads": kernel.threads, "shared": kernel.shared}
            row(what, microseconds=1e6 * t, **shape, line=place, kernel=kernel.symbol)


# ---- training to the end --------------------------------------------------------------------------------------
def digits() -> None:
    """Accuracy and bits of the digits example, on the processor and twice on the device."""
    if importlib.util.find_spec("sklearn") is None:
        sys.exit("scikit-learn is not installed, so there are no digits")
    from train_digits import load_data

    m = machine()
    (images, labels), (test_images, test_labels) = load_data()
    batch, epochs = (16, 1) if DRY else (64, 40)
    if DRY:
        images, labels, test_images, test_labels = images[:48], labels[:48], test_images[:20], test_labels[:20]
    build = m.build(trace_script(ROOT / "examples" / "digits.py", dims=parse_dims([f"batch={batch}"])))
    state = {}
    for where in ("cpu", "cuda", "cuda, again"):
        program, rng, start = m.load(build, device=where[:4].strip(",")), np.random.default_rng(1), time.perf_counter()
        for _ in range(epochs):
            order = rng.permutation(len(labels))
            for i in range(0, len(order) - batch + 1, batch):
                rows = order[i : i + batch]
                program.train(images[rows], labels[rows])
        took = time.perf_counter() - start
        guesses = np.concatenate(
            [program.predict(test_images[i : i + batch]) for i in range(0, len(test_labels), batch)]
        )
        bits = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in program.state.values())).hexdigest()
        state[where] = bits
        row(f"digits, {where}", accuracy=float(np.mean(guesses == test_labels)), seconds=took, state=bits[:16])
    row("digits, the same bits twice on the device", ratio=float(state["cuda"] == state["cuda, again"]), goal=1.0)
    row("digits, the processor's bits on the device", ratio=float(state["cpu"] == state["cuda"]), goal=1.0)


PARTS = {"products": products, "memory": memory, "steps": steps, "profile": profile, "digits": digits}

if __name__ == "__main__":
    PARTS[sys.argv[1]]()
