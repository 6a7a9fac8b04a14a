"""Loading an artifact and running it: `load`, `inspect`, `Program`."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from . import library
from .errors import ArtifactError
from .format import Manifest, check_machine, read_manifest
from .function import Function
from .interrupt import Flag
from .state import State, load_state, save_state

INIT = "init"
"""The name of the function that sets a program's initial state."""


def inspect(path: str | os.PathLike) -> Manifest:
    """The manifest of an artifact: functions, state, sizes, options.  Does not load the code."""
    return read_manifest(path)


def load(path: str | os.PathLike, seed: int = 0, threads: int | None = None) -> Program:
    """Load an artifact, with fresh state initialised from `seed`.

    threads: how many work on a step; None: one for each processor that this process may use.
    ArtifactError if the file is none, is damaged, or was built for another machine.
    """
    return Program(path, seed, threads)


class Program:
    """A loaded artifact: its functions as attributes, its state, one step at a time.

    Several programs may run in several threads; calls of one program wait for each other.
    """

    def __init__(self, path: str | os.PathLike, seed: int = 0, threads: int | None = None):
        self.path = os.fspath(path)
        self.manifest = read_manifest(path)
        check_machine(self.manifest, self.path)
        if not self.manifest.levels:
            raise ArtifactError(f"{self.path}: holds code for no processor")
        self._library = library.Library(self.path, self.manifest)
        self.call = self._library.call
        self.flag = Flag()
        self.lock = threading.Lock()
        self._threads = check_threads(threads)
        self.context = library.Context(self._library, self._threads, self.flag.address)
        self.level = self.manifest.levels[self._library.level()]
        self.state = State(self.manifest, self.context.state)
        self.functions = self._functions()
        for name, f in self.functions.items():
            if not hasattr(type(self), name):
                setattr(self, name, f)
        _free_lock_after_fork(self)
        self.init(seed)

    def _functions(self) -> dict[str, Function]:
        entries: dict[str, list] = {}
        for i, f in enumerate(self.manifest.functions):
            if f.name != INIT:
                entries.setdefault(f.name, []).append((i, f))
        return {name: Function(self, name, e) for name, e in entries.items()}

    def __getattr__(self, name: str):
        if name.startswith("_") or "functions" not in self.__dict__:
            raise AttributeError(name)
        known = ", ".join(self.functions) or "none"
        raise AttributeError(f"{self.path} has no function {name!r}; its functions are {known}")

    # ---- state -----------------------------------------------------------------------------------------
    def init(self, seed: int = 0) -> None:
        """Set all state to its initial values, drawn from `seed` (0 <= seed < 2**64)."""
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
        status = library.Status()
        with self.lock:
            code = self._library.init(self.context.address, seed, ctypes.addressof(status))
        if code:
            raise ArtifactError(f"{self.path}: initialisation failed (status {code})")

    def save(self, path: str | os.PathLike, kinds: Sequence[str] | None = None) -> None:
        """Write the state as a safetensors file, atomically.

        kinds: which kinds of state (parameter, buffer, slot, hyper, counter, seed); None: all, so that training
        resumes exactly; ("parameter", "buffer") is what other libraries call a state dict.
        """
        with self.lock:
            save_state(self.state, Path(path), kinds)

    def load_state(self, path: str | os.PathLike, prefix: str = "", strict: bool = True) -> list[str]:
        """Read a safetensors file into the state; returns the names that were set.

        prefix: put before the file's names ("model." reads a torch state dict of what the script calls `model`).
        strict: every name of the file must be a state, and every parameter and buffer under the prefix in the
        file.  StateError says what does not fit, and then nothing has changed.
        """
        with self.lock:
            return load_state(self.state, Path(path), prefix, strict)

    # ---- threads ---------------------------------------------------------------------------------------
    @property
    def threads(self) -> int:
        """How many threads work on a step.  Results do not depend on it, bit for bit."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        count = check_threads(count)
        with self.lock:
            self.context.close()
            self.context = library.Context(self._library, count, self.flag.address, state=self.context.state)
            self._threads = count
            for f in self.functions.values():
                for b in f.bindings:
                    b.block.context = self.context.address

    def close(self) -> None:
        """Stop the worker threads.  They start again with the next `threads = ...`; the state stays readable."""
        with self.lock:
            self.context.close()

    def __reduce__(self):
        raise TypeError(
            f"a loaded program cannot be pickled: load {self.path!r} in the other process, and pass state with save "
            "and load_state"
        )

    def __repr__(self) -> str:
        return f"<program {self.manifest.name} from {self.path}: {', '.join(self.functions)}>"


def check_threads(count: int | None) -> int:
    if count is None:
        return default_threads()
    if not isinstance(count, int) or not 1 <= count <= 256:
        raise ValueError(f"threads must be an integer from 1 to 256, got {count!r}")
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
    return min(count, 256)


def _free_lock_after_fork(program: Program) -> None:
    """Another thread may hold the lock when a process forks; in the child that thread is gone."""
    ref = weakref.ref(program)

    def free() -> None:
        p = ref()
        if p is not None and p.lock.locked():
            p.lock.release()

    os.register_at_fork(after_in_child=free)
