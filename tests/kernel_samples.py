"""Kernels of every kind for the tests of the kernel IR: as text, and random ones."""

from __future__ import annotations

import random

import numpy as np

from pullback.graph.types import bool_, f32, i32, i64
from pullback.kernel.kernel import (
    Affine,
    Apply,
    AxisValue,
    Buffer,
    Checked,
    Const,
    Expr,
    Kernel,
    Load,
    Loop,
    Store,
    apply,
)
from pullback.kernel.text import parse_kernel

TEXTS = {
    "linear": """
kernel linear(x: f32[5,6], w: f32[7,6], b: f32[7]) -> h: f32[5,7]
  acc: f32[] register
  parallel i < 5
    parallel j < 7
      acc = 0.0
      reduce k < 6
        acc = fma(x[i, k], w[j, k], acc)
      h[i, j] = tanh(acc + b[j]) * 0.5
""",
    "scheduled": """
kernel scheduled(x: f32[4,6], w: f32[7,6]) -> h: f32[4,7]
  panel: f32[6,4] local
  acc: f32[2,4] register
  block jo < 2
    reduce k < 6
      parallel ji < 4
        panel[k, ji | jo*4 + ji < 7 else any] = w[jo*4 + ji, k | jo*4 + ji < 7 else 0.0]
    parallel io < 2
      unroll ii < 2
        vector ji < 4
          acc[ii, ji] = 0.0
      reduce k < 6
        unroll ii < 2
          vector ji < 4
            acc[ii, ji] = fma(x[io*2 + ii, k], panel[k, ji], acc[ii, ji])
      unroll ii < 2
        vector ji < 4
          h[io*2 + ii, jo*4 + ji | jo*4 + ji < 7] = acc[ii, ji]
""",
    "softmax": """
kernel softmax(x: f32[6,9]) -> y: f32[6,9]
  m: f32[] register
  s: f32[] register
  e: f32[9] local
  parallel i < 6
    m = -inf
    reduce k < 9
      m = maximum(m, x[i, k])
    s = 0.0
    reduce k < 9
      e[k] = exp(x[i, k] - m)
      s = s + e[k]
    parallel k < 9
      y[i, k] = e[k] / s
""",
    "fold": """
kernel row_sum(x: f32[3,13]) -> y: f32[3]
  p: f32[4] register
  parallel i < 3
    parallel l < 4
      p[l] = 0.0
    reduce k < 4
      parallel l < 4
        p[l | k*4 + l < 13] = p[l] + x[i, k*4 + l | k*4 + l < 13 else 0.0]
    tile fold
      parallel h2 < 2
        p[h2] = p[h2] + p[h2 + 2]
      parallel h1 < 1
        p[h1] = p[h1] + p[h1 + 1]
    y[i] = p[0]
""",
    "transpose": """
kernel transpose(x: f32[4,4] strides(1,4)) -> y: f32[4,4]
  tile transpose
    parallel r < 4
      parallel c < 4
        y[c, r] = x[r, c]
""",
    "gather": """
kernel gather(table: f32[8,3], index: i32[5]) -> y: f32[5,3]
  parallel i < 5
    parallel j < 3
      y[i, j] = table[check(index[i], 8, 0), j]
""",
    "scatter": """
kernel scatter(index: i64[5], x: f32[5,3]) -> y: f32[4,3]
  parallel j < 3
    parallel r < 4
      y[r, j] = 0.0
    ordered i < 5
      y[check(index[i], 4, 0), j] = y[check(index[i], 4, 0), j] + x[i, j]
""",
    "triangle": """
kernel triangle(x: f32[5,5]) -> y: f32[5]
  s: f32[] register
  parallel i < 5
    s = 0.0
    reduce k < i + 1
      s = s + x[i, k]
    y[i] = s
""",
    "cumulative": """
kernel cumulative(x: f64[4,6]) -> y: f64[4,6]
  s: f64[] register
  parallel i < 4
    s = 0.0:f64
    ordered k < 6
      s = s + x[i, k]
      y[i, k] = s
""",
    "argmax": """
kernel argmax(x: f32[4,6]) -> y: i32[4]
  best: f32[] register
  at: i32[] register
  parallel i < 4
    best = -inf
    at = 0:i32
    ordered k < 6
      at = axis:i32(k) where x[i, k] > best
      best = maximum(best, x[i, k])
    y[i] = at
""",
    "convolution": """
kernel convolution(x: f32[2,5,5,3], f: f32[3,3,3,4]) -> y: f32[2,5,5,4]
  acc: f32[] register
  parallel n < 2
    parallel h < 5
      parallel w < 5
        parallel o < 4
          acc = 0.0
          reduce r < 3
            reduce s < 3
              reduce c < 3
                acc = fma(x[n, h + r + -1, s + w + -1, c | {} else 0.0], f[r, s, c, o], acc)
          y[n, h, w, o] = acc
""".format("h*-1 + r*-1 < 0, h + r < 6, s*-1 + w*-1 < 0, s + w < 6"),
    "types": """
kernel types(a: bf16[6], b: f16[6], n: u8[6], t: bool[6]) -> c: bf16[6], d: i8[6], e: bool[6], g: u32[6]
  vector i < 6
    c[i] = cast:bf16(a[i] * cast:bf16(b[i]))
    d[i] = cast:i8(n[i]) * 7:i8
    e[i] = and(t[i], isfinite(b[i]))
    g[i] = shl(cast:u32(n[i]), 3:u32) where t[i]
""",
}


