"""The array API standard's linear algebra functions: all are contractions."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from ..errors import DTypeError, ShapeError
from ..ops.contract import Contract
from .creation import asarray
from .manipulation import axis_of, permute_dims, reshape
from .promotion import ArrayLike, broadcast_shapes, promoted
from .reductions import sum
from .tensor import Tensor, emit


def _pair(name: str, x1, x2) -> tuple[Tensor, Tensor]:
    a, b = (Tensor(n) for n in promoted(x1, x2, broadcasts=False))
    if a.dtype.kind == "b":
        raise DTypeError(f"{name}: expected numbers, got bool")
    return a, b


def contract(a: Tensor, b: Tensor, lhs: str, rhs: str, out: str) -> Tensor:
    """einsum of two tensors, one letter per axis; an axis that only one operand has and the result lacks, is
    summed beforehand, and an axis of size 1 meets a larger one as if repeated."""
    sizes: dict[str, int] = {}
    for labels, x in ((lhs, a), (rhs, b)):
        for c, n in zip(labels, x.shape, strict=True):
            sizes[c] = n if sizes.get(c, 1) == 1 else sizes[c]
    a, lhs = _reduced(a, lhs, rhs + out, sizes)
    b, rhs = _reduced(b, rhs, lhs + out, sizes)
    return emit(Contract(lhs, rhs, out), a.node, b.node)


def _reduced(x: Tensor, labels: str, others: str, sizes: dict[str, int]) -> tuple[Tensor, str]:
    """x without axes that meet nothing (summed) or that are 1 where others are larger (dropped)."""
    lonely = tuple(d for d, c in enumerate(labels) if c not in others)
    if lonely:
        x, labels = sum(x, axis=lonely), "".join(c for c in labels if c in others)
    narrow = [d for d, c in enumerate(labels) if x.shape[d] == 1 and sizes[c] != 1]
    if narrow:
        x = reshape(x, tuple(n for d, n in enumerate(x.shape) if d not in narrow))
        labels = "".join(c for d, c in enumerate(labels) if d not in narrow)
    return x, labels


def matmul(x1: ArrayLike, x2: ArrayLike, /) -> Tensor:
    """The matrix product of the last two axes; axes before are batches and broadcast; a 1-d operand is a vector.

    Floats of 16 bits accumulate in f32.  Errors: `ShapeError` with both shapes.
    """
    a, b = _pair("matmul", x1, x2)
    if not a.ndim or not b.ndim:
        raise ShapeError(f"matmul: expected at least 1 axis, got {list(a.shape)} and {list(b.shape)}")
    inner, which = (b.shape[-2], "second last") if b.ndim > 1 else (b.shape[-1], "last")
    if a.shape[-1] != inner:
        raise ShapeError(
            f"matmul: {list(a.shape)} @ {list(b.shape)}: expected the last axis of the first ({a.shape[-1]}) "
            f"to equal the {which} of the second ({inner})"
        )
    rows, columns = ("m" if a.ndim > 1 else ""), ("n" if b.ndim > 1 else "")
    before = [x.ndim - 2 if x.ndim > 1 else 0 for x in (a, b)]
    broadcast_shapes(a.shape[: before[0]], b.shape[: before[1]])
    batch = "abcdefghijopqrstuvwxyz"[: max(before)]
    lhs, rhs = (batch[len(batch) - n :] for n in before)
    return contract(a, b, f"{lhs}{rows}k", f"{rhs}k{columns}" if columns else f"{rhs}k", f"{batch}{rows}{columns}")


def tensordot(x1: ArrayLike, x2: ArrayLike, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """Multiply and sum over axes: the last `axes` of x1 with the first of x2, or two lists of axes."""
    a, b = _pair("tensordot", x1, x2)
    if isinstance(axes, int):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise ShapeError(f"tensordot: {axes} axes of {list(a.shape)} and {list(b.shape)}")
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    left, right = ([axis_of(d, x.ndim) for d in side] for side, x in zip(axes, (a, b), strict=True))
    if [a.shape[d] for d in left] != [b.shape[d] for d in right]:
        raise ShapeError(f"tensordot: axes {left} of {list(a.shape)} do not match axes {right} of {list(b.shape)}")
    lhs = ascii_letters[: a.ndim]
    free = iter(ascii_letters[a.ndim :])
    rhs = "".join(lhs[left[right.index(d)]] if d in right else next(free) for d in range(b.ndim))
    out = "".join(c for c in lhs + rhs if (c in lhs) != (c in rhs))
    return contract(a, b, lhs, rhs, out)


def vecdot(x1: ArrayLike, x2: ArrayLike, /, *, axis: int = -1) -> Tensor:
    """The products summed along `axis` (negative); the other axes broadcast."""
    a, b = _pair("vecdot", x1, x2)
    ndim = max(a.ndim, b.ndim)
    if not -min(a.ndim, b.ndim) <= axis < 0:
        raise ShapeError(f"vecdot: expected a negative axis that both have, got {axis}")
    if a.shape[axis] != b.shape[axis]:
        raise ShapeError(f"vecdot: sizes on axis {axis} differ: {list(a.shape)} and {list(b.shape)}")
    broadcast_shapes(a.shape, b.shape)
    labels = ascii_letters[:ndim]
    out = labels[: ndim + axis] + labels[ndim + axis + 1 :]
    return contract(a, b, labels[ndim - a.ndim :], labels[ndim - b.ndim :], out)


def outer(x1: ArrayLike, x2: ArrayLike, /) -> Tensor:
    """All products of two 1-d tensors' elements."""
    a, b = _pair("outer", x1, x2)
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"outer: expected two 1-d tensors, got {list(a.shape)} and {list(b.shape)}")
    return reshape(a, (-1, 1)) * b


