"""docs/fusion.md stays true: its program prints what the page says, its numbers are those of the code."""

from __future__ import annotations

import pages

from pullback.lower import fuse, nests, ordered, stores, summation


def test_example(capsys):
    (printed,) = pages.blocks("fusion", "text")
    pages.run("fusion")
    assert capsys.readouterr().out.strip() == printed.strip()


def test_numbers():
    text = " ".join(pages.page("fusion").split())
    for number, words in [
        (summation.LANES, "W = min({}, next power of two"),
        (summation.LONG, "(more than {} elements)"),
        (summation.SMALL_CHUNK, "C = max({}, n / "),
        (summation.CHUNKS, "n / {} rounded up to a power of two"),
        (summation.STEP, "or a multiple of {}, but"),
        (fuse.ROWS, "fewer than {} rows"),
        (fuse.SMALL, "with more than {} elements"),
        (fuse.FEW, "fewer than {} chunks"),
        (fuse.DEPTH, "more than {} pointwise nodes"),
        (nests.SHARED, "Subexpressions of more than {} nodes"),
        (ordered.SORT_LIMIT, "an axis may have {} elements"),
    ]:
        assert words.format(number) in text
    assert stores.WORK == 0.25 and "a quarter of a byte for each operation" in text
