"""The elementary functions against numpy: error, special values, and the same bits in every form.

Each function is compiled as vector and scalar code for three instruction sets.  f32 is compared with float64,
f64 with 80-bit floats.  PULLBACK_MATH_POINTS=30000000 pytest tests/test_math.py is the dense form, which the
numbers in `ULP` come from (minutes).
"""

from __future__ import annotations

import ctypes
import math
import os
from functools import cache

import llvmlite.binding as llvm
import numpy as np
import pytest

from pullback.codegen.builder import I64, PTR, Builder, Value, ty
from pullback.codegen.math import FUNCTIONS, ULP, emit
from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.target import cpu_target, host_level
from pullback.kernel.scalars import SCALARS

POINTS = int(os.environ.get("PULLBACK_MATH_POINTS", "20000"))
TYPES = {"f32": ("float", np.float32, np.float64), "f64": ("double", np.float64, np.longdouble)}
LEVELS = [v for v in ("x86-64-v2", "x86-64-v3", "x86-64-v4") if v <= host_level()]
TWO = ("pow", "atan2")
_engines = []


def define(name: str, elem: str, lanes: int, level: str, arguments: int, body) -> str:
    """A function of arrays, `lanes` elements at a time."""
    b = Builder(cpu_target(level))
    t = ty(elem, lanes)
    size = t.bits // 8
    with b.loop(0, Value("%n", I64)) as i:
        args = [b.load(t, b.offset(Value(f"%x{k}", PTR), t.text, i), size) for k in range(arguments)]
        b.store(body(b, args), b.offset(Value("%o", PTR), t.text, i), size)
    params = ", ".join([f"ptr noalias %x{k}" for k in range(arguments)] + ["ptr noalias %o", "i64 %n"])
    return f"define void @{name}({params}) {{\n" + "\n".join(b.lines) + "\n  ret void\n}\n"


def compiled(text: str, level: str) -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = cpu_target(level)
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    return engine


@cache
def library(level: str, elem: str, lanes: int) -> llvm.ExecutionEngine:
    functions = [
        define(f"f_{fn}", elem, lanes, level, 2 if fn in TWO else 1, lambda b, args, fn=fn: emit(b, fn, args))
        for fn in sorted(FUNCTIONS)
    ]
    return compiled("\n".join(functions), level)


