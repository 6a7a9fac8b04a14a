"""Loading an artifact and running it: `load`, `inspect`, `Program`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import library
from .errors import ArtifactError
from .format import Function as Entry
from .format import Manifest, check_machine, read_manifest
from .function import Binding, Function, HostBinding
from .state import State, load_state, save_state

MOST_THREADS = 256

INIT = "init"
"""The name of the function that sets a program's initial state."""


def inspect(path: str | os.PathLike) -> Manifest:
    """The manifest of an artifact: functions, state, sizes, options.  Does not load the code."""
    return read_manifest(path)


def load(
    path: str | os.PathLike,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    arrays: str | None = None,
) -> Program:
    """Load an artifact, with fresh state initialised from `seed`.

    threads: how many work on a step; None: one for each processor that this process may use.
    device: "cpu", or "cuda" or "cuda:1" for an NVIDIA GPU; there, arrays="device" asks for inputs that lie on the
    GPU already, and results stay there (`pullback_runtime.cuda`).
    ArtifactError if the file is none, is damaged, or was built for another machine; DeviceError says what a GPU lacks.
    """
    kind, colon, number = device.partition(":")
    if kind == "cuda" and number.isdecimal() == bool(colon):
        if threads is not None:
            raise ValueError(f"threads={threads!r} is for device='cpu', but the device is {device!r}")
        from .cuda import CudaProgram

        return CudaProgram(path, seed, int(number or 0), arrays)
    if device != "cpu":
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if arrays is not None:
        raise ValueError(f"arrays={arrays!r} is for device='cuda', but the device is 'cpu'")
    return Program(path, seed, threads)


class Program:
    """A loaded artifact: its functions as attributes, its state, one step at a time.

    Several programs may run in several threads; calls of one program wait for each other.
    """

    device = "cpu"

    def __init__(self, path: str | os.PathLike, seed: int = 0, threads: int | None = None):
        self._read(path)
        check_machine(self.manifest, self.path)
        if not self.manifest.levels:
            gpus = ", ".join(g.name for g in self.manifest.gpus)
            how = "load it with device='cuda', or build it with --target cpu,cuda"
            raise ArtifactError(f"{self.path}: holds code for {f'GPUs only ({gpus}): {how}' if gpus else 'no machine'}")
        self._threads = check_threads(threads)
        self.context = library.Context(library.Library(self.path, self.manifest), self._threads)
        self._start(State(self.manifest, self.context.state), seed)

    def _read(self, path: str | os.PathLike) -> None:
        self.path: str | None = os.fspath(path)
        """Where the artifact is; None if it was built in memory (`pb.build`)."""
        self.manifest = read_manifest(path)

    def _start(self, state: State, seed: int) -> None:
        self.state = state
        bindings: dict[str, list[Binding]] = {}
        for i, f in enumerate(self.manifest.functions):
            if f.name != INIT:
                bindings.setdefault(f.name, []).append(self._binding(i, f))
        self.functions = {name: Function(name, b) for name, b in bindings.items()}
        for name, f in self.functions.items():
            if not hasattr(type(self), name):
                setattr(self, name, f)
        self.init(seed)

    def _binding(self, number: int, entry: Entry) -> Binding:
        return HostBinding(self.context, self.manifest, number, entry)

    def __getattr__(self, name: str):
        if name.startswith("_") or "functions" not in self.__dict__:
            raise AttributeError(name)
        known = ", ".join(self.functions) or "none"
        raise AttributeError(f"{self.path or self.manifest.name} has no function {name!r}; its functions are {known}")

    # ---- state -----------------------------------------------------------------------------------------
    def init(self, seed: int = 0) -> None:
        """Set all state to its initial values, drawn from `seed` (0 <= seed < 2**64)."""
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
        with self.context.lock:
            self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        status = library.Status()
        code = self.context.library.init(self.context.address, seed, ctypes.addressof(status))
        if code:
            raise ArtifactError(f"{self.path or self.manifest.name}: initialisation failed (status {code})")

    def save(
        self,
        path: str | os.PathLike,
        kinds: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        """Write the state as a safetensors file, atomically.

        kinds: which kinds of state (parameter, buffer, slot, hyper, counter, seed); None: all, so that training
        resumes exactly; ("parameter", "buffer") is what other libraries call a state dict.
        metadata: texts to keep beside the arrays (`state.read_metadata`).
        prefix: only what is under it, and without it in the file: "model." writes the script's `model` under the
        names of its own state dict, which torch reads.  A tied weight is written once, by its first name.
        """
        with self.context.lock:
            save_state(self.state, Path(path), kinds, prefix, metadata)

    def load_state(self, path: str | os.PathLike, prefix: str = "", strict: bool = True) -> list[str]:
        """Read a safetensors file into the state; returns the names that were set.

        prefix: put before the file's names ("model." reads a torch state dict of what the script calls `model`).
        strict: every name of the file must be a state, and every parameter and buffer under the prefix in the
        file.  StateError says what does not fit, and then nothing has changed.
        """
        with self.context.lock:
            return load_state(self.state, Path(path), prefix, strict)

    @property
    def fingerprint(self) -> str:
        """A hash of what the program is to its callers: functions and state, not how they were compiled."""
        return self.manifest.fingerprint

    # ---- threads ---------------------------------------------------------------------------------------
    @property
    def threads(self) -> int:
        """How many threads work on a step.  Results do not depend on it, bit for bit."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        count = check_threads(count)
        with self.context.lock:
            self.context.open(count)
            self._threads = count

    def close(self) -> None:
        """Stop the worker threads.  They start again with the next `threads = ...`; the state stays readable."""
        with self.context.lock:
            self.context.close()

    def __reduce__(self):
        how = f"load {self.path!r}" if self.path else 'give pb.build output="FILE.so", load that'
        raise TypeError(
            f"a loaded program cannot be pickled: {how} in the other process, and pass state with save and load_state"
        )

    def __repr__(self) -> str:
        source = f" from {self.path}" if self.path else ""
        return f"<program {self.manifest.name}{source}: {', '.join(self.functions)}>"


def check_threads(count: int | None) -> int:
    if count is None:
        return default_threads()
    if not isinstance(count, int) or not 1 <= count <= MOST_THREADS:
        raise ValueError(f"threads must be an integer from 1 to {MOST_THREADS}, got {count!r}")
    return count


def default_threads() -> int:
    """The processors that this process may use: its affinity, and the quota of its container (cgroup 2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup, or another form of it: the affinity stands
    return min(count, MOST_THREADS)
