"""The differential sample notices planted miscompiles: at least 19 of 20 (`python tests/mutants.py` shows which)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from mutants import MUTANTS, survives


def test_planted_miscompiles_are_noticed():
    assert len(MUTANTS) == 20
    with ThreadPoolExecutor(2) as pool:
        said = dict(zip((m.name for m in MUTANTS), pool.map(survives, MUTANTS), strict=True))
    alive = {name: text for name, text in said.items() if text is not None}
    broken = {name: text for name, text in alive.items() if "nothing noticed" not in text}
    assert not broken, "mutants that do not apply or crash the sample"
    assert len(alive) <= 1, f"not noticed: {', '.join(alive)}"
