"""The reference evaluator: graph IR in, numpy arrays out.  The oracle of everything below it.

Each op's own `evaluate` computes; its result is rounded to the inferred dtype.  f16 is widened to f32 for
the computation (bf16 is held as f32 anyway), as compiled code does.  Slow and plain on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import PullbackError
from .graph import Graph, Node
from .program import Function, Program
from .types import TensorType, TupleType, f16


def evaluate(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs' values for one array per graph input (converted to the input's dtype, shapes must match)."""
    if len(inputs) != len(graph.inputs):
        raise PullbackError(f"graph {graph.name} has {len(graph.inputs)} inputs, got {len(inputs)} arrays")
    values: dict[Node, np.ndarray | tuple[np.ndarray, ...]] = {}
    for node, array in zip(graph.inputs, inputs, strict=True):
        if np.shape(array) != node.shape:
            raise PullbackError(f"input {node.op.label!r} is {node.type}, got an array of shape {np.shape(array)}")
        values[node] = round_to(node.type, array)

    left = {n: len(users) for n, users in graph.users().items()}
    for n in graph.outputs:
        left[n] += 1
    with np.errstate(all="ignore"):
        for n in graph.nodes:
            if n not in values:
                values[n] = apply(n, [values[x] for x in n.inputs])
            for x in dict.fromkeys(n.inputs):  # values that nobody needs any more are dropped
                left[x] -= 1
                if not left[x]:
                    del values[x]
    return [values[x] for x in graph.outputs]


def apply(node: Node, arrays: Sequence[np.ndarray | tuple]) -> np.ndarray | tuple[np.ndarray, ...]:
    """One node's value from its inputs' values (numpy's floating-point warnings are the caller's)."""
    if node.op.name != "bitcast":
        arrays = [
            a.astype(np.float32) if isinstance(x.type, TensorType) and x.type.dtype is f16 else a
            for a, x in zip(arrays, node.inputs, strict=True)
        ]
    return round_to(node.type, node.op.evaluate(*arrays))


def round_to(
    type_: TensorType | TupleType, value: np.ndarray | tuple[np.ndarray, ...]
) -> np.ndarray | tuple[np.ndarray, ...]:
    """A result with the dtype that the types say, and a check that its shape is the inferred one."""
    if isinstance(type_, TupleType):
        return tuple(round_to(t, v) for t, v in zip(type_.items, value, strict=True))
    with np.errstate(all="ignore"):
        array = type_.dtype.round(value)
    if array.shape != type_.shape:
        raise PullbackError(f"evaluated to shape {array.shape}, inferred {type_}")
    return array


def evaluate_function(
    program: Program,
    function: Function | str,
    state: Mapping[str, np.ndarray],
    arguments: Sequence[np.ndarray],
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Call a function: its results in order, and the state after it (a new dict; arrays are not changed in place)."""
    if isinstance(function, str):
        function = next(f for f in program.functions if f.name == function)
    outputs = evaluate(function.graph, [*arguments, *(state[name] for name in function.reads)])
    first = len(outputs) - len(function.writes)
    return outputs[:first], {**state, **dict(zip(function.writes, outputs[first:], strict=True))}
