"""Nested dicts, lists, tuples and None around leaves: what functions take, return and differentiate by.

A structure is described by the same containers with each leaf's position in its place (`{"x": 0, "y": [1, 2]}`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Tree = Any
"""Containers of leaves of any kind (Python has no type for it)."""


def flatten(tree: Tree) -> tuple[list, Tree]:
    """The leaves in order, and the tree of their positions."""
    leaves: list = []
    return leaves, _positions(tree, leaves)


def _positions(tree: Tree, leaves: list) -> Tree:
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {k: _positions(v, leaves) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return _sequence(tree, [_positions(v, leaves) for v in tree])
    leaves.append(tree)
    return len(leaves) - 1


def flatten_like(tree: Tree, positions: Tree) -> list | None:
    """The leaves of a tree in the order of a structure, whose dicts may have their keys in another order; None for a
    tree of another structure."""
    leaves, own = flatten(tree)
    order = _matched(own, positions)
    return None if order is None else [leaves[i] for i in order]


def _matched(own: Tree, positions: Tree) -> list[int] | None:
    if isinstance(own, int):
        return [own] if isinstance(positions, int) else None
    if not isinstance(own, type(positions)) and not isinstance(positions, type(own)):  # a named tuple is a tuple
        return None
    if own is None:
        return []
    if isinstance(own, dict):
        if own.keys() != positions.keys():
            return None
        pairs = [(own[k], p) for k, p in positions.items()]
    elif len(own) != len(positions):
        return None
    else:
        pairs = list(zip(own, positions, strict=True))
    parts = [_matched(a, b) for a, b in pairs]
    return None if None in parts else [i for part in parts for i in part]


def _sequence(like: Tree, items: list) -> Tree:
    """A list or tuple of `items` of the type of `like` (named tuples included)."""
    if isinstance(like, list):
        return items
    return type(like)(*items) if hasattr(like, "_fields") else tuple(items)


def unflatten(positions: Tree, leaves: Sequence) -> Tree:
    """The tree with `leaves[i]` in place of each position i."""
    if positions is None:
        return None
    if isinstance(positions, dict):
        return {k: unflatten(v, leaves) for k, v in positions.items()}
    if isinstance(positions, list | tuple):
        return _sequence(positions, [unflatten(v, leaves) for v in positions])
    return leaves[positions]


def tree_map(fn: Callable, tree: Tree, *others: Tree) -> Tree:
    """`fn` on the leaves of trees of one structure (the keys of dicts in any order): the tree of its results.

    Errors: `ValueError` if the trees differ in structure.
    """
    leaves, positions = flatten(tree)
    columns = [leaves]
    for other in others:
        column = flatten_like(other, positions)
        if column is None:
            raise ValueError(f"trees differ in structure: {positions} and {flatten(other)[1]}")
        columns.append(column)
    return unflatten(positions, [fn(*row) for row in zip(*columns, strict=True)])


def tree_leaves(tree: Tree) -> list:
    return flatten(tree)[0]


def leaf_names(tree: Tree, root: str) -> list[str]:
    """How users name each leaf: `data`, `data.key.0`."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [name for k, v in tree.items() for name in leaf_names(v, f"{root}.{k}")]
    if isinstance(tree, list | tuple):
        return [name for i, v in enumerate(tree) for name in leaf_names(v, f"{root}.{i}")]
    return [root]


def plain(tree: Tree) -> Tree:
    """The tree with named tuples as tuples, as a manifest can hold it."""
    if isinstance(tree, dict):
        return {str(k): plain(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [plain(v) for v in tree]
    return tuple(plain(v) for v in tree) if isinstance(tree, tuple) else tree
