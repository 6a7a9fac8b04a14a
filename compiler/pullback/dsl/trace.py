"""Tracing: a model script's functions -> `graph.program.Program`.

A function runs once, on tensors over `Input` nodes.  Reading a variable gives its current value's node (an
`Input` at first), writing one replaces that value; afterwards the variables read are graph inputs, the new
values of those written are graph outputs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from types import ModuleType
from typing import TYPE_CHECKING

from ..collector import collector_paused
from ..errors import BuildError, TraceError
from ..graph.graph import Graph, Loc, Node, current_loc, make, topological
from ..ops.elementwise import StopGradient
from ..ops.leaf import Input
from .instead import calls_hinted

if TYPE_CHECKING:
    from pathlib import Path

    from ..graph.program import Function, Program
    from .functions import ScriptFunction
    from .nn.module import Module
    from .state import Scope, Variable
    from .tensor import Tensor

_active: ContextVar[Trace | None] = ContextVar("pullback_trace", default=None)


def active() -> Trace | None:
    """The function being traced."""
    return _active.get()


def require(what: str) -> Trace:
    """The function being traced, or an error that says what is only possible in one."""
    trace = _active.get()
    if trace is None:
        raise TraceError(f"{what} outside of a function: its value exists only while a @pb.function is built or runs")
    return trace


def stream(name: str) -> int:
    """The number of a random stream: a hash of its name that is the same in every run."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")


