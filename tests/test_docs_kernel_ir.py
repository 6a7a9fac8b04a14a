"""The worked example of docs/kernel-ir.md: it parses, verifies, prints as it stands and computes what it says."""

from __future__ import annotations

import numpy as np
import pages

from pullback.codegen.math import FUNCTIONS, ULP
from pullback.kernel.evaluate import evaluate
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify

PAGE = pages.page("kernel-ir")


def test_worked_example():
    texts = pages.blocks("kernel-ir", "kernel")
    assert len(texts) == 2
    g = np.random.default_rng(0)
    x, w, b = (g.standard_normal(s).astype(np.float32) for s in ((8, 6), (10, 6), (10,)))
    results = []
    for text in texts:
        k = parse_kernel(text)
        assert print_kernel(k) == text
        verify(k)
        results.append(evaluate(k, {"x": x, "w": w, "b": b})["h"])
    assert np.array_equal(*results)
    z = x @ w.T + b
    assert np.allclose(results[0], z / (1 + np.exp(-z)), atol=1e-6)


def test_table_of_errors():
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    stated: dict[str, dict[str, float]] = {}
    for i, row in enumerate(rows):
        if row[0] == "" and rows[i + 2][0] == "f32":
            for column, names in enumerate(row[1:], 1):
                for name in names.split(", "):
                    stated[name] = {"f32": float(rows[i + 2][column]), "f64": float(rows[i + 3][column])}
    assert stated == ULP and set(ULP) == set(FUNCTIONS)
