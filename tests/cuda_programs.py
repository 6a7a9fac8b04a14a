"""Programs for tests of the runtime on GPUs: artifacts for the processor and a GPU, and the double that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cuda_double import Double

import pullback as pb
import pullback_runtime as rt
from pullback import nn, optim
from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_functions
from pullback.graph.program import Program


@dataclass(frozen=True)
class Built:
    """An artifact, and the LLVM IR that its PTX was made of."""

    path: Path
    kernels: dict[str, str]

    @contextmanager
    def on(self, **how) -> Iterator[Double]:
        """Inside, NVIDIA's driver is a double that has these kernels."""
        double = Double(self.kernels, **how)
        before = double.install()
        try:
            yield double
        finally:
            double.uninstall(before)


def built(program: Program, path: Path, target: str = "cpu,cuda", gpu: str = "sm_80", **options) -> Built:
    build = Build(program, Options(target=target, gpu=gpu, **options))
    path.write_bytes(build.artifact)
    return Built(path, {build.ptx[isa]: build.llvm[isa] for isa in build.ptx})


def words(path: Path, **options) -> Built:
    """`train` looks words up, and takes the logarithm of what it is given; `predict` is padded and takes structures."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    rate = pb.hyper("rate", 0.1)
    optimizer = optim.Adam(model, lr=rate)
    batch = pb.dim("batch")

    @pb.function(pb.i32[4], pb.f32[4, 2], training=True)
    def train(word, target):
        loss = nn.mse_loss(model(word), pb.log(target))
        optimizer.minimize(loss)
        return loss

    @pb.function({"word": pb.i32[batch], "scale": pb.f32[batch, 2]})
    def predict(given):
        y = model(given["word"]) * given["scale"]
        return {"y": y, "best": (pb.argmax(y, axis=1), pb.sum(y, axis=1))}

    states = {"model": model, "optimizer": optimizer, "rate": rate}
    return built(trace_functions([train, predict], states, dims={"batch": [8, 3]}), path, **options)


def loops(path: Path) -> Built:
    """Scans over slices whose addresses are multiples of 16 (`rows`) and are not (`steps`), and one in another."""

    @pb.function(pb.f32[6, 8], pb.f32[5, 3])
    def run(rows, steps):
        def add(carry, x):
            return carry * 0.5 + x, pb.exp(carry)

        def inner(carry, x):
            carry, ys = pb.scan(add, carry + x, steps)
            return carry, ys[2]

        return pb.scan(add, pb.zeros((8,)), rows), pb.scan(inner, pb.zeros((3,)), steps, reverse=True)

    return built(trace_functions([run], {}), path)


def state_of(program: rt.Program) -> dict[str, bytes]:
    return {n: np.asarray(a).tobytes() for n, a in program.state.items()}