class Trace:
    """One function while it is traced."""

    def __init__(self, name: str, scope: Scope, training: bool | None):
        self.name = name
        self.scope = scope
        self.training = training
        self.inputs: dict[Variable, Node] = {}
        self.values: dict[Variable, Node] = {}
        self.prints: list[tuple[str, tuple[Tensor, ...]]] = []
        self._written: dict[Variable, None] = {}
        self._detached: set[Variable] = set()  # learned here: a later read is a constant to derivatives
        self._randoms = 0
        self._undecided: Loc | None = None  # a layer that behaves differently in training, without a stated mode
        self._minimizes: Loc | None = None
        self._restore: list[tuple[Module, bool]] = []  # modules whose mode was set inside, with the mode before

    def read(self, variable: Variable) -> Node:
        node = self.values.get(variable)
        if node is None:
            op = Input(self._name(variable), variable.dtype, variable.shape)
            node = Node(op, (), op.infer(), variable.loc)  # not by `make`: a scan's body does not own it
            self.inputs[variable] = self.values[variable] = node
        elif variable in self._detached:
            self._detached.remove(variable)
            node = self.values[variable] = make(StopGradient(), node)
        return node

    def write(self, variable: Variable, node: Node, detached: bool = False) -> None:
        """`detached`: what reads it later does not differentiate through this write (an optimizer's step)."""
        self._name(variable)
        self.values[variable] = node
        self._written[variable] = None
        (self._detached.add if detached else self._detached.discard)(variable)

    def written(self) -> dict[Variable, Node]:
        """The variables assigned so far, and their values."""
        return {v: self.values[v] for v in self._written}

    def _name(self, variable: Variable) -> str:
        """Run-time scalars carry their name; all else is named by where the script keeps it."""
        names = self.scope.names
        name = names.get(variable)
        if name is None:
            name = getattr(variable, "name", None)
            if name is None:
                raise TraceError(
                    f"the {variable.kind} {variable.type} made at {variable.loc} has no name: "
                    "keep its module or optimizer in a variable of the script, or in a list, tuple or dict there "
                    "(other objects' attributes are not searched)"
                )
            if name in names.values():
                raise BuildError(f"two states named {name!r}, one made at {variable.loc}")
            names[variable] = name
        return name

    @contextmanager
    def substituted(self, values: dict[Variable, Node]) -> Iterator[None]:
        """Variables have other values inside; what is written to them there is dropped."""
        before = {v: (self.values.get(v), v in self._written, v in self._detached) for v in values}
        self.values.update(values)
        self._detached -= values.keys()
        try:
            yield
        finally:
            for v, (node, written, detached) in before.items():
                self.values.pop(v)
                if node is not None:
                    self.values[v] = node
                if not written:
                    self._written.pop(v, None)
                (self._detached.add if detached else self._detached.discard)(v)

    # training mode

    def trains(self) -> bool:
        """Whether layers behave as in training here: the function's mode."""
        if self.training is None:
            self._undecided = self._undecided or current_loc()
            self._check_mode()
        return bool(self.training)

    def minimizing(self) -> None:
        self._minimizes = self._minimizes or current_loc()
        self._check_mode()

    def _check_mode(self) -> None:
        if self._undecided and self._minimizes and self.training is None:
            raise TraceError(
                f"{self.name} calls minimize ({self._minimizes}) and has a layer that behaves differently in "
                f"training ({self._undecided}): say @pb.function(..., training=True) or training=False"
            )

    @contextmanager
    def mode(self, training: bool | None) -> Iterator[None]:
        """An inlined function that states its mode keeps it."""
        before = self.training
        self.training = before if training is None else training
        try:
            yield
        finally:
            self.training = before

    def remember_mode(self, module: Module, trains: bool) -> None:
        """`module.train()` / `eval()` inside a function ends with it."""
        self._restore.append((module, trains))

    def next_stream(self) -> int:
        """The stream of the next random op: equal names and positions give equal numbers in every build."""
        self._randoms += 1
        return stream(f"{self.name}/{self._randoms}")

    @contextmanager
    def running(self) -> Iterator[Trace]:
        token = _active.set(self)
        try:
            with calls_hinted():
                yield self
        finally:
            _active.reset(token)
            for module, trains in reversed(self._restore):
                module.training = trains

    def finish(self, arguments: tuple[Node, ...], results: list[Node]) -> tuple[Graph, list[Variable], list[Variable]]:
        """The pure graph, the variables it reads and those it writes (call inside of `running`)."""
        if self._randoms:
            self.scope.rng_step.next()
        writes = [v for v in self._written if self.values[v] is not self.inputs.get(v)]
        outputs = (*results, *(self.values[v] for v in writes))
        reached = topological((), outputs)
        known = {*arguments, *self.inputs.values()}
        for node in reached:
            if node.op.name == "input" and node not in known:
                raise TraceError(
                    f"{self.name} uses {node.op.label!r} {node.type}, which belongs to another function or loop body",
                    node.loc,
                )
        used = set(reached)
        reads = [v for v, node in self.inputs.items() if node in used]
        inputs = (*arguments, *(self.inputs[v] for v in reads))
        order = tuple(dict.fromkeys((*inputs, *reached)))  # what `Graph.nodes` would find again
        return Graph(self.name, inputs, outputs, [order]), reads, writes


def trace_functions(
    functions: Iterable[ScriptFunction],
    namespace: dict[str, object] | None = None,
    dims: dict[str, int | Iterable[int]] | None = None,
    name: str = "program",
    options: dict[str, object] | None = None,
    how: str = 'dims={{"{}": SIZE}}',
) -> Program:
    """The program of `functions` (made by `@pb.function`) over the states that `namespace` names.

    namespace: by default the variables that the functions can see.
    dims: "batch" or "predict.batch" -> its size, or several sizes (a Function for each).
    how: what the caller writes to bind one, for the message where it is missing.
    """
    from ..graph.program import SEED, Program
    from .functions import bindings, visible
    from .state import name_states

    functions = tuple(functions)
    if namespace is None:
        namespace = visible(functions)
    if not functions:
        raise BuildError(f"{name} defines no @pb.function at its top level")
    seen = {"init": "the program's own function"}
    for f in functions:
        if f.name in seen:
            raise BuildError(f"two functions named {f.name!r}: {seen[f.name]} and {f.loc}; give one another name=")
        seen[f.name] = str(f.loc)
    scope = name_states(namespace)
    traced, used = [], set()
    with collector_paused():
        for f, binding in bindings(functions, dims or {}, how):
            function, variables = f.trace(scope, binding)
            traced.append(function)
            used.update(variables)
    used.discard(scope.seed)
    for variables in scope.roots.values():  # a module that the functions touch is saved whole
        if not used.isdisjoint(variables):
            used.update(v for v in variables if v.kind in ("parameter", "buffer"))
    states = [v for v in scope.names if v in used]
    described = {SEED: scope.describe(scope.seed)} | {scope.names[v]: scope.describe(v) for v in states}
    return Program(name, described, (*traced, _init(scope, states)), options or {})


