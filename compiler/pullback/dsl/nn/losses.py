"""Loss functions, as in torch.nn.functional.

reduction: "mean" | "sum" | "none".  Targets have the shape of the input (no silent broadcasting) or, for
class labels, the input's shape without the class axis (axis 1, or axis 0 of one sample).
"""

from __future__ import annotations

from ...errors import DTypeError, ShapeError
from ..array import (
    abs,
    asarray,
    broadcast_axes,
    broadcast_to,
    exp,
    log,
    mean,
    pad,
    reshape,
    sum,
    take,
    take_along_axis,
    where,
)
from ..creation import takes_arrays
from ..promotion import ArrayLike, iinfo
from ..tensor import Tensor
from .activations import shifted, softplus, spread, sum_out

IGNORED = -100
"""torch's label of rows that do not count."""
COUNTED_AGAIN = 256
"""So many rows may each count which of them are valid; or a fourth of the classes, if that is more."""
PARTS = 16
"""Of more rows, so many parts are counted first."""


def reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}: expected 'mean', 'sum' or 'none'")
    return loss if reduction == "none" else (mean if reduction == "mean" else sum)(loss)


def _same_shapes(name: str, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        raise ShapeError(f"{name}: input {list(input.shape)} and target {list(target.shape)} differ in shape")


@takes_arrays("input", "target")
def mse_loss(input: ArrayLike, target: ArrayLike, reduction: str = "mean") -> Tensor:
    """(input - target)^2."""
    _same_shapes("mse_loss", input, target)
    d = input - target
    return reduced(d * d, reduction)


@takes_arrays("input", "target")
def l1_loss(input: ArrayLike, target: ArrayLike, reduction: str = "mean") -> Tensor:
    """|input - target|."""
    _same_shapes("l1_loss", input, target)
    return reduced(abs(input - target), reduction)


@takes_arrays("input", "target")
def huber_loss(input: ArrayLike, target: ArrayLike, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """Squared below delta, linear above (Huber 1964)."""
    _same_shapes("huber_loss", input, target)
    d = input - target
    size = abs(d)
    return reduced(where(size < delta, d * d * 0.5, (size - 0.5 * delta) * delta), reduction)


@takes_arrays("input", "target")
def smooth_l1_loss(input: ArrayLike, target: ArrayLike, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """huber_loss(delta=beta) / beta; l1_loss for beta = 0."""
    if beta == 0:
        return l1_loss(input, target, reduction)
    _same_shapes("smooth_l1_loss", input, target)
    d = input - target
    size = abs(d)
    return reduced(where(size < beta, d * d * (0.5 / beta), size - 0.5 * beta), reduction)


@takes_arrays("input", "target", "weight", "pos_weight")
def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    pos_weight: ArrayLike | None = None,
) -> Tensor:
    """-(y log s(x) + (1 - y) log(1 - s(x))) of logits x, s the sigmoid; `pos_weight` multiplies the first term."""
    _same_shapes("binary_cross_entropy_with_logits", input, target)
    if not target.dtype.is_float:
        target = target.astype(input.dtype)
    negative = softplus(-input)  # -log s(x)
    if pos_weight is not None:
        negative = negative * (target * (pos_weight - 1) + 1)
    loss = (1 - target) * input + negative
    return reduced(loss if weight is None else loss * weight, reduction)


@takes_arrays("input", "target")
def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int | None = IGNORED,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target]: input [N, C, ...], target class labels [N, ...] or probabilities [N, C, ...].

    weight [C]: of each class; the mean is then weighted, as in torch.  ignore_index: rows with this label do not
    count (None: there are none); every other label outside of 0..C-1 is an error.
    """
    axis = _class_axis("cross_entropy", input, target)
    weight = _class_weight("cross_entropy", weight, input, axis)
    x = shifted(input, axis)
    total = log(sum_out(exp(x), axis))  # log softmax = x - total
    classes = input.shape[axis]
    if target.dtype.is_float:
        if label_smoothing:
            target = target * (1 - label_smoothing) + label_smoothing / classes
        if weight is not None:
            target = target * broadcast_axes(weight, input.shape, (axis,))
        loss = sum_out((spread(total, x.shape, axis) - x) * target, axis)
        return reduced(loss, reduction)
    labels, valid = _labels(target, ignore_index)
    loss = total - _pick(x, labels, axis)
    row_weight = None if weight is None else take(weight, labels, axis=0)
    if row_weight is not None:
        loss = loss * row_weight
    if label_smoothing:
        if weight is None:
            smooth = total - sum_out(x, axis) * (1 / classes)
        else:
            log_p = spread(total, x.shape, axis) - x
            smooth = sum_out(log_p * broadcast_axes(weight, x.shape, (axis,)), axis) * (1 / classes)
        loss = loss * (1 - label_smoothing) + smooth * label_smoothing
    return _mean_of_valid(loss, row_weight, valid, reduction, classes)


@takes_arrays("input", "target")
def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int | None = IGNORED,
    reduction: str = "mean",
) -> Tensor:
    """-input[target]: input log probabilities [N, C, ...], target labels [N, ...].  Options as in cross_entropy."""
    axis = _class_axis("nll_loss", input, target)
    if not target.dtype.is_integer:
        raise DTypeError(f"nll_loss: expected integer labels, got {target.dtype}")
    weight = _class_weight("nll_loss", weight, input, axis)
    labels, valid = _labels(target, ignore_index)
    loss = -_pick(input, labels, axis)
    row_weight = None if weight is None else take(weight, labels, axis=0)
    loss = loss if row_weight is None else loss * row_weight
    return _mean_of_valid(loss, row_weight, valid, reduction, input.shape[axis])


def _class_axis(name: str, input: Tensor, target: Tensor) -> int:
    if not input.dtype.is_float:
        raise DTypeError(f"{name}: expected float scores, got {input.dtype}")
    if not input.ndim:
        raise ShapeError(f"{name}: expected scores [N, C, ...] or [C], got a scalar")
    axis = min(1, input.ndim - 1)
    expected = input.shape if target.dtype.is_float else input.shape[:axis] + input.shape[axis + 1 :]
    if target.shape != expected:
        kind = "probabilities" if target.dtype.is_float else "labels"
        raise ShapeError(f"{name}: expected {kind} {list(expected)} for scores {list(input.shape)}, got {target}")
    return axis


def _class_weight(name: str, weight, input: Tensor, axis: int) -> Tensor | None:
    if weight is None:
        return None
    weight = asarray(weight, dtype=input.dtype)
    if weight.shape != input.shape[axis : axis + 1]:
        raise ShapeError(f"{name}: expected a weight for each of {input.shape[axis]} classes, got {weight}")
    return weight


def _labels(target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Labels that can be looked up, and which rows count."""
    if ignore_index is None or not (info := iinfo(target.dtype)).min <= ignore_index <= info.max:
        return target, None
    valid = target != ignore_index
    return where(valid, target, 0), valid


def _pick(x: Tensor, labels: Tensor, axis: int) -> Tensor:
    column = (*labels.shape[:axis], 1, *labels.shape[axis:])
    return reshape(take_along_axis(x, reshape(labels, column), axis=axis), labels.shape)


def _mean_of_valid(
    loss: Tensor, row_weight: Tensor | None, valid: Tensor | None, reduction: str, classes: int
) -> Tensor:
    if valid is not None:
        loss = where(valid, loss, 0)
    if reduction != "mean" or (row_weight is None and valid is None):
        return reduced(loss, reduction)
    if row_weight is None:
        counts = valid.astype(loss.dtype)
    else:
        counts = row_weight if valid is None else where(valid, row_weight, 0)
    if loss.ndim != 1 or not loss.size:
        return sum(loss) / sum(counts)
    return sum(loss / _total_in_each(counts, max(COUNTED_AGAIN, classes // 4) if row_weight is None else PARTS))


def _total_in_each(x: Tensor, few: int) -> Tensor:
    """sum(x) of a vector, as many times as it has elements.

    Gradients need the total before the first row is done.  That every row adds up what it needs (all, if they are few;
    else the sums of 16 parts, made beforehand) is less work than to read the scores once more after the total is known.
    """
    n = x.shape[0]
    if n > few:
        size = -(-n // PARTS)
        x = sum(reshape(pad(x, ((0, PARTS * size - n),)), (PARTS, size)), axis=1)
    return sum(broadcast_to(x, (n, x.shape[0])), axis=1)
