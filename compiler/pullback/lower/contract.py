"""The nest of a contraction: parallel axes around one accumulator, k in order, then the epilogue's stores.

Part of `nests.py`: a `contract` group in, the statements of its kernel out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..graph.graph import Node
from ..graph.types import bf16, f32
from ..kernel.kernel import Affine, Const, Load, Loop, Stmt, Store, apply
from .rows import cast

if TYPE_CHECKING:
    from .nests import Writer


def accumulate(w: Writer, node: Node, index: tuple[Affine, ...]) -> list[Stmt]:
    """acc = 0; for k in order: acc = fma(a, b, acc); fma_ftz for bf16.  Integers multiply and add."""
    op = node.op
    at = dict(zip(op.out, index, strict=True))
    extents = dict(zip(op.lhs, node.inputs[0].shape, strict=True))
    dtype = node.dtype.compute
    acc = w.local("acc", (), dtype)
    here = Load(acc.name, (), dtype)
    loops: list[tuple[str, int]] = []
    for label in op.reduced:
        n = extents[label]
        at[label] = w.loop_index(f"k{len(loops)}", n)
        if n != 1:
            loops.append((f"k{len(loops)}", n))
    factors = [
        cast(w.expr(x, tuple(at[label] for label in labels)), dtype)
        for x, labels in zip(node.inputs, (op.lhs, op.rhs), strict=True)
    ]
    if op.tf32 and dtype == f32:
        factors = [apply("tf32", a) for a in factors]
    zero = Const(0.0 if dtype.is_float else 0, dtype)
    if dtype.is_float:
        step = apply("fma_ftz" if node.inputs[0].dtype == bf16 else "fma", *factors, here)
    else:
        step = apply("add", apply("mul", *factors), here)
    body: list[Stmt] = w.split_shared([Store(acc.name, (), step)])
    for axis, n in reversed(loops or [("k0", 1)]):
        body = [Loop(axis, n, "reduce", tuple(body))]
    w.values[node] = cast(here, node.dtype)
    return [Store(acc.name, (), zero), *body]
