"""Tensor maps: what the copies of a kernel (kernel IR, `concurrent.py`) need to know of its parameters' memory.

A map is 128 bytes that the driver encodes (`cuTensorMapEncodeTiled`) once the parameter's address is known, and that
the kernel takes by value after its other parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..kernel.concurrent import Copy, box, brought_once, side_by_side
from ..kernel.kernel import Apply, Kernel, walk
from ..kernel.products import LINE


@dataclass(frozen=True, slots=True)
class TensorMap:
    """One map; dimensions are listed slowest first.  The fields are those of `pullback_runtime.format.TensorMap`."""

    parameter: int
    """The parameter of the kernel whose memory it describes ..."""
    offset: int
    """... from this many bytes behind its address."""
    dtype: str
    """bf16, f16, f32, or tf32: f32 in memory, rounded to 10 bits of mantissa on the way (halves to even)."""
    shape: tuple[int, ...]
    """Elements.  What lies outside reads as zero."""
    strides: tuple[int, ...]
    """Bytes; the last is the size of an element, the others are multiples of 16."""
    box: tuple[int, ...]
    """Elements that one copy takes along each dimension: at most 256, along the last one a line of 128 bytes."""
    swizzle: int = LINE
    """How pieces of 16 bytes are exchanged within shared memory: 128."""


def tensor_maps(kernel: Kernel) -> tuple[TensorMap, ...]:
    """The maps of a kernel's copies, in the order of its map parameters; none for most kernels."""
    return tuple(dict.fromkeys(tensor_map(kernel, s)[0] for s in walk(kernel.body) if isinstance(s, Copy)))


def tensor_map(kernel: Kernel, s: Copy) -> tuple[TensorMap, tuple[int, ...]]:
    """The map of one copy, and the parameter's dimensions that it has.  A box wider than a line is several of them."""
    chain, store, x = box(s)
    fast = chain[1]
    source, size = kernel.buffers[x.buffer], kernel.buffers[x.buffer].dtype.size
    extents = {t.axis: t.extent for t in chain}
    sides = [next((n for a, n in extents.items() if i.coef(a)), 1) for i in x.index]
    bounds = dict(x.masks)
    shape = [min(bounds.get(i, n), n) for i, n in zip(x.index, source.shape, strict=True)]
    last = next(d for d, i in enumerate(x.index) if i.coef(fast.axis))
    order = [d for d, n in enumerate(source.shape) if d != last and (n > 1 or sides[d] > 1)] + [last]
    sides[last] = min(sides[last], LINE // size)
    if brought_once(kernel, s):  # each block brings its part for all
        rows = next(d for d, i in enumerate(x.index) if i.coef(chain[0].axis))
        sides[rows] //= side_by_side(kernel)[1]
    tf32 = isinstance(store.value, Apply)
    return TensorMap(
        next(n for n, p in enumerate(kernel.params) if p.name == x.buffer),
        0,
        "tf32" if tf32 else source.dtype.name,
        *(tuple(v[d] for d in order) for v in (shape, [c * size for c in source.step], sides)),
    ), tuple(order)
