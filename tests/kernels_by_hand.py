"""Scheduled kernels written by hand in the kernel IR: what the emitter must be able to swallow.

Each function returns a kernel as the schedules would leave it: split, masked, vectorised, packed.
"""

from __future__ import annotations

from pullback.graph.types import DType, bf16, bool_, f32, i32, i64
from pullback.kernel.kernel import (
    A,
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
    Mask,
    Stmt,
    Store,
    Tile,
    apply,
)


def at(buffer: Buffer, *index, masks: tuple[Mask, ...] = (), other=0) -> Load:
    return Load(buffer.name, tuple(i if isinstance(i, Checked) else A(i) for i in index), buffer.dtype, masks, other)


def put(buffer: Buffer, index, value: Expr, masks: tuple[Mask, ...] = (), other="keep", where=None) -> Store:
    return Store(buffer.name, tuple(i if isinstance(i, Checked) else A(i) for i in index), value, masks, other, where)


def par(axis: str, extent, *body: Stmt, binding: str = "serial") -> Loop:
    return Loop(axis, extent, "parallel", body, binding)


def red(axis: str, extent, *body: Stmt, binding: str = "serial") -> Loop:
    return Loop(axis, extent, "reduce", body, binding)


def vec(axis: str, extent, *body: Stmt) -> Loop:
    return par(axis, extent, *body, binding="vector")


def unroll(axis: str, extent, *body: Stmt) -> Loop:
    return par(axis, extent, *body, binding="unroll")


def block(axis: str, extent, *body: Stmt) -> Loop:
    return par(axis, extent, *body, binding="block")


def fold(p: Buffer, width: int, fn: str, *outer: Affine | str) -> Tile:
    """p[..., 0] = the combination of p[..., 0 .. width), by halving."""
    steps, h = [], width // 2
    while h:
        lower, upper = at(p, *outer, "fl"), at(p, *outer, A("fl") + h)
        steps.append(par("fl", h, put(p, (*outer, "fl"), apply(fn, lower, upper))))
        h //= 2
    return Tile("fold", tuple(steps))


