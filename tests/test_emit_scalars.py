"""Every scalar function on every dtype: compiled vectors = compiled scalars = the kernel evaluator, on hard numbers."""

from __future__ import annotations

import ctypes
import math
from fractions import Fraction

import kernels_by_hand as by_hand
import numpy as np
import pytest
from test_emit import HERE, run_all

from pullback.codegen import scalar
from pullback.codegen.builder import PTR, Builder, Value, ty
from pullback.codegen.compile import load_kernels
from pullback.codegen.numpy_math import numpy_functions
from pullback.codegen.target import cpu_target
from pullback.graph.types import DTYPES, DType, bf16, bool_, f16, f32, f64, i32, i64, u8, u32
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import Apply, Const, Kernel
from pullback.kernel.scalars import SCALARS

# Polynomials of codegen/math.py, which test_math.py tests; here one stands for all.
MATH = {fn for fn, s in SCALARS.items() if s.cost >= 12 and s.kinds == "f"} - {"exp"}
TYPES = [d for d in DTYPES.values() if d not in (bf16, f16)]
N = 67


def hard(dtype: DType, seed: int) -> np.ndarray:
    """Numbers of a type with its extremes, in an order of its own."""
    r = np.random.default_rng(seed)
    if dtype.kind == "b":
        return r.random(N) < 0.5
    if dtype.kind == "f":
        x = r.standard_normal(N) * 10.0 ** r.integers(-3, 4, N)
        x[:14] = [0, -0.0, 1, -1, 0.5, -0.5, 2.5, 1.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3]
        with np.errstate(over="ignore"):
            return r.permutation(dtype.round(x))
    info = np.iinfo(dtype.numpy)
    x = r.integers(-9, 10, N) if info.min else r.integers(0, 19, N)
    x[:4] = [info.min, info.max, info.max // 3, info.min // 2]
    return r.permutation(x).astype(dtype.numpy)


def arguments(fn: str, dtype: DType) -> list[DType]:
    arity = SCALARS[fn].arity
    return [bool_, dtype, dtype] if fn == "select" else [dtype] * arity


def both(level: str, name: str, dtypes: list[DType], out: DType, value) -> list[Kernel]:
    """As vectors of the level's width with a masked tail, and one by one."""
    width = cpu_target(level).lanes()
    return [by_hand.map1(name, N, value, dtypes, out, width, rows=1), by_hand.scalar_map(name, N, value, dtypes, out)]


def compare(kernels: list[Kernel], level: str, exact=lambda name: True) -> None:
    inputs = [{p.name: hard(p.dtype, 7 * i + 1) for i, p in enumerate(k.params) if p.name != "y"} for k in kernels]
    for x, k in zip(inputs, kernels):
        if k.name == "pow" and k.params[0].dtype.is_integer:
            dtype = x["x1"].dtype
            x["x1"] = (x["x1"] % dtype.type(9) - dtype.type(4 if dtype.kind == "i" else 0)).astype(dtype)
            x["x0"][::3] %= dtype.type(3)  # 1, -1 and 0 have powers of their own
            if dtype.kind == "i":
                x["x0"][1::3] = x["x0"][1::3] % 3 - 1
    got = [r["y"] for r in run_all(kernels, inputs, level)]
    for vector, plain, k, x in zip(got[::2], got[1::2], kernels[::2], inputs[::2]):
        what = f"{k.name} {k.params[0].dtype} -> {k.params[-1].dtype} on {level}"
        np.testing.assert_array_equal(vector.view(f"V{vector.itemsize}"), plain.view(f"V{plain.itemsize}"), what)
        if exact(k.name):
            np.testing.assert_array_equal(vector, evaluate(k, x, functions=numpy_functions())["y"], what)


@pytest.mark.parametrize("level", HERE)
def test_every_function_on_every_type(level):
    kernels = []
    for fn, s in SCALARS.items():
        for d in TYPES:
            if fn in ("cast", "bitcast", *MATH) or d.kind not in s.kinds or s.bits not in (0, d.bits):
                continue
            out = bool_ if s.result == "bool" else d
            name = "pow float" if fn == "pow" and d.kind == "f" else fn
            kernels += both(level, name, arguments(fn, d), out, lambda *a, fn=fn, out=out: Apply(fn, a, out))
    compare(kernels, level, exact=lambda name: name != "remainder")


@pytest.mark.parametrize("level", HERE)
def test_casts(level):
    kernels = []
    for a in DTYPES.values():
        for z in DTYPES.values():
            kernels += both(level, "cast", [a], z, lambda x, z=z: Apply("cast", (x,), z))
    for a, z in [(f32, i32), (i32, f32), (f32, u32), (f64, i64), (i64, f64), (u8, DTYPES["i8"]), (i32, u32)]:
        kernels += both(level, "bitcast", [a], z, lambda x, z=z: Apply("bitcast", (x,), z))
    compare(kernels, level)


@pytest.mark.parametrize("level", [*HERE, "native"])
def test_signs_of_rounded_numbers(level):
    """Where nothing but the sign of a bf16 or f16 is used: LLVM's shortcuts for that have bugs."""
    kernels = []
    for source in (f32, f64, i32):
        for narrow in (bf16, f16):
            for fn, out in (("signbit", bool_), ("copysign", f32)):

                def sign(x, fn=fn, narrow=narrow, out=out):
                    x = Apply("cast", (Apply("cast", (x,), narrow),), f32)
                    return Apply(fn, (x,) if fn == "signbit" else (Const(1.0, f32), x), out)

                kernels += both(level, fn, [source], out, sign)
    compare(kernels, level)


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("dtype", [f32, f64])
def test_fma_rounds_once(level, dtype):
    """Where the processor has none too: against rational arithmetic, on sums that cancel and on ties."""
    r = np.random.default_rng(5)
    digits = 24 if dtype == f32 else 53
    a, b = (r.integers(1 << digits - 1, 1 << digits, N) / 2.0**digits for _ in range(2))
    c = np.where(np.arange(N) % 2, -a * b, r.standard_normal(N) * 2.0 ** r.integers(-digits, digits, N))
    a[:8], b[:8], c[:8] = 1 + 2.0 ** -(digits - 1), 1 - 2.0 ** -(digits - 1), 2.0 ** -np.arange(20, 28)
    half = 2.0**-digits  # 1 + half is a tie, and the rest of c decides it
    a[8:12], b[8:12] = [half] * 4, [1 + 2 * half] * 4
    c[8:12] = [1, -1, 2, -2]
    given = [dtype.round(x) for x in (a, b, c)]
    kernels = both(level, "fma", [dtype] * 3, dtype, lambda *x: Apply("fma", x, dtype))
    arrays = {f"x{i}": x for i, x in enumerate(given)}
    want = []
    for x, y, z in zip(*given):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        want.append(nearest(exact, digits))
    for got in run_all(kernels, [arrays, arrays], level):
        np.testing.assert_array_equal(got["y"], np.array(want, dtype.numpy))


@pytest.mark.parametrize("level", HERE)
def test_fma_ftz_has_no_subnormal_numbers(level):
    """Around the least normal number 2^-126, where what rounds to it and what rounds below it lie 2^-152 apart."""
    r = np.random.default_rng(7)
    least, sign = 2.0**-126, np.where(r.random(N) < 0.5, -1, 1)
    a, b = (r.integers(128, 256, N) / 128 for _ in range(2))
    b[: N // 2] = 1
    c = least * sign
    given = [f32.round(x) for x in (-sign * a * 2.0 ** -r.integers(75, 78, N), b * 2.0**-75, c)]
    given[0][-8:], given[1][-4:], given[2][-12:-6] = 2.0**-130, 2.0**-140, -(2.0**-127)
    kernels = both(level, "fma_ftz", [f32] * 3, f32, lambda *x: Apply("fma_ftz", x, f32))
    arrays = {f"x{i}": x for i, x in enumerate(given)}
    want = []
    for x, y, z in zip(*(np.where(np.abs(v) < least, 0.0, v) for v in given)):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        got = nearest(exact, 24)
        want.append(got if abs(got) >= least else 0.0)
    assert 5 < want.count(0.0) < N - 5
    for got in run_all(kernels, [arrays, arrays], level):
        np.testing.assert_array_equal(np.abs(got["y"]), np.abs(np.array(want, np.float32)))
    compare(kernels, level)


def nearest(x: Fraction, digits: int) -> float:
    """To nearest even, in `digits` bits (no subnormals here)."""
    if x == 0:
        return 0.0
    scale = digits - 1 - (abs(x.numerator).bit_length() - x.denominator.bit_length())
    while abs(x) * Fraction(2) ** scale >= 1 << digits:
        scale -= 1
    while abs(x) * Fraction(2) ** scale < 1 << digits - 1:
        scale += 1
    return math.ldexp(round(x * Fraction(2) ** scale), -scale)  # Python rounds halves to even


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("dtype", [f32, f64])
def test_float_division_with_floor(level, dtype):
    kernels = []
    for fn in ("remainder", "floordiv"):
        kernels += both(level, fn, [dtype, dtype], dtype, lambda *x, fn=fn: Apply(fn, x, dtype))
    r = np.random.default_rng(2)
    x, y = (dtype.round(r.standard_normal(N) * 10.0 ** r.integers(-2, 3, N)) for _ in range(2))
    x[:12] = [7, -7, 7, -7, 6, -6, 0, -0.0, np.inf, np.nan, 5, -5]
    y[:12] = [3, 3, -3, -3, 3, 3, 2, 2, 2, 2, np.inf, np.inf]
    results = run_all(kernels, [{"x0": x, "x1": y}] * 4, level)
    with np.errstate(all="ignore"):
        for got in results[:2]:
            np.testing.assert_array_equal(got["y"], np.remainder(x, y))
        for got in results[2:]:
            np.testing.assert_array_equal(got["y"], np.floor(x / y))


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", [f32, f64])
def test_scaling_by_a_power_of_two(level, lanes, dtype):
    """`Builder.scale`, down to denormals and up to infinity, whatever instructions the target has."""
    target, elem = cpu_target(level), scalar.memory(dtype)
    b, t = Builder(target), ty(elem, lanes)
    p = [Value(name, PTR) for name in ("%a", "%n", "%r")]
    b.store(b.scale(b.load(t, p[0], 4), b.load(t, p[1], 4)), p[2], 4)
    body = "\n".join(b.lines)
    text = f"define void @f(ptr %a, ptr %n, ptr %r) {target.attributes} {{\n{body}\n  ret void\n}}"
    loaded = load_kernels(text, target)
    r, last = np.random.default_rng(lanes), 252 if dtype == f32 else 2044
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(loaded.address("f"))
    for _ in range(20):
        x = r.uniform(-2, 2, lanes).astype(dtype.numpy)
        n = r.integers(-last, last + 1, lanes)
        n[:1] = r.integers(-last * 5 // 8, -last // 2)  # denormal results
        power, got = n.astype(dtype.numpy), np.zeros(lanes, dtype.numpy)
        run(x.ctypes.data, power.ctypes.data, got.ctypes.data)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(got, np.ldexp(x, n))