def _init(scope: Scope, states: list[Variable]) -> Function:
    """The function that gives every state its initial value."""
    from ..graph.graph import loc_scope
    from ..graph.program import SEED, Function
    from .state import Draw
    from .tensor import Tensor

    trace = Trace("init", scope, None)
    with trace.running():
        seed = Tensor(trace.read(scope.seed))
        for v in states:
            with loc_scope(v.loc):
                name = scope.names.get(v.copy_of, scope.names[v])
                v.assign(v.init(Draw(seed, name, v.type)))
        graph = Graph("init", (seed.node,), tuple(trace.values[v] for v in states))
    return Function("init", graph, (), (SEED,), tuple(scope.names[v] for v in states), {}, None)


def trace_script(
    path: str | Path, argv: Iterable[object] = (), dims: dict[str, int | Iterable[int]] | None = None
) -> Program:
    """Run a model script (its `__name__` is "__pullback__", `sys.argv` its arguments) and trace its functions."""
    from pathlib import Path

    from .functions import ScriptFunction

    path, argv = Path(path), [str(a) for a in argv]
    with _script_module(path, argv) as module:
        functions = dict.fromkeys(f for f in vars(module).values() if isinstance(f, ScriptFunction))
        options = {"script": path.name, "argv": argv, "dims": dict(dims or {})}
        return trace_functions(functions, vars(module), dims, path.stem, options, "--dim {}=SIZE")


def parse_dims(items: Iterable[str] | None) -> dict[str, tuple[int, ...]]:
    """`batch=64`, `predict.batch=1,64`: the command line's bindings of named dimensions."""
    dims: dict[str, tuple[int, ...]] = {}
    for item in items or ():
        name, _, sizes = item.partition("=")
        if not sizes or not all(size.strip().isdecimal() for size in sizes.split(",")):
            raise BuildError(f"--dim {item!r}: expected NAME=SIZE or NAME=SIZE,SIZE, as in batch=64")
        if name in dims:
            raise BuildError(f"--dim {name!r} is given twice")
        dims[name] = tuple(int(size) for size in sizes.split(","))
    return dims


_one_script = threading.RLock()
"""Scripts see the process's `sys.argv`, `sys.path` and modules: one at a time, whatever the number of threads."""


@contextmanager
def _script_module(path: Path, argv: list[str]) -> Iterator[ModuleType]:
    """The script as a module that has run, as `python path argv` would have, while the context lasts."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read the script {path}: {error.strerror}") from None
    module = ModuleType("__pullback__")
    module.__file__ = str(path)
    with _one_script:
        argv_before, path_before, module_before = sys.argv, sys.path[:], sys.modules.get(module.__name__)
        sys.argv = [str(path), *argv]
        sys.path.insert(0, str(path.resolve().parent))
        sys.modules[module.__name__] = module  # dataclasses and pickles look their module up by name
        try:
            exec(compile(source, str(path), "exec"), vars(module))
            yield module
        finally:
            sys.argv, sys.path[:] = argv_before, path_before
            sys.modules.pop(module.__name__)
            if module_before is not None:
                sys.modules[module.__name__] = module_before
