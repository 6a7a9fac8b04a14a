"""Differentiation of the graph IR: graphs in, graphs out; knows no op by name.

The reverse walk (vjp) goes from outputs to inputs, the forward walk (jvp) the other way; both ask each op for
its rule, which is written in the DSL, so derivatives are ordinary nodes and differentiate again.  Nodes made
by a walk carry the place of the node they differentiate, marked as its gradient.  A missing (co)tangent is
`None`, zero; that of a node with several results is a dict, item number -> tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .dsl.array import zeros_like
from .dsl.creation import asarray, ones_like
from .dsl.pytree import Tree, flatten, flatten_like, tree_map, unflatten
from .dsl.tensor import Tensor
from .dsl.transforms import custom_vjp, stop_gradient
from .errors import DTypeError, ShapeError, TraceError
from .graph.graph import Node, loc_scope, topological
from .graph.types import TupleType

__all__ = ["custom_vjp", "grad", "jvp", "pull", "push", "stop_gradient", "vjp"]

Cotangent = Tensor | dict[int, Tensor]


def differentiable(node: Node) -> bool:
    """Floats have derivatives; a tuple may hold some."""
    return isinstance(node.type, TupleType) or node.type.dtype.is_float


def _plus(a: Cotangent | None, b: Cotangent) -> Cotangent:
    """The sum of two cotangents of one node."""
    if a is None:
        return b
    if isinstance(a, dict):
        result = dict(a)
        for i, t in b.items():
            result[i] = result[i] + t if i in result else t
        return result
    return a + b


def pull(outputs: Sequence[tuple[Node, Cotangent | None]], wrt: Iterable[Node]) -> dict[Node, Cotangent]:
    """The reverse walk: cotangents of `outputs` -> cotangents of `wrt` (missing: zero), in one pass over the graph."""
    targets = set(wrt)
    order = topological((), tuple(n for n, ct in outputs if ct is not None))
    active: set[Node] = set()  # depends on a target in a way that has a derivative
    for n in order:
        if (n in targets or not active.isdisjoint(n.inputs)) and differentiable(n):
            active.add(n)
    cts: dict[Node, Cotangent] = {}
    for n, ct in outputs:
        if ct is not None and n in active:
            cts[n] = _plus(cts.get(n), ct)
    found: dict[Node, Cotangent] = {}
    for n in reversed(order):
        ct = cts.pop(n, None)
        if ct is None:
            continue
        if n in targets:
            found[n] = ct
        if active.isdisjoint(n.inputs):
            continue
        with loc_scope(n.loc.as_gradient()):
            given = n.op.vjp(Tensor(n), tuple(map(Tensor, n.inputs)), ct)
            for x, t in zip(n.inputs, given, strict=True):
                if t is not None and x in active:
                    cts[x] = _plus(cts.get(x), t)
    return found


def push(outputs: Sequence[Node], tangents: dict[Node, Cotangent]) -> list[Cotangent | None]:
    """The forward walk: tangents of some nodes -> tangents of `outputs` (None: zero), in one pass over the graph."""
    known: dict[Node, Cotangent] = dict(tangents)
    for n in topological((), tuple(outputs)):
        if n in known or not differentiable(n):
            continue
        given = tuple(known.get(x) for x in n.inputs)
        if all(t is None for t in given):
            continue
        with loc_scope(n.loc.as_gradient()):
            t = n.op.jvp(Tensor(n), tuple(map(Tensor, n.inputs)), given)
        if t is not None:
            known[n] = t
    return [known.get(n) for n in outputs]


def _differentiable_leaves(what: str, leaves: list) -> list[Tensor]:
    for x in leaves:
        if not isinstance(x, Tensor):
            of = ": take dict(module.named_parameters())" if hasattr(x, "named_parameters") else ""
            raise DTypeError(f"{what}: expected tensors, got {type(x).__name__}{of}")
        if not x.dtype.is_float:
            raise DTypeError(
                f"{what}: expected float tensors, got {x.dtype}{list(x.shape)}: only floats have derivatives"
            )
    return leaves


def grad(loss: Tensor, wrt: Tree = None) -> Tree:
    """The derivatives of a scalar `loss` by every tensor of the tree `wrt`, in a tree of the same structure.

    An ordinary expression: may be used in the function and differentiated again.  A tensor that the loss does
    not depend on gets zeros.  Errors: `ShapeError` unless loss is one float, `DTypeError` for integers in wrt.
    """
    if not isinstance(loss, Tensor):
        how = ": grad takes the value, not the function: pb.grad(f(x), x)" if callable(loss) else ""
        raise ShapeError(f"grad: expected a tensor as loss, got {type(loss).__name__}{how}")
    if wrt is None:
        raise TraceError("grad: expected what to differentiate by, as in pb.grad(loss, x)")
    if loss.shape != ():
        raise ShapeError(
            f"grad: expected a scalar loss, got {loss.dtype}{list(loss.shape)}: take its sum or mean first"
        )
    if not loss.dtype.is_float:
        raise DTypeError(f"grad: expected a float loss, got {loss.dtype}")
    leaves, structure = flatten(wrt)
    nodes = [x.node for x in _differentiable_leaves("grad", leaves)]
    with loc_scope(loss.node.loc.as_gradient()):
        seed = ones_like(loss)
    found = pull([(loss.node, seed)], nodes)
    return unflatten(structure, [found[n] if n in found else _zeros(n) for n in nodes])


def _zeros(n: Node) -> Tensor:
    with loc_scope(n.loc.as_gradient()):
        return zeros_like(Tensor(n))


def vjp(fn: Callable, *primals) -> tuple[object, Callable]:
    """`fn(*primals)` and the function that maps its cotangent (same structure) to a tuple of the primals' ones.

    Primals are trees of float tensors.
    """
    _function("vjp", fn, "pb.vjp(f, x)")
    leaves, _ = flatten(primals)
    _differentiable_leaves("vjp", leaves)
    primals = tree_map(_fresh, primals)
    leaves, structure = flatten(primals)
    out = fn(*primals)
    results, out_structure = flatten(tree_map(asarray, out))

    def pullback(cotangent) -> tuple:
        cts = flatten_like(cotangent, out_structure)
        if cts is None:
            raise ShapeError("vjp: the cotangent has another structure than the function's result")
        pairs = []
        for r, ct in zip(results, cts, strict=True):
            if not r.dtype.is_float:
                continue
            ct = asarray(ct, dtype=r.dtype)
            if ct.shape != r.shape:
                raise ShapeError(f"vjp: expected a cotangent of shape {list(r.shape)}, got {list(ct.shape)}")
            pairs.append((r.node, ct))
        nodes = [x.node for x in leaves]
        found = pull(pairs, nodes)
        return unflatten(structure, [found[n] if n in found else _zeros(n) for n in nodes])

    return out, pullback


def _function(what: str, fn, usage: str) -> None:
    if not callable(fn):
        raise TraceError(f"{what}: expected a function, as in {usage}, got {type(fn).__name__}")


def _fresh(x) -> Tensor:
    """A tensor of its own node, so that two equal primals are told apart."""
    from .dsl.tensor import emit
    from .ops.movement import Reshape

    t = asarray(x)
    return emit(Reshape(t.shape), t.node)


def jvp(fn: Callable, primals: Sequence, tangents: Sequence) -> tuple[object, object]:
    """`fn(*primals)` and its derivative in the direction `tangents` (trees of the structure of the primals)."""
    _function("jvp", fn, "pb.jvp(f, (x,), (t,))")
    for given in (primals, tangents):
        if isinstance(given, Tensor):
            raise ShapeError(
                f"jvp: expected tuples of primals and of tangents, as in pb.jvp(f, (x,), (t,)), got {given}"
            )
    primals = tree_map(_fresh, tuple(primals))
    leaves, structure = flatten(primals)
    directions = flatten_like(tuple(tangents), structure)
    if directions is None:
        raise ShapeError("jvp: the tangents have another structure than the primals")
    known: dict[Node, Cotangent] = {}
    for x, t in zip(_differentiable_leaves("jvp", leaves), directions, strict=True):
        t = asarray(t, dtype=x.dtype)
        if t.shape != x.shape:
            raise ShapeError(f"jvp: expected a tangent of shape {list(x.shape)}, got {list(t.shape)}")
        known[x.node] = t
    out = tree_map(asarray, fn(*primals))
    results, out_structure = flatten(out)
    pushed = push([r.node for r in results], known)
    return out, unflatten(
        out_structure, [zeros_like(r) if t is None else t for r, t in zip(results, pushed, strict=True)]
    )
