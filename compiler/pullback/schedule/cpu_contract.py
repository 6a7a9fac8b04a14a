"""The CPU schedule of contractions (matrix products of all kinds): kernel -> kernel on IR 2.

One column axis is vectorised; a register tile of rows x vectors adds k in order (facts are in
docs/schedules.md).  Blocks, panels and tiles are chosen in `tiling.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..codegen.target import Target
from ..kernel.kernel import Kernel, Load, read, written
from .contraction import Contraction, epilogue, lanes_for, normalise, operands, picked, recognise, unit
from .limits import DEFAULT, Limits
from .liveness import used_below
from .nest import cost, extents_of
from .pairs import PAIR, copy_pairs, dot, fits, split_pairs
from .sinking import expand, sink
from .staging import Operand, carry, pack, place, spill, tensorise
from .steps import axes_of, bind, rename_loops, split, tidy
from .tiling import Tiling, choose


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
    a, b = operands(c)
    k = c.reduced[-1]
    stretch = t.kc < extents_of(kernel)[k]
    heavy = not t.carry_k and sum(cost(s.value) for s in epilogue(kernel)) > limits.heavy

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
        if t.turn:
            kernel = bind(kernel, **{k: "unroll"})
    if t.carry_k:
        kernel = carry(kernel, c.acc, ("i", "j"), "it", "tile")
    if heavy or t.carry_k:  # code for one vector, in loops
        kernel = rename_loops(kernel, {"i": "ie", "j": "je"}, lambda s: not written((s,)) & {"tile", "out", c.acc})
        if t.carry_k:
            kernel = rename_loops(kernel, {"i": "i0", "j": "j0"}, lambda s: read((s,)).isdisjoint({c.acc, "tile"}))
    kernel = _bind(kernel, c, lanes)
    return dot(kernel, "j") if c.pair else kernel


# ---- the steps' parts ------------------------------------------------------------------------------------
def _stores_to(buffer: str):
    return lambda s: written((s,)) == {buffer}


def _pack_rows(kernel: Kernel, c: Contraction, t: Tiling, operand: Operand, at: str, lanes: int) -> Kernel:
    """Copy a block of the row operand, tile after tile, so that a tile walks it from end to end."""
    room = 2 * lanes if c.pair else lanes  # vectors that run over the end of one tile must not reach the next one
    if unit(kernel, operand, "i"):
        axes = ("it", *c.reduced, "i", *c.pair)
        kernel = pack(kernel, operand, axes, at, "block", pad=("it", room), mirror=c.inner if c.pair else "")
        kernel = sink(kernel, "it_block", past=[f"{k}_block" for k in c.reduced])  # read whole rows
        kernel = bind(split(kernel, "it_block", 8, "ib_block", "it_block"), it_block="unroll")
        return _vector_copy(kernel, c, "i", "block", min(lanes, 1 << (t.mr - 1).bit_length()))
    axes = ("it", "i", *c.reduced, *c.pair)
    kernel = pack(kernel, operand, axes, at, "block", pad=("i", room), mirror=c.inner if c.pair else "")
    return _vector_copy(kernel, c, c.reduced[-1], "block", lanes)


def _pack_columns(
    kernel: Kernel, c: Contraction, t: Tiling, operand: Operand, at: str, reduced: tuple[str, ...], lanes: int
) -> Kernel:
    """Copy the panel of the column operand to [k, j]; what lies along k is transposed vector by vector."""
    if not t.pack_b:
        return kernel
    k = reduced[-1]
    transposed = lanes > 1 and unit(kernel, operand, c.inner) and not unit(kernel, operand, "j")
    if transposed and not all(isinstance(e, Load) and not e.masks for e in picked(kernel, operand)):
        kernel = pack(kernel, operand, ("j", *reduced, *c.pair), at, "rows", pad=("j", lanes))
        kernel = _vector_copy(kernel, c, k, "rows", lanes)
    space = "register" if t.turn else "local"
    kernel = pack(kernel, operand, (*reduced, "j", *c.pair), at, "panel", space=space, mirror=c.inner if c.pair else "")
    if not transposed:
        return _vector_copy(kernel, c, "j", "panel", lanes)
    kernel = split(kernel, "j_panel", lanes, "jv_panel", "j_panel")
    kernel = split(kernel, f"{k}_panel", lanes, "kv_panel", f"{k}_panel")
    kernel = sink(kernel, f"{k}_panel", past=("jv_panel",))
    kernel = sink(kernel, "kv_panel", past=("jv_panel",))  # few rows at a time, from end to end
    if t.turn:  # registers
        kernel = bind(kernel, **dict.fromkeys(("jv_panel", "kv_panel", f"{k}_panel", "j_panel"), "unroll"))
    return tensorise(kernel, (f"{k}_panel", "j_panel", *(f"{a}_panel" for a in c.pair)), "transpose")


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
