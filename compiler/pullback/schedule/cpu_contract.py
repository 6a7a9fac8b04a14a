"""The CPU schedule of contractions (matrix products of all kinds): kernel -> kernel on IR 2.

The nest: parallel axes around `acc = 0; reduce k: acc = fma(a, b, acc); stores of expressions of acc`.  An
axis that only `a` moves with is a *row*, one that only `b` moves with a *column*; others are outer axes.
One column axis is vectorised; a register tile of rows x vectors adds k in order (facts are in
docs/schedules.md).  The plan of blocks, panels and tiles is chosen from shapes and strides in `choose`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import ceil, gcd, inf, prod, sqrt

from ..codegen.target import Target
from ..kernel.kernel import Apply, Expr, Kernel, Load, Loop, Store, loads, read, stores, written
from .limits import DEFAULT, Limits
from .liveness import used_below
from .nest import chain_of, cost, extents_of, fuse_chain, order_axes, outer_chain, rename, stride
from .pairs import PAIR, copy_pairs, dot, fits, split_pairs
from .sinking import expand, sink
from .staging import axes_in, carry, pack, place, spill, tensorise
from .steps import axes_of, bind, rename_loops, split, tidy


@dataclass(frozen=True, slots=True)
class Contraction:
    """A nest of this family: its axes in groups (outermost first) and where they lie in memory."""

    acc: str
    outer: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    reduced: tuple[str, ...]
    swapped: bool  # the column operand is fma's first factor
    pair: tuple[str, ...] = ()  # the axis within pairs of k, where products are added in pairs (`pairs.py`)

    @property
    def inner(self) -> str:
        """The reduced axis whose elements follow each other most closely."""
        return (self.pair or self.reduced)[-1]


def accumulation(s: Store) -> tuple[Expr, Expr] | None:
    """(a, b) of `acc = fma(a, b, acc)`, or fma_ftz."""
    v = s.value
    if isinstance(v, Apply) and v.fn in ("fma", "fma_ftz") and s.where is None:
        c = v.args[2]
        if isinstance(c, Load) and c.buffer == s.buffer and c.index == s.index:
            return v.args[0], v.args[1]
    return None


def recognise(kernel: Kernel) -> tuple[str, list[Loop], list[Loop], Store] | None:
    """(acc, parallel loops, reduce loops, the accumulating store) if the kernel is a contraction."""
    chain, stmts = outer_chain(kernel)
    if len(stmts) < 3 or not isinstance(stmts[0], Store) or not isinstance(stmts[1], Loop):
        return None
    init, rest = stmts[0], stmts[2:]
    reduce, inner = chain_of(stmts[1], "reduce")
    if not reduce or len(inner) != 1 or not isinstance(inner[0], Store) or accumulation(inner[0]) is None:
        return None
    step = inner[0]
    local = {b.name: b for b in kernel.locals}
    if init.buffer != step.buffer or step.buffer not in local or local[step.buffer].shape or step.masks or init.masks:
        return None
    if not all(isinstance(s, Store) for s in rest) or any(not isinstance(s.extent, int) for s in (*chain, *reduce)):
        return None
    if init.buffer in written(rest):
        return None
    return step.buffer, chain, reduce, step


def group(kernel: Kernel, swapped: bool) -> Contraction:
    acc, chain, reduce, step = recognise(kernel)
    a, b = accumulation(step)
    rows, columns = (axes_in(b), axes_in(a)) if swapped else (axes_in(a), axes_in(b))
    names = [s.axis for s in chain]
    return Contraction(
        acc,
        tuple(n for n in names if (n in rows) == (n in columns)),
        tuple(n for n in names if n in rows and n not in columns),
        tuple(n for n in names if n in columns and n not in rows),
        tuple(s.axis for s in reduce),
        swapped,
    )


@dataclass(frozen=True, slots=True)
class Tiling:
    """What `choose` decides, in elements: the register tile, the block, the stretch of k that is packed."""

    mr: int
    nv: int
    mc: int
    nc: int
    kc: int
    pack_a: bool = False
    pack_b: bool = False
    carry_k: bool = False  # k blocks outside of the tiles: accumulators wait in memory


def schedule_contraction(
    kernel: Kernel,
    target: Target,
    fixed: Collection[str] = (),
    limits: Limits = DEFAULT,
    tiling: Tiling | None = None,
) -> Kernel:
    """The buffers `fixed` keep their shapes; `tiling` overrides `choose` (tests and measurements)."""
    kernel, c = normalise(kernel, target, fixed)
    if extents_of(kernel)["j"] > 1 and fits(recognise(kernel)[-1], target):
        kernel, c = split_pairs(kernel, c.reduced[-1]), replace(c, pair=(PAIR,))
    lanes = lanes_for(kernel, c, target)
    t = tiling or choose(kernel, c, target, limits)
    a, b = _operand(c, 1 if c.swapped else 0), _operand(c, 0 if c.swapped else 1)
    k = c.reduced[-1]
    stretch = t.kc < extents_of(kernel)[k]
    heavy = not t.carry_k and sum(cost(s.value) for s in _epilogue(kernel)) > limits.heavy

    # Blocks and panels: outer.., jc, ic, jp around the rows and columns of one panel.
    kernel = split(kernel, "i", t.mc, "ic", "i")
    kernel = split(kernel, "j", t.nc, "jc", "j")
    kernel = sink(kernel, "i", past=("jc",))
    kernel = sink(kernel, "ic", past=("jc",))
    kernel = split(kernel, "j", t.nv * lanes, "jp", "j")
    kernel = sink(kernel, "i", past=("jp",))

    for axis in reversed(c.outer):
        kernel = sink(kernel, axis, past=("jc", "ic"))

    # Where k goes in stretches around many tiles, accumulators wait in memory.
    if heavy:
        kernel = spill(kernel, c.acc, c.reduced[0], "out")
    if stretch:
        kernel = split(kernel, k, t.kc, "kc", k)
    if t.carry_k:
        for axis in ("j", "i", "jp"):
            kernel = sink(kernel, axis, past=("kc",))
        kernel = place(kernel, c.acc, "local")
    at_panel = t.carry_k or not stretch
    if at_panel:
        kernel = _pack_columns(kernel, c, t, b, "jp", c.reduced, lanes)

    # The register tile.
    kernel = split(kernel, "i", t.mr, "it", "i", tail="even")
    if t.pack_a:
        kernel = _pack_rows(kernel, c, t, a, "kc" if t.carry_k else ("ic", *c.outer)[-1], lanes)
    kernel = sink(kernel, "j", stop=c.pair, cut=_stores_to("out"))
    kernel = sink(kernel, "i", stop=("j", *c.pair), cut=_stores_to("out"))
    if not at_panel:
        kernel = _pack_columns(kernel, c, t, b, "kc", (k,), lanes)
    if t.carry_k:
        kernel = carry(kernel, c.acc, ("i", "j"), "it", "tile")
    if heavy or t.carry_k:  # code for one vector, in loops
        kernel = rename_loops(kernel, {"i": "ie", "j": "je"}, lambda s: not written((s,)) & {"tile", "out", c.acc})
        if t.carry_k:
            kernel = rename_loops(kernel, {"i": "i0", "j": "j0"}, lambda s: read((s,)).isdisjoint({c.acc, "tile"}))
    kernel = _bind(kernel, c, lanes)
    return dot(kernel, "j") if c.pair else kernel


# ---- the steps' parts ------------------------------------------------------------------------------------
def _operand(c: Contraction, n: int):
    def pick(s: Store) -> Expr | None:
        if s.buffer not in (c.acc, "tile") or (factors := accumulation(s)) is None:
            return None
        return factors[n].args[0] if c.pair else factors[n]  # in pairs: before it is widened

    return pick


def _stores_to(buffer: str):
    return lambda s: written((s,)) == {buffer}


def _epilogue(kernel: Kernel) -> list[Store]:
    _, stmts = outer_chain(kernel)
    return stores(stmts[2:])


def _pack_rows(kernel: Kernel, c: Contraction, t: Tiling, operand, at: str, lanes: int) -> Kernel:
    """Copy a block of the row operand, tile after tile, so that a tile walks it from end to end."""
    if _unit(kernel, operand, "i"):
        axes = ("it", *c.reduced, "i", *c.pair)
        kernel = pack(kernel, operand, axes, at, "block", pad=("it", lanes), mirror=c.inner if c.pair else "")
        kernel = sink(kernel, "it_block", past=[f"{k}_block" for k in c.reduced])  # read whole rows
        kernel = bind(split(kernel, "it_block", 8, "ib_block", "it_block"), it_block="unroll")
        return _vector_copy(kernel, c, "i", "block", min(lanes, 1 << (t.mr - 1).bit_length()))
    axes = ("it", "i", *c.reduced, *c.pair)
    kernel = pack(kernel, operand, axes, at, "block", pad=("i", lanes), mirror=c.inner if c.pair else "")
    return _vector_copy(kernel, c, c.reduced[-1], "block", lanes)


def _pack_columns(
    kernel: Kernel, c: Contraction, t: Tiling, operand, at: str, reduced: tuple[str, ...], lanes: int
) -> Kernel:
    """Copy the panel of the column operand to [k, j]; what lies along k is transposed vector by vector."""
    if not t.pack_b:
        return kernel
    k = reduced[-1]
    transposed = lanes > 1 and _unit(kernel, operand, c.inner) and not _unit(kernel, operand, "j")
    if transposed and not all(isinstance(e, Load) and not e.masks for e in _picked(kernel, operand)):
        kernel = pack(kernel, operand, ("j", *reduced, *c.pair), at, "rows", pad=("j", lanes))
        kernel = _vector_copy(kernel, c, k, "rows", lanes)
    kernel = pack(kernel, operand, (*reduced, "j", *c.pair), at, "panel", mirror=c.inner if c.pair else "")
    if not transposed:
        return _vector_copy(kernel, c, "j", "panel", lanes)
    kernel = split(kernel, "j_panel", lanes, "jv_panel", "j_panel")
    kernel = split(kernel, f"{k}_panel", lanes, "kv_panel", f"{k}_panel")
    kernel = sink(kernel, f"{k}_panel", past=("jv_panel",))
    kernel = sink(kernel, "kv_panel", past=("jv_panel",))  # few rows at a time, from end to end
    return tensorise(kernel, (f"{k}_panel", "j_panel", *(f"{a}_panel" for a in c.pair)), "transpose")


def lanes_for(kernel: Kernel, c: Contraction, target: Target) -> int:
    """Lanes of the column axis; one column is computed in scalars (several rows at a time)."""
    return target.lanes(kernel.buffers[c.acc].dtype.bits) if c.pair or extents_of(kernel)["j"] > 1 else 1


def _picked(kernel: Kernel, operand) -> set[Expr]:
    return {e for s in stores(kernel.body) if (e := operand(s)) is not None}


def _unit(kernel: Kernel, operand, axis: str) -> bool:
    """Does the operand's widest load walk an axis element by element?"""
    steps = [abs(stride(kernel, x, axis) or 0) for e in _picked(kernel, operand) for x in loads(e)]
    return max(steps, default=0) == 1