def call(engine, name: str, lanes: int, *arrays: np.ndarray) -> np.ndarray:
    n = len(arrays[0])
    padded = -(-n // lanes) * lanes
    arrays = [np.concatenate([a, np.ones(padded - n, a.dtype)]) for a in arrays]
    out = np.empty(padded, arrays[0].dtype)
    f = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(arrays) + 1), ctypes.c_int64)(
        engine.get_function_address(name)
    )
    f(*[a.ctypes.data for a in arrays], out.ctypes.data, padded // lanes)
    return out[:n]


def run(fn: str, dtype: str, *arrays: np.ndarray, lanes: int = 0, level: str = LEVELS[-1]) -> np.ndarray:
    elem = TYPES[dtype][0]
    lanes = lanes or (16 if dtype == "f32" else 8)
    return call(library(level, elem, lanes), f"f_{fn}", lanes, *arrays)


SPECIAL = [0.0, 1.0, 2.0, 0.5, 3.0, np.inf, 1e-8, 0.625, 0.92, math.sqrt(2) - 1, 88.72, 88.73, 87.4, 103.97, 104.0]
SPECIAL += [709.78, 709.79, 710.4, 745.1, 745.2, 1e30, 3.4e38, 1.2e-38, 1.4e-45, 5e-324, 2.3e-308, 1.7e308]


def special(dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = np.array(SPECIAL, np.float64).astype(TYPES[dtype][1])
    return np.unique(np.concatenate([x, -x, [np.nan]]).astype(x.dtype).view(f"u{x.itemsize}")).view(x.dtype)


@np.errstate(invalid="ignore")  # signalling NaNs are among the random bits
def samples(fn: str, dtype: str, points: int = POINTS, seed: int = 0) -> tuple[np.ndarray, ...]:
    """All of the format (random bits), and where models are: around 0, 1 and the ends of the range."""
    g = np.random.default_rng(seed)
    t = TYPES[dtype][1]
    n = points // 4
    edge = special(dtype)

    def any_bits(size: int) -> np.ndarray:
        return g.integers(0, 1 << 8 * t().itemsize, size, dtype=np.uint64).astype(f"u{t().itemsize}").view(t)

    if fn in TWO:
        x = np.concatenate([any_bits(n), np.exp(g.normal(0, 3, n)), g.normal(1, 1e-4, n), g.normal(0, 1, n)])
        y = np.concatenate([any_bits(n), g.normal(0, 40, n), g.normal(0, 1e4, n), g.normal(0, 1, n)])
        x, y = np.concatenate([x, np.repeat(edge, len(edge))]), np.concatenate([y, np.tile(edge, len(edge))])
        return x.astype(t), y.astype(t)
    width = 300 if dtype == "f64" else 40
    x = [any_bits(n), g.normal(0, 1, n), g.normal(0, 1, n) * 10.0 ** g.uniform(-5, 2, n), g.normal(0, width, n)]
    x = np.concatenate([*x, np.nextafter(1, 2) - g.uniform(-1e-4, 1e-4, n), edge]).astype(t)
    return (x[~(np.abs(x) >= 2.0**45)] if fn in ("sin", "cos", "tan") else x,)


def reference(fn: str, wide: type, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    if fn == "erf":  # no numpy function: correct to less than one unit of float64
        return np.array([math.erf(v) for v in arrays[0].tolist()], np.float64).astype(wide)
    return SCALARS[fn].evaluate(*(a.astype(wide) for a in arrays))


def units(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The error in units in the last place; infinite where special values differ."""
    t = got.dtype.type
    rounded = wanted.astype(t)
    finite = np.isfinite(rounded) & np.isfinite(got)
    unit = np.spacing(np.abs(np.where(finite, rounded, 1)).astype(t)).astype(wanted.dtype)
    error = np.abs(np.where(finite, got, 0).astype(wanted.dtype) - np.where(finite, wanted, 0)) / unit
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    return np.where(finite, error, np.where(same, 0, np.inf))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("fn", sorted(FUNCTIONS))
def test_error_and_special_values(fn, dtype):
    wide = TYPES[dtype][2]
    if np.finfo(wide).nmant < 60 and dtype == "f64":
        pytest.skip("no extended precision to compare with")
    slack = 1.0 if fn == "erf" and dtype == "f64" else 0.0  # the reference's own
    with np.errstate(all="ignore"):
        for seed in range(max(1, POINTS // 1_000_000)):
            arrays = samples(fn, dtype, min(POINTS, 1_000_000), seed)
            got, wanted = run(fn, dtype, *arrays), reference(fn, wide, arrays)
            error = units(got, wanted)
            worst = int(np.argmax(error))
            at = [a[worst] for a in arrays]
            assert error[worst] <= ULP[fn][dtype] + slack, f"{fn}{at} = {got[worst]}, expected {wanted[worst]}"
            rounded = wanted.astype(got.dtype)
            signs = (np.signbit(got) != np.signbit(rounded)) & ~np.isnan(got)
            if fn == "erf":  # math.erf drops the sign of zero
                signs &= arrays[0] != 0
            assert not signs.any(), f"{fn}{[a[signs][0] for a in arrays]}: wrong sign {got[signs][0]}"


@pytest.mark.parametrize("dtype", TYPES)
def test_vector_and_scalar_and_every_processor_give_the_same_bits(dtype):
    wide = 16 if dtype == "f32" else 8
    for fn in sorted(FUNCTIONS):
        arrays = samples(fn, dtype, 400)
        first = run(fn, dtype, *arrays)
        forms = [(1, LEVELS[-1]), (2, LEVELS[-1])] + [(wide, v) for v in LEVELS if v >= "x86-64-v3"]
        for lanes, level in forms:
            other = run(fn, dtype, *arrays, lanes=lanes, level=level)
            assert np.array_equal(first, other, equal_nan=True), (fn, lanes, level)


@pytest.mark.parametrize("dtype", TYPES)
def test_numpy_gives_the_same_bits(dtype):
    functions = numpy_functions()
    assert set(functions) == set(FUNCTIONS)
    for fn in sorted(FUNCTIONS):
        arrays = samples(fn, dtype, 1000)
        got, wanted = functions[fn](*arrays), run(fn, dtype, *arrays)
        assert np.array_equal(got, wanted, equal_nan=True), fn
        number = ~np.isnan(got)
        assert np.array_equal(np.signbit(got[number]), np.signbit(wanted[number])), fn


def test_without_fma_instructions_the_error_is_the_same():
    """x86-64-v2 has no fma: the builder spells it out."""
    with np.errstate(all="ignore"):
        for fn in ("exp", "log", "tanh", "sin"):
            arrays = samples(fn, "f32", 2000)
            got = run(fn, "f32", *arrays, lanes=4, level="x86-64-v2")
            assert units(got, reference(fn, np.float64, arrays)).max() <= ULP[fn]["f32"]


def test_no_library_is_called():
    text = str(define("f", "float", 16, LEVELS[-1], 2, lambda b, a: emit(b, "pow", a)))
    text += define("g", "double", 8, LEVELS[-1], 1, lambda b, a: emit(b, "sin", a))
    called = {word.split("(")[0] for word in text.split() if word.startswith("@llvm.")}
    assert {c.split(".")[1] for c in called} <= {"fma", "fabs", "copysign", "trunc", "sqrt"}


def test_huge_angles_are_nan():
    x = np.array([2.0**45, -(2.0**60), np.inf], np.float32)
    for fn in ("sin", "cos", "tan"):
        assert np.isnan(run(fn, "f32", x)).all()
        assert np.isnan(run(fn, "f64", x.astype(np.float64))).all()
