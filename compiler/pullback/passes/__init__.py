"""The pass list and the one runner: graph IR in, graph IR out.

A pass is a pure function Graph -> Graph on one level; the runner applies it inside regions (scan bodies) too,
innermost first.  After each pass (or the last) the result is verified, the time is noted, and the caller may dump it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TypeVar

from ..errors import PullbackError
from ..graph.content import region_fields
from ..graph.graph import Graph, Node, rewrite, same_or_replaced
from ..graph.program import Program
from ..graph.verify import verify
from .checkpoint import checkpoint
from .cse import cse
from .dce import dce
from .fold import fold
from .matvec import matvec
from .settle import settle
from .simplify import simplify

Pass = Callable[[Graph], Graph]
T = TypeVar("T", Graph, Program)

PASSES: tuple[Pass, ...] = (settle, cse, simplify, matvec, dce)
"""In order.  cse goes first, as rules that must not duplicate work count readers; simplify merges what it makes."""

WHOLE: frozenset[Pass] = frozenset({settle})
"""Passes that go into regions themselves, from the outside in."""

__all__ = [
    "PASSES",
    "Pass",
    "PassError",
    "apply",
    "check",
    "checkpoint",
    "cse",
    "dce",
    "fold",
    "map_regions",
    "matvec",
    "run",
    "settle",
    "simplify",
]


class PassError(PullbackError):
    """A pass failed, or left a graph that breaks the rules of the IR."""


def run(
    what: T,
    passes: Sequence[Pass] = PASSES,
    dump: Callable[[str, T], None] | None = None,
    timings: dict[str, float] | None = None,
    checked: bool = True,
) -> T:
    """Run `passes` in order over a graph or over every function of a program.

    `dump(name, result)` is called after each pass; `timings` collects seconds by pass name, verification apart.
    Not `checked`: nothing is verified, the caller asks `check` about the result.
    """
    timings = {} if timings is None else timings
    verified: set[Node] = set()

    def verify_all() -> None:
        start = perf_counter()
        verify(what, verified)
        timings["verify"] = timings.get("verify", 0.0) + perf_counter() - start

    if checked:
        verify_all()
    for p in passes:
        start = perf_counter()
        try:
            what = _apply(p, what)
            timings[p.__name__] = timings.get(p.__name__, 0.0) + perf_counter() - start
            if checked:
                verify_all()
        except PullbackError as error:
            raise PassError(f"after pass '{p.__name__}': {error}") from error
        if dump is not None:
            dump(p.__name__, what)
    return what


def check(before: T, passes: Sequence[Pass], after: T) -> None:
    """Verify what unchecked passes made; if that fails, all is done again to say which pass it was."""
    try:
        verify(after)
    except PullbackError:
        run(before, passes)
        raise


def _apply(p: Pass, what: Graph | Program) -> Graph | Program:
    if isinstance(what, Program):
        functions = tuple(replace(f, graph=apply(p, f.graph)) for f in what.functions)
        return replace(what, functions=functions)
    return apply(p, what)


def apply(p: Pass, graph: Graph) -> Graph:
    """One pass on a graph: first inside the regions of its nodes, then on the graph itself."""
    if p in WHOLE:
        return p(graph)
    return p(map_regions(graph, lambda body: apply(p, body)))


def map_regions(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """The graph with every region of its nodes changed (to one with the same signature)."""
    if not any(map(region_fields, {type(n.op) for n in graph.nodes})):
        return graph
    done: dict[Graph, Graph] = {}

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        names = region_fields(type(node.op))
        if names:
            old = {name: getattr(node.op, name) for name in names}
            new = {name: done[g] if g in done else done.setdefault(g, change(g)) for name, g in old.items()}
            if any(new[name] is not old[name] for name in names):
                return Node(replace(node.op, **new), inputs, node.type, node.loc, node.tag)
        return same_or_replaced(node, inputs)

    return rewrite(graph, rule)