def kernel(name: str) -> Kernel:
    return parse_kernel(TEXTS[name])


def inputs(k: Kernel, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for all parameters; integers are small enough for every check in the samples."""
    g = np.random.default_rng(seed)
    arrays = {}
    for b in k.params:
        if b.dtype.is_float:
            arrays[b.name] = b.dtype.round(g.standard_normal(b.shape).astype(b.dtype.compute.numpy))
        else:
            arrays[b.name] = g.integers(0, 2 if b.dtype.kind == "b" else 4, b.shape).astype(b.dtype.numpy)
    return arrays


def random_kernel(seed: int) -> Kernel:
    """Element-wise over [5, 7] with shifts, gathers, counters, predicates, and a sum over a third axis."""
    r = random.Random(seed)
    x, n = Buffer("x", (5, 7)), Buffer("n", (5,), i32)
    acc = Buffer("acc", (), f32, "register")
    i, j, k = Affine.of("i"), Affine.of("j"), Affine.of("k")
    shared: list[Expr] = []

    def leaf(inner: bool) -> Expr:
        column = k if inner else j
        c = r.randint(-3, 3)
        return r.choice(
            [
                Const(round(r.uniform(-2, 2), 3)),
                Load("x", (i, column), f32),
                Load("x", (i, column + c), f32, ((column + c, 7), (column * -1 + -c, 1)), r.choice([0, 0.5, 1])),
                Load("x", (Checked(Load("n", (i,), i32), 5, r.randint(0, 3)), column), f32),
                apply("cast", AxisValue(i * 7 + column, r.choice([i32, i64])), dtype=f32),
                Load("acc", (), f32),
            ]
        )

    def tree(depth: int, inner: bool) -> Expr:
        if depth == 0:
            return leaf(inner)
        if shared and not inner and r.random() < 0.3:
            return r.choice(shared)
        a, b = tree(depth - 1, inner), tree(depth - 1, inner)
        e = r.choice(
            [
                lambda: apply(r.choice(["add", "sub", "mul", "maximum", "minimum"]), a, b),
                lambda: apply(r.choice(["neg", "abs", "tanh", "sin", "sqrt"]), a),
                lambda: apply("fma", a, b, tree(depth - 1, inner)),
                lambda: apply("select", apply(r.choice(["lt", "ge", "ne"]), a, b), a, b),
                lambda: Apply("cast", (apply("cast", a, dtype=bool_),), f32),
            ]
        )()
        if not inner:
            shared.append(e)
        return e

    extent = r.choice([7, Affine.of("j") + 1])
    step = apply("add", Load("acc", (), f32), tree(2, True))
    where = apply("lt", leaf(False), leaf(False)) if r.random() < 0.3 else None
    body = (
        Store("acc", (), Const(0.0)),
        Loop("k", extent, "reduce", (Store("acc", (), step),)),
        Store("y", (i, j), tree(r.randint(1, 4), False), where=where),
    )
    nest = Loop("i", 5, "parallel", (Loop("j", 7, "parallel", body),))
    return Kernel(f"random{seed}", (x, n, Buffer("y", (5, 7))), (acc,), (nest,))
