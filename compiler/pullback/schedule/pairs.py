"""Contractions of bf16 where the processor adds products in pairs (VDPBF16PS): kernel -> kernel on IR 2.

The steps that `cpu_contract.py` takes besides its own.  The last reduced axis is split into pairs, which lie side by
side in the packed operands, *the second element first*: the instruction begins with the upper half of its 32 bits,
so the order of additions stays that of k.  The axis of a pair is innermost, in the tile `dot` around one vector.
"""

from __future__ import annotations

from dataclasses import replace

from ..codegen.target import Target
from ..graph.types import bf16, i64
from ..kernel.kernel import A, Apply, AxisValue, Const, Expr, Kernel, Load, Loop, Mask, Stmt, Store, apply, map_expr
from .nest import extents_of
from .staging import tensorise
from .steps import bind, on_loops, rename_loops, split

PAIR = "kp"
"""The axis of the two elements of a pair."""


def fits(step: Store, target: Target) -> bool:
    """Are these products of bf16, on a machine that adds them in pairs?"""
    v = step.value
    return (
        target.has_bf16_dot
        and isinstance(v, Apply)
        and v.fn == "fma_ftz"
        and all(isinstance(f, Apply) and f.fn == "cast" and f.args[0].dtype == bf16 for f in v.args[:2])
    )


def split_pairs(kernel: Kernel, k: str) -> Kernel:
    """k -> pairs; an odd k gets one more iteration, which adds -0.0 * 0.0: that is nothing, to the bit."""
    n = extents_of(kernel)[k]
    if n % 2:
        kernel = on_loops(kernel, k, lambda s: (replace(s, extent=n + 1, body=(_padded(s.body[0], (A(k), n)),)),))
    return split(kernel, k, 2, k, PAIR)


def _padded(step: Stmt, mask: Mask) -> Store:
    fn, (a, b, acc) = step.value.fn, step.value.args
    a, b = (replace(f, args=(_inside(f.args[0], mask, zero),)) for f, zero in ((a, -0.0), (b, 0.0)))
    return replace(step, value=apply(fn, a, b, acc))


def _inside(e: Expr, mask: Mask, other: float) -> Expr:
    """The value where the mask holds, else `other`."""
    if isinstance(e, Load) and not e.masks:
        return replace(e, masks=(mask,), other=other)
    e = map_expr(e, lambda x: replace(x, masks=(*x.masks, mask)) if isinstance(x, Load) else x)
    inside = apply("lt", AxisValue(mask[0], i64), Const(mask[1], i64))
    return apply("select", inside, e, Const(other, e.dtype))


def copy_pairs(kernel: Kernel, axis: str, pair: str) -> Kernel:
    """A copy whose vectors are pairs along an axis."""
    return tensorise(bind(kernel, **{pair: "unroll"}), (axis, pair), "pairs")


def dot(kernel: Kernel, axis: str) -> Kernel:
    """The loops of vectors around a pair become the tile `dot`."""

    def adds(s: Loop) -> bool:
        return isinstance(s.body[0], Loop) and s.body[0].axis == PAIR

    kernel = rename_loops(kernel, {axis: f"{axis}d"}, adds)
    return tensorise(bind(kernel, **{PAIR: "unroll"}), (f"{axis}d", PAIR), "dot")
