"""Which nodes become one kernel.  Graph in, groups in an order of execution out.

One sweep in topological order grows groups.  A reduction, a contraction or a pointwise value that must be in memory
(an operand, an output) *anchors* a group; a pointwise node that depends on a group's values, row by row (`align.py`),
is carried by that group and computed in it if anybody in it needs it; a pointwise node of values in memory belongs to
nobody and is computed again wherever it is needed.  Reductions join the group that carries their input, or one that
reads the same tensor for the same rows.

Legal: no path leaves a group and comes back, and every access to a group's values stays in its row.  Each group knows
the groups that it depends on, transitively (a bit set); a node may join if nothing that it reads depends on the group.
What a group's values are needed for elsewhere decides at the end what it stores (`stores.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from math import prod

from ..graph.graph import Graph, Node
from ..ops.contract import Contract
from ..ops.indexing import Gather, GatherAlong
from ..ops.leaf import Constant, Input, Item
from ..ops.movement import Broadcast, Reshape
from ..ops.random import Random
from ..ops.scan import Scan
from .align import Dims, factors, follow, gatherable
from .families import ELEMENTWISE, GATHERS, INDEX_ONLY, POINTWISE, REDUCTIONS
from .groups import Group
from .grown import ROWS, SMALL, Groups, Grown
from .nests import DEAR, NESTS
from .partition import Fusion, ordered, separate
from .stores import choose
from .summation import column_chunks, form, reduced_extents

FEW = 4
"""Chunks of rows: below that many, large column sums stay apart."""
DEPTH = 48
"""Pointwise nodes above each other before a value goes to memory."""
MANY = 64
"""How far to look for the tensors that a reduction reads."""


def form_groups(graph: Graph, fusion: bool, writes: int = 0) -> Fusion:
    result = _Sweep(graph, writes).run() if fusion else separate(graph)
    return ordered(result)


class _Sweep(Groups):
    """The state of the sweep over one graph."""

    def __init__(self, graph: Graph, writes: int):
        self.graph = graph
        self.users = graph.users()
        self.at = {n: k for k, n in enumerate(graph.nodes)}
        self.result = Fusion()
        super().__init__()
        self.carry: dict[Node, Grown] = {}
        self.dims: dict[Node, Dims] = {}
        self.direct: dict[Node, int] = {}  # the groups that a node's expression reads from, as bits
        self.price: dict[Node, int] = {}
        self.depth: dict[Node, int] = {}
        self.noisy: set[Node] = set()  # computed from random bits
        self.leaf: set[Node] = set()  # in memory without being a group's choice: inputs, constants, loops, views
        self.readers: dict[tuple, Grown] = {}
        self.chunks: dict[Node, Grown] = {}  # reduction -> the group that makes its chunks
        self.must = self._required()
        self.late = self._late(writes)
        self.loops: dict[Node, Group] = {}
        self.fixed: list[Group] = []

    # ---- what must be in memory, what comes last
    def _required(self) -> set[Node]:
        must = set(self.graph.outputs)
        for n in self.graph.nodes:
            op = n.op
            if type(op) is Contract:
                must.update(map(operand, n.inputs))
            elif type(op) is Scan or type(op) in NESTS or type(op) is Gather:
                must.update(n.inputs if type(op) is not Gather else n.inputs[:1])
            elif type(op) is Reshape and not factors(n):
                must.add(n.inputs[0])
        for n in self.graph.nodes:
            if type(n.op) is GatherAlong and not gatherable(n.inputs[0], must):
                must.add(n.inputs[0])
        return must

    def _late(self, writes: int) -> set[Node]:
        """Pointwise nodes that serve only new values of state: these are written last, so that a step that fails
        leaves state alone."""
        written = self.graph.outputs[len(self.graph.outputs) - writes :]
        late = {n for n in written if type(n.op) in POINTWISE}
        for n in reversed(self.graph.nodes):
            users = self.users[n]
            if users and late.issuperset(users) and n not in self.must and type(n.op) in POINTWISE:
                late.add(n)
        return late.union(written)

    # ---- groups
    def demand(self, node: Node) -> int:
        """A value of a group is needed outside of it: the group's bit."""
        g = self.find(self.carry[node])
        g.read = True
        g.demands[node] = None
        return 1 << g.number

    # ---- the sweep
    def run(self) -> Fusion:
        for n in self.graph.nodes:
            op = n.op
            if type(op) in (Input, Constant):
                self._in_memory(n, 0)
            elif type(op) is Item:
                self.loops[n.inputs[0]].outputs.append(n)
                self._in_memory(n, self.direct[n.inputs[0]])
            elif type(op) is Scan or type(op) in NESTS:
                self._apart(n)
            elif type(op) is Contract:
                self._contract(n)
            elif type(op) in REDUCTIONS and form(n) != "none":
                getattr(self, f"_{form(n)}")(n)
            elif type(op) is Reshape and self._view(n):
                self._in_memory(n, self.read(n.inputs[0]))
                self.result.views[n] = n.inputs[0]
            else:
                self._pointwise(n)
        return self._finish()

    def _in_memory(self, n: Node, bits: int) -> None:
        self.direct[n], self.price[n], self.depth[n] = bits, 0, 0
        self.leaf.add(n)

    def read(self, n: Node) -> int:
        """The groups that a reader of n's value depends on (the value comes from memory, or is computed again)."""
        return self.demand(n) if n in self.carry else self.direct[n]

    def _view(self, n: Node) -> bool:
        """A reshape of what is in memory anyway is free; one that merges axes must be."""
        x = n.inputs[0]
        if not factors(n) or (x in self.leaf and n in self.must):
            return True
        if x in self.leaf or x not in self.must:
            return False
        g = self.find(self.carry[x])
        return not self.aligned(g, n, follow(self.dims[x], n, 0))

    def _apart(self, n: Node) -> None:
        """A kernel, or a loop, of its own."""
        bits = 0
        for x in n.inputs:
            bits |= self.read(x)
        g = self.new("apart", {}, (), bits)
        group = Group("loop" if type(n.op) is Scan else "ordered", outputs=[n])
        if type(n.op) is Scan:
            self.loops[n] = group
        g.fixed = group
        self._in_memory(n, 1 << g.number)

    def _contract(self, n: Node) -> None:
        bits = 0
        for x in n.inputs:
            bits |= self.read(operand(x, self.must))
        self._anchor(n, self.new("contract", dict(enumerate(n.shape)), None, bits)).staged.append(n)

    def _anchor(self, n: Node, g: Grown) -> Grown:
        """n is a staged result of g."""
        self.carry[n] = g
        self.dims[n] = g.rows if g.rows is not None else tuple(range(len(n.shape)))
        self.direct[n] = 0
        self.price[n] = self.depth[n] = 0
        if n in self.must:
            g.outputs.append(n)
        return g

    # ---- reductions
    def _row(self, n: Node) -> None:
        x = n.inputs[0]
        kept = tuple(d for d in range(len(x.shape)) if d not in n.op.axes)
        g = self._host(x, kept, n.op.axes, n.shape)
        self._anchor(n, g).staged.append(n)

    def _column(self, n: Node) -> None:
        x, extents = n.inputs[0], reduced_extents(n)
        kept = tuple(d for d in range(len(x.shape)) if d not in n.op.axes)
        if prod(column_chunks(extents).shape) < FEW and x.type.size > SMALL:
            # Columns are what there is to do in parallel, so rows must not go together.
            g = self.new("rows", dict(enumerate(extents)), tuple(range(len(extents))), self.read(x))
        else:
            g = self._host(x, n.op.axes, kept, extents)
        g.sinks.append(n)
        g.read, self.chunks[n] = True, g
        done = self.new("map", dict(enumerate(n.shape)), None, 1 << g.number)
        self._anchor(n, done).finished.append(n)

    def _long(self, n: Node) -> None:
        g = self.new("apart", {}, (), self.read(n.inputs[0]))
        g.fixed, g.read, self.chunks[n] = Group("rows", n.shape, sinks=[n]), True, g
        done = self.new("rows", dict(enumerate(n.shape)), tuple(range(len(n.shape))), 1 << g.number)
        done.work = SMALL // 8
        self._anchor(n, done).staged.append(n)

    def _element(self, n: Node) -> None:
        g = self.new("map", dict(enumerate(n.shape)), None, self.read(n.inputs[0]))
        self._anchor(n, g).finished.append(n)

    def _host(self, x: Node, rows: Dims, free: Iterable[int], extents: tuple[int, ...]) -> Grown:
        """The group for a reduction of x with shared axes `rows`: the one that carries x, one with the same rows that
        reads the same tensor, or a new one."""
        g = self._carrier(x, rows, free, extents)
        leaves = [(leaf, extents) for leaf in self._leaves(x)]
        if g is None:
            bits = self.read(x)
            g = next(filter(None, (self._neighbour(key, x, bits) for key in leaves)), None)
            if g is None:
                g = self.new("rows", dict(enumerate(extents)), tuple(range(len(extents))), bits)
            else:
                self.depend(g, bits)
        g.work += x.type.size
        self.readers.update(dict.fromkeys(leaves, g))
        return g

    def _carrier(self, x: Node, rows: Dims, free: Iterable[int], extents: tuple[int, ...]) -> Grown | None:
        if x not in self.carry:
            return None
        g, dims = self.find(self.carry[x]), self.dims[x]
        ids = tuple(dims[d] for d in rows)
        if not all(i >= 0 for i in ids) or len(set(ids)) != len(ids) or g.late or not self._room(g, extents, x):
            return None
        if g.kind == "rows" and g.rows == ids and not any(dims[d] in ids for d in free):
            return g
        if g.kind == "map" and not g.finished:
            g.kind, g.rows = "rows", ids
            return g
        return None

    def _neighbour(self, key: tuple[Node, tuple[int, ...]], x: Node, bits: int) -> Grown | None:
        """A group with the same rows that reads the same tensor."""
        g = self.readers.get(key)
        g = self.find(g) if g is not None else None
        if g is None or g.kind != "rows" or tuple(g.extents[i] for i in g.rows) != key[1] or g.late:
            return None
        return g if self._room(g, key[1], x) and not self.closure(bits) & g.mask else None

    def _room(self, g: Grown, extents: tuple[int, ...], x: Node) -> bool:
        return prod(extents) >= ROWS or g.work + x.type.size <= SMALL

    def _leaves(self, x: Node) -> Iterator[Node]:
        """The tensors in memory, not much smaller than x, that x is computed from (what another group than x's carries
        is handed over by it)."""
        home = self._home(x)
        seen, stack = {x}, [x]
        while stack and len(seen) < MANY:
            n = stack.pop()
            inner = type(n.op) in POINTWISE and n not in self.leaf and (n not in self.carry or self._home(n) is home)
            stored = not inner or n in self.must or (n in self.carry and n in self._home(n).demands)
            if stored and 2 * n.type.size >= x.type.size:
                yield n
            for y in n.inputs if inner else ():
                if y not in seen:
                    seen.add(y)
                    stack.append(y)

    def _home(self, n: Node) -> Grown | None:
        """The group that carries a node."""
        g = self.carry.get(n)
        return None if g is None else self.find(g)

    # ---- pointwise nodes
    def _pointwise(self, n: Node) -> None:
        op, inputs, carry = n.op, n.inputs, self.carry
        bits, price, depth = 0, getattr(op, "cost", 1), 0
        found: dict[Grown, Dims] = {}
        blocked: list[Grown] = []
        elementwise = type(op) in ELEMENTWISE
        for i, x in enumerate(inputs):
            g = carry.get(x)
            if g is None:
                if x in self.leaf or not self._spills(x, n):
                    bits |= self.direct[x]
                    price += self.price[x]
                    continue
                self._store(x)
                g = carry[x]
            price += self.price[x]
            if g.merged is not None:
                g = self.find(g)
            dims = self.dims[x] if elementwise else follow(self.dims[x], n, i)
            if found.setdefault(g, dims) != dims or self.depth[x] >= DEPTH or (g.kind != "map" and n in self.late):
                blocked.append(g)
            elif elementwise:  # it has the axes with which its input was accepted
                if g.kind == "rows" and not self.wide(g, n):
                    blocked.append(g)
            elif not self.aligned(g, n, dims) or (i == 0 and type(op) in GATHERS and not gatherable(x, ())):
                blocked.append(g)
        self.price[n] = min(price, 1 << 16)
        if type(op) is Random or (self.noisy and not self.noisy.isdisjoint(inputs)):
            self.noisy.add(n)
        host = self.choose(n, found, blocked, bits) if found else None
        # What another group hands over starts a new chain: depth counts within a group.
        for x in inputs:
            if x in carry and carry[x] is not host and self.find(carry[x]) is not host:
                bits |= self.demand(x)
            elif self.depth[x] > depth:
                depth = self.depth[x]
        self.depth[n] = 1 + depth
        if host is not None:
            carry[n], self.dims[n], self.direct[n] = host, found[host], 0
            if bits:
                self.depend(host, bits)
            if n in self.must:
                host.outputs.append(n)
                host.late = host.late or n in self.late
            return
        self.direct[n] = bits
        if n in self.must:
            self._store(n)

    def _spills(self, x: Node, n: Node) -> bool:
        """Whether to store what n reads: computing it again would multiply work, or grow without bound."""
        if self.depth[x] >= DEPTH:
            return True
        if type(n.op) is Broadcast and n.type.size >= 4 * x.type.size and self.price[x] >= DEAR:
            return True
        return x in self.noisy and len(self.users[x]) > 1 and x.dtype.size < 4

    def _store(self, x: Node) -> None:
        """A value of memory only becomes a group of its own, next to others that read the same."""
        self.must.add(x)
        late, bits = x in self.late, self.direct[x]
        extents = dict(enumerate(x.shape))
        key: tuple = ("map", x.shape, late)
        keys = [key] if x.type.size == 1 else [(*key, leaf) for leaf in self._leaves(x) if leaf is not x]
        host, computing = None, self._computing(x)
        before = sum(g.mask for g in computing)
        for k in keys:
            g = self.readers.get(k)
            g = self.find(g) if g is not None else None
            free = g is not None and not self.closure(bits) & g.mask and not g.deps & before
            if free and g.kind == "map" and g.extents == extents:
                host = g
                break
        if host is None:
            host = self.new("map", extents, None, bits)
        else:
            self.depend(host, bits)
        for g in computing - {host}:  # these read it from now on
            host.read = True
            self.depend(g, host.mask)
        for k in keys:
            self.readers[k] = host
        host.late = host.late or late
        host.outputs.append(x)
        self.carry[x], self.dims[x], self.direct[x] = host, tuple(extents), 0
        self.price[x] = self.depth[x] = 0

    def _computing(self, x: Node) -> set[Grown]:
        """The groups that so far compute for themselves a value that is not in memory."""
        out, seen, stack = set(), {x}, [x]
        while stack:
            for u in self.users[stack.pop()]:
                if u in seen or u not in self.direct:  # the sweep has not come there
                    continue
                seen.add(u)
                if u in self.carry:
                    out.add(self.find(self.chunks.get(u) or self.carry[u]))
                elif u not in self.leaf:  # what is apart, or a view, reads memory
                    stack.append(u)
        return out

    # ---- the end
    def _finish(self) -> Fusion:
        alive = self.alive()
        memory = set(self.leaf)
        for g in sorted(alive, key=lambda g: g.deps.bit_count()):  # inputs first
            if g.fixed is None:
                g.outputs = list(dict.fromkeys(g.outputs))
                g.outputs += choose(g, self, memory)
                memory.update(g.outputs)
        self.result.memory = memory
        for g in alive:
            group = g.fixed or g.group(self.dims, self.at)
            if group is not None and (group.outputs or group.sinks):
                self.result.groups.append(group)
        return self.result


def operand(x: Node, memory: Collection[Node] = ()) -> Node:
    """What a contraction's operand reads: movement that only changes the index is not worth a copy, unless it is
    in memory anyway."""
    while x not in memory and (type(x.op) in INDEX_ONLY or (type(x.op) is Reshape and factors(x))):
        x = x.inputs[0]
    return x
