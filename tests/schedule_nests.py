"""Unscheduled nests of every family, as lowering writes them, and the check that a schedule keeps their meaning."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from pullback.graph.types import DType, bf16, f16, f32, f64, i32
from pullback.kernel.evaluate import evaluate
from pullback.kernel.kernel import (
    A,
    Affine,
    Apply,
    Buffer,
    Checked,
    Const,
    Expr,
    Kernel,
    Load,
    Stmt,
    Store,
    Tile,
    apply,
    load,
    loop,
    store,
    written,
)
from pullback.kernel.verify import verify


def arrays_for(kernel: Kernel, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; integers are 0 or 1 (indices of anything)."""
    rng = np.random.default_rng(seed)
    out = {}
    for b in kernel.params:
        if b.name not in written(kernel.body):
            if b.dtype.kind == "f":
                out[b.name] = b.dtype.round(rng.standard_normal(b.shape))
            else:
                out[b.name] = rng.integers(0, 2, b.shape).astype(b.dtype.numpy)
    return out


def same_meaning(before: Kernel, after: Kernel, seed: int = 0) -> None:
    """Bit for bit the same outputs, locals starting as NaN and every access checked against its buffer."""
    verify(before)
    verify(after)
    arrays = arrays_for(before, seed)
    shapes = {b.name: b.shape for b in after.params}
    expected = evaluate(before, arrays)
    actual = evaluate(after, {n: a.reshape(shapes[n]) for n, a in arrays.items()})
    assert expected.keys() == actual.keys()
    for name, x in expected.items():
        y = actual[name].reshape(x.shape)
        assert x.tobytes() == y.tobytes(), f"{name}: {np.sum(x != y)} of {x.size} elements differ"


# ---- contractions ---------------------------------------------------------------------------------------
def step(a: Expr, b: Expr, acc: Expr) -> Expr:
    """The sum with one more product; those of bf16 have a function of their own."""
    narrow = a.fn == "cast" and a.args[0].dtype == bf16 if isinstance(a, Apply) else False
    return apply("fma_ftz" if narrow else "fma", a, b, acc)


def wide(e: Expr) -> Expr:
    """In the type that sums have."""
    return e if e.dtype == e.dtype.compute else apply("cast", e, dtype=e.dtype.compute)


def gelu(z: Expr) -> Expr:
    inner = apply("mul", z, apply("fma", apply("mul", z, z), Const(0.0356774), Const(0.7978846)))
    return apply("mul", apply("mul", z, Const(0.5)), apply("add", apply("tanh", inner), Const(1.0)))


def linear(
    m: int, n: int, k: int, form: str = "NN", epilogue: str = "plain", prologue: str = "plain", dtype: DType = f32
) -> Kernel:
    """h[i, j] = epilogue(sum over k of a[i, k] b[k, j]); `form` says which factors lie transposed in memory."""
    x = Buffer("x0", (k, m) if form[0] == "T" else (m, k), dtype)
    w = Buffer("x1", (n, k) if form[1] == "T" else (k, n), dtype)
    i = "i0" if m != 1 else 0
    j = "i1" if n != 1 else 0
    kk = "k0" if k != 1 else 0
    a: Expr = load(x, *((kk, i) if form[0] == "T" else (i, kk)))
    b: Expr = load(w, *((j, kk) if form[1] == "T" else (kk, j)))
    if prologue in ("a", "both"):
        a = apply("maximum", a, Const(0.0, dtype))
    if prologue in ("b", "both"):
        b = apply("mul", b, Const(0.5, dtype))
    compute = dtype.compute
    a, b = wide(a), wide(b)
    acc = Buffer("acc0", (), compute, "register")
    here = load(acc)
    bias, h, g = Buffer("x2", (n,), compute), Buffer("y0", (m, n), compute), Buffer("y1", (m, n), compute)
    outs: list[Stmt]
    params = [x, w]
    if epilogue == "plain":
        outs, params = [store(h, (i, j), here)], [*params, h]
    elif epilogue == "bias":
        outs, params = [store(h, (i, j), apply("add", here, load(bias, j)))], [*params, bias, h]
    else:  # a shared value, two outputs
        t = Buffer("t0", (), compute, "register")
        outs = [
            store(t, (), apply("add", here, load(bias, j))),
            store(h, (i, j), load(t)),
            store(g, (i, j), gelu(load(t))),
        ]
        params = [*params, bias, h, g]
    locals_ = (acc, t) if epilogue == "gelu" else (acc,)
    body: list[Stmt] = [
        store(acc, (), Const(0.0, compute)),
        loop("k0", k, "reduce", store(acc, (), step(a, b, here))),
        *outs,
    ]
    for axis, extent in (("i1", n), ("i0", m)):
        if extent != 1:
            body = [loop(axis, extent, "parallel", *body)]
    return Kernel("linear", tuple(params), locals_, tuple(body))


