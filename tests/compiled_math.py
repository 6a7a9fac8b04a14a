"""Evaluators that use the elementary functions of compiled code.

exp, tanh and so on differ from numpy's in the last bit, and one comparison later in everything.  With the compiled
functions in the scalar table both evaluators must agree with compiled code bit for bit; the functions themselves
are what `test_math.py` tests.  (`codegen/numpy_math.py` has the same bits without LLVM, but takes a millisecond a
call, which thousands of random graphs cannot afford.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from pullback.codegen.builder import I64, PTR, Builder, Value, ty
from pullback.codegen.compile import load_kernels
from pullback.codegen.cpu import header
from pullback.codegen.math import FUNCTIONS, emit
from pullback.codegen.target import cpu_target
from pullback.kernel.scalars import SCALARS

_ELEMENTS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


@contextmanager
def compiled_math() -> Iterator[None]:
    """Both evaluators compute with compiled elementary functions while the context lasts."""
    before = {name: SCALARS[name].evaluate for name in FUNCTIONS}
    try:
        for name, plain in before.items():
            object.__setattr__(SCALARS[name], "evaluate", _replacement(name, plain))
        yield
    finally:
        for name, plain in before.items():
            object.__setattr__(SCALARS[name], "evaluate", plain)


def _replacement(name: str, plain: Callable) -> Callable:
    def evaluate(*arrays):
        arrays = np.broadcast_arrays(*arrays)
        element = _ELEMENTS.get(arrays[0].dtype)
        if element is None:  # powers of integers
            return plain(*arrays)
        arrays = [np.asarray(a, order="C") for a in arrays]
        out = np.empty(arrays[0].shape, arrays[0].dtype)
        _functions()[name, element](*(a.ctypes.data for a in (*arrays, out)), out.size)
        return out[()]

    return evaluate


@cache
def _functions() -> dict[tuple[str, str], Callable[..., None]]:
    target = cpu_target()
    names = [(name, element) for name in sorted(FUNCTIONS) for element in _ELEMENTS.values()]
    text = header(target) + "".join(_define(name, element) for name, element in names)
    loaded = load_kernels(text, target)
    found = {}
    for name, element in names:
        pointers = [ctypes.c_void_p] * (SCALARS[name].arity + 1)
        address = loaded.address(f"math_{name}_{element}")
        found[name, element] = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64)(address)
    found["code", ""] = loaded  # keeps the code alive
    return found


def _define(name: str, element: str) -> str:
    """`math_<name>_<element>(x.., out, n)`: one element at a time."""
    b, t, arity = Builder(cpu_target()), ty(element), SCALARS[name].arity
    size = t.bits // 8
    with b.loop(0, Value("%n", I64), ["out"]) as i:
        args = [b.load(t, b.offset(Value(f"%x{k}", PTR), element, i), size) for k in range(arity)]
        b.store(emit(b, name, args), b.offset(Value("%out", PTR), element, i), size)
    lines = "\n".join(b.lines)
    parameters = ", ".join([f"ptr %x{k}" for k in range(arity)] + ["ptr %out", "i64 %n"])
    return f"define void @math_{name}_{element}({parameters}) {cpu_target().attributes} {{\n{lines}\n  ret void\n}}\n"
