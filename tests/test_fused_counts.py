"""Launches and bytes of small training pieces, against what a good hand-fused implementation needs.

The numbers of launches to beat:
* layer norm forward + backward, the cotangent given: 1 row kernel and 1 that adds up the chunks of the scale's and
  bias's gradients (apex's FusedLayerNorm needs 4: forward, backward, and two for the gradients of scale and bias);
* cross-entropy forward + backward: 1 row kernel and 1 that adds up the rows' losses (Liger's kernel needs the same 2,
  and 2 before them to count the rows that are not ignored); of many rows parts are counted by 1 more before;
* linear + gelu forward + backward: 1 product with its epilogue, then the two products of the gradients side by side
  with the bias's chunks, 1 that adds these up: 3 (a hand-written one needs at least the 3 products);
* AdamW over 50 parameters: 1 for the step counter and its bias corrections, 1 for all updates (torch's fused AdamW
  needs the same 2: the counters, the update).
Bytes: every input read once and every output written once, but for what a matrix product must read again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pullback.config import Options
from pullback.driver import Build
from pullback.dsl.trace import trace_script
from pullback.kernel.plan_text import totals

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fused.py"


@pytest.fixture(scope="module")
def counts() -> dict[str, tuple[int, int, int]]:
    """function -> (launches, bytes read, bytes written)."""
    build = Build(trace_script(SCRIPT), Options(cache=False))
    (plan,) = build.plans.values()
    return {f.name: totals(plan, f) for f in plan.functions}


F = 4
ROWS, WIDTH, CLASSES, HIDDEN = 256, 384, 1000, 1536


@pytest.mark.parametrize(
    ("name", "launches", "read", "written"),
    [
        ("layer_norm", 2, 2 * ROWS * WIDTH * F, 2 * ROWS * WIDTH * F),
        ("cross_entropy", 2, ROWS * CLASSES * F, ROWS * CLASSES * F),
        ("cross_entropy_of_many", 3, 8 * ROWS * CLASSES * F, 8 * ROWS * CLASSES * F),
        # the pre-activation's gradient is written once and read by both products and the bias's sum
        ("linear_gelu", 3, (3 * ROWS * HIDDEN + HIDDEN * WIDTH * 2 + ROWS * WIDTH * 2 + ROWS * HIDDEN) * F, None),
        ("adamw", 2, 4 * 25 * (64 * 96 + 64) * F, 3 * 25 * (64 * 96 + 64) * F),
    ],
)
def test_as_few_as_by_hand(counts, name, launches, read, written):
    got = counts[name]
    small = 1.1  # chunks of column sums, statistics, scalars
    assert got[0] <= launches
    assert got[1] <= read * small
    if written is not None:
        assert got[2] <= written * small
