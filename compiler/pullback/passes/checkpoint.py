"""What the backward part saves and what it computes again: graph IR in, graph IR out.

Forward values that gradient nodes read must wait in memory until then, unless they are cheap to compute again
from others that wait anyway.  For every forward value v, saving costs `price(v)` (bytes written and read) and
computing it again costs `work(v)` and needs its inputs; the cheapest choice for all is a minimum cut:

    source --work(v)--> in(v) --price(v)--> out(v) --inf--> sink   if a gradient node reads v
                        in(v) <--inf-- out(u)                      for the inputs u of v

On the sink's side, `out(v)` means that v is wanted in the backward part and `in(v)` that it is computed again.
The copies carry fresh tags, one for each time (depth) at which they are read, so that cse keeps them apart, and
count as gradient nodes.  The network falls apart at values that cannot be computed again (contractions), so
each layer is a small problem of its own, and equal layers are solved once.

What fusion keeps in registers has no price: a reader counts only where an opaque op (a contraction, a sort)
lies between the value and it; with no such op between them both can be in one kernel.  Gradient nodes that
could be computed early but are read late (1 - tanh(z)^2) count among the values to choose from, at no work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from math import inf, isinf

import networkx as nx

from ..graph.graph import Graph, Node, make, rewrite, same_or_replaced
from ..graph.types import TensorType
from ..ops.leaf import Item, Leaf
from ..ops.movement import Movement
from ..ops.op import Op, Pointwise, Reduction
from .rules import fill_value

Cost = Callable[[Node], float]

BYTES_PER_OPERATION = 0.2
"""How many bytes of memory traffic cost as much as one vectorised operation on one element."""

LATE = 1.05
"""Of two equal choices, a gradient node is computed where it is read."""

KEPT = frozenset({"random", "gather", "gather_along"})
"""Pointwise ops that are not computed again: dear, or with checks of their own."""


def checkpoint(graph: Graph, price: Cost | None = None, work: Cost | None = None) -> Graph:
    """Let gradient nodes compute again what is cheaper to compute than to keep.

    `price(v)`: bytes moved for keeping a forward value, 0 where it is in memory anyway (default:
    `default_price`); `work(v)`: the same currency for computing it again, inf to forbid (`default_work`).
    """
    if not any([n.loc.gradient for n in graph.nodes]):
        return graph
    depth = _depths(graph)
    early = _early(graph, depth)
    readers: dict[Node, set[Node]] = {}  # gradient node -> the values that must wait for it
    times: dict[Node, set[int]] = {}  # value -> the depths at which it is read
    for n in graph.nodes:
        if n.loc.gradient and n not in early:  # leaves are
            for x in n.inputs:
                if x in early and depth[n] > depth[x] and isinstance(x.type, TensorType) and not _leaf(type(x.op)):
                    readers.setdefault(n, set()).add(x)
                    times.setdefault(x, set()).add(depth[n])
    if not readers:
        return graph
    price, work = price or default_price(graph), work or default_work
    first = 1 + max([n.tag for n in graph.nodes])
    tags = {t: first + i for i, t in enumerate(sorted(set().union(*times.values())))}
    copies: dict[tuple[Node, int], Node] = {}  # (value, depth) -> the copy that is read there
    for c, h in _recovered_conditions(graph, times, price).items():
        for t in times.pop(c):
            copies[c, t] = make(c.op, h, c.inputs[1], loc=c.loc.as_gradient(), tag=tags[t])
    again = _computed_again(graph, times, depth, price, work)
    for v in graph.nodes:  # inputs come first
        for t in times[v] if v in again else ():
            inputs = tuple([copies.get((u, t), u) if depth[u] == depth[v] else u for u in v.inputs])
            copies[v, t] = Node(v.op, inputs, v.type, v.loc.as_gradient(), tags[t])
    if not copies:
        return graph

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        waiting = readers.get(node)
        if waiting:
            inputs = tuple([copies.get((x, depth[node]), x) if x in waiting else x for x in inputs])
        return same_or_replaced(node, inputs)

    return rewrite(graph, rule)


# ---- costs -----------------------------------------------------------------------------------------------
def default_work(v: Node) -> float:
    """Pointwise arithmetic, by its number of operations; inf for all else."""
    if not isinstance(v.op, Pointwise) or v.op.name in KEPT:
        return inf
    return v.type.size * max(v.op.cost, 0.05) * BYTES_PER_OPERATION


def default_price(graph: Graph) -> Cost:
    """One write and one read, but nothing for inputs, outputs and what opaque ops need in memory anyway."""
    stored: set[Node] = set(graph.outputs)
    for n in reversed(graph.nodes):
        if _opaque(type(n.op)) or (n in stored and isinstance(n.op, Movement)):
            stored.update(n.inputs)

    def price(v: Node) -> float:
        return 0.0 if v in stored or _leaf(type(v.op)) or type(v.op) is Item else 2.0 * v.type.nbytes

    return price


@cache
def _opaque(op: type[Op]) -> bool:
    """Whether an op reads its operands from memory and starts a kernel of its own."""
    return not issubclass(op, Pointwise | Reduction | Leaf | Item)


@cache
def _leaf(op: type[Op]) -> bool:
    return issubclass(op, Leaf)


def _depths(graph: Graph) -> dict[Node, int]:
    """For each node the greatest number of opaque ops on a path to it, itself included."""
    depth: dict[Node, int] = {}
    for n in graph.nodes:
        d = 0
        for x in n.inputs:
            if depth[x] > d:
                d = depth[x]
        depth[n] = d + _opaque(type(n.op))
    return depth


def _early(graph: Graph, depth: dict[Node, int]) -> set[Node]:
    """Forward nodes, and gradient nodes that need only such and are read later than they could be computed."""
    latest: dict[Node, int] = {n: depth[n] for n in graph.outputs}
    for n in reversed(graph.nodes):
        before = depth[n] - 1 if _opaque(type(n.op)) else latest.get(n, depth[n])
        for x in n.inputs:
            if latest.get(x, before) >= before:
                latest[x] = before
    early: set[Node] = set()
    for n in graph.nodes:
        if not _leaf(type(n.op)):
            if not early.issuperset(n.inputs):
                continue
            slack = not n.tag and latest.get(n, 0) > depth[n]
            if n.loc.gradient and not (slack and not all([_leaf(type(x.op)) for x in n.inputs])):
                continue
        early.add(n)
    return early


# ---- the cut ---------------------------------------------------------------------------------------------
Problem = tuple[tuple[int, int | float, bool, tuple[int, ...]], ...]
"""For each value, inputs first: price, work, whether it is wanted, the numbers of its inputs."""


def _computed_again(
    graph: Graph, times: dict[Node, set[int]], depth: dict[Node, int], price: Cost, work: Cost
) -> set[Node]:
    """The values to compute again.  `times` (of the wanted ones) is extended to all of them.

    A value is computed again from values of its own depth, and from earlier ones only if they are kept: a chain
    through all layers (a residual stream) would be one value wanted at many times.
    """
    prices: dict[Node, float] = {}
    works: dict[Node, float] = {}
    wanted, stack = set(times), list(times)
    while stack:  # from what is wanted back to what waits in memory anyway, or cannot be computed again
        v = stack.pop()
        if v not in prices:
            prices[v], works[v] = (0.0, 0.0) if _leaf(type(v.op)) else (price(v), work(v))
            if prices[v] > 0 and not isinf(works[v]):
                stack += [u for u in v.inputs if depth[u] == depth[v]]
    nodes = [v for v in graph.nodes if prices.get(v, 0.0) > 0]
    for v in reversed(nodes):
        if not isinf(works[v]):
            for u in v.inputs:
                if u in prices and depth[u] == depth[v]:
                    times.setdefault(u, set()).update(times[v])

    problem: list[tuple[int, int | float, bool, tuple[int, ...]]] = []
    number: dict[Node, int] = {}
    earlier: dict[Node, int] = {}  # kept values of other depths, apart from their own place in the problem
    for v in nodes:
        inputs = []
        for u in v.inputs if not isinf(works[v]) else ():
            if depth[u] == depth[v]:
                inputs += [number[u]] if u in number else []
                continue
            anyway = _leaf(type(u.op)) or (u in wanted and isinf(works[u]))
            if u not in earlier and not anyway and (cost := price(u)) > 0:
                earlier[u] = len(problem)
                problem.append((_units(cost), inf, False, ()))
            inputs += [earlier[u]] if u in earlier else []
        late = v.loc.gradient and not isinf(works[v])  # computed late instead of early, not twice
        cost = works[v] * (len(times[v]) - late)
        number[v] = len(problem)
        problem.append((_units(prices[v] * (LATE if late else 1)), _units(cost), v in wanted, tuple(inputs)))
    again = set(_solve(tuple(problem)))
    return {v for v, i in number.items() if i in again}


def _units(cost: float) -> int | float:
    """A whole number of 1/64 bytes (flows of floats would be inexact), or inf."""
    return cost if isinf(cost) else round(cost * 64)


def _solve(problem: Problem) -> list[int]:
    """The numbers of the values to compute again: the problem in its independent parts, equal ones solved once."""
    owner, work, inputs = _merged(problem)
    free = {v for v, p in enumerate(problem) if owner[v] == v and not (p[2] and isinf(work[v]))}  # others are kept
    network = nx.Graph()
    network.add_nodes_from(sorted(free))
    network.add_edges_from([(u, v) for v in free if not isinf(work[v]) for u in inputs[v] if u in free])
    solved: dict[Problem, list[int]] = {}
    again: set[int] = set()
    for component in nx.connected_components(network):
        members = sorted(component)
        place = {v: i for i, v in enumerate(members)}
        part = tuple(
            (problem[v][0], work[v], problem[v][2], tuple(sorted([place[u] for u in inputs[v] if u in place])))
            for v in members
        )
        if part not in solved:
            solved[part] = _cut(part)
        again.update([members[i] for i in solved[part]])
    return [v for v in range(len(problem)) if owner[v] in again]


def _merged(problem: Problem) -> tuple[list[int], list[int | float], list[set[int]]]:
    """A smaller problem with the same answer: each value's owner, the owners' work and inputs.

    A value that only one other needs, and that is no cheaper to keep than that one, is never worth keeping: it is
    computed again exactly when the other is.
    """
    owner, work = list(range(len(problem))), [p[1] for p in problem]
    inputs, users = [set(p[3]) for p in problem], [set() for _ in problem]
    for v in reversed(range(len(problem))):
        price, _, wanted, _ = problem[v]
        if not wanted and len(users[v]) == 1:
            (user,) = users[v]
            if price >= problem[user][0]:
                owner[v] = user
                work[user] += work[v]
                inputs[user] |= inputs[v]
                inputs[user].discard(v)
        if not isinf(work[v]):
            for u in inputs[v]:
                users[u].add(owner[v])
    return owner, work, inputs


def _cut(problem: Problem) -> list[int]:
    """The minimum cut of one part."""
    if len(problem) == 1:
        price, work, wanted, _ = problem[0]
        return [0] if wanted and work < price else []
    g = nx.DiGraph()
    g.add_nodes_from(["source", "sink"])
    for v, (price, work, wanted, inputs) in enumerate(problem):
        g.add_edge(("in", v), ("out", v), capacity=price)
        if isinf(work):
            g.add_edge("source", ("in", v))  # no capacity: infinite
        else:
            g.add_edge("source", ("in", v), capacity=work)
            g.add_edges_from([(("out", u), ("in", v)) for u in inputs])
        if wanted:
            g.add_edge(("out", v), "sink")
    _, (_, sink_side) = nx.minimum_cut(g, "source", "sink")
    return [v for v in range(len(problem)) if ("in", v) in sink_side]


# ---- conditions that their result still shows --------------------------------------------------------------
def _recovered_conditions(graph: Graph, wanted: Iterable[Node], price: Cost) -> dict[Node, Node]:
    """condition -> the activation's result that shows it too, where that waits in memory anyway.

    relu(z) = select(z <= 0, 0, z) is positive exactly where z is, so its backward needs neither z nor a mask;
    the same holds for leaky_relu(z) = select(z > 0, z, z * slope) with a slope >= 0.
    """
    conditions = {c for c in wanted if c.op.name in ("le", "gt") and fill_value(c.inputs[1]) == 0}
    found: dict[Node, Node] = {}
    for h in graph.nodes if conditions else ():
        if h.op.name == "select" and h.inputs[0] in conditions and price(h) == 0 and _shows(h.inputs[0], h):
            found.setdefault(h.inputs[0], h)
    return found


def _shows(c: Node, h: Node) -> bool:
    """Whether `c.op(h, 0)` equals c = `c.op(z, 0)`, NaN included."""
    z, (_, a, b) = c.inputs[0], h.inputs
    if c.op.name == "le":
        return b is z and fill_value(a) == 0
    if a is not z:
        return False
    if fill_value(b) == 0:
        return True
    slope = fill_value(b.inputs[1]) if b.op.name == "mul" and b.inputs[0] is z else None
    return slope is not None and 0 <= slope < inf
