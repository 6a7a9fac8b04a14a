"""How a scan differentiates: another scan, over values that the first one saves.

The body's derivative is made by the walks of `autodiff`.  What it needs of the body's own values is *saved*:
the forward scan is built again with those values as further stacked results (`passes/settle.py` makes one
loop of the two), and the derivative's scan reads them slice by slice, forwards (jvp) or reversed (vjp).
What is cheap to get from saved values, is made again in the derivative's body instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..graph.graph import Graph, Node, make, topological
from . import rules as F
from .leaf import Input, Item
from .movement import Movement
from .scan import Scan, substitute


@dataclass(frozen=True)
class _Loop:
    """A scan node with its inputs and its body's, by role."""

    node: Node

    @property
    def op(self) -> Scan:
        return self.node.op

    def roles(self, values: tuple) -> tuple[tuple, tuple, tuple]:
        """Constants, carries, xs among the scan's (or its body's) inputs, or what stands for each of them."""
        c, s = self.op.constants, self.op.constants + self.op.carries
        return values[:c], values[c:s], values[s:]

    @property
    def ys(self) -> tuple[Node, ...]:
        return self.op.body.outputs[self.op.carries :]

    def saving(self, values: list[Node]) -> list[Node]:
        """The stacked values of body nodes: results of this scan, or of one like it with further results."""
        outputs = list(self.op.body.outputs)
        known = {y: i for i, y in enumerate(outputs) if i >= self.op.carries}
        for v in values:
            if v not in known:
                known[v] = len(outputs)
                outputs.append(v)
        node = self.node
        if len(outputs) > len(self.op.body.outputs):
            body = replace(self.op.body, outputs=tuple(outputs), _order=[])
            node = make(replace(self.op, body=body), *node.inputs, tag=node.tag)
        return [make(Item(known[v]), node) for v in values]


def _float(x: Node) -> bool:
    return x.dtype.is_float


class _Inputs:
    """New inputs of a derivative's body, of names that the loop's own inputs lack."""

    def __init__(self, body: Graph):
        self.taken = {x.op.label for x in body.inputs}

    def __call__(self, label: str, like: Node) -> Node:
        name, k = label, 1
        while name in self.taken:
            name, k = f"{label}_{k}", k + 1
        self.taken.add(name)
        return make(Input(name, like.dtype, like.shape))


def _zeros(x: Node) -> Node:
    return F.zeros_like(F.Tensor(x)).node


def scan_jvp(op: Scan, out, inputs, tangents):
    """Tangents of the results (a dict): a scan in the same direction whose carries are the carries' tangents."""
    loop, new_input = _Loop(out.node), _Inputs(op.body)
    given: dict[Node, Node] = {}  # body input -> the body input for its tangent
    outer: dict[Node, Node] = {}  # tangent input of the body -> its value outside: constant, initial, or stacked
    constants, carries, xs = loop.roles(op.body.inputs)
    for x, value, t in zip(op.body.inputs, inputs, tangents, strict=True):
        if x in carries and _float(x) and t is None:
            t = F.zeros_like(value)
        if t is not None:
            given[x] = new_input(f"tangent_{x.op.label}", x)
            outer[given[x]] = t.node
    from ..autodiff import push

    pushed = push(op.body.outputs, {x: F.Tensor(t) for x, t in given.items()})
    moving = [i for i, c in enumerate(carries) if c in given]
    next_tangents = [pushed[i].node if pushed[i] is not None else _zeros(carries[i]) for i in moving]
    changing = [i for i in range(op.carries, len(pushed)) if pushed[i] is not None]
    results = _derivative(
        loop,
        [(given[carries[i]], outer[given[carries[i]]], n) for i, n in zip(moving, next_tangents, strict=True)],
        [pushed[i].node for i in changing],
        {given[c]: outer[given[c]] for c in constants if c in given},
        {given[x]: outer[given[x]] for x in xs if x in given},
        op.reverse,
        new_input,
    )
    return dict(zip([*moving, *changing], results, strict=True))