def _vector_copy(kernel: Kernel, c: Contraction, axis: str, dst: str, lanes: int) -> Kernel:
    """The loop of a copy to `dst` in vectors, a few at a time."""
    if lanes == 1:
        return kernel
    axis = f"{axis}_{dst}"
    n = extents_of(kernel)[axis]
    if n > 4 * lanes:
        kernel = split(kernel, axis, 4 * lanes, f"{axis}_g", axis)
    kernel = split(kernel, axis, lanes, f"{axis}_v", axis, tail="mask")
    kernel = bind(kernel, **{f"{axis}_v": "unroll", axis: "vector"})
    return copy_pairs(kernel, axis, f"{c.inner}_{dst}") if c.pair else kernel


def _bind(kernel: Kernel, c: Contraction, lanes: int) -> Kernel:
    names = axes_of(kernel.body)
    bindings = {n: "block" for n in ("jc", "ic", *c.outer)}
    for i, j in (("i", "j"), ("i0", "j0"), ("ie", "je")):
        if j in names and lanes > 1:
            dead = {c.acc, "tile", "out"} & used_below(kernel, j)
            kernel = expand(split(kernel, j, lanes, f"{j}_v", j, tail="mask", dead=dead), j)
            bindings[j] = "vector"
            if j == "j":
                bindings[f"{j}_v"] = "unroll"
        if j == "j":
            bindings[i] = "unroll"
    return tidy(bind(kernel, **bindings))


