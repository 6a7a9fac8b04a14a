"""What the backward part saves and what it computes again: graph IR in, graph IR out.

Forward values that gradient nodes read must wait in memory until then, unless they are cheap to compute again
from others that wait anyway.  For every forward value v, saving costs `price(v)` (bytes written and read) and
computing it again costs `work(v)` and needs its inputs; the cheapest choice for all is a minimum cut:

    source --work(v)--> in(v) --price(v)--> out(v) --inf--> sink   if a gradient node reads v
                        in(v) <--inf-- out(u)                      for the inputs u of v

On the sink's side, `out(v)` means that v is wanted in the backward part and `in(v)` that it is computed again.
The copies carry a fresh tag, so that cse keeps them apart, and count as gradient nodes.  The network falls
apart at values that cannot be computed again (contractions), so each layer is a small problem of its own,
and equal layers are solved once.

What fusion keeps in registers has no price: a reader counts only where an opaque op (a contraction, a sort)
lies between the value and it; with no such op between them both can be in one kernel.  Gradient nodes that
could be computed early but are read late (1 - tanh(z)^2) count among the values to choose from, at no work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isinf

import networkx as nx

from ..graph.graph import Graph, Node, make, rewrite, same_or_replaced
from ..graph.types import TensorType
from ..ops.leaf import Item, Leaf
from ..ops.movement import Movement
from ..ops.op import Pointwise, Reduction
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
    work = work or default_work
    depth = _depths(graph)
    forward = _early(graph, depth)
    readers = [
        (n, x)
        for n in graph.nodes
        if n.loc.gradient and n not in forward and not isinstance(n.op, Leaf)
        for x in n.inputs
        if x in forward and depth[n] > depth[x] and isinstance(x.type, TensorType) and not isinstance(x.op, Leaf)
    ]
    if not readers:
        return graph
    price = price or default_price(graph)
    wanted = dict.fromkeys([x for _, x in readers])
    tag = 1 + max([n.tag for n in graph.nodes])
    copies = _recovered_conditions(graph, wanted, price, tag)
    again = _computed_again(graph, [x for x in wanted if x not in copies], price, work)
    for v in graph.nodes:  # inputs come first
        if v in again and v not in copies:
            copies[v] = Node(v.op, tuple([copies.get(u, u) for u in v.inputs]), v.type, v.loc.as_gradient(), tag)
    if not copies:
        return graph
    changed = {n for n, _ in readers}
    deep = {(n, x) for n, x in readers}

    def rule(node: Node, inputs: tuple[Node, ...]) -> Node:
        if node in changed:
            inputs = tuple([copies.get(x, x) if (node, x) in deep else x for x in inputs])
        return same_or_replaced(node, inputs)

    return rewrite(graph, rule)


# ---- costs -----------------------------------------------------------------------------------------------
def default_work(v: Node) -> float:
    """Pointwise arithmetic, by its number of operations; inf for all else."""
    if not isinstance(v.op, Pointwise) or v.op.name in KEPT:
        return float("inf")
    return v.type.size * max(v.op.cost, 0.05) * BYTES_PER_OPERATION


def default_price(graph: Graph) -> Cost:
    """One write and one read, but nothing for inputs, outputs and what opaque ops need in memory anyway."""
    stored: set[Node] = set(graph.outputs)
    for n in reversed(graph.nodes):
        if _opaque(n) or (n in stored and isinstance(n.op, Movement)):
            stored.update(n.inputs)

    def price(v: Node) -> float:
        return 0.0 if v in stored or isinstance(v.op, Leaf | Item) else 2.0 * v.type.nbytes

    return price


def _opaque(n: Node) -> bool:
    """Whether an op reads its operands from memory and starts a kernel of its own."""
    return not isinstance(n.op, Pointwise | Reduction | Leaf | Item)


def _depths(graph: Graph) -> dict[Node, int]:
    """For each node the greatest number of opaque ops on a path to it, itself included."""
    depth: dict[Node, int] = {}
    for n in graph.nodes:
        depth[n] = max([depth[x] for x in n.inputs], default=0) + _opaque(n)
    return depth


def _early(graph: Graph, depth: dict[Node, int]) -> set[Node]:
    """Forward nodes, and gradient nodes that need only such and are read later than they could be computed."""
    latest: dict[Node, int] = {n: depth[n] for n in graph.outputs}
    for n in reversed(graph.nodes):
        before = depth[n] - 1 if _opaque(n) else latest.get(n, depth[n])
        for x in n.inputs:
            latest[x] = min(latest.get(x, before), before)
    early: set[Node] = set()
    for n in graph.nodes:
        slack = not n.tag and latest.get(n, 0) > depth[n] and not all([isinstance(x.op, Leaf) for x in n.inputs])
        if isinstance(n.op, Leaf) or ((slack or not n.loc.gradient) and all([x in early for x in n.inputs])):
            early.add(n)
    return early


# ---- the cut ---------------------------------------------------------------------------------------------
Problem = tuple[tuple[int, int | float, bool, tuple[int, ...]], ...]
"""For each value, inputs first: price, work, whether it is wanted, the numbers of its inputs."""


def _computed_again(graph: Graph, wanted: Iterable[Node], price: Cost, work: Cost) -> set[Node]:
    """The forward values to compute again."""
    prices: dict[Node, float] = {}
    works: dict[Node, float] = {}
    stack = list(wanted)
    while stack:  # from what is wanted back to what waits in memory anyway, or cannot be computed again
        v = stack.pop()
        if v not in prices:
            prices[v], works[v] = (0.0, 0.0) if isinstance(v.op, Leaf) else (price(v), work(v))
            if v.loc.gradient and not isinf(works[v]):  # computed late instead of early, not twice
                prices[v], works[v] = prices[v] * LATE, 0.0
            if prices[v] > 0 and not isinf(works[v]):
                stack += v.inputs
    nodes = [v for v in graph.nodes if prices.get(v, 0.0) > 0]
    number = {v: i for i, v in enumerate(nodes)}
    wanted = set(wanted)
    problem = tuple(
        (_units(prices[v]), _units(works[v]), v in wanted, tuple([number[u] for u in v.inputs if u in number]))
        for v in nodes
    )
    return {nodes[i] for i in _solve(problem)}


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
def _recovered_conditions(graph: Graph, wanted: Iterable[Node], price: Cost, tag: int) -> dict[Node, Node]:
    """condition -> the same condition on the activation's result, where that waits in memory anyway.

    relu(z) = select(z <= 0, 0, z) is positive exactly where z is, so its backward needs neither z nor a mask;
    the same holds for leaky_relu(z) = select(z > 0, z, z * slope) with a slope >= 0.
    """
    found: dict[Node, Node] = {}
    conditions = {c for c in wanted if c.op.name in ("le", "gt") and fill_value(c.inputs[1]) == 0}
    for h in graph.nodes if conditions else ():
        c = h.inputs[0] if h.op.name == "select" else None
        if c in conditions and c not in found and price(h) == 0 and _shows(c, h):
            found[c] = make(c.op, h, c.inputs[1], loc=c.loc.as_gradient(), tag=tag)
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
    return slope is not None and 0 <= slope < float("inf")
