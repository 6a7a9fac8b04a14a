"""One system on one workload in a process of its own.

    python worker.py SYSTEM WORKLOAD THREADS FOLDER      (SYSTEM: such as jax, pullback or pullback-bf16)

Prints one JSON line when it is ready (compile time, loss), then answers every line `N` on standard input with the
times of N training steps.  The caller alternates among the workers, so that all see the same machine.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import workloads
from idle import wait_until_idle

Step = Callable[[], float]


def pullback_step(name: str, threads: int, precision: str = "f32") -> tuple[Step, dict]:
    import pullback as pb
    import pullback_runtime as rt
    from pullback import driver
    from pullback.dsl.trace import trace_script

    here = Path(__file__).parent
    sys.path.insert(0, str(here))
    times = {}
    for attempt in ("warm-up", "build"):  # the first build in a process also imports and starts LLVM
        start = time.perf_counter()
        program = trace_script(here / f"pullback_{name}.py", [], {})
        artifact = driver.Build(program, pb.Options(cache=False, precision=precision)).artifact
        path = Path(sys.argv[4]) / f"{name}-{precision}.so"
        driver.write(path, artifact)
        times[attempt] = time.perf_counter() - start
    loaded = rt.load(path, seed=0, threads=threads)
    x, y = workloads.data(name)
    return lambda: float(loaded.train(x=x, y=y)), {"compile_s": times["build"]}


def torch_step(name: str, threads: int, compiled: bool) -> tuple[Step, dict]:
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    if name == "mlp":
        d = workloads.MLP["dims"]
        model = nn.Sequential(nn.Linear(d[0], d[1]), nn.ReLU(), nn.Linear(d[1], d[2]), nn.ReLU(), nn.Linear(d[2], d[3]))
    else:
        w = workloads.MLPDEEP["width"]

        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.linear = nn.LayerNorm(w), nn.Linear(w, w)

            def forward(self, x):
                return x + F.gelu(self.linear(self.norm(x)), approximate="tanh")

        model = nn.Sequential(*[Residual() for _ in range(workloads.MLPDEEP["layers"])])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    x, y = (torch.from_numpy(a) for a in workloads.data(name))
    y = y.long()

    def loss_of(x, y):
        return F.cross_entropy(model(x), y)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, y)
        loss.backward()
        optimizer.step()
        return loss.item()

    start = time.perf_counter()
    step()
    return step, {"compile_s": time.perf_counter() - start}


def jax_step(name: str, threads: int) -> tuple[Step, dict]:
    import jax
    import jax.numpy as jnp

    rng = np_rng()
    params = {}
    if name == "mlp":
        d = workloads.MLP["dims"]
        for i, (a, b) in enumerate(itertools.pairwise(d)):
            params[f"w{i}"] = jnp.asarray(rng.standard_normal((a, b), dtype="f4") / a**0.5)
            params[f"b{i}"] = jnp.zeros(b)

        def model(p, x):
            for i in range(len(d) - 1):
                x = x @ p[f"w{i}"] + p[f"b{i}"]
                x = jax.nn.relu(x) if i < len(d) - 2 else x
            return x
    else:
        w, layers = workloads.MLPDEEP["width"], workloads.MLPDEEP["layers"]
        for i in range(layers):
            params[f"g{i}"], params[f"b{i}"] = jnp.ones(w), jnp.zeros(w)
            params[f"w{i}"] = jnp.asarray(rng.standard_normal((w, w), dtype="f4") / w**0.5)
            params[f"c{i}"] = jnp.zeros(w)

        def norm(x, g, b):
            m = x.mean(-1, keepdims=True)
            v = ((x - m) ** 2).mean(-1, keepdims=True)
            return (x - m) * jax.lax.rsqrt(v + 1e-5) * g + b

        def model(p, x):
            for i in range(layers):
                x = x + jax.nn.gelu(norm(x, p[f"g{i}"], p[f"b{i}"]) @ p[f"w{i}"] + p[f"c{i}"])
            return x

    def loss_of(p, x, y):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(model(p, x)), y[:, None], -1))

    tree = jax.tree_util.tree_map

    def update(p, slots, x, y):
        m, v, t = slots
        loss, g = jax.value_and_grad(loss_of)(p, x, y)
        t = t + 1
        m = tree(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        a = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        p = tree(lambda p, m, v: p - a * m / (jnp.sqrt(v) + 1e-8), p, m, v)
        return p, (m, v, t), loss

    jitted = jax.jit(update, donate_argnums=(0, 1))
    x, y = (jnp.asarray(a) for a in workloads.data(name))
    held = [params, (tree(jnp.zeros_like, params), tree(jnp.zeros_like, params), jnp.zeros((), jnp.int32))]

    def step() -> float:
        held[0], held[1], loss = jitted(held[0], held[1], x, y)
        return float(loss)

    jax.jit(lambda x: x + 1)(x).block_until_ready()  # the backend starts outside of the measured compilation
    start = time.perf_counter()
    step()
    return step, {"compile_s": time.perf_counter() - start}


def np_rng():
    import numpy as np

    return np.random.default_rng(0)


def main() -> None:
    (system, _, precision), name, threads = sys.argv[1].partition("-"), sys.argv[2], int(sys.argv[3])
    make = {
        "pullback": lambda: pullback_step(name, threads, precision or "f32"),
        "torch": lambda: torch_step(name, threads, compiled=False),
        "inductor": lambda: torch_step(name, threads, compiled=True),
        "jax": lambda: jax_step(name, threads),
    }[system]
    step, info = make()
    for _ in range(3):
        loss = step()
    print(json.dumps({**info, "loss": loss}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            loss = step()
            times.append(time.perf_counter() - start)
        wait_until_idle()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"times": times, "loss": loss, "rss_mb": rss}), flush=True)


if __name__ == "__main__":
    main()