# ---- reading and choosing -------------------------------------------------------------------------------
def normalise(kernel: Kernel, target: Target, fixed: Collection[str] = ()) -> tuple[Kernel, Contraction]:
    """Fuse axes where memory allows; name the row axis of the tile `i`, the vectorised column axis `j`, and
    put all other axes around them."""
    c = group(kernel, False)
    kernel = order_axes(kernel, (*c.outer, *c.rows, *c.columns))
    left: list[str] = []
    for axes in (c.outer, c.rows, c.columns, c.reduced):
        kernel, names = fuse_chain(kernel, list(axes), fixed)
        left.append(names)
    outer, rows, columns, reduced = left
    extents = extents_of(kernel)
    outs = [s for s in _epilogue(kernel) if s.buffer in {b.name for b in kernel.params}]

    def nearest(axes: list[str]) -> str | None:  # what lies closest in the outputs, then the longest
        def far(n: str):
            return (min((abs(stride(kernel, s, n) or 1 << 40) for s in outs), default=0), -extents[n])

        return min(axes, key=far, default=None)

    i, j = nearest(rows), nearest(columns)
    acc, _, _, step = recognise(kernel)
    a, b = accumulation(step)
    lanes = target.lanes(kernel.buffers[acc].dtype.bits)
    k = reduced[-1]

    def price(col: str | None, row: str | None, operand: Expr) -> float:
        """Cycles per element of k when `col` is vectorised: fma, transposition, scattered stores."""
        n, m, depth = extents.get(col, 1), extents.get(row, 1), prod(extents[x] for x in reduced)
        if n == 1:  # scalars, two at a time; pairs are added in vectors only
            return inf if m > 1 and fits(step, target) else max(m / 2, 4.0)
        vectors = ceil(n / lanes)
        wide = max((abs(stride(kernel, x, col) or 0) for x in loads(operand)), default=0) if col else 0
        near = max((abs(stride(kernel, x, k) or 0) for x in loads(operand)), default=0)
        load = 1 if wide <= 1 else 5 if near <= 1 else 2 * lanes
        scatter = any(stride(kernel, s, col) not in (0, 1) for s in outs) if col and n > 1 else False
        return max(m * vectors, 4) + load * vectors + scatter * 4.0 * m * n / depth

    swapped = price(i, j, a) < 0.9 * price(j, i, b)
    if swapped:
        i, j, rows, columns = j, i, columns, rows
    outer += [n for n in rows + columns if n not in (i, j)]
    names = {n: f"o{d}" for d, n in enumerate(outer)} | {n: f"k{d}" for d, n in enumerate(reduced)}
    names |= {n: new for n, new in ((i, "i"), (j, "j")) if n}
    kernel = rename(order_axes(kernel, [*outer, *(n for n in (i, j) if n)]), names)
    if i is None:  # matrix-vector products: an axis of one
        kernel = _wrap(kernel, "i", len(outer))
    if j is None:
        kernel = _wrap(kernel, "j", len(outer) + 1)
    return kernel, Contraction(
        acc, tuple(names[n] for n in outer), ("i",), ("j",), tuple(names[n] for n in reduced), swapped
    )