def scan_vjp(op: Scan, out, inputs, ct):
    """Cotangents of the inputs: a scan in the other direction whose carries are the cotangents of the carries and
    the sums, over all iterations, of those of the constants."""
    loop, new_input = _Loop(out.node), _Inputs(op.body)
    constants, carries, xs = loop.roles(op.body.inputs)
    through = [i for i, c in enumerate(carries) if _float(c)]
    carry_cts = {i: new_input(f"cotangent_{carries[i].op.label}", carries[i]) for i in through}
    y_cts = {i: new_input(f"cotangent_y{i - op.carries}", op.body.outputs[i]) for i in ct if i >= op.carries}
    from ..autodiff import pull

    wanted = [x for x in op.body.inputs if _float(x)]
    pairs = [(op.body.outputs[i], F.Tensor(t)) for i, t in (carry_cts | y_cts).items()]
    found = pull(pairs, wanted)
    sums = {c: new_input(f"sum_{c.op.label}", c) for c in constants if c in found}

    loop_carries = []
    for i in through:
        initial = ct[i].node if i in ct else _zeros(carries[i])
        loop_carries.append(
            (carry_cts[i], initial, found[carries[i]].node if carries[i] in found else _zeros(carries[i]))
        )
    for c, total in sums.items():
        loop_carries.append((total, _zeros(c), (F.Tensor(total) + found[c]).node))
    sliced = [x for x in xs if x in found]
    results = _derivative(
        loop,
        loop_carries,
        [found[x].node for x in sliced],
        {},
        {y_cts[i]: ct[i].node for i in y_cts},
        not op.reverse,
        new_input,
    )
    order = [*(carries[i] for i in through), *sums, *sliced]
    by_input = dict(zip(order, results, strict=True))
    return tuple(by_input.get(x) for x in op.body.inputs)


def _derivative(
    loop: _Loop,
    carries: list[tuple[Node, Node, Node]],
    ys: list[Node],
    constants: dict[Node, Node],
    xs: dict[Node, Node],
    reverse: bool,
    new_input: _Inputs,
) -> list:
    """The scan of a derivative: last carries, then stacked ys, as tensors.

    carries: (body input, initial value, next value); constants and xs: body input -> value outside.  The nodes
    inside may use any nodes of the loop's body: this finds what of it must be saved.
    """
    inputs = [c for c, _, _ in carries]
    outputs = [*(n for _, _, n in carries), *ys]
    saved = _to_save(loop, {*inputs, *constants, *xs}, outputs)
    own_constants, _, own_xs = loop.roles(loop.op.body.inputs)
    outer_constants, _, outer_xs = loop.roles(loop.node.inputs)
    constants = dict(zip(own_constants, outer_constants, strict=True)) | constants
    xs = dict(zip(own_xs, outer_xs, strict=True)) | xs
    slots = {v: new_input(f"saved{i}", v) for i, v in enumerate(saved)}
    xs |= dict(zip(slots.values(), loop.saving(saved), strict=True))
    outputs = substitute(outputs, dict(slots))

    reached = set(topological((), tuple(outputs)))
    constants = {k: v for k, v in constants.items() if k in reached}
    xs = {k: v for k, v in xs.items() if k in reached}
    body = Graph(f"{loop.op.body.name}_derivative", (*constants, *inputs, *xs), tuple(outputs))
    op = Scan(body, loop.op.length, len(constants), len(carries), reverse)
    node = make(op, *constants.values(), *(i for _, i, _ in carries), *xs.values())
    return [F.Tensor(make(Item(i), node)) for i in range(len(outputs))]


def _to_save(loop: _Loop, derivative_inputs: set[Node], outputs: list[Node]) -> list[Node]:
    """The values of the body that its derivative reads.

    Constants and xs are at hand; what was made for the derivative only (1 - tanh^2), what moves elements and
    what does not vary from one iteration to the next is made again, from saved values.
    """
    body = set(loop.op.body.nodes)
    constants, carries, xs = loop.roles(loop.op.body.inputs)
    available = {*constants, *xs, *derivative_inputs}
    derivative, varying = set(derivative_inputs), {*carries, *xs}
    for n in topological((), tuple(outputs)):
        if not derivative.isdisjoint(n.inputs):
            derivative.add(n)
        if not varying.isdisjoint(n.inputs):
            varying.add(n)
    saved: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(outputs)
    for n in stack:  # grows while it is walked
        if n in seen or n in available:
            continue
        seen.add(n)
        again = n in derivative or n not in varying or isinstance(n.op, Movement)
        # A loop inside is never run again: its results are saved.
        if again or (n not in body and not isinstance(n.op, Item)):
            stack += n.inputs
        else:
            saved[n] = None
    return list(saved)
