"""Squares of vectors, turned in registers: typed values in, shuffles out."""

from __future__ import annotations

from .builder import Builder, Value


def transpose(b: Builder, rows: list[Value], size: int) -> list[Value]:
    """Squares of size x size, side by side in `size` vectors, each turned by itself.

    Squares inside of 128 bits by unpacking, then whole 128-bit parts: each step is one instruction on x86.
    """
    lanes, group = rows[0].ty.lanes, 128 // max(rows[0].ty.bits, 8)
    parts = size // group
    if group not in (2, 4) or size % group or parts not in (1, 2, 4) or (parts > 1 and size != lanes):
        return _butterfly(b, rows)
    inside: list[Value] = []
    for q in range(0, size, group):
        r = rows[q : q + group]
        if group == 4:
            low, high = _unpack(b, r[0], r[1], 1), _unpack(b, r[2], r[3], 1)
            pairs = [(low[0], high[0]), (low[1], high[1])]
            inside += [x for p, o in pairs for x in _unpack(b, p, o, 2)]
        else:
            inside += _unpack(b, r[0], r[1], 1)
    if parts == 1:
        return inside
    out: list[Value | None] = [None] * size
    for m in range(group):
        x = inside[m::group]
        if parts == 2:
            y = [_parts(b, x[0], x[1], (t, 2 + t), group) for t in range(2)]
        else:
            half = [_parts(b, x[i], x[i + 1], p, group) for i in (0, 2) for p in ((0, 1, 4, 5), (2, 3, 6, 7))]
            y = [_parts(b, half[h], half[h + 2], p, group) for h in (0, 1) for p in ((0, 2, 4, 6), (1, 3, 5, 7))]
        out[m::group] = y
    return out


def _unpack(b: Builder, x: Value, y: Value, size: int) -> list[Value]:
    """Interleave pieces of `size` lanes from the lower and from the upper halves of each 128 bits."""
    n, group = x.ty.lanes, 128 // x.ty.bits
    out = []
    for start in (0, group // 2):
        lanes: list[int] = []
        for part in range(0, n, group):
            for i in range(0, group // 2, size):
                for side in (0, n):
                    lanes += range(side + part + start + i, side + part + start + i + size)
        out.append(b.shuffle(x, y, lanes))
    return out


def _parts(b: Builder, x: Value, y: Value, parts: tuple[int, ...], group: int) -> Value:
    return b.shuffle(x, y, [p * group + i for p in parts for i in range(group)])


def concat(b: Builder, parts: list[Value]) -> Value:
    """Vectors one after another (a power of two of them, all alike)."""
    while len(parts) > 1:
        n = parts[0].ty.lanes
        parts = [b.shuffle(x, y, list(range(2 * n))) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _butterfly(b: Builder, rows: list[Value]) -> list[Value]:
    """log2(n) exchanges of blocks across the diagonal: any element type, any power of two."""
    n, rows, d = len(rows), list(rows), 1
    lanes = rows[0].ty.lanes
    while d < n:
        for i in range(n):
            if not i & d:
                x, y = rows[i], rows[i + d]
                rows[i] = b.shuffle(x, y, [l if not l & d else lanes + l - d for l in range(lanes)])
                rows[i + d] = b.shuffle(x, y, [l + d if not l & d else lanes + l for l in range(lanes)])
        d *= 2
    return rows
