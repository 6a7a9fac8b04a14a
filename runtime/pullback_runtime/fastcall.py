"""The fast path of a call: a Python function written for one binding, so that nothing is looked up per call.

It takes the inputs by name, allocates the results, and hands numpy's public C structs of all of them to native
code, which checks types, shapes and strides.  Whatever it does not like goes the general way.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .arrays import numpy_dtype

if TYPE_CHECKING:
    from .function import HostBinding

_MISSING = object()
"""Stands for inputs that are not given."""

_TEMPLATE = """
def call(_function, {parameters}*_rest, **_unknown):
    if not _rest and not _unknown:
        try:
            _capsules = ({inputs}{outputs})
        except AttributeError:
            pass
        else:
            with _lock:
                _code = _run(_address, _capsules) if _binding.quick else _watched(_capsules)
                if _code:
                    _code = _binding.failed(_code)
            if not _code:
                return {result}
    return _function._general(*_given(({positional}*_rest,), _unknown))
"""


def has_fast_path(binding: HostBinding) -> bool:
    """Plain arrays in and out: no nested inputs, nothing to convert, nothing to print."""
    entry = binding.entry
    flat = entry.inputs["dict"] if entry.inputs else {}
    names_ok = all(n.isidentifier() and not keyword.iskeyword(n) and not n.startswith("_") for n in flat)
    arrays = (*entry.arguments, *entry.results)
    return (
        list(flat.values()) == list(range(len(entry.arguments)))
        and names_ok
        and not entry.prints
        and all(a.dtype != "bf16" for a in arrays)
    )


def make_fast_path(binding: HostBinding) -> Callable:
    """The function for `binding`; it is called with the `Function`, then the inputs."""
    entry, context = binding.entry, binding.context
    names = list(entry.inputs["dict"]) if entry.inputs else []
    scope = {
        "_missing": _MISSING,
        "_lock": context.lock,
        "_run": context.call,
        "_watched": binding.watched,
        "_address": binding.address,
        "_binding": binding,
        "_given": lambda args, unknown: _given(names, args, unknown),
        "_empty": np.empty,
        "_build": binding.build,
    }
    outputs = ""
    for i, a in enumerate(entry.results):
        scope[f"_shape{i}"], scope[f"_dtype{i}"] = a.shape, numpy_dtype(a.dtype)
        outputs += f"(_result{i} := _empty(_shape{i}, _dtype{i})).__array_struct__, "
    results = ", ".join(f"_result{i}" for i in range(len(entry.results)))
    source = _TEMPLATE.format(
        parameters="".join(f"{n}=_missing, " for n in names),
        inputs="".join(f"{n}.__array_struct__, " for n in names),
        outputs=outputs,
        result="_result0" if entry.outputs == 0 and len(entry.results) == 1 else f"_build([{results}])",
        positional="".join(f"{n}, " for n in names),
    )
    exec(compile(source, f"<call of {entry.name}>", "exec"), scope)
    call = scope.pop("call")  # popped: a function in its own globals would be a cycle
    call.__qualname__ = entry.name  # in Python's own messages: "train() got multiple values for argument 'x'"
    return call


def _given(names: list[str], args: tuple, unknown: dict) -> tuple[tuple, dict]:
    """What the fast path got, as positional and named inputs for the general way and its messages."""
    if len(args) > len(names):
        return args, unknown
    return (), {**{n: v for n, v in zip(names, args, strict=True) if v is not _MISSING}, **unknown}
