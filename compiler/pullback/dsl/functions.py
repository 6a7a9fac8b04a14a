"""`@pb.function`: an entry point of the compiled program, and how its dimensions are bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, update_wrapper
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BuildError, TraceError
from ..graph.graph import Loc, current_loc, make
from ..graph.program import Argument, Function, Print
from ..graph.types import Dim, Spec, TensorType
from ..ops.leaf import Input
from .array import asarray
from .pytree import Tree, flatten, leaf_names, plain, tree_leaves, unflatten
from .tensor import Tensor
from .trace import Trace, active

if TYPE_CHECKING:
    from .state import Scope, Variable


def function(
    *specs: Tree, training: bool | None = None, name: str | None = None
) -> Callable[[Callable], ScriptFunction] | ScriptFunction:
    """Compile a Python function: `@pb.function(pb.f32[batch, 64], pb.i32[batch], training=True)`.

    specs: one per parameter, in order: dtype[dims], or dicts and tuples of them.
    training: the mode of layers such as dropout; must be said where such a function calls `minimize`.
    name: what the program calls it; by default the Python function's name.
    """
    loc = current_loc()
    if len(specs) == 1 and inspect.isfunction(specs[0]):  # @pb.function without parentheses
        return ScriptFunction(specs[0], (), training, name or specs[0].__name__, loc)
    return lambda fn: ScriptFunction(fn, specs, training, name or fn.__name__, loc)


class ScriptFunction:
    """A decorated function.  Called inside another one it is inlined; called on arrays it is built and run."""

    def __init__(self, fn, specs: tuple, training: bool | None, name: str, loc: Loc):
        update_wrapper(self, fn)
        self.fn = fn
        self.name = name
        self.training = training
        self.loc = loc
        self.signature = inspect.signature(fn)
        self.specs = self._match(specs)

    def _match(self, specs: tuple) -> dict[str, object]:
        """Parameter -> its spec (a tree of `Spec`); parameters with defaults may go without."""
        parameters = list(self.signature.parameters.values())
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise TraceError(f"{self.name}: a compiled function cannot take *{p.name}", self.loc)
        required = sum(p.default is p.empty for p in parameters)
        if not required <= len(specs) <= len(parameters):
            write = f": write @pb.function({', '.join(['pb.f32[64, 8]'] * required)}), with dtypes and shapes of yours"
            raise TraceError(
                f"{self.name} has {len(parameters)} parameters ({', '.join(p.name for p in parameters)}) "
                f"but @pb.function has {len(specs)} specs" + ("" if specs else write),
                self.loc,
            )
        for p, spec in zip(parameters, specs, strict=False):
            for leaf in tree_leaves(spec):
                if not isinstance(leaf, Spec):
                    raise TraceError(
                        f"{self.name}: the spec of {p.name} is {leaf!r}, "
                        "expected e.g. pb.f32[64], pb.f32[()] for a scalar",
                        self.loc,
                    )
        return {p.name: spec for p, spec in zip(parameters, specs, strict=False)}

    @property
    def dims(self) -> tuple[str, ...]:
        """The named dimensions of the arguments, in order."""
        shapes = (s.shape for s in tree_leaves(list(self.specs.values())))
        return tuple(dict.fromkeys(d.name for shape in shapes for d in shape if isinstance(d, Dim)))

    def __call__(self, *args, **kwargs):
        trace = active()
        if trace is not None:
            with trace.mode(self.training):
                return self.fn(*args, **kwargs)
        return self._compiled(*args, **kwargs)

    @cached_property
    def _compiled(self):
        """What runs it on arrays: built for each shape that comes."""
        from ..driver import jit

        return jit(self)

    def trace(self, scope: Scope, dims: dict[str, int]) -> tuple[Function, set[Variable]]:
        """The graph for one binding of the dimensions, and the variables it reads or writes."""
        arguments, nodes, inputs, kwargs = [], [], {}, {}
        for name, spec in self.specs.items():
            leaves, positions = flatten(spec)
            first = len(nodes)
            for leaf, path in zip(leaves, leaf_names(spec, name), strict=True):
                shape = tuple(dims[d.name] if isinstance(d, Dim) else int(d) for d in leaf.shape)
                arguments.append(Argument(path, TensorType(leaf.dtype, shape)))
                nodes.append(make(Input(path, leaf.dtype, shape), loc=self.loc))
            kwargs[name] = unflatten(positions, [Tensor(n) for n in nodes[first:]])
            inputs[name] = plain(unflatten(positions, range(first, len(nodes))))
        trace = Trace(self.name, scope, self.training)
        with trace.running():
            results, outputs = flatten(self.fn(**kwargs))
            hidden = [t for _, tensors in trace.prints for t in tensors]
            results = [_result(self, r) for r in (*results, *hidden)]
            graph, reads, writes = trace.finish(tuple(nodes), results)
        prints, at = [], len(results) - len(hidden)
        for text, tensors in trace.prints:
            prints.append(Print(text, tuple(range(at, at + len(tensors)))))
            at += len(tensors)
        names = scope.names
        padded, unpadded = self._padding(graph, writes)
        built = Function(
            self.name,
            graph,
            tuple(arguments),
            tuple(names[v] for v in reads),
            tuple(names[v] for v in writes),
            inputs,
            plain(outputs),
            dims,
            self.training,
            self.loc,
            padded,
            tuple(prints),
            unpadded,
        )
        return built, {*reads, *writes}

    def _padding(self, graph, writes) -> tuple[str | None, str]:
        """The dimension of rows that a call may pad and cut, else None and why there is none: every argument and
        result must have it first, and no row of a result may depend on other rows."""
        leaves = tree_leaves(list(self.specs.values()))
        leads = {s.shape[0] if s.shape else None for s in leaves}
        if writes:
            return None, "the function writes state"
        if len(leads) != 1 or not isinstance(lead := leads.pop(), Dim):
            return None, "not every input has the same named dimension first"
        from .rows import mixed

        why = mixed(graph, len(leaves))
        return (None, why) if why else (lead.name, "")

    def __repr__(self) -> str:
        return f"<pb.function {self.name} at {self.loc}>"


def _result(f: ScriptFunction, value):
    if isinstance(value, Tensor):
        return value.node
    if isinstance(value, bool | int | float | np.ndarray | np.generic):
        return asarray(value).node
    raise TraceError(f"{f.name} returns {type(value).__name__}: expected arrays, in tuples, lists or dicts", f.loc)


def bindings(
    functions: Iterable[ScriptFunction], dims: Mapping[str | Dim, int | Iterable[int]], how: str
) -> Iterator[tuple[ScriptFunction, dict[str, int]]]:
    """Each function with each binding of its dimensions.  `predict.batch` goes before `batch`.

    how: what the caller may write to bind one, for messages (`trace_functions`).
    """
    dims = {d.name if isinstance(d, Dim) else d: size for d, size in dims.items()}
    known = {key for f in functions for d in f.dims for key in (d, f"{f.name}.{d}")}
    plain_names = sorted({d for f in functions for d in f.dims})
    listed = f"the functions' dimensions are: {', '.join(plain_names) or 'none'}"
    for key in dims:
        if key not in known:
            raise BuildError(f"unknown dimension {key!r}; {listed}")
    for f in functions:
        sizes = []
        for d in f.dims:
            size = dims.get(f"{f.name}.{d}", dims.get(d))
            if size is None:
                raise BuildError(f"dimension {d!r} of {f.name} ({f.loc}) is not bound: pass {how.format(d)}; {listed}")
            several = size if isinstance(size, Iterable) and not isinstance(size, str) else [size]
            several = list(several)
            for n in several or [several]:
                if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 0:
                    raise BuildError(f"dimension {d!r} of {f.name} is {n!r}: expected a size, or several, as integers")
            sizes.append(dict.fromkeys(int(n) for n in several))
        for choice in product(*sizes):
            yield f, dict(zip(f.dims, choice, strict=True))


def visible(functions: Iterable[ScriptFunction]) -> dict[str, object]:
    """The variables that functions can see: their modules' and, through closures, those of enclosing functions."""
    namespace: dict[str, object] = {}
    seen: set[int] = set()
    pending = [f.fn for f in functions]
    while pending:
        fn = pending.pop()
        if id(fn) in seen:
            continue
        seen.add(id(fn))
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            namespace.setdefault(name, value)
            inner = value.fn if isinstance(value, ScriptFunction) else value
            if inspect.isfunction(inner):
                pending.append(inner)
    for f in functions:
        namespace = {**f.fn.__globals__, **namespace}
    return namespace
