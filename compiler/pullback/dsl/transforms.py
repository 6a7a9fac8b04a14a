"""What a script says about derivatives: `stop_gradient` and `custom_vjp`."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from inspect import signature

from ..errors import ShapeError, TraceError
from ..ops.custom import CustomVjp
from ..ops.elementwise import StopGradient
from ..ops.leaf import Item
from .creation import asarray
from .pytree import Tree, flatten, tree_map, unflatten
from .tensor import Tensor, emit


def stop_gradient(x: Tree) -> Tree:
    """x (a tensor or a tree of them), as a constant to derivatives."""
    return tree_map(lambda t: emit(StopGradient(), asarray(t).node), x)


class custom_vjp:
    """A function with its own derivative, in JAX's style:

        @pb.custom_vjp
        def f(x, y): ...
        f.defvjp(forward, backward)

    `forward(x, y)` gives the result and anything that `backward(saved, cotangent)` needs; `backward` gives a tuple
    with one cotangent per argument (None: zero), each of its argument's structure, shapes and dtypes.  Arguments and
    results are trees of tensors.  Errors: `TraceError` without `defvjp`, `ShapeError` for cotangents that do not fit.
    """

    def __init__(self, fn: Callable):
        update_wrapper(self, fn)
        self.fn = fn
        self.forward: Callable | None = None
        self.backward: Callable | None = None

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """State the derivative."""
        self.forward, self.backward = forward, backward

    def __call__(self, *args, **kwargs):
        if self.forward is None or self.backward is None:
            raise TraceError(f"{self.fn.__name__} is a custom_vjp without a derivative: call {self.fn.__name__}.defvjp")
        if kwargs:
            bound = signature(self.fn).bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        args = tree_map(asarray, args)
        result, saved = self.forward(*args)
        leaves, structure = flatten(result)
        leaves = [asarray(t) for t in leaves]
        arguments, argument_structure = flatten(args)
        kept, kept_structure = flatten(saved)
        tensors = [k for k, v in enumerate(kept) if isinstance(v, Tensor)]

        def backward(needed, cotangents):
            values = list(kept)
            for k, value in zip(tensors, needed, strict=True):
                values[k] = value
            given = self.backward(unflatten(kept_structure, values), unflatten(structure, cotangents))
            return self._checked(given, args, argument_structure, arguments)

        op = CustomVjp(backward, len(leaves), len(arguments))
        node = emit(op, *(t.node for t in (*leaves, *arguments, *(kept[k] for k in tensors)))).node
        return unflatten(structure, [emit(Item(i), node) for i in range(len(leaves))])

    def _checked(self, given, args: tuple, structure, arguments: list[Tensor]) -> list[Tensor | None]:
        """One cotangent per argument leaf, each of its type."""
        name = self.fn.__name__
        if not isinstance(given, tuple) or len(given) != len(args):
            raise ShapeError(f"{name}: backward must give a tuple of {len(args)} cotangents, one per argument")
        result: list[Tensor | None] = [None] * len(arguments)
        for value, positions in zip(given, structure, strict=True):
            if value is None:
                continue
            leaves, shape = flatten(value)
            wanted, like = flatten(positions)
            if shape != like:
                raise ShapeError(f"{name}: backward gives a cotangent of another structure than its argument")
            for position, leaf in zip(wanted, leaves, strict=True):
                x = arguments[position]
                leaf = asarray(leaf)
                if (leaf.shape, leaf.dtype) != (x.shape, x.dtype):
                    raise ShapeError(f"{name}: backward gives {leaf} for an argument that is {x}")
                result[position] = leaf
        return result