def random_contraction(seed: int) -> Kernel:
    """Axes that either factor moves with or not, in any order in memory; factors that are loads, or expressions."""
    r = random.Random(seed)
    dtype = r.choice((f32, f32, f64, bf16, f16))
    axes = [(f"i{d}", r.choice((1, 2, 3, 5, 8, 17, 34))) for d in range(r.randint(0, 3))]
    reduced = [(f"k{d}", r.choice((1, 2, 3, 7, 16, 33))) for d in range(r.choice((1, 1, 1, 2)))]
    extents = dict(axes + reduced)
    params: list[Buffer] = []

    def operand() -> Expr:
        names = [n for n in extents if r.random() < (0.8 if n in dict(reduced) else 0.6)]
        r.shuffle(names)
        b = Buffer(f"x{len(params)}", tuple(extents[n] for n in names), dtype)
        params.append(b)
        e: Expr = load(b, *names)
        if r.random() < 0.2 and names:  # of which a part is read
            e = replace(e, masks=((A(names[0]), max(1, extents[names[0]] - 1)),), other=0.0)
        return e

    def factor() -> Expr:
        e = operand()
        kind = r.choice(("plain", "plain", "plain", "apply", "two"))
        if kind == "apply":
            e = apply("maximum", e, Const(0.25, dtype))
        elif kind == "two":
            e = apply("sub", e, operand())
            e = e if dtype == dtype.compute else apply("cast", e, dtype=dtype)  # rounded, as lowering does
        return wide(e)

    a = factor()
    b = a if r.random() < 0.15 else factor()
    acc = Buffer("acc0", (), dtype.compute, "register")
    out = list(axes)
    r.shuffle(out)
    y = Buffer("y0", tuple(n for _, n in out), dtype.compute)
    here = load(acc)
    value = apply("add", here, Const(1.0, dtype.compute)) if r.random() < 0.3 else here
    if r.random() < 0.2:
        value = apply("tanh", apply("exp", value))
    inner: Stmt = store(acc, (), step(a, b, here))
    for n, extent in reversed(reduced):
        inner = loop(n, extent, "reduce", inner)
    body = [store(acc, (), Const(0.0, dtype.compute)), inner, store(y, tuple(n for n, _ in out), value)]
    for n, extent in reversed(axes):
        body = [loop(n, extent, "parallel", *body)]
    return Kernel("contraction", (*params, y), (acc,), tuple(body))


def batched(batch: int, heads: int, m: int, n: int, k: int, dtype: DType = f32) -> Kernel:
    """Scores of attention: q[b, i, h, k] with k[b, j, h, k] to s[b, h, i, j]."""
    q, c = Buffer("x0", (batch, m, heads, k), dtype), Buffer("x1", (batch, n, heads, k), dtype)
    s, acc = Buffer("y0", (batch, heads, m, n)), Buffer("acc0", (), f32, "register")
    a, b = wide(load(q, "i0", "i2", "i1", "k0")), wide(load(c, "i0", "i3", "i1", "k0"))
    body = [
        store(acc, (), Const(0.0)),
        loop("k0", k, "reduce", store(acc, (), step(a, b, load(acc)))),
        store(s, ("i0", "i1", "i2", "i3"), load(acc)),
    ]
    for axis, extent in (("i3", n), ("i2", m), ("i1", heads), ("i0", batch)):
        body = [loop(axis, extent, "parallel", *body)]
    return Kernel("scores", (q, c, s), (acc,), tuple(body))


def convolution(images: int, h: int, w: int, ci: int, co: int, dtype: DType = f32) -> Kernel:
    """3 x 3 on a padded image; s and c are one stretch of memory."""
    x, f = Buffer("x0", (images, h + 2, w + 2, ci), dtype), Buffer("x1", (3, 3, ci, co), dtype)
    y, acc = Buffer("y0", (images, h, w, co)), Buffer("acc0", (), f32, "register")
    a = load(x, "i0", A("i1") + A("k0"), A("i2") + A("k1"), "k2")
    inner = store(acc, (), step(wide(a), wide(load(f, "k0", "k1", "k2", "i3")), load(acc)))
    body: list[Stmt] = [
        store(acc, (), Const(0.0)),
        loop("k0", 3, "reduce", loop("k1", 3, "reduce", loop("k2", ci, "reduce", inner))),
        store(y, ("i0", "i1", "i2", "i3"), load(acc)),
    ]
    for axis, extent in (("i3", co), ("i2", w), ("i1", h), ("i0", images)):
        body = [loop(axis, extent, "parallel", *body)]
    return Kernel("convolution", (x, f, y), (acc,), tuple(body))