def _wrap(kernel: Kernel, axis: str, depth: int) -> Kernel:
    """Add a parallel axis of extent 1 below the `depth` outermost loops."""
    chain, body = outer_chain(kernel)
    for s in (*reversed(chain[depth:]), Loop(axis, 1, "parallel", ()), *reversed(chain[:depth])):
        body = (replace(s, body=body),)
    return replace(kernel, body=body)


TILES = {  # registers -> (rows, vectors) of register tiles that reach the limit, best first
    32: (
        (8, 2), (8, 3), (4, 4), (12, 2), (6, 4), (10, 2), (9, 2), (7, 2), (14, 2), (5, 5), (4, 6), (3, 8), (2, 8),
        (1, 12), (12, 1),
    ),
    16: ((6, 2), (4, 3), (4, 2), (5, 2), (3, 4), (2, 5), (1, 8), (8, 1)),
}  # fmt: skip


def choose(kernel: Kernel, c: Contraction, target: Target, limits: Limits = DEFAULT) -> Tiling:
    """The register tile with the fewest cycles for these extents, and blocks that balance and fit the caches."""
    extents = extents_of(kernel)
    acc = kernel.buffers[c.acc]
    lanes, size = lanes_for(kernel, c, target), acc.dtype.size
    m, n, k = extents["i"], extents["j"], prod(extents[x] for x in c.reduced)
    outer = prod(extents[x] for x in c.outer)
    vectors = ceil(n / lanes)
    a, b = _operand(c, 1 if c.swapped else 0), _operand(c, 0 if c.swapped else 1)
    last = c.reduced[-1]

    def plain(operand) -> bool:
        return all(isinstance(e, Load) and not e.masks for e in _picked(kernel, operand))

    def far(operand) -> tuple[bool, bool]:
        """Do successive k lie so far apart that nothing prefetches them?  Do they share cache sets, too?"""
        steps = [abs(stride(kernel, x, last) or 0) * x.dtype.size for e in _picked(kernel, operand) for x in loads(e)]
        wide = [s for s in steps if s >= limits.page]
        return bool(wide), any(s % limits.page == 0 for s in wide)

    a_far, a_shares = far(a)
    scattered = a_far and m * k * size > (limits.sharing_rows if a_shares else limits.far_rows)

    def packs_rows(panels: int) -> bool:
        if c.pair and (panels > 1 or not _unit(kernel, a, c.inner)):  # so that pairs lie as the processor reads them
            return True
        return not plain(a) or (panels >= 3 and k >= limits.pack_k and scattered)

    streamed, along = m * k * size > limits.far_bytes, _unit(kernel, a, "i")
    beat = 1.0 if lanes * size >= 64 else 0.5  # cycles of one fma: 64 bytes, or two operations
    # From one fma to the next on the same accumulator; two at a time leave no slack.
    wait = 6 if c.pair else 4 if beat == 1 else 4.6

    def price(tile: tuple[int, int]) -> float:
        rows, nv = tile
        tiles = ceil(m / rows)
        low, more = divmod(m, tiles)  # `more` tiles have low + 1 rows
        panels, rest = divmod(vectors, nv)
        total = 0.0
        near = tiles == 1 or k * nv * lanes * size <= target.l1 * 3 // 4
        bring = (1 if near else 3.2) * beat  # cycles to load a vector of the panel
        count = panels + bool(rest)
        packed = packs_rows(count)
        for mr, a in ((low, tiles - more), (low + 1, more)):
            for v, b in ((nv, panels), (rest, 1 if rest else 0)):
                if a and b:
                    step = max(mr * v * beat, v * beat + mr / 2, v * bring, wait)
                    if along and not packed:  # lines of their own for each k; one more where rows cross its end
                        step += 0.5 + 1.5 * (mr * size - gcd(mr * size, 64)) / 64
                    total += a * b * (k * step + 2 * mr * v * beat + 12)
        masked = packed and rows & (rows - 1) != 0  # copies of rows
        if streamed and not packed:
            total += 0.3 * m * k * count  # every panel reads all rows from memory
        return total * (1 + 0.02 * (bool(more) + bool(rest)) + 0.03 * masked)  # less code is worth a little

    mr, nv = min(TILES[32 if target.registers >= 32 else 16], key=price)
    mr, nv = ceil(m / ceil(m / mr)), min(nv, vectors)
    nr = nv * lanes
    tiles, panels = ceil(m / mr), ceil(vectors / nv)
    pack_b = bool(c.pair) or not (plain(b) and (_unit(kernel, b, "j") or lanes == 1))
    pack_b = pack_b or (tiles >= 4 and k >= limits.pack_k and (far(b)[1] or n * k * size > limits.pack_bytes))
    # Half as long vectors load twice as often: a panel that the first-level cache holds pays sooner.
    pack_b = pack_b or (beat < 1 and tiles >= 8 and k >= 2 * limits.pack_k)
    pack_a = packs_rows(panels)
    single = len(c.reduced) == 1
    want = max(1, min(limits.blocks, 2 * m * n * k * outer // limits.block_flops)) / outer
    kc, carry_k = extents[last], False
    if pack_a:
        # A block of rows and a panel live in the second-level cache; packing rows pays from 192 columns on.
        if single and k >= limits.long_k and tiles >= 2:
            kc = stretch(k, limits.long_k * 3 // 8)
            carry_k = kc < k
        rows = ceil(m / (256 if m < 2048 else 512))
        want = min(want, (limits.pair_blocks if c.pair else 4) / outer)  # more would copy more
        some = sqrt(want * n / m) if c.pair else min(want / rows, n // 192)  # both are copied anyway: the shorter side
        cb = parts(panels, max(n / 768, some), None if c.pair else max(1, n // 192))
        least = max(rows, ceil(want / cb))
        rb = parts(tiles, least, least + least // 3)
    elif single and pack_b and tiles >= 2 and (k > limits.deep_k or (streamed and nv * beat < 3)):
        # The rows that all panels walk come from memory; narrow panels would wait for them.
        kc = stretch(k, limits.deep_k * 3 // 32)
        carry_k = kc < k
        rb = parts(tiles, m / 512)
        cb = parts(panels, max(n / 512, min(want, 16 / outer) / rb))
    else:
        if single and pack_b and tiles == 1:
            kc = stretch(k, limits.long_k // 4)  # each panel is used once: keep it near
        cb = parts(panels, want)
        if pack_b:  # cutting rows repeats the packing of panels
            want = min(want, max(4 / outer, cb * max(1, m // 512)))
        rb = parts(tiles, want / cb)
    return Tiling(mr, nv, ceil(tiles / rb) * mr, ceil(panels / cb) * nr, kc, pack_a, pack_b, carry_k)


def stretch(k: int, about: int) -> int:
    """k in even parts of about this size."""
    return ceil(k / ceil(k / about))


def parts(total: int, want: float, most: int | None = None) -> int:
    """Into how many parts to cut: about `want`, more where it comes out even."""
    high = max(1, min(total, total if most is None else most))
    low = max(1, min(high, ceil(want)))
    return min(range(low, min(high, 2 * low) + 1), key=lambda n: (total % n != 0, n))
