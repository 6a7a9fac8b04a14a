"""What differential tests have covered: op x dtype x role in its kernel x branches of the kernel's schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from pullback.graph.graph import Node
from pullback.kernel.kernel import Affine, Kernel, Load, Loop, Store, Tile, exprs, loads, stores, walk
from pullback.lower.groups import LoopPiece, Piece, Region
from pullback.schedule import family

Entry = tuple[str, str, str, str]
"""op, dtype, role, branch"""

ROLES = ("alone", "map", "prologue", "core", "epilogue", "loop")
HEAVY = ("sum", "prod", "max", "min", "argmax", "argmin", "contract", "cumsum", "sort", "argsort", "scatter_add")


def coverage(regions: Mapping[int, Region], schedule: Callable[[Kernel], Kernel], seen: Counter) -> None:
    """Count every node of the regions with its role and the branches that its kernel's schedule took."""
    for region in regions.values():
        for piece in _pieces(region):
            if isinstance(piece, LoopPiece):
                seen["scan", "", "loop", "reverse" if piece.reverse else "forward"] += 1
                continue
            taken = set(branches(piece.kernel, schedule(piece.kernel)))
            for node, role in roles(piece.nodes):
                for branch in taken:
                    seen[node.op.name, node.dtype.name, role, branch] += 1


def _pieces(region: Region) -> Iterator[Piece | LoopPiece]:
    for piece in region.pieces:
        yield piece
        if isinstance(piece, LoopPiece):
            yield from _pieces(piece.body)


def roles(nodes: tuple[Node, ...]) -> Iterator[tuple[Node, str]]:
    """alone; or in a map; or before, at or behind the reductions and contractions of the kernel."""
    core = {n for n in nodes if n.op.name in HEAVY}
    behind: set[Node] = set()
    for n in nodes:  # inputs first
        if any(x in core or x in behind for x in n.inputs):
            behind.add(n)
    for n in nodes:
        if len(nodes) == 1:
            yield n, "alone"
        elif n in core:
            yield n, "core"
        else:
            yield n, "epilogue" if n in behind else "prologue" if core else "map"


def branches(kernel: Kernel, scheduled: Kernel) -> Iterator[str]:
    """What the schedule has done, as the scheduled kernel shows it."""
    yield family(kernel)
    statements = list(walk(scheduled.body))
    loops = [s for s in statements if isinstance(s, Loop)]
    axes = Counter(s.axis for s in loops)
    before = {s.axis for s in walk(kernel.body) if isinstance(s, Loop)}
    for s in loops:
        if s.binding != "serial":
            yield s.binding
    if scheduled.blocks > 1:
        yield "blocks"
    if len(scheduled.ranges) > 1:
        yield "block ranges"
    if any(n > 1 for n in axes.values()):
        yield "peel"
    if any(a not in before for a in axes):
        yield "split"
    if any(isinstance(s, Store) and s.masks for s in statements):
        yield "masked store"
    accesses = [x for s in stores(scheduled.body) for e in exprs(s) for x in loads(e)]
    if any(x.masks for x in accesses):
        yield "masked load"
    if any(not isinstance(i, Affine) for s in stores(scheduled.body) for x in (s, *_loads(s)) for i in x.index):
        yield "checked index"
    for s in statements:
        if isinstance(s, Tile):
            yield f"tile {s.name}"
    old = {b.name for b in kernel.locals}
    for b in scheduled.locals:
        if b.name not in old:
            yield f"packed {b.space}"
        elif b.shape:
            yield "row in registers" if b.space == "register" else "row in memory"
    if scheduled == kernel:
        yield "as it stands"


def _loads(s: Store) -> list[Load]:
    return [x for e in exprs(s) for x in loads(e)]


def report(seen: Counter) -> str:
    """Tables of what was covered, as text."""
    entries = list(seen)
    lines = [f"{len(entries)} combinations of op, dtype, role and branch, {sum(seen.values())} times"]
    for column, name in ((2, "roles"), (3, "branches")):
        total: Counter = Counter()
        for e in entries:
            total[e[column]] += seen[e]
        lines.append(f"{name}: " + ", ".join(f"{k} {n}" for k, n in total.most_common()))
    columns = sorted({e[2] for e in entries})
    every = sorted({e[3] for e in entries})
    lines.append(f"{'op':<14}{'dtypes':<48}{'roles':<40}branches (of {len(every)})")
    for op in sorted({e[0] for e in entries}):
        own = [e for e in entries if e[0] == op]
        dtypes = " ".join(sorted({e[1] for e in own}))
        where = " ".join(c for c in columns if any(e[2] == c for e in own))
        lines.append(f"{op:<14}{dtypes:<48}{where:<40}{len({e[3] for e in own})}")
    return "\n".join(lines)