# ---- maps -------------------------------------------------------------------------------------------------
def pointwise(shape: tuple[int, ...], bias: bool = False, transposed: bool = False, copy: bool = False) -> Kernel:
    """y = gelu(x + b), with b along the last axis; or x read with its last two axes exchanged."""
    axes = [f"i{d}" for d in range(len(shape))]
    source = shape if not transposed else (*shape[:-2], shape[-1], shape[-2])
    at = axes if not transposed else [*axes[:-2], axes[-1], axes[-2]]
    x, b, y = Buffer("x0", source), Buffer("x1", shape[-1:]), Buffer("y0", shape)
    value: Expr = load(x, *at)
    if bias:
        value = apply("add", value, load(b, axes[-1]))
    body: tuple[Stmt, ...] = (store(y, axes, value if copy else gelu(value)),)
    for axis, n in reversed(list(zip(axes, shape, strict=True))):
        body = (loop(axis, n, "parallel", *body),)
    return Kernel("map", (x, b, y) if bias else (x, y), (), body)


def padded(m: int, n: int) -> Kernel:
    """y = x with a border of one: a masked load."""
    x, y = Buffer("x0", (m, n)), Buffer("y0", (m + 2, n + 2))
    i, j = A("i0") - 1, A("i1") - 1
    masks = ((i * -1, 1), (i, m), (j * -1, 1), (j, n))
    value = Load("x0", (i, j), f32, masks, 0.5)
    return Kernel(
        "pad",
        (x, y),
        (),
        (loop("i0", m + 2, "parallel", loop("i1", n + 2, "parallel", store(y, ("i0", "i1"), value))),),
    )


def take(rows: int, n: int, count: int) -> Kernel:
    """y[i, j] = table[index[i], j]."""
    table, index, y = Buffer("x0", (rows, n)), Buffer("x1", (count,), i32), Buffer("y0", (count, n))
    value = Load("x0", (Checked(load(index, "i0"), rows), A("i1")), f32)
    return Kernel(
        "take",
        (table, index, y),
        (),
        (loop("i0", count, "parallel", loop("i1", n, "parallel", store(y, ("i0", "i1"), value))),),
    )


def scatter(rows: int, n: int, count: int) -> Kernel:
    """dtable[index[k], j] += dy[k, j], in the order of k."""
    index, dy, y = Buffer("x0", (count,), i32), Buffer("x1", (count, n)), Buffer("y0", (rows, n))
    place = (Checked(load(index, "k0"), rows), A("i1"))
    add = Store("y0", place, apply("add", Load("y0", place, f32), load(dy, "k0", "i1")))
    clear = loop("v", rows, "parallel", store(y, ("v", "i1"), Const(0.0)))
    return Kernel("scatter", (index, dy, y), (), (loop("i1", n, "parallel", clear, loop("k0", count, "ordered", add)),))


