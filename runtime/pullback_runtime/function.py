"""Calling a compiled function: inputs matched and checked, the step run, results rebuilt.

Arrays that are exactly right take the fast path (`fastcall.py`); everything else goes the general way, which
converts, or explains what is wrong.  A `Function` is the same for processors and GPUs; `Binding` has two kinds.
"""

from __future__ import annotations

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_void_p
from functools import partial
from inspect import Parameter, Signature  # numpy has imported it already

import numpy as np

from . import library
from .arrays import as_array, convert, numpy_dtype, raw
from .errors import ArgumentError, ArgumentShapeError, CheckError, NotFiniteError, RuntimeFailure
from .fastcall import fastest
from .format import Array, Call, Manifest
from .format import Function as Entry

LONG_STEP = 0.005
"""Steps that take longer (in seconds) can be interrupted in the middle; shorter ones end first."""


class Function(partial):
    """A callable of an artifact: one or several bindings (compiled shapes) of one name.

    It is a `partial`, without arguments of its own, of its quickest way, so that nothing of Python lies between.
    """

    def __new__(cls, name: str, bindings: list[Binding]):
        self = super().__new__(cls, fastest(General(name, bindings)))
        self.name, self.bindings = name, bindings
        first = bindings[0].entry
        self.__name__ = self.__qualname__ = name
        if signature := _python_signature(first):
            self.__signature__ = signature
        shapes = "\n".join(f"    {b.signature()} -> {_describe(b.entry.outputs, b.entry.results)}" for b in bindings)
        self.__doc__ = f"Compiled from {first.file}:{first.line}, for\n\n{shapes}"
        return self

    def __repr__(self) -> str:
        return f"<compiled function {self.name}: {'; '.join(b.signature() for b in self.bindings)}>"

    # ---- what it takes ---------------------------------------------------------------------------------
    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        tree = self.bindings[0].entry.inputs
        return tuple(tree["dict"]) if tree else ()

    @property
    def batch_size(self) -> int:
        """The length of the inputs' first dimension, of the largest binding."""
        return max((a.shape[0] for b in self.bindings for a in b.entry.arguments if a.shape), default=1)

    @property
    def sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> the shape of one sample."""
        return {a.name: a.shape[1:] for a in self.bindings[0].entry.arguments}

    @property
    def padded(self) -> bool:
        """May a smaller batch be passed?  It is padded, and the results are cut."""
        return any(b.entry.padded for b in self.bindings)

    def keywords(self, arrays: Mapping[str, object]) -> dict[str, object]:
        """The keywords of a call from arrays by name, those of structures as in `sample_shapes`: `pair.0`, `x.key`."""
        entry = self.bindings[0].entry
        return _builder(entry.inputs)([arrays[a.name] for a in entry.arguments]) if entry.arguments else {}


def _python_signature(entry: Entry) -> Signature | None:
    """For `inspect.signature`: inputs by name, types as annotations; None if a name is no name in Python."""
    tree = entry.inputs["dict"] if entry.inputs else {}
    kind = Parameter.POSITIONAL_OR_KEYWORD
    try:
        parameters = [Parameter(n, kind, annotation=_describe(t, entry.arguments)) for n, t in tree.items()]
    except ValueError:
        return None
    return Signature(parameters, return_annotation=_describe(entry.outputs, entry.results))


def _describe(tree, arrays: Sequence[Array]) -> str:
    """An encoded tree with the types of its leaves: `{loss: f32[], pair: (i32[4], None)}`."""
    if tree is None:
        return "None"
    if isinstance(tree, int):
        return str(arrays[tree])
    ((kind, items),) = tree.items()
    if kind == "dict":
        return "{" + ", ".join(f"{k}: {_describe(v, arrays)}" for k, v in items.items()) + "}"
    inner = ", ".join(_describe(v, arrays) for v in items)
    return f"[{inner}]" if kind == "list" else f"({inner},)" if len(items) == 1 else f"({inner})"


class General:
    """The general way of a call: inputs are matched with names and shapes, converted, padded, or refused."""

    def __init__(self, name: str, bindings: list[Binding]):
        self.name, self.bindings = name, bindings

    def __call__(self, args: tuple, kwargs: dict):
        entry = self.bindings[0].entry
        values = self._flatten(args, kwargs, entry)
        names = [f"{self.name}: input {a.name!r}" for a in entry.arguments]
        arrays = [self.bindings[0].array(v, n) for v, n in zip(values, names, strict=True)]
        binding, cut = self._choose(arrays)
        entry = binding.entry
        converted = [binding.convert(x, a, n) for x, a, n in zip(arrays, entry.arguments, names, strict=True)]
        if cut is not None:
            converted = [binding.pad(x, a) for x, a in zip(converted, entry.arguments, strict=True)]
        return binding.run(converted, cut)

    def _flatten(self, args: tuple, kwargs: dict, entry: Entry) -> list:
        """The leaves of the inputs in the order of the arguments."""
        tree = entry.inputs["dict"] if entry.inputs else {}
        names = list(tree)
        if len(args) > len(names):
            raise ArgumentError(f"{self.name} takes {len(names)} inputs ({', '.join(names)}), got {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in tree:
                raise ArgumentError(f"{self.name} has no input {name!r}; its inputs are {', '.join(names) or 'none'}")
            if name in given:
                raise ArgumentError(f"{self.name} got input {name!r} twice")
            given[name] = value
        missing = [n for n in names if n not in given]
        if missing:
            text = ", ".join(f"{n!r} ({self._describe(tree[n], entry)})" for n in missing)
            raise ArgumentError(f"{self.name}: missing input {text}")
        leaves: list = [None] * len(entry.arguments)
        for name in names:
            self._leaves(tree[name], given[name], name, leaves)
        return leaves

    def _describe(self, tree, entry: Entry) -> str:
        if isinstance(tree, int):
            return str(entry.arguments[tree])
        if tree is None:
            return "None"
        ((kind, items),) = tree.items()
        return f"a {kind} of {len(items)}"

    def _leaves(self, tree, value, name: str, leaves: list) -> None:
        if isinstance(tree, int):
            leaves[tree] = value
            return
        if tree is None:
            if value is not None:
                raise ArgumentError(f"{self.name}: input {name!r}: expected None, got {type(value).__name__}")
            return
        ((kind, items),) = tree.items()
        if kind == "dict":
            if not isinstance(value, dict) or value.keys() != items.keys():
                got = f"keys {sorted(map(str, value))}" if isinstance(value, dict) else type(value).__name__
                raise ArgumentError(f"{self.name}: input {name!r}: expected keys {sorted(items)}, got {got}")
            for k, sub in items.items():
                self._leaves(sub, value[k], f"{name}.{k}", leaves)
            return
        if not isinstance(value, list | tuple) or len(value) != len(items):
            got = f"{len(value)} elements" if isinstance(value, list | tuple) else type(value).__name__
            raise ArgumentError(f"{self.name}: input {name!r}: expected a {kind} of {len(items)}, got {got}")
        for i, sub in enumerate(items):
            self._leaves(sub, value[i], f"{name}.{i}", leaves)

    def _choose(self, arrays: list[np.ndarray]) -> tuple[Binding, int | None]:
        """The binding with these shapes; else the smallest that these rows can be padded for, and their number."""
        shapes = [x.shape for x in arrays]
        for b in self.bindings:
            if shapes == b.shapes:
                return b, None
        fits = [(b.entry.dims[b.entry.padded], b, n) for b in self.bindings if (n := b.partial(shapes)) is not None]
        if fits:
            _, b, n = min(fits, key=lambda f: f[0])
            return b, n
        raise ArgumentShapeError(self._wrong_shape(shapes))

    def _wrong_shape(self, shapes: list[tuple[int, ...]]) -> str:
        if len(self.bindings) == 1:
            a, s = next((a, s) for a, s in zip(self.bindings[0].entry.arguments, shapes, strict=True) if a.shape != s)
            text = f"{self.name}: input {a.name!r}: expected shape {_shape(a.shape)}, got {_shape(s)}"
            return text + self._how_to_compile(shapes)
        names = [a.name for a in self.bindings[0].entry.arguments]
        got = ", ".join(f"{n} {_shape(s)}" for n, s in zip(names, shapes, strict=True))
        return f"{self.name}: not compiled for {got}; compiled for " + "; ".join(b.signature() for b in self.bindings)

    def _how_to_compile(self, shapes: list[tuple[int, ...]]) -> str:
        """Why rows were not padded, and what to do, where only their number is another one, and it has a name."""
        entry = self.bindings[0].entry
        rows = {s[:1] for a, s in zip(entry.arguments, shapes, strict=True) if a.shape != s and a.shape[1:] == s[1:]}
        named = [d for d, n in entry.dims.items() if any(a.shape[:1] == (n,) for a in entry.arguments)]
        others = any(a.shape != s and a.shape[1:] != s[1:] for a, s in zip(entry.arguments, shapes, strict=True))
        if others or len(rows) != 1 or len(named) != 1 or rows == {(0,)}:
            return ""
        ((size,),) = rows
        full, name = entry.dims[named[0]], f"{self.name}.{named[0]}"
        why = f"; a smaller batch is not padded, as {entry.unpadded}" if size < full and entry.unpadded else ""
        script = "script" in self.bindings[0].manifest.options  # built by the command line, else by pb.build
        both = f"--dim {name}={full},{size}" if script else f'dims={{"{name}": ({full}, {size})}}'
        return f"{why} (to compile it for both: {both})"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


class Binding(ABC):
    """One compiled entry point.  `array`, `convert` and `pad` make what `run` takes of what a caller gives."""

    is_native = False
    """Is it a `HostBinding`, which the fast path may call?"""

    def __init__(self, manifest: Manifest, number: int, entry: Entry):
        self.manifest, self.number, self.entry = manifest, number, entry
        self.shapes = [a.shape for a in entry.arguments]
        self.build = _builder(entry.outputs)

    def array(self, value, what: str):
        """An array of any type and shape; `what` ("train: input 'x'") is for messages."""
        return as_array(value, what)

    def convert(self, array: np.ndarray, argument: Array, what: str):
        """An array of exactly the right type, in a form that `run` accepts."""
        return convert(array, argument.dtype, what)

    def pad(self, array: np.ndarray, argument: Array):
        """Repeat the last row of a smaller batch, so that padding is data like any other (no index out of range)."""
        widths = [(0, n - m) for m, n in zip(array.shape, argument.shape, strict=True)]
        return np.ascontiguousarray(np.pad(array, widths, mode="edge"))

    @abstractmethod
    def run(self, inputs: list, cut: int | None = None) -> object:
        """Run the step on arrays of exactly the right types and shapes; `cut`: how many rows are real."""

    def signature(self) -> str:
        return f"{self.entry.name}({', '.join(f'{a.name}: {a}' for a in self.entry.arguments)})"

    def partial(self, shapes: list[tuple[int, ...]]) -> int | None:
        """The size of a smaller batch along the padded dimension, or None if these shapes are none."""
        if self.entry.padded is None:
            return None
        full = self.entry.dims[self.entry.padded]
        pairs = [(s, a.shape) for s, a in zip(shapes, self.entry.arguments, strict=True)]
        if any(len(s) != len(shape) or s[1:] != shape[1:] for s, shape in pairs):
            return None
        sizes = {s[0] for s in shapes}  # the compiler promises that every argument has its rows first
        size = sizes.pop() if len(sizes) == 1 else 0
        return size if 0 < size < full else None

    def finish(self, results: list, cut: int | None) -> object:
        """What the caller gets of the arrays that a step wrote."""
        if cut is not None:
            results = [x[:cut].copy() for x in results]
        for p in self.entry.prints:
            print(p.format.format(*(np.asarray(results[k]) for k in p.results)))
        return self.build(results)


def failure(function: str, call: Call, site: int, value: int) -> RuntimeFailure:
    """The error of a check that failed in a call of a function's step."""
    place = f"{call.file}:{call.line}" + (" (gradient)" if call.gradient else "")
    name = call.sites[site] if site < len(call.sites) else f"{place}: {call.label}"
    if name.startswith("nan:"):
        return NotFiniteError(f"{function}: {place}: {name[4:].strip()} is not finite; the state is as it was before")
    return CheckError(f"{function}: {name}: {value} is out of range; the state is as it was before")


