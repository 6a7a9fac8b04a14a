"""The kernel evaluator: exact types, poison, bounds, checks, and lockstep against one element at a time."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from kernel_samples import TEXTS, inputs, kernel, random_kernel

from pullback.errors import PullbackError
from pullback.graph.types import bf16
from pullback.kernel.evaluate import CheckFailed, OutOfBounds, evaluate
from pullback.kernel.interpret import Evaluator
from pullback.kernel.scalars import SCALARS, fma
from pullback.kernel.text import parse_kernel


def run(text: str, **arrays) -> dict[str, np.ndarray]:
    return evaluate(parse_kernel(text), {n: np.asarray(a) for n, a in arrays.items()})


# ---- meaning --------------------------------------------------------------------------------------------
def test_samples_mean_what_they_say():
    def out(name: str, result: str = "y"):
        k = kernel(name)
        arrays = inputs(k)
        return arrays, evaluate(k, arrays)[result]

    a, h = out("linear", "h")
    assert np.allclose(h, np.tanh(a["x"] @ a["w"].T + a["b"]) / 2, atol=1e-6)
    a, h = out("scheduled", "h")
    assert np.allclose(h, a["x"] @ a["w"].T, atol=1e-6)
    a, y = out("softmax")
    e = np.exp(a["x"] - a["x"].max(1, keepdims=True))
    assert np.allclose(y, e / e.sum(1, keepdims=True), atol=1e-6)
    a, y = out("fold")
    assert np.allclose(y, a["x"].sum(1), atol=1e-5)
    a, y = out("transpose")
    assert np.array_equal(y, a["x"].T)
    a, y = out("gather")
    assert np.array_equal(y, a["table"][a["index"]])
    a, y = out("scatter")
    expected = np.zeros((4, 3), np.float32)
    np.add.at(expected, a["index"], a["x"])
    assert np.allclose(y, expected, atol=1e-6)
    a, y = out("triangle")
    assert np.allclose(y, np.tril(a["x"]).sum(1), atol=1e-6)
    a, y = out("cumulative")
    assert np.allclose(y, np.cumsum(a["x"], 1), atol=1e-12)
    a, y = out("argmax")
    assert np.array_equal(y, a["x"].argmax(1))
    a, y = out("convolution")
    padded = np.pad(a["x"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, r : r + 5, s : s + 5] @ a["f"][r, s] for r in range(3) for s in range(3))
    assert np.allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_lockstep_gives_the_bits_of_one_element_at_a_time(name):
    k = kernel(name)
    arrays = inputs(k, 1)
    slow, fast = evaluate(k, arrays, lockstep=False), evaluate(k, arrays)
    for out in slow:
        assert np.array_equal(slow[out], fast[out], equal_nan=True)


def test_lockstep_on_random_kernels():
    for seed in range(30):
        k = random_kernel(seed)
        arrays = inputs(k, seed)
        slow, fast = evaluate(k, arrays, lockstep=False)["y"], evaluate(k, arrays)["y"]
        assert np.array_equal(slow, fast, equal_nan=True), seed


def test_loops_with_a_dependence_do_not_run_in_lockstep():
    shift = parse_kernel("""
kernel shift() -> y: f32[6]
  y[0] = 1.0
  ordered i < 5
    y[i + 1] = y[i] * 2.0
""")
    assert "arange" not in Evaluator(shift).source
    assert np.array_equal(evaluate(shift, {})["y"], [1, 2, 4, 8, 16, 32])
    assert "arange" in Evaluator(kernel("softmax")).source


# ---- types ----------------------------------------------------------------------------------------------
def test_f32_rounds_after_each_operation():
    y = run(
        """
kernel f(x: f32[1]) -> y: f32[3]
  y[0] = x[0] + 1.0 - 1.0
  y[1] = x[0] * 3.0 * 7.0
  y[2] = fma(x[0], x[0], -1.0)
