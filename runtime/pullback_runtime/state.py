"""The state of a program: named arrays over one piece of memory, and safetensors files.

`State` is that of a program on the processor; a GPU's (`cuda_state.py`) has its own `__getitem__` and `write`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .arrays import as_array, convert, numpy_dtype
from .errors import ArgumentError, StateError
from .files import write_atomically
from .format import Manifest, StateEntry

KINDS = ("parameter", "buffer", "slot", "hyper", "counter", "seed")
"""What states there are: a slot is an optimizer's, for a parameter; a counter counts steps or draws."""

WEIGHTS = ("parameter", "buffer")
"""The kinds of state that other libraries' state dicts hold."""


class State(Mapping[str, np.ndarray]):
    """Name -> the array itself, not a copy: writing to it changes what the next step computes.

    A tied weight appears under each of its names; iteration gives each state once, by its first name.
    """

    def __init__(self, manifest: Manifest, memory: np.ndarray):
        self._manifest, self._memory = manifest, memory

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entry(name)
        return self.view(entry, self._memory, entry.offset)

    def __setitem__(self, name: str, value) -> None:
        """Set a state from an array or number of its shape: `state["lr"] = 3e-4`."""
        entry = self.entry(name)
        try:
            array = as_array(value, f"state {name!r}")
            if array.shape != entry.shape:
                raise StateError(f"state {name!r}: expected shape {list(entry.shape)}, got {list(array.shape)}")
            self.write(entry, convert(array, entry.dtype, f"state {name!r}"))
        except ArgumentError as e:
            raise StateError(str(e)) from None

    def write(self, entry: StateEntry, array: np.ndarray) -> None:
        """Set a state from an array of its type and shape."""
        self[entry.name][...] = array

    def view(self, entry: StateEntry, memory: np.ndarray, offset: int) -> np.ndarray:
        """A state as an array over bytes, in which it begins at `offset`."""
        dtype = numpy_dtype(entry.dtype)
        strides = tuple(s * dtype.itemsize for s in entry.strides)
        return np.ndarray(entry.shape, dtype, memory, offset, strides)

    def entry(self, name: str) -> StateEntry:
        """Kind, type and place of a state."""
        entry = self._manifest.state_names.get(name)
        if entry is None:
            raise KeyError(f"no state {name!r}; there are {', '.join(self) or 'none'}")
        return entry

    def __iter__(self) -> Iterator[str]:
        return (s.name for s in self._manifest.state)

    def __len__(self) -> int:
        return len(self._manifest.state)

    def __contains__(self, name: object) -> bool:
        return name in self._manifest.state_names

    def __repr__(self) -> str:
        return f"<state: {', '.join(f'{s.name} {s.dtype}{list(s.shape)}' for s in self._manifest.state)}>"


def require_safetensors():
    """The package that reads and writes state files."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("saving and loading state needs the package safetensors: pip install safetensors") from None
    return safetensors


def save_state(
    state: State,
    path: Path,
    kinds: Sequence[str] | None = None,
    prefix: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    safetensors = require_safetensors()
    # ascontiguousarray would turn scalars into vectors.
    arrays = {key: state[n].copy(order="C") for n, key in _chosen(state, kinds, prefix).items()}
    # "format" is what other readers of safetensors files ask for.
    data = safetensors.numpy.save(arrays, metadata={"format": "pt", **(metadata or {})})
    write_atomically(path, data, durable=True)


def _chosen(state: State, kinds: Sequence[str] | None, prefix: str) -> dict[str, str]:
    """Name -> what a file calls it: states of these kinds under the prefix, once each."""
    kinds = KINDS if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of state {kind!r}; the kinds are {', '.join(KINDS)}")
    under = {n: [x for x in (n, *state.entry(n).aliases) if x.startswith(prefix)] for n in state}
    if prefix and not any(under.values()):
        raise StateError(f"no state's name begins with {prefix!r}; there are {', '.join(state) or 'none'}")
    return {n: names[0][len(prefix) :] for n, names in under.items() if names and state.entry(n).kind in kinds}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that were saved beside the state."""
    safetensors = require_safetensors()
    try:
        with safetensors.safe_open(path, framework="np") as f:
            return f.metadata() or {}
    except (safetensors.SafetensorError, OSError) as e:
        raise StateError(f"{path}: not a readable safetensors file ({e})") from None


def load_state(state: State, path: Path, prefix: str, strict: bool) -> list[str]:
    """Everything is read and checked before the first byte of state changes."""
    safetensors = require_safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"no state file {path}")
    try:
        found = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as e:
        raise StateError(f"{path}: not a readable safetensors file ({e})") from None
    wanted: dict[str, np.ndarray] = {}
    unknown, problems = [], []
    for key, array in found.items():
        name = prefix + key
        if name not in state:
            unknown.append(key)
            continue
        entry = state.entry(name)
        if array.shape != entry.shape:
            problems.append(f"{key}: expected shape {list(entry.shape)}, got {list(array.shape)}")
            continue
        try:
            array = convert(array, entry.dtype, key)
        except ArgumentError as e:
            problems.append(str(e))
            continue
        other = wanted.setdefault(entry.name, array)
        if other is not array and not np.array_equal(other, array):
            problems.append(f"{key}: the file holds another value for {entry.name}, which is the same weight")
    if strict:
        problems += [f"{k}: the program has no state {prefix + k!r}" for k in unknown]
        problems += [f"{n}: not in the file" for n in _required(state, wanted, prefix) if n not in wanted]
    if not wanted and not problems:
        problems.append("none of the file's names is a state of the program")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise StateError(f"{path} does not fit the program: " + "; ".join(problems[:8]) + more)
    for name, array in wanted.items():
        state.write(state.entry(name), array)
    return [n for n in state if n in wanted]


def _required(state: State, found: dict[str, np.ndarray], prefix: str) -> list[str]:
    """Weights under the prefix; and if the file holds anything else (it is a checkpoint), all the rest too."""
    everything = any(state.entry(n).kind not in WEIGHTS for n in found)
    return [n for n in state if n.startswith(prefix) and (everything or state.entry(n).kind in WEIGHTS)]
