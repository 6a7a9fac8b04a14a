"""Interval arithmetic on affine indices: where an index can lie, and whether iterations can meet.

What the verifier, the alias analysis and schedules ask of index expressions.  All answers are safe: an
interval may be too wide, and "may meet" may be wrong, but never the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd

from .kernel import Affine, Checked, Index, Mask

Range = tuple[int, int]
"""First and last value of an axis, both included."""


def interval(a: Affine, ranges: Mapping[str, Range]) -> Range:
    """The smallest and largest value of `a` over the axes' ranges."""
    low = high = a.const
    for n, c in a.terms:
        first, last = ranges[n]
        if c > 0:
            low, high = low + c * first, high + c * last
        else:
            low, high = low + c * last, high + c * first
    return low, high


def within(a: Affine, size: int, ranges: Mapping[str, Range], masks: Sequence[Mask]) -> bool:
    """0 <= a < size wherever the masks hold (or they hold nowhere)."""
    low, high = interval(a, ranges)
    if low >= 0 and high < size:
        return True
    tight = tighten(ranges, masks)
    if tight is None:
        return True
    return highest(a, tight, masks) < size and highest(a * -1, tight, masks) <= 0


def tighten(ranges: Mapping[str, Range], masks: Sequence[Mask]) -> dict[str, Range] | None:
    """The ranges that the masks leave; None where they leave nothing."""
    out = dict(ranges)
    for _ in range(2):
        for a, bound in masks:
            if interval(a, out)[0] >= bound:
                return None
            for n, c in a.terms:
                first, last = out[n]
                room = bound - 1 - (interval(a, out)[0] - c * (first if c > 0 else last))  # c * axis <= room
                if c > 0:
                    last = min(last, room // c)
                else:
                    first = max(first, -(room // -c))
                if first > last:
                    return None
                out[n] = (first, last)
    return out


def highest(a: Affine, ranges: Mapping[str, Range], masks: Sequence[Mask], depth: int = 2) -> int:
    """An upper bound of `a` under masks: a = t * m + rest, and m < bound."""
    best = interval(a, ranges)[1]
    if depth == 0:
        return best
    for m, bound in masks:
        factors = {a.coef(n) // c for n, c in m.terms if a.coef(n) % c == 0 and a.coef(n) // c > 0}
        for t in factors:
            best = min(best, t * (bound - 1) + highest(a - m * t, ranges, masks, depth - 1))
    return best


def may_meet(
    axis: str,
    extent: int,
    writes: Iterable[tuple[Index, ...]],
    others: Iterable[tuple[Index, ...]],
    inner: Mapping[str, Range],
    steps: Sequence[int],
) -> bool:
    """Can two different iterations of `axis` touch one element, one of them by a write?

    `writes` and `others` index the same buffer with strides `steps`; `inner` are the ranges of the axes bound
    inside of the loop: each iteration has its own values of these, while the axes outside are the same for both.
    """
    writes = list(dict.fromkeys(writes))
    others = list(dict.fromkeys([*writes, *others]))
    return any(not apart(axis, extent, w, x, inner, steps) for w in writes for x in others)


def apart(
    axis: str,
    extent: int,
    w: tuple[Index, ...],
    x: tuple[Index, ...],
    inner: Mapping[str, Range],
    steps: Sequence[int],
) -> bool:
    """Two accesses in different iterations of `axis` (0 <= axis < extent) never touch the same element."""
    pairs = list(zip(w, x, strict=True))
    if any(_dimension_apart(axis, extent, a, b, inner) for a, b in pairs):
        return True
    if any(isinstance(i, Checked) for p in pairs for i in p) or len(pairs) < 2:
        return False
    flat_w, flat_x = Affine(), Affine()
    for (a, b), s in zip(pairs, steps, strict=True):
        flat_w, flat_x = flat_w + a * s, flat_x + b * s
    return _dimension_apart(axis, extent, flat_w, flat_x, inner)


def _dimension_apart(axis: str, extent: int, a: Index, b: Index, inner: Mapping[str, Range]) -> bool:
    """a at one iteration never equals b at another.

    a - b = c * distance + small + large, where `small` moves by less than c and `large` in steps of a divisor
    g that is out of reach of the rest; so they meet only where c * distance lies in the interval of -small.
    """
    if isinstance(a, Checked) or isinstance(b, Checked):
        return False
    c = a.coef(axis)
    if c == 0 or c != b.coef(axis):
        return False
    size, g = abs(c), 0
    low = high = a.const - b.const
    for sign, form in ((1, a), (-1, b)):
        for n, k in form.terms:
            if n == axis:
                continue
            if n not in inner:
                if a.coef(n) != b.coef(n):
                    return False
                continue
            ends = (sign * k * inner[n][0], sign * k * inner[n][1])
            if abs(k) >= size and ends[0] != ends[1]:
                g = gcd(g, k)
                continue
            low, high = low + min(ends), high + max(ends)
    if g:  # constants that are multiples of g are part of the large
        shift = (low // g) * g if high - low < g else 0
        if shift and high - shift < size:
            low, high = low - shift, high - shift
        if size * (extent - 1) + max(abs(low), abs(high)) >= g:
            return False
    for lo, hi in ((low, high), (-high, -low)):  # positive and negative distances
        first = -(-max(lo, 1) // size) * size  # the smallest positive multiple of c that is >= lo
        if first <= hi and first <= size * (extent - 1):
            return False
    return True