def matrix_transpose(x: ArrayLike, /) -> Tensor:
    """The last two axes swapped."""
    x = asarray(x)
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: expected at least 2 axes, got {list(x.shape)}")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def einsum(subscripts: str, /, *operands) -> Tensor:
    """One letter per axis, `...` for any further ones, which broadcast: `einsum("...ij,jk->...ik", x, y)`.

    A letter that an operand has twice takes its diagonal.  Without `->` the result has the further axes and the
    letters that stand once, in alphabetical order.  Several operands are multiplied from left to right.
    """
    terms, arrow, out = subscripts.replace(" ", "").partition("->")
    if not operands or terms.count(",") != len(operands) - 1:
        raise ShapeError(f"einsum: expected {terms.count(',') + 1} operands as in {subscripts!r}, got {len(operands)}")
    tensors = [Tensor(n) for n in promoted(*operands, broadcasts=False)]
    labels, more = _axis_labels(terms.split(","), tensors)
    letters = "".join(labels)
    if arrow:
        out = out.replace("...", more)
    else:
        out = more + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in more))
    sizes: dict[str, int] = {}
    for label, x in zip(labels, tensors, strict=True):
        for c, n in zip(label, x.shape, strict=True):
            if c not in more and sizes.setdefault(c, n) != n:
                raise ShapeError(f"einsum: axis {c} has sizes {sizes[c]} and {n} in {subscripts!r}")
    if len(set(out)) != len(out) or not set(out) <= set(letters):
        raise ShapeError(f"einsum: the result's axes {out!r} are not among {letters!r}, once each")
    x, left = _diagonal(tensors[0], labels[0])
    for k, (t, label) in enumerate(zip(tensors[1:], labels[1:], strict=True), 1):
        t, right = _diagonal(t, label)
        later = out + "".join(labels[k + 1 :])
        kept = "".join(c for c in dict.fromkeys(left + right) if c in later) if k + 1 < len(tensors) else out
        x, left = contract(x, t, left, right, kept), kept
    summed = tuple(d for d, c in enumerate(left) if c not in out)
    x, left = (sum(x, axis=summed) if summed else x), [c for c in left if c in out]
    return permute_dims(x, [left.index(c) for c in out])


def _axis_labels(terms: Sequence[str], tensors: Sequence[Tensor]) -> tuple[list[str], str]:
    """Letters for every axis, those of `...` too, and all letters that stand for `...`."""
    unused = "".join(c for c in ascii_letters if not any(c in term for term in terms))
    extra = [x.ndim - len(term) + 3 if "..." in term else 0 for term, x in zip(terms, tensors, strict=True)]
    more = unused[: max(*extra, 0)]
    labels = []
    for term, x, n in zip(terms, tensors, extra, strict=True):
        label = term.replace("...", more[len(more) - n :], 1) if n >= 0 else term
        if len(label) != x.ndim or not set(label) <= set(ascii_letters):
            raise ShapeError(f"einsum: {term!r} does not name the axes of {list(x.shape)}, one letter each")
        labels.append(label)
    broadcast_shapes(*(x.shape[term.index("...") :][:n] for term, x, n in zip(terms, tensors, extra, strict=True) if n))
    return labels, more


def _diagonal(x: Tensor, label: str) -> tuple[Tensor, str]:
    """Axes of one letter, made one: of n * n elements every (n + 1)-th."""
    for c in dict.fromkeys(label):
        while label.count(c) > 1:
            first, second = [d for d, other in enumerate(label) if other == c][:2]
            rest = [d for d in range(x.ndim) if d not in (first, second)]
            n = x.shape[first]
            x = reshape(permute_dims(x, (first, second, *rest)), (n * n, *(x.shape[d] for d in rest)))
            x, label = x[:: n + 1], c + "".join(label[d] for d in rest)
    return x, label