def columns(m: int, n: int, chunk: int) -> Kernel:
    """partial[c, j] = sum over the rows of a chunk, in order; the last chunk may be short."""
    x, y, p = Buffer("x0", (m, n)), Buffer("y0", (-(-m // chunk), n)), Buffer("p0", (), f32, "register")
    at = A("c") * chunk + A("r")
    masks = ((at, m),) if m % chunk else ()
    step = Store("p0", (), apply("add", load(p), Load("x0", (at, A("j0")), f32, masks)), masks)
    body = (store(p, (), Const(0.0)), loop("r", chunk, "reduce", step), store(y, ("c", "j0"), load(p)))
    return Kernel("columns", (x, y), (p,), (loop("c", -(-m // chunk), "parallel", loop("j0", n, "parallel", *body)),))


def cumulative(m: int, n: int, axis: int) -> Kernel:
    x, y, acc = Buffer("x0", (m, n)), Buffer("y0", (m, n)), Buffer("acc0", (), f32, "register")
    at = ("k", "i1") if axis == 0 else ("i0", "k")
    steps = loop(
        "k", (m, n)[axis], "ordered", store(acc, (), apply("add", load(acc), load(x, *at))), store(y, at, load(acc))
    )
    outer = ("i1", n) if axis == 0 else ("i0", m)
    return Kernel("cumsum", (x, y), (acc,), (loop(*outer, "parallel", store(acc, (), Const(0.0)), steps),))


# ---- rows -------------------------------------------------------------------------------------------------
def fold(buffer: Buffer, fn: str) -> Tile:
    h, loops = buffer.shape[0] // 2, []
    while h:
        a = f"h{h}"
        loops.append(loop(a, h, "parallel", store(buffer, (a,), apply(fn, load(buffer, a), load(buffer, A(a) + h)))))
        h //= 2
    return Tile("fold", tuple(loops))


def row_stage(p: Buffer, fn: str, start: float, n: int, value, extra=()) -> list[Stmt]:
    """p[l] = value over the row, W strided partial results, folded; `extra(at, masks)` are stores on the way."""
    w = p.shape[0]
    steps = -(-n // w)
    at = (A("k") * w if steps > 1 else Affine()) + A("l")
    masks = ((at, n),) if n % w else ()
    stmts = [s(at, masks) for s in extra]
    step = loop("l", w, "parallel", *stmts, Store(p.name, (A("l"),), apply(fn, load(p, "l"), value(at, masks)), masks))
    if steps > 1:
        step = loop("k", steps, "reduce", step)
    out = [loop("l", w, "parallel", store(p, ("l",), Const(start))), step]
    return [*out, fold(p, fn)] if w > 1 else out


def softmax(m: int, n: int) -> Kernel:
    """Three stages; e[n] lives between the second and the third."""
    w = min(64, 1 << max(n - 1, 0).bit_length())
    x, y = Buffer("x0", (m, n)), Buffer("y0", (m, n))
    p, q = (Buffer(b, (w,), f32, "register") for b in ("p0", "p1"))
    s, r = (Buffer(b, (), f32, "register") for b in ("s0", "s1"))
    e = Buffer("e0", (n,), f32, "local")

    def element(at, masks):
        return Load("x0", (A("i0"), at), f32, masks)

    def keep(at, masks):
        return Store("e0", (at,), apply("exp", apply("sub", element(at, masks), load(s))), masks)

    body = [
        *row_stage(p, "maximum", -np.inf, n, element),
        store(s, (), load(p, 0)),
        *row_stage(q, "add", 0.0, n, lambda at, masks: Load("e0", (at,), f32, masks), (keep,)),
        store(r, (), apply("div", Const(1.0), load(q, 0))),
        loop("j0", n, "parallel", store(y, ("i0", "j0"), apply("mul", load(e, "j0"), load(r)))),
    ]
    return Kernel("softmax", (x, y), (p, q, s, r, e), (loop("i0", m, "parallel", *body),))


def total(m: int, n: int) -> Kernel:
    """The sum of everything: no parallel loop outside at all."""
    w = min(64, 1 << max(n - 1, 0).bit_length())
    x, y, p = Buffer("x0", (m, n)), Buffer("y0", ()), Buffer("p0", (w,), f32, "register")
    stage = row_stage(p, "add", 0.0, n, lambda at, masks: Load("x0", (A("o0"), at), f32, masks))
    stage[1] = loop("o0", m, "reduce", stage[1])
    return Kernel("total", (x, y), (p,), (*stage, store(y, (), load(p, 0))))


def norm_gradient(m: int, n: int, chunk: int) -> Kernel:
    """dx[i, :] from a row sum of dy * g, and partial column sums of dy * x over the rows of a chunk."""
    w = min(64, 1 << max(n - 1, 0).bit_length())
    x, dy, g = Buffer("x0", (m, n)), Buffer("x1", (m, n)), Buffer("x2", (n,))
    dx, dg = Buffer("y0", (m, n)), Buffer("y1", (-(-m // chunk), n))
    p, s = Buffer("p0", (w,), f32, "register"), Buffer("s0", (), f32, "register")
    row = A("c") * chunk + A("r")
    live = ((row, m),) if m % chunk else ()

    def product(at, masks):
        return apply("mul", Load("x1", (row, at), f32, (*masks, *live)), Load("x2", (at,), f32, masks))

    stage = row_stage(p, "add", 0.0, n, product)
    column = Store(
        "y1",
        (A("c"), A("j0")),
        apply("fma", Load("x1", (row, A("j0")), f32, live), Load("x0", (row, A("j0")), f32, live), load(dg, "c", "j0")),
        live,
    )
    out = Store("y0", (row, A("j0")), apply("sub", Load("x1", (row, A("j0")), f32, live), load(s)), live)
    rows = loop("r", chunk, "reduce", *stage, store(s, (), load(p, 0)), loop("j0", n, "parallel", out, column))
    clear = loop("j0", n, "parallel", store(dg, ("c", "j0"), Const(0.0)))
    return Kernel("norm_gradient", (x, dy, g, dx, dg), (p, s), (loop("c", -(-m // chunk), "parallel", clear, rows),))
