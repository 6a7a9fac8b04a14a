"""Runs a region in numpy: the kernel evaluator on every piece.  What tests compare with the graph's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..kernel.evaluate import evaluate
from .groups import LoopPiece, Piece, Region, Value


def evaluate_region(region: Region, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs' values for one array per input."""
    arrays: dict[Value, np.ndarray] = {}

    def read(v: Value) -> np.ndarray:
        if v.view_of is not None:
            return read(v.view_of).reshape(v.type.shape)
        if v not in arrays:
            if v.source is not None and v.source.op.name == "constant":
                arrays[v] = np.asarray(v.source.op.evaluate())
            elif not v.type.size:
                arrays[v] = np.zeros(v.type.shape, v.type.dtype.numpy)
            else:
                raise LookupError(f"{v} is read before it is written")
        return arrays[v]

    for v, x in zip(region.inputs, inputs, strict=True):
        arrays[v] = v.type.dtype.round(x)
    for piece in region.pieces:
        if isinstance(piece, Piece):
            outs = piece.kernel.outputs
            given = [
                None if b.name in outs else read(v).reshape(b.shape)
                for b, v in zip(piece.kernel.params, piece.arguments, strict=True)
            ]
            results = evaluate(piece.kernel, given)
            for b, v in zip(piece.kernel.params, piece.arguments, strict=True):
                if b.name in outs:
                    assert prod(b.shape) == v.type.size
                    arrays[v] = results[b.name].reshape(v.type.shape)
        else:
            _loop(piece, arrays, read)
    return [read(v) for v in region.outputs]


def _loop(piece: LoopPiece, arrays: dict[Value, np.ndarray], read) -> None:
    carries = {inner: read(first) for first, inner, _, _ in piece.carries}
    stacks = {outer: np.zeros(outer.type.shape, outer.type.dtype.numpy) for _, outer in piece.stacked_out}
    for i in reversed(range(piece.count)) if piece.reverse else range(piece.count):
        known = {inner: read(outer) for outer, inner in piece.constants} | carries
        known |= {inner: read(outer)[i] for outer, inner in piece.stacked_in}
        results = evaluate_region(piece.body, [known[v] for v in piece.body.inputs])
        by_value = dict(zip(piece.body.outputs, results, strict=True))
        carries = {inner: by_value[out] for _, inner, out, _ in piece.carries}
        for inner, outer in piece.stacked_out:
            stacks[outer][i] = by_value[inner]
    for _, inner, _, final in piece.carries:
        arrays[final] = carries[inner]
    arrays.update(stacks)