""",
        x=np.array([1 + 2**-12], np.float32),
    )["y"]
    x = np.float32(1 + 2**-12)
    assert y[0] == (x + np.float32(1)) - np.float32(1)
    assert y[1] == (x * np.float32(3)) * np.float32(7)
    assert y[2] == np.float32(2**-11 + 2**-24) != x * x - np.float32(1)


def rounded(exact: Fraction, t) -> float:
    """The nearest number of a type, to even, by exact comparison of candidates."""
    guess = t(float(exact)) if t is np.float64 else t(np.float64(float(exact)))
    around = [np.nextafter(guess, t(-np.inf)), guess, np.nextafter(guess, t(np.inf))]
    distance = [abs(Fraction(float(c)) - exact) for c in around]
    best = min(distance)
    closest = [c for c, d in zip(around, distance, strict=True) if d == best]
    return next(c for c in closest if len(closest) == 1 or int(c.view(f"u{c.itemsize}")) % 2 == 0)


@pytest.mark.parametrize("t", [np.float32, np.float64])
def test_fma_rounds_once(t):
    g = np.random.default_rng(0)
    n, digits = 600, 23 if t is np.float32 else 52
    a, b = (1 + g.integers(0, 1 << digits, (2, n)) / 2**digits).astype(t)
    c = (-(a * b) * (1 + g.integers(-4, 5, n) * t(2.0**-digits))).astype(t)  # cancellation
    half = n // 2
    c[half:] = (a[half:] * t(2.0 ** (digits - 1)) * g.integers(1, 5, half)).astype(t)  # ties and near ties
    got = fma(a, b, c)
    for i in range(n):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert got[i] == rounded(exact, t), (a[i], b[i], c[i])


def test_fma_of_special_values():
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    with np.errstate(all="ignore"):
        assert fma(inf, np.float32(1), np.float32(1)) == inf
        assert np.isnan(fma(inf, np.float32(0), np.float32(1))) and np.isnan(fma(nan, inf, inf))
        assert fma(np.float32(3e38), np.float32(3e38), -inf) == -inf
        assert fma(np.float64(1e200), np.float64(1e200), np.float64(-1e300)) == np.inf
        assert fma(np.float64(1e-200), np.float64(1e-120), np.float64(0)) == 1e-320


def test_bf16_and_f16_compute_in_f32_and_round_at_casts_and_stores():
    text = """
kernel f(a: bf16[4], b: f16[4]) -> c: bf16[4], d: f16[4], e: f32[4]
  parallel i < 4
    c[i] = a[i] * a[i] + a[i]
    d[i] = b[i] * b[i] - b[i]
    e[i] = cast:f32(cast:bf16(a[i] * a[i]))
"""
    a = bf16.round(np.array([1.0078125, 3.3, -7.7, 1e-3], np.float32))
    b = np.array([1.001, 3.3, 200.0, 300.0], np.float16)
    out = run(text, a=a, b=b)
    assert np.array_equal(out["c"], bf16.round(a * a + a))
    with np.errstate(over="ignore"):
        wide = b.astype(np.float32)
        assert np.array_equal(out["d"], (wide * wide - wide).astype(np.float16))
    assert np.isinf(out["d"][3]) and out["d"].dtype == np.float16
    assert np.array_equal(out["e"], bf16.round(a * a))


def test_integers_wrap_and_division_floors():
    text = """
kernel f(x: i32[3], y: i32[3], n: u8[3]) -> a: i32[3], b: i32[3], c: i32[3], d: u8[3], e: i8[3]
  parallel i < 3
    a[i] = x[i] * x[i]
    b[i] = floordiv(x[i], y[i])
    c[i] = remainder(x[i], y[i])
    d[i] = neg(n[i]) + 250:u8
    e[i] = cast:i8(n[i])
