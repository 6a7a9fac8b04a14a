"""The machine that the device suite (`test_device.py`) runs on: a GPU, or the double if PULLBACK_DEVICE=double."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from cuda_double import Double
from emulated import Calls, same_bits

import pullback_runtime as rt
from pullback.codegen.ptx import gpu_target
from pullback.config import Options
from pullback.driver import Build
from pullback.errors import BuildError
from pullback.graph.program import Program
from pullback_runtime.cuda_driver import Device
from pullback_runtime.errors import DeviceError


class Machine:
    """`gpu`: the architecture to compile for, the most special one that the compiler knows and the device has."""

    def __init__(self, double: Double | None = None):
        self.double = double
        if double is not None:
            double.install()
        self.device = Device(0)
        major, minor = self.device.capability
        for name in (f"sm_{major}{minor}a", f"sm_{major}{minor}", "sm_80"):
            with suppress(BuildError):
                self.gpu = gpu_target(name).isa
                break

    def build(self, program: Program, **options) -> Build:
        return Build(program, Options(**{"target": "cpu,cuda", "gpu": self.gpu, "cache": False, **options}))

    def load(self, build: Build, **how) -> rt.Program:
        """The program on the device, or where `how` says."""
        if self.double is not None:
            self.double.kernels |= {build.ptx[isa]: build.llvm[isa] for isa in build.ptx}
        with tempfile.TemporaryDirectory(prefix="pullback-") as folder:
            path = Path(folder) / f"{build.traced.name}.so"
            path.write_bytes(build.artifact)
            return rt.load(path, **{"device": "cuda", **how})

    def follow(self, build: Build, calls: Calls, orders: Sequence[str] = ()) -> list[list[np.ndarray]]:
        """Calls on the device and on the processor: results and every state agree, bit for bit."""
        here, there = self.load(build, device="cpu"), self.load(build)
        self.same_state(here, there, "initial state")
        wanted = []
        for name, arrays in calls:
            wanted.append(run(here, name, arrays))
            for k, (a, b) in enumerate(zip(run(there, name, arrays), wanted[-1], strict=True)):
                assert same_bits(a, b), f"{name}, result {k}: {distance(a, b)}"
            self.same_state(here, there, f"state after {name}")
        there.close()
        return wanted

    @staticmethod
    def same_state(here: rt.Program, there: rt.Program, when: str) -> None:
        for name, a in here.state.items():
            b = there.state[name]
            assert same_bits(b, a), f"{when}, {name}: {distance(b, a)}"


def run(program: rt.Program, name: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results of a call in order, whatever structure they are in."""
    bindings = program.functions[name].bindings
    b = next(b for b in bindings if b.shapes == [np.shape(x) for x in arrays])
    b.build = list
    arguments = b.entry.arguments
    return b.run([b.convert(b.array(x, name), a, name) for x, a in zip(arrays, arguments, strict=True)])


def distance(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{a.shape} is not {b.dtype}{b.shape}"
    x, y = (np.asarray(v, np.float64) for v in (a, b))
    different = (x != y) & ~((x != x) & (y != y))
    with np.errstate(all="ignore"):
        relative = np.nanmax(np.abs(x - y)[different] / np.abs(y)[different], initial=0.0)
    return f"{int(different.sum())} of {x.size} elements differ, by {relative:.2g} of their value at most"


def machine() -> Machine | str:
    """What there is, or why there is none."""
    if os.environ.get("PULLBACK_DEVICE") == "double":
        return Machine(Double({}, check=False))
    try:
        return Machine()
    except DeviceError as e:
        return str(e)
