"""The examples of docs/adding-a-pass.md and docs/adding-a-target.md work."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

import pullback
from pullback.codegen.target import _NEEDS, cpu_target, host_level


@pytest.mark.parametrize("page", ["adding-a-pass", "adding-a-target"])
def test_page(page, tmp_path):
    if page == "adding-a-target" and host_level() == "x86-64-v2":
        pytest.skip("this processor has no AVX2")
    assert len(pages.run(page, {"__name__": page, "folder": tmp_path})) > 10


@pytest.mark.parametrize("page", ["adding-an-op", "adding-a-pass", "adding-a-target", "passes", "schedules", "llvm-ir"])
def test_files_that_are_named_exist(page):
    root = Path(pullback.__file__).parent
    for name in re.findall(r"`((?:compiler/pullback/|tests/|[a-z]+/)[\w/]+\.py)`", pages.page(page)):
        places = [root / name, root.parent.parent / name]
        assert any(p.exists() for p in places), name


def test_the_table_of_what_a_feature_needs_is_complete():
    from pullback.artifact.write import REQUIRED
    from pullback_runtime.format import FEATURES

    for level, needed in _NEEDS.items():
        assert set(needed) <= set(REQUIRED[cpu_target(level).cpu]) <= set(FEATURES)
