"""Control flow that is traced: `scan` -> one node whose body is a graph of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..errors import DTypeError, ShapeError, TraceError
from ..graph.graph import Graph, Node, make, recording, topological
from ..graph.types import TensorType, u32
from ..ops.leaf import Input, Iota, Item
from ..ops.movement import Movement
from ..ops.scan import Scan, substitute
from .creation import asarray
from .pytree import Tree, flatten, flatten_like, leaf_names, unflatten
from .tensor import Tensor, emit
from .trace import active

if TYPE_CHECKING:
    from .state import Variable

_iteration: ContextVar[Tensor | None] = ContextVar("pullback_iteration", default=None)


def iteration() -> Tensor | None:
    """Inside a scan's body the iteration's number (u32, over all loops around), so that random draws differ."""
    return _iteration.get()


def scan(
    f: Callable, init: Tree, xs: Tree = None, length: int | None = None, reverse: bool = False
) -> tuple[Tree, Tree]:
    """Apply `carry, y = f(carry, x)` to slices of xs in turn, as `jax.lax.scan`: one loop in the program, not unrolled.

    init: the first carry, a tree of tensors; every carry has its structure, shapes and dtypes.
    xs: a tree of tensors that are sliced along their first axis (None: no x, then `length` says how often).
    reverse: from the last slice to the first; the stacked ys keep the order of xs.
    Returns the last carry and the ys, stacked along a new first axis.  f may use tensors from outside; it is
    traced once.  Errors: `ShapeError`, `DTypeError` where lengths or the carry's types differ.
    """
    carry_leaves, carry_tree = flatten(init)
    carries = [asarray(c) for c in carry_leaves]
    x_leaves, x_tree = flatten(xs)
    stacks = [asarray(x) for x in x_leaves]
    n = _length(stacks, length)
    carry_inputs = [_input(f"carry{i}", c.node.type) for i, c in enumerate(carries)]
    x_inputs = [_input(f"x{i}", TensorType(x.dtype, x.shape[1:])) for i, x in enumerate(stacks)]
    count = _input("iteration", TensorType(u32, ()))
    around, before = iteration(), _written()
    token = _iteration.set(count if around is None else around * n + count)
    try:
        with recording() as inside:
            result = f(unflatten(carry_tree, carry_inputs), unflatten(x_tree, x_inputs))
            _check_no_assignments(before)
            if not isinstance(result, tuple) or len(result) != 2:
                raise ShapeError(f"scan: expected f to return (carry, y), got {type(result).__name__}")
            next_carry = _next_carry(result[0], carries, carry_tree, init)
            y_leaves, y_tree = flatten(result[1])
            outputs = [c.node for c in (*next_carry, *map(asarray, y_leaves))]
    finally:
        _iteration.reset(token)
    own = [x.node for x in (*carry_inputs, *x_inputs, count)]
    captured, order = _captured(own, outputs, inside)
    constants = {node: _input(f"constant{i}", node.type).node for i, node in enumerate(captured)}
    outputs = substitute(outputs, dict(constants))
    if count.node in order:
        x_inputs.append(count)
        stacks.append(emit(Iota(u32, (n,), 0)))
    inputs = (*constants.values(), *(x.node for x in (*carry_inputs, *x_inputs)))
    body = Graph(getattr(f, "__name__", "body"), inputs, tuple(outputs))
    op = Scan(body, n, len(captured), len(carries), reverse)
    node = make(op, *captured, *(t.node for t in (*carries, *stacks)))
    items = [emit(Item(i), node) for i in range(len(outputs))]
    return unflatten(carry_tree, items[: len(carries)]), unflatten(y_tree, items[len(carries) :])


def _written() -> dict[Variable, Node]:
    trace = active()
    return trace.written() if trace else {}


def _check_no_assignments(before: dict[Variable, Node]) -> None:
    """A body is traced once: state that it assigned would change once, not in every iteration."""
    for variable, node in _written().items():
        if before.get(variable) is not node:
            raise TraceError(f"scan: f assigns the {variable.describe()}: carry the value, assign what scan returns")


def _input(label: str, type: TensorType) -> Tensor:
    return emit(Input(label, type.dtype, type.shape))


def _length(stacks: list[Tensor], length: int | None) -> int:
    if any(not x.ndim for x in stacks):
        raise ShapeError("scan: expected xs with a first axis to go along, got a 0-d tensor")
    lengths = {x.shape[0] for x in stacks} | ({length} if length is not None else set())
    if len(lengths) != 1:
        raise ShapeError(f"scan: expected one length, got {sorted(lengths)} from xs {[list(x.shape) for x in stacks]}")
    return lengths.pop()


def _next_carry(given, carries: list[Tensor], tree, init) -> list[Tensor]:
    """The body's carry as tensors of the types of the first one."""
    leaves = flatten_like(given, tree)
    if leaves is None:
        raise ShapeError(f"scan: expected a carry of structure {tree}, f returns {flatten(given)[1]}")
    result = []
    for leaf, first, name in zip(leaves, carries, leaf_names(init, "carry"), strict=True):
        leaf = leaf if isinstance(leaf, Tensor) else asarray(leaf, dtype=first.dtype)
        if leaf.shape != first.shape:
            raise ShapeError(
                f"scan: expected {name} to keep its shape {list(first.shape)}, f returns {list(leaf.shape)}"
            )
        if leaf.dtype != first.dtype:
            raise DTypeError(f"scan: expected {name} to stay {first.dtype}, f returns {leaf.dtype}: use astype")
        result.append(leaf)
    return result


def _captured(own: list[Node], outputs: list[Node], inside: set[Node]) -> tuple[list[Node], set[Node]]:
    """The nodes that the body takes from outside, and all that it reaches.

    Whatever does not depend on the loop is computed before it, but for leaves and movement made inside, which cost
    nothing there and may be large outside.  What was made outside must be taken: a script may differentiate by it.
    """
    order = topological((), tuple(outputs))
    varying = set(own)
    for n in order:
        if not varying.isdisjoint(n.inputs):
            varying.add(n)
    captured: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = [*(n for n in order if n in varying), *outputs]
    for n in stack:  # grows while it is walked
        if n in seen:
            continue
        seen.add(n)
        if n in varying or (n in inside and (isinstance(n.op, Movement) or not n.inputs)):
            stack += n.inputs
        else:
            captured[n] = None
    return list(captured), set(order)