"""
    x, y = np.array([2**30 + 1, -7, 5], np.int32), np.array([3, 2, 0], np.int32)
    out = run(text, x=x, y=y, n=np.array([1, 200, 0], np.uint8))
    assert out["a"].tolist() == [((2**30 + 1) ** 2 + 2**31) % 2**32 - 2**31, 49, 25]
    assert out["b"].tolist() == [(2**30 + 1) // 3, -4, 0] and out["c"].tolist() == [(2**30 + 1) % 3, 1, 0]
    assert out["d"].tolist() == [249, 50, 250] and out["e"].tolist() == [1, -56, 0]


def test_casts_saturate_and_bitcasts_keep_bits():
    text = """
kernel f(x: f32[5]) -> a: i32[5], b: u8[5], c: i32[5], d: bool[5]
  parallel i < 5
    a[i] = cast:i32(x[i])
    b[i] = cast:u8(x[i])
    c[i] = bitcast:i32(x[i])
    d[i] = cast:bool(x[i])
"""
    x = np.array([1e20, -1e20, np.nan, -1.9, 0.0], np.float32)
    out = run(text, x=x)
    assert out["a"].tolist() == [2**31 - 1, -(2**31), 0, -1, 0] and out["b"].tolist() == [255, 0, 0, 0, 0]
    assert np.array_equal(out["c"], x.view(np.int32)) and out["d"].tolist() == [True, True, True, True, False]


def test_every_scalar_function_runs():
    for fn, scalar in SCALARS.items():
        kind = scalar.kinds[0]
        dtype = {"f": "f32", "i": "i32", "u": "u32", "b": "bool"}[kind]
        result = {"bool": "bool", "cast": "i32"}.get(scalar.result, dtype)
        args = ["x[i]"] * scalar.arity
        if fn == "select":
            args[0] = "x[i] < x[i]"
        note = ":i32" if scalar.result == "cast" else ""
        text = (
            f"kernel f(x: {dtype}[3]) -> y: {result}[3]\n  parallel i < 3\n    y[i] = {fn}{note}({', '.join(args)})\n"
        )
        out = run(text, x=np.array([1, 1, 1]))["y"]
        assert out.shape == (3,) and (out == out[0]).all(), fn


# ---- poison, masks, bounds ------------------------------------------------------------------------------
def test_scalar_functions_of_single_numbers_give_single_numbers():
    """As loops run them one element at a time: no array of one element, whatever branch the numbers take."""
    numbers = {"f": (0.0, -0.0, 1.5, 1e-40, 3e38, np.inf, -np.inf, np.nan), "i": (0, -1, 7), "u": (0, 7), "b": (0, 1)}
    for name, s in SCALARS.items():
        for t in (np.float32, np.float64, np.int32, np.uint32, np.bool_):
            kind, bits = np.dtype(t).kind, np.dtype(t).itemsize * 8
            if kind not in s.kinds or s.bits not in (0, bits):
                continue
            for given in product(numbers[kind], repeat=s.arity):
                args = [t(x) for x in given]
                if name == "select":
                    args[0] = np.bool_(args[0])
                with np.errstate(all="ignore"):
                    got = s.evaluate(*args)
                assert np.shape(got) == (), f"{name}{given} of {t.__name__}"
                assert s.result == "cast" or np.asarray(got).dtype == (np.bool_ if s.result == "bool" else t), name


def test_locals_start_as_poison_in_every_iteration():
    text = """
kernel f(x: f32[4]) -> y: f32[4], z: i32[4]
  t: f32[] register
  n: i32[] register
  parallel i < 4
    t = x[i] where x[i] > 0.0
    n = 1:i32 where x[i] > 0.0
    y[i] = t
    z[i] = n
"""
    for lockstep in (True, False):
        out = evaluate(parse_kernel(text), {"x": np.array([1, -1, 2, -2], np.float32)}, lockstep)
        assert np.array_equal(out["y"], [1, np.nan, 2, np.nan], equal_nan=True)
        assert out["z"][0] == 1 and out["z"][1] < -(2**29)


def test_what_a_masked_store_leaves():
    text = """
