"""What is compiled: functions over one state.

Tracing turns `@pb.function`s that read and write state into pure graphs `inputs, state -> outputs, state'`.
A function's graph inputs are its arguments in order, then the states it reads (`reads`); its graph outputs
are its results in order, then the new values of the states it writes (`writes`).
Initial values are a function too: `init`, no arguments, reads "rng.seed", writes every other state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .graph import NOWHERE, Graph, Loc
from .types import TensorType

SEED = "rng.seed"
"""u32[2] state: the key of all random streams, set by `init(seed)`."""


@dataclass(frozen=True)
class State:
    """A named array that lives between calls.

    kind: parameter | buffer | slot (optimizer) | hyper (run-time scalar) | counter | seed.
    `aliases` are further names of a tied weight.
    """

    name: str
    type: TensorType
    kind: str = "parameter"
    aliases: tuple[str, ...] = ()
    loc: Loc = NOWHERE


@dataclass(frozen=True)
class Argument:
    """One array of a function's (flattened) arguments: `name` as users pass it, `data` or `data.key.0`."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Print:
    """A `debug_print`: a format string (`str.format`) and the positions of its values in the results."""

    format: str
    results: tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """A compiled entry point for one binding of its dimensions.

    `inputs` / `outputs`: JSON-like trees whose leaves are positions in `arguments` / results
    (a dict, a list, an int, or None), so that the runtime can rebuild the structure.
    """

    name: str
    graph: Graph
    arguments: tuple[Argument, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: dict[str, object]
    outputs: object
    dims: dict[str, int] = field(default_factory=dict)
    training: bool | None = None
    loc: Loc = NOWHERE
    padded: str | None = None
    """The named dimension along which a smaller last batch may be padded and cut, if the function allows it."""
    prints: tuple[Print, ...] = ()
    """What to show after each call; the values are hidden results after the function's own."""
    unpadded: str = ""
    """Why `padded` is None, for messages."""


@dataclass(frozen=True)
class Program:
    """Functions over one state, and how they were built (recorded in the manifest)."""

    name: str
    states: dict[str, State]
    functions: tuple[Function, ...]
    options: dict[str, object] = field(default_factory=dict)
