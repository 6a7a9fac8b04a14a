"""How a contraction is cut on a CPU: its extents, strides and the target -> a `Tiling`."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd, prod, sqrt

from ..codegen.target import Target
from ..kernel.kernel import Kernel, Load, loads
from .contraction import Contraction, lanes_for, operands, picked, unit
from .limits import DEFAULT, Limits
from .nest import extents_of, stride


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
    turn: bool = False  # columns are turned in registers, `kc` elements of k at a time


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
    a, b = operands(c)
    last = c.reduced[-1]

    def plain(operand) -> bool:
        return all(isinstance(e, Load) and not e.masks for e in picked(kernel, operand))

    def far(operand) -> tuple[bool, bool]:
        """Do successive k lie so far apart that nothing prefetches them?  Do they share cache sets, too?"""
        steps = [abs(stride(kernel, x, last) or 0) * x.dtype.size for e in picked(kernel, operand) for x in loads(e)]
        wide = [s for s in steps if s >= limits.page]
        return bool(wide), any(s % limits.page == 0 for s in wide)

    a_far, a_shares = far(a)
    scattered = a_far and m * k * size > (limits.sharing_rows if a_shares else limits.far_rows)

    def packs_rows(panels: int) -> bool:
        if c.pair and (panels > 1 or not unit(kernel, a, c.inner)):  # so that pairs lie as the processor reads them
            return True
        return not plain(a) or (panels >= 3 and k >= limits.pack_k and scattered)

    streamed, along = m * k * size > limits.far_bytes, unit(kernel, a, "i")
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
    tiles, single = ceil(m / mr), len(c.reduced) == 1
    along_k = lanes > 1 and plain(b) and unit(kernel, b, c.inner) and not unit(kernel, b, "j")
    # One tile of rows uses each column once: a square of columns stays in registers (half as many do not pay).
    turn = along_k and single and not c.pair and beat == 1 and mr == m <= target.registers - lanes - 4 and k > lanes
    if turn:
        nv = 1
    nr, panels = nv * lanes, ceil(vectors / nv)
    pack_b = bool(c.pair) or not (plain(b) and (unit(kernel, b, "j") or lanes == 1))
    pack_b = pack_b or (tiles >= 4 and k >= limits.pack_k and (far(b)[1] or n * k * size > limits.pack_bytes))
    # Half as long vectors load twice as often: a panel that the first-level cache holds pays sooner.
    pack_b = pack_b or (beat < 1 and tiles >= 8 and k >= 2 * limits.pack_k)
    pack_a = packs_rows(panels)
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
        if turn:
            kc = lanes
        elif single and pack_b and tiles == 1:
            kc = stretch(k, limits.long_k // 4)  # each panel is used once: keep it near
        cb = parts(panels, want)
        if pack_b:  # cutting rows repeats the packing of panels
            want = min(want, max(4 / outer, cb * max(1, m // 512)))
        rb = parts(tiles, want / cb)
    return Tiling(mr, nv, ceil(tiles / rb) * mr, ceil(panels / cb) * nr, kc, pack_a, pack_b, carry_k, turn)


def stretch(k: int, about: int) -> int:
    """k in even parts of about this size."""
    return ceil(k / ceil(k / about))


def parts(total: int, want: float, most: int | None = None) -> int:
    """Into how many parts to cut: about `want`, more where it comes out even."""
    high = max(1, min(total, total if most is None else most))
    low = max(1, min(high, ceil(want)))
    return min(range(low, min(high, 2 * low) + 1), key=lambda n: (total % n != 0, n))
