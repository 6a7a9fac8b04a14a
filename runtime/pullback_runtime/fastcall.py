"""The fast path of a call: a Python function written for the bindings of one name, so that nothing is looked up.

It takes the inputs by name, allocates the results, and hands numpy's public C structs of all of them to native
code, which checks types, shapes and strides.  Whatever no binding likes goes the general way.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .arrays import numpy_dtype

if TYPE_CHECKING:
    from .function import Binding, General, HostBinding

_MISSING = object()
"""Stands for inputs that are not given."""

_FUNCTION = """
def call({parameters}*_rest, **_unknown):
    if not _rest and not _unknown:
        try:
            {inputs}
        except AttributeError:
            pass
        else:{attempts}
    return _general(*_given(({positional}*_rest,), _unknown))
"""
_ATTEMPT = """
            if {shapes}:
                {results}
                with _lock:
                    _code = (_run{i} if _binding{i}.quick else _watched{i})({capsules})
                    if _code:
                        _code = _binding{i}.failed(_code)
                if not _code:
                    return {structure}
"""


def fastest(general: General) -> Callable:
    """The quickest way to do what `general` does: for plain arrays, native code directly."""
    bindings = [b for b in general.bindings if _is_plain(b)]
    if not bindings:
        return lambda *args, **kwargs: general(args, kwargs)
    names = list(bindings[0].entry.inputs["dict"]) if bindings[0].entry.inputs else []
    scope: dict[str, object] = {
        "_missing": _MISSING,
        "_general": general,
        "_given": lambda args, unknown: _given(names, args, unknown),
        "_empty": np.empty,
        "_lock": bindings[0].context.lock,
    }
    inputs = [f"_struct_{n} = {n}.__array_struct__" for n in names]
    if len(bindings) > 1:  # native code compares shapes, too, but results would be allocated for each binding
        inputs.append(f"_shapes = [{', '.join(f'{n}.shape' for n in names)}]")
    source = _FUNCTION.format(
        parameters="".join(f"{n}=_missing, " for n in names),
        inputs="; ".join(inputs) or "pass",
        attempts="".join(_attempt(i, b, names, len(bindings) > 1, scope) for i, b in enumerate(bindings)),
        positional="".join(f"{n}, " for n in names),
    )
    exec(compile(source, f"<call of {general.name}>", "exec"), scope)
    call = scope.pop("call")  # popped: a function in its own globals would be a cycle
    call.__qualname__ = general.name  # in Python's own messages: "train() got multiple values for argument 'x'"
    return call


def _attempt(i: int, binding: HostBinding, names: list[str], several: bool, scope: dict[str, object]) -> str:
    """The lines that call a binding's native code; what they name is put into `scope`."""
    entry = binding.entry
    mine = {"run": binding.call, "watched": binding.watched, "binding": binding, "shapes": binding.shapes}
    scope |= {f"_{what}{i}": x for what, x in mine.items()} | {f"_build{i}": binding.build}
    results = [f"_result{r}" for r in range(len(entry.results))]
    for r, a in enumerate(entry.results):
        scope[f"_shape{i}_{r}"], scope[f"_dtype{i}_{r}"] = a.shape, numpy_dtype(a.dtype)
    return _ATTEMPT.format(
        i=i,
        shapes=f"_shapes == _shapes{i}" if several else "True",
        results="; ".join(f"{x} = _empty(_shape{i}_{r}, _dtype{i}_{r})" for r, x in enumerate(results)) or "pass",
        capsules=", ".join([*(f"_struct_{n}" for n in names), *(f"{x}.__array_struct__" for x in results)]),
        structure="_result0" if entry.outputs == 0 and len(results) == 1 else f"_build{i}([{', '.join(results)}])",
    )


def _is_plain(binding: Binding) -> bool:
    """Native code, plain arrays in and out: no nested inputs, nothing to convert, nothing to print."""
    entry = binding.entry
    flat = entry.inputs["dict"] if entry.inputs else {}
    names_ok = all(n.isidentifier() and not keyword.iskeyword(n) and not n.startswith("_") for n in flat)
    arrays = (*entry.arguments, *entry.results)
    return (
        binding.is_native
        and list(flat.values()) == list(range(len(entry.arguments)))
        and names_ok
        and not entry.prints
        and all(a.dtype != "bf16" for a in arrays)
    )


def _given(names: list[str], args: tuple, unknown: dict) -> tuple[tuple, dict]:
    """What the fast path got, as positional and named inputs for the general way and its messages."""
    if len(args) > len(names):
        return args, unknown
    return (), {**{n: v for n, v in zip(names, args, strict=True) if v is not _MISSING}, **unknown}
