"""What CPU and GPU share: every file is counted, docs/gpu.md says how much, and the GPU's own part is small."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import shared_code


def test_every_file_has_an_owner():
    assert {shared_code.owner(name) for name, _ in shared_code.files()} == set(shared_code.KINDS)


def test_only_code_is_counted():
    text = '''"""A module,
of two lines."""

import os  # used


def f(x):
    """Says nothing."""
    # nor this
    return (
        """not a docstring""",
        x,
    )


NAME = 1
"""What it is."""
'''
    assert shared_code.lines_of_code(text) == 7


def test_the_table_of_the_documentation():
    """The GPU's own part is under a third; the page is at most a few percent behind the code."""
    now = shared_code.shares(shared_code.table(shared_code.count()))
    assert now[2] <= 33
    stated = shared_code.shares(shared_code.written())
    assert all(abs(a - b) <= 4 for a, b in zip(now, stated, strict=True)), "python benchmarks/shared_code.py --write"