kernel f(x: f32[4]) -> a: f32[4], b: f32[4], c: f32[4]
  vector i < 4
    a[i | i < 2] = x[i]
    b[i | i < 2 else 7] = x[i]
    c[i | i < 2 else any] = x[i]
"""
    out = run(text, x=np.arange(4.0), a=np.full(4, 9.0), b=np.full(4, 9.0), c=np.full(4, 9.0))
    assert out["a"].tolist() == [0, 1, 9, 9] and out["b"].tolist() == [0, 1, 7, 7]
    assert out["c"][:2].tolist() == [0, 1] and np.isnan(out["c"][2:]).all()


def test_accesses_outside_of_buffers_are_found():
    wide = "kernel f(x: f32[3,4]) -> y: f32[3,4]\n  parallel i < 3\n    parallel j < 4\n      y[i, j] = x[i, j + 1]\n"
    for lockstep in (True, False):
        with pytest.raises(OutOfBounds, match=r"kernel f: x\[0, 4\] is outside of its shape \[3, 4\]"):
            evaluate(parse_kernel(wide), [np.zeros((3, 4)), None], lockstep)
    with pytest.raises(OutOfBounds, match=r"y\[-1\]"):
        run("kernel f() -> y: f32[3]\n  ordered i < 3\n    y[i + -1] = 0.0\n")
    masked = "kernel f(x: f32[4]) -> y: f32[4]\n  vector i < 4\n    y[i] = x[i + 1 | i < 3 else 5.0]\n"
    assert run(masked, x=np.arange(4.0))["y"].tolist() == [1, 2, 3, 5]


def test_failed_checks_name_site_and_value():
    k = kernel("gather")
    arrays = inputs(k)
    arrays["index"] = np.array([0, 1, 8, 2, -1], np.int32)
    for lockstep in (True, False):
        with pytest.raises(CheckFailed, match="check 0 failed: index 8 is not in 0 <= index < 8") as failure:
            evaluate(k, arrays, lockstep)
        assert failure.value.site == 0 and failure.value.value == 8
    masked = """
kernel f(t: f32[4], n: i32[3]) -> y: f32[3]
  vector i < 3
    y[i] = t[check(n[i], 4, 2) | i < 2 else 1.5]
"""
    assert run(masked, t=np.arange(4.0), n=np.array([3, 0, 99]))["y"].tolist() == [3, 0, 1.5]


def test_strided_parameters_are_views():
    text = """
kernel f(x: f32[2,3] strides(1,2)) -> y: f32[2,3] strides(8,2)
  parallel i < 2
    parallel j < 3
      y[i, j] = x[i, j]
"""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(run(text, x=x)["y"], x)


def test_empty_loops_and_shapes():
    out = run("kernel f(x: f32[0,3]) -> y: f32[0,3]\n  parallel i < 0\n    y[i, 0] = x[i, 0]\n", x=np.zeros((0, 3)))
    assert out["y"].shape == (0, 3)


def test_wrong_arguments_are_refused():
    k = kernel("gather")
    with pytest.raises(PullbackError, match="no array for index"):
        evaluate(k, {"table": np.zeros((8, 3))})
    with pytest.raises(PullbackError, match=r"table is \[8, 3\], got \[8, 4\]"):
        evaluate(k, {"table": np.zeros((8, 4)), "index": np.zeros(5, np.int32)})
    with pytest.raises(PullbackError, match="expected 3 arrays, got 1"):
        evaluate(k, [np.zeros(3)])


def test_what_a_fold_has_added_is_nobodys():
    text = TEXTS["fold"].replace("y[i] = p[0]", "y[i] = p[1]")
    k = parse_kernel(text)
    assert np.isnan(evaluate(k, inputs(k))["y"]).all()