class HostBinding(Binding):
    """An entry point of native code, and its argument block, which is filled in anew for every call."""

    is_native = True

    def __init__(self, context: library.Context, manifest: Manifest, number: int, entry: Entry):
        super().__init__(manifest, number, entry)
        self.context = context
        self.arrays = (c_void_p * max(len(entry.arguments) + len(entry.results), 1))()
        self.status = library.Status()
        arrays, status = ctypes.addressof(self.arrays), ctypes.addressof(self.status)
        self.block = library.CallBlock(context.address, number, arrays, status)
        self.call = context.library.builtin(self.block)
        self.quick = False
        """Known to be so short that nobody needs to interrupt it in the middle."""

    def run(self, inputs: list[np.ndarray], cut: int | None = None) -> object:
        inputs = [x.copy() if np.may_share_memory(x, self.context.state) else x for x in inputs]
        results = [np.empty(a.shape, numpy_dtype(a.dtype)) for a in self.entry.results]
        capsules = tuple(raw(x).__array_struct__ for x in (*inputs, *results))
        with self.context.lock:
            code = self.watched(*capsules)
            if code and self.failed(code):
                raise ArgumentError(f"{self.entry.name}: an input does not match {self.signature()}")
        return self.finish(results, cut)

    def watched(self, *capsules) -> int:
        """A step that a signal can interrupt.  If the signal's handler does not raise, the step is run again."""
        start = time.perf_counter()
        while True:
            with self.context.flag.watch():
                code = self.call(*capsules)
            if code != library.STOPPED:
                break
        self.quick = time.perf_counter() - start < LONG_STEP
        return code

    def failed(self, code: int) -> bool:
        """True if native code refused an array; everything else that can go wrong is raised."""
        if code == library.ARGUMENT:
            return True
        if code != library.CHECK:
            names = {library.INJECTED: "stopped by a test", **library.ERRORS}
            what = names.get(code, f"error {code}")
            raise RuntimeFailure(f"{self.entry.name}: {what}; the state is as it was before")
        s = self.status
        call = self.manifest.levels[self.context.level].call(self.number, s.launch, s.call)
        raise failure(self.entry.name, call, s.site, s.value)


def _builder(tree) -> Callable[[list], object]:
    """A function from the list of results to the structure that the script's function returned."""
    if tree is None:
        return lambda results: None
    if isinstance(tree, int):
        return lambda results: results[tree]
    ((kind, items),) = tree.items()
    if kind == "dict":
        parts = {k: _builder(v) for k, v in items.items()}
        return lambda results: {k: b(results) for k, b in parts.items()}
    many = [_builder(v) for v in items]
    make = tuple if kind == "tuple" else list
    return lambda results: make([b(results) for b in many])