# ---- element by element -------------------------------------------------------------------------------------
def map1(name: str, n: int, value, dtypes: list[DType], out: DType, width: int = 16, rows: int = 4) -> Kernel:
    """out[i] = value(inputs at i): vectors of `width`, the tail masked."""
    inputs = [Buffer(f"x{i}", (n,), d) for i, d in enumerate(dtypes)]
    y = Buffer("y", (n,), out)
    step = width * rows
    i = A("io") * step + A("r") * width + "l"
    masks = ((i, n),) if n % step else ()
    e = value(*(at(x, i, masks=masks) for x in inputs))
    blocks = -(-n // step)
    return Kernel(
        name, (*inputs, y), (), (block("io", blocks, unroll("r", rows, vec("l", width, put(y, (i,), e, masks)))),)
    )


def scalar_map(name: str, n: int, value, dtypes: list[DType], out: DType) -> Kernel:
    """The same without vectors."""
    inputs = [Buffer(f"x{i}", (n,), d) for i, d in enumerate(dtypes)]
    y = Buffer("y", (n,), out)
    return Kernel(
        name, (*inputs, y), (), (block("b", 1, par("i", n, put(y, ("i",), value(*(at(x, "i") for x in inputs))))),)
    )


# ---- rows ---------------------------------------------------------------------------------------------------
def softmax_streamed(rows: int, n: int, block_rows: int = 1) -> Kernel:
    """Three passes over a row in memory, 64 partial results, folded."""
    x, y = Buffer("x", (rows, n)), Buffer("y", (rows, n))
    p, q = Buffer("p", (64,), f32, "register"), Buffer("q", (64,), f32, "register")
    r = A("r")
    c = A("co") * 64 + "cl"
    masks = ((c, n),) if n % 64 else ()
    outer = -(-n // 64)
    low = Const(float("-inf"))
    exp = apply("exp", apply("sub", at(x, r, c, masks=masks), at(p, 0)))
    body = (
        vec("cl", 64, put(p, ("cl",), low)),
        red(
            "co",
            outer,
            vec(
                "cl", 64, put(p, ("cl",), apply("maximum", at(p, "cl"), at(x, r, c, masks=masks, other=float("-inf"))))
            ),
        ),
        fold(p, 64, "maximum"),
        vec("cl", 64, put(q, ("cl",), Const(0.0))),
        red(
            "co",
            outer,
            vec(
                "cl",
                64,
                put(y, (r, c), exp, masks),
                put(q, ("cl",), apply("add", at(q, "cl"), at(y, r, c, masks=masks))),
            ),
        ),
        fold(q, 64, "add"),
        par("co", outer, vec("cl", 64, put(y, (r, c), apply("div", at(y, r, c, masks=masks), at(q, 0)), masks))),
    )
    return Kernel("softmax_streamed", (x, y), (p, q), (block("r", rows, *body),))


def softmax_register(rows: int, n: int) -> Kernel:
    """The row stays in registers; lanes behind its end hold -inf."""
    x, y = Buffer("x", (rows, n)), Buffer("y", (rows, n))
    width = 1 << (n - 1).bit_length() if n < 64 else 64
    outer = -(-n // width)
    t = Buffer("t", (outer, width), f32, "register")
    p, q = Buffer("p", (width,), f32, "register"), Buffer("q", (width,), f32, "register")
    c = A("co") * width + "cl"
    masks = ((c, n),) if n % width else ()

    def row(stmt: Stmt) -> Stmt:
        return unroll("co", outer, vec("cl", width, stmt))

    tv = at(t, "co", "cl")
    body = (
        row(put(t, ("co", "cl"), at(x, "r", c, masks=masks, other=float("-inf")))),
        vec("cl", width, put(p, ("cl",), Const(float("-inf")))),
        row(put(p, ("cl",), apply("maximum", at(p, "cl"), tv))),
        fold(p, width, "maximum"),
        row(put(t, ("co", "cl"), apply("exp", apply("sub", tv, at(p, 0))))),
        vec("cl", width, put(q, ("cl",), Const(0.0))),
        row(put(q, ("cl",), apply("add", at(q, "cl"), tv))),
        fold(q, width, "add"),
        row(put(y, ("r", c), apply("div", tv, at(q, 0)), masks)),
    )
    return Kernel("softmax_register", (x, y), (t, p, q), (block("r", rows, *body),))


def layer_norm(rows: int, n: int, epsilon: float = 1e-5) -> Kernel:
    """Mean, then variance of the differences, then scale and bias."""
    x, g, o = Buffer("x", (rows, n)), Buffer("g", (n,)), Buffer("o", (n,))
    y = Buffer("y", (rows, n))
    p, q = Buffer("p", (64,), f32, "register"), Buffer("q", (64,), f32, "register")
    c, outer = A("co") * 64 + "cl", -(-n // 64)
    masks = ((c, n),) if n % 64 else ()
    inverse = Const(1.0 / n)
    mean = apply("mul", at(p, 0), inverse)
    difference = apply("sub", at(x, "r", c, masks=masks), mean)
    scale = apply("div", Const(1.0), apply("sqrt", apply("add", apply("mul", at(q, 0), inverse), Const(epsilon))))
    normal = apply("mul", difference, scale)
    body = (
        vec("cl", 64, put(p, ("cl",), Const(0.0)), put(q, ("cl",), Const(0.0))),
        red("co", outer, vec("cl", 64, put(p, ("cl",), apply("add", at(p, "cl"), at(x, "r", c, masks=masks))))),
        fold(p, 64, "add"),
        red(
            "co",
            outer,
            vec("cl", 64, put(q, ("cl",), apply("fma", difference, difference, at(q, "cl")), masks)),
        ),
        fold(q, 64, "add"),
        par(
            "co",
            outer,
            vec(
                "cl",
                64,
                put(y, ("r", c), apply("fma", normal, at(g, c, masks=masks), at(o, c, masks=masks)), masks),
            ),
        ),
    )
    return Kernel("layer_norm", (x, g, o, y), (p, q), (block("r", rows, *body),))


def column_sum(rows: int, n: int, chunk: int, dtype: DType = f32) -> Kernel:
    """sum over rows: chunks in order into one accumulator each, then the chunks in order."""
    x, y = Buffer("x", (rows, n), dtype), Buffer("y", (n,), dtype)
    chunks = -(-rows // chunk)
    p, q = Buffer("p", (32,), dtype, "register"), Buffer("q", (32,), dtype, "register")
    c = A("co") * 32 + "cl"
    i = A("ch") * chunk + "i"
    cols = ((c, n),) if n % 32 else ()
    masks = (*cols, *(((i, rows),) if rows % chunk else ()))
    zero = Const(0 if dtype.is_integer else 0.0, dtype)
    body = (
        vec("cl", 32, put(q, ("cl",), zero)),
        red(
            "ch",
            chunks,
            vec("cl", 32, put(p, ("cl",), zero)),
            red("i", chunk, vec("cl", 32, put(p, ("cl",), apply("add", at(p, "cl"), at(x, i, c, masks=masks))))),
            vec("cl", 32, put(q, ("cl",), apply("add", at(q, "cl"), at(p, "cl")))),
        ),
        vec("cl", 32, put(y, (c,), at(q, "cl"), cols)),
    )
    return Kernel("column_sum", (x, y), (p, q), (block("co", -(-n // 32), *body),))


# ---- contractions -------------------------------------------------------------------------------------------
def matmul(
    m: int, n: int, k: int, form: str = "NN", mr: int = 8, nr: int = 32, pack: bool = False, dtype: DType = f32
) -> Kernel:
    """c = a @ b in a register tile of mr x nr; edges are masked.  `form`: N or T for each side.

    `pack` copies the panel of b that a block needs; for a transposed b through 16 x 16 transpose tiles.
    """
    a = Buffer("a", (k, m) if form[0] == "T" else (m, k), dtype)
    w = Buffer("b", (n, k) if form[1] == "T" else (k, n), dtype)
    c = Buffer("c", (m, n), dtype)
    acc = Buffer("acc", (mr, nr), dtype, "register")
    blocks = -(-n // nr)
    panel = Buffer("panel", (k, nr), dtype, "local")
    i, j = A("io") * mr + "ii", A("jo") * nr + "ji"
    rows = ((i, m),) if m % mr else ()
    cols = ((j, n),) if n % nr else ()

    def tile(stmt: Stmt) -> Stmt:
        return unroll("ii", mr, vec("ji", nr, stmt))

    left = at(a, "k", i, masks=rows) if form[0] == "T" else at(a, i, "k", masks=rows)
    if pack:
        right = at(panel, "k", "ji")
    else:
        right = at(w, j, "k", masks=cols) if form[1] == "T" else at(w, "k", j, masks=cols)
    stmts = [
        par(
            "io",
            -(-m // mr),
            tile(put(acc, ("ii", "ji"), Const(0.0, dtype))),
            red("k", k, tile(put(acc, ("ii", "ji"), apply("fma", left, right, at(acc, "ii", "ji"))))),
            tile(put(c, (i, j), at(acc, "ii", "ji"), rows + cols)),
        )
    ]
    if pack and form[1] == "T":
        jj = A("jt") * 16 + "jl"
        source = A("jo") * nr + jj
        masks = ((source, n),) if n % nr else ()

        def tiles(count: int, start: int, size: int) -> Stmt:
            kk = A("kt") * 16 + "kl" + start
            move = par("jl", 16, par("kl", size, put(panel, (kk, jj), at(w, source, kk, masks=masks))))
            return par("kt", count, par("jt", nr // 16, Tile("transpose", (move,))))

        if k % 16:
            stmts.insert(0, tiles(1, k // 16 * 16, k % 16))
        stmts.insert(0, tiles(k // 16, 0, 16))
    elif pack:
        stmts.insert(0, par("k", k, vec("ji", nr, put(panel, ("k", "ji"), at(w, "k", j, masks=cols)))))
    return Kernel(f"matmul_{form}", (a, w, c), (acc, panel) if pack else (acc,), (block("jo", blocks, *stmts),))


# ---- indices ------------------------------------------------------------------------------------------------
def embedding(rows: int, vocabulary: int, n: int) -> Kernel:
    """y[r, :] = table[index[r], :], the index checked."""
    index, table, y = Buffer("index", (rows,), i32), Buffer("table", (vocabulary, n)), Buffer("y", (rows, n))
    c = A("co") * 16 + "cl"
    masks = ((c, n),) if n % 16 else ()
    picked = Checked(at(index, "r"), vocabulary, 3)
    move = vec("cl", 16, put(y, ("r", c), at(table, picked, c, masks=masks), masks))
    return Kernel("embedding", (index, table, y), (), (block("r", rows, par("co", -(-n // 16), move)),))


def pick(rows: int, n: int) -> Kernel:
    """y[r] = x[r, label[r]]: a gather, one lane per row."""
    x, label, y = Buffer("x", (rows, n)), Buffer("label", (rows,), i64), Buffer("y", (rows,))
    r = A("ro") * 16 + "rl"
    masks = ((r, rows),) if rows % 16 else ()
    picked = Checked(at(label, r, masks=masks), n, 1)
    move = vec("rl", 16, put(y, (r,), at(x, r, picked, masks=masks), masks))
    return Kernel("pick", (x, label, y), (), (block("ro", -(-rows // 16), move),))


def scatter_add(rows: int, size: int, n: int) -> Kernel:
    """y[index[r], :] += u[r, :] in the order of r, each block its columns."""
    index, u, y = Buffer("index", (rows,), i32), Buffer("u", (rows, n)), Buffer("y", (size, n))
    c = A("co") * 16 + "cl"
    masks = ((c, n),) if n % 16 else ()
    picked = Checked(at(index, "r"), size)
    body = (
        par("s", size, vec("cl", 16, put(y, ("s", c), Const(0.0), masks))),
        Loop(
            "r",
            rows,
            "ordered",
            (
                vec(
                    "cl",
                    16,
                    put(y, (picked, c), apply("add", at(y, picked, c, masks=masks), at(u, "r", c, masks=masks)), masks),
                ),
            ),
        ),
    )
    return Kernel("scatter_add", (index, u, y), (), (block("co", -(-n // 16), *body),))


def histogram(rows: int, size: int) -> Kernel:
    """Lanes that meet in one element: must run in order although the axis says vector."""
    index, y = Buffer("index", (rows,), i64), Buffer("y", (size,), i32)
    picked = Checked(at(index, "r"), size)
    body = (
        par("s", size, put(y, ("s",), Const(0, i32))),
        vec("r", rows, put(y, (picked,), apply("add", at(y, picked), Const(1, i32)))),
    )
    return Kernel("histogram", (index, y), (), body)


def one_hot(rows: int, n: int) -> Kernel:
    """y[r, c] = label[r] == c ? 1 : 0, by axis values."""
    label, y = Buffer("label", (rows,), i32), Buffer("y", (rows, n))
    c = A("co") * 16 + "cl"
    masks = ((c, n),) if n % 16 else ()
    same = apply("eq", at(label, "r"), AxisValue(c, i32))
    value = Apply("select", (same, Const(1.0), Const(0.0)), f32)
    return Kernel(
        "one_hot",
        (label, y),
        (),
        (block("r", rows, par("co", -(-n // 16), vec("cl", 16, put(y, ("r", c), value, masks)))),),
    )


def masked_update(n: int) -> Kernel:
    """y[i] = x[i] where flag[i], else keep."""
    x, flag, y = Buffer("x", (n,)), Buffer("flag", (n,), bool_), Buffer("y", (n,))
    i = A("io") * 16 + "l"
    masks = ((i, n),) if n % 16 else ()
    move = vec("l", 16, put(y, (i,), at(x, i, masks=masks), masks, where=at(flag, i, masks=masks)))
    return Kernel("masked_update", (x, flag, y), (), (block("io", -(-n // 16), move),))


def shifted(n: int, by: int) -> Kernel:
    """Padding: y[i] = x[i - by] inside, 7 outside; lane and scalar masks on both sides."""
    x, y = Buffer("x", (n,)), Buffer("y", (n,))
    i = A("io") * 16 + "l"
    source = i - A(by)
    masks = ((i, n),) if n % 16 else ()
    inside = (*masks, (source, n), (source * -1, 1))
    return Kernel(
        "shifted",
        (x, y),
        (),
        (block("io", -(-n // 16), vec("l", 16, put(y, (i,), at(x, source, masks=inside, other=7.0), masks))),),
    )


def strided(n: int, stride: int) -> Kernel:
    """y[2 i] = x[n - 1 - i] + z[stride i]: reversed, strided loads and strided stores."""
    x, z, y = Buffer("x", (n,)), Buffer("z", (n * stride,)), Buffer("y", (n * 2,))
    value = apply("add", at(x, A("i") * -1 + (n - 1)), at(z, A("i") * stride))
    return Kernel(
        "strided",
        (x, z, y),
        (),
        (par("s", 2 * n, put(y, ("s",), Const(0.0))), vec("i", n, put(y, (A("i") * 2,), value))),
    )


def triangle(n: int) -> Kernel:
    """y[i] = sum of x[i, j] for j <= i: an extent that depends on an outer axis."""
    x, y = Buffer("x", (n, n)), Buffer("y", (n,))
    acc = Buffer("acc", (1,), f32, "register")
    body = (
        put(acc, (0,), Const(0.0)),
        red("j", A("i") + 1, put(acc, (0,), apply("add", at(acc, 0), at(x, "i", "j")))),
        put(y, ("i",), at(acc, 0)),
    )
    return Kernel("triangle", (x, y), (acc,), (block("i", n, *body),))


def transposed(rows: int, columns: int, size: int = 16, dtype: DType = f32) -> Kernel:
    """y = x.T by transpose tiles of size x size with masked edges."""
    x, y = Buffer("x", (rows, columns), dtype), Buffer("y", (columns, rows), dtype)
    r, c = A("ro") * size + "rl", A("co") * size + "cl"
    rm = ((r, rows),) if rows % size else ()
    cm = ((c, columns),) if columns % size else ()
    move = par("rl", size, par("cl", size, put(y, (c, r), at(x, r, c, masks=rm + cm), rm + cm)))
    return Kernel(
        "transposed",
        (x, y),
        (),
        (block("ro", -(-rows // size), par("co", -(-columns // size), Tile("transpose", (move,)))),),
    )


def argmax(rows: int, n: int) -> Kernel:
    """Pairs (value, position) in 16 partial results, the first largest wins; folded with its combiner."""
    x, y = Buffer("x", (rows, n)), Buffer("y", (rows,), i64)
    v, p = Buffer("v", (16,), f32, "register"), Buffer("p", (16,), i64, "register")
    c = A("co") * 16 + "cl"
    masks = ((c, n),) if n % 16 else ()
    here, place = at(x, "r", c, masks=masks, other=float("-inf")), AxisValue(c, i64)

    def take(new_v: Expr, new_p: Expr, lane) -> tuple[Stmt, Stmt]:
        old_v, old_p = at(v, lane), at(p, lane)
        larger = apply("gt", new_v, old_v)
        earlier = apply("and", apply("eq", new_v, old_v), apply("lt", new_p, old_p))
        better = apply("or", larger, earlier)
        return (
            put(p, (lane,), Apply("select", (better, new_p, old_p), i64)),
            put(v, (lane,), apply("maximum", old_v, new_v)),
        )

    steps, h = [], 8
    while h:
        steps.append(par("fl", h, *take(at(v, A("fl") + h), at(p, A("fl") + h), "fl")))
        h //= 2
    body = (
        vec("cl", 16, put(v, ("cl",), Const(float("-inf"))), put(p, ("cl",), Const(n, i64))),
        red("co", -(-n // 16), vec("cl", 16, *take(here, place, "cl"))),
        Tile("fold", tuple(steps)),
        put(y, ("r",), at(p, 0)),
    )
    return Kernel("argmax", (x, y), (v, p), (block("r", rows, *body),))


def mixed_precision(n: int) -> Kernel:
    """bf16 in, f32 arithmetic, bf16 and f32 out."""
    x, w = Buffer("x", (n,), bf16), Buffer("w", (n,))
    y, z = Buffer("y", (n,), bf16), Buffer("z", (n,))
    i = A("io") * 16 + "l"
    masks = ((i, n),) if n % 16 else ()
    value = apply("fma", apply("cast", at(x, i, masks=masks), dtype=f32), at(w, i, masks=masks), Const(0.5))
    rounded = apply("cast", value, dtype=bf16)
    return Kernel(
        "mixed_precision",
        (x, w, y, z),
        (),
        (block("io", -(-n // 16), vec("l", 16, put(y, (i,), rounded, masks), put(z, (i,), value, masks))),),
    )
