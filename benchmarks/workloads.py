"""The workloads: sizes and data, the same for every system."""

from __future__ import annotations

import itertools

import numpy as np

MLP = {"batch": 128, "dims": (784, 512, 512, 10)}
MLPDEEP = {"batch": 64, "width": 256, "layers": 24}

WORKLOADS = ("mlp", "mlpdeep")


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """One fixed batch: inputs f32, labels i32."""
    rng = np.random.default_rng(0)
    if name == "mlp":
        return (
            rng.standard_normal((MLP["batch"], 784), dtype=np.float32),
            rng.integers(0, 10, MLP["batch"]).astype(np.int32),
        )
    return (
        rng.standard_normal((MLPDEEP["batch"], MLPDEEP["width"]), dtype=np.float32),
        rng.integers(0, MLPDEEP["width"], MLPDEEP["batch"]).astype(np.int32),
    )


def matmul_flops(name: str) -> float:
    """Floating-point operations of one training step's matrix products (the input needs no gradient)."""
    if name == "mlp":
        d, b = MLP["dims"], MLP["batch"]
        layers = [2.0 * b * m * n for m, n in itertools.pairwise(d)]
    else:
        layers = [2.0 * MLPDEEP["batch"] * MLPDEEP["width"] ** 2] * MLPDEEP["layers"]
    return 3 * sum(layers) - (layers[0] if name == "mlp" else 0)


def state_bytes(name: str) -> float:
    """Bytes that Adam must move: read p, m, v, g and write p, m, v."""
    if name == "mlp":
        d = MLP["dims"]
        n = sum(a * b + b for a, b in itertools.pairwise(d))
    else:
        w = MLPDEEP["width"]
        n = MLPDEEP["layers"] * (w * w + 3 * w)
    return 28.0 * n
