"""What roles and tokens mean to the evaluator: roles are coroutines, copies land as late as the tokens allow.

`interpret.py` translates a kernel to Python; a role becomes a generator that yields where it must wait.  One role runs
until it waits, then the next; when all wait, the oldest copy lands; when there is none, the roles have locked each
other up.  Part of `interpret.py`: statements of `concurrent.py` in, text out; and `Crew`, which runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING

from ..errors import PullbackError
from .concurrent import Arrive, Await, Copy, Roles, arriving, box
from .kernel import Affine, Const, Loop, Stmt, map_stmts, walk

if TYPE_CHECKING:
    from .interpret import Evaluator

Place = tuple[str, tuple[int, ...]]
"""One token: its array and its index."""


class RolesFailed(PullbackError):
    """Roles that wait for each other for ever, or that lose count of a token's phases."""


class Crew:
    """The roles of one block and their tokens."""

    def __init__(self, kernel: str, arriving: Mapping[str, Sequence[str]]):
        self.kernel, self.arriving = kernel, arriving
        self.over: dict[Place, int] = {}  # phases that are over
        self.arrived: dict[Place, set[str]] = {}
        self.flying: dict[Place, int] = {}
        self.copies: list[tuple[Place, Callable[[], None]]] = []
        self.waiting: dict[str, tuple[Place, int]] = {}
        self.progress = False

    def run(self, roles: Mapping[str, Iterator[None]]) -> None:
        left = dict(roles)
        while left:
            self.progress = False
            for name, role in list(left.items()):
                try:
                    next(role)
                except StopIteration:
                    del left[name]
                    self.progress = True
            if not self.progress and not self.land():
                raise self.failed(f"all roles wait: {'; '.join(map(self._waits, left))}")
        if self.copies:
            raise self.failed(f"the block ends while a copy on {_show(self.copies[0][0])} is on its way")

    def copy(self, token: str, index: tuple[int, ...], land: Callable[[], None]) -> None:
        place = (token, index)
        self.flying[place] = self.flying.get(place, 0) + 1
        self.copies.append((place, land))

    def land(self) -> bool:
        """The oldest copy lands."""
        if not self.copies:
            return False
        place, land = self.copies.pop(0)
        land()
        self.flying[place] -= 1
        self._end(place)
        return True

    def arrive(self, role: str, token: str, index: tuple[int, ...]) -> None:
        place = (token, index)
        here = self.arrived.setdefault(place, set())
        if role in here:
            phase = self.over.get(place, 0)
            raise self.failed(f"role {role} arrives twice in phase {phase} of {_show(place)}")
        here.add(role)
        self._end(place)

    def _end(self, place: Place) -> None:
        """End the phase at hand if nothing is missing."""
        if len(self.arrived.get(place, ())) == len(self.arriving[place[0]]) and not self.flying.get(place):
            self.over[place] = self.over.get(place, 0) + 1
            self.arrived[place] = set()

    def wait(self, role: str, token: str, index: tuple[int, ...], phase: int) -> Iterator[None]:
        """Yields until the phase is over."""
        place = (token, index)
        while (over := self.over.get(place, 0)) == phase:
            self.waiting[role] = (place, phase)
            yield
        if over != phase + 1:
            raise self.failed(f"role {role} waits for phase {phase} of {_show(place)}, where phase {over} is at hand")
        self.progress = True

    def _waits(self, role: str) -> str:
        place, phase = self.waiting[role]
        missing = [r for r in self.arriving[place[0]] if r not in self.arrived.get(place, ())]
        return f"{role} for phase {phase} of {_show(place)}, at which {', '.join(missing) or 'nobody'} has not arrived"

    def failed(self, reason: str) -> RolesFailed:
        return RolesFailed(f"kernel {self.kernel}: {reason}")


def _show(place: Place) -> str:
    token, index = place
    return f"{token}{list(index)}" if index else token


# ---- translation ----------------------------------------------------------------------------------------
def translate(e: Evaluator, s: Roles | Copy | Arrive | Await, depth: int) -> None:
    """The text of one statement of `concurrent.py`."""
    if isinstance(s, Roles):
        return _roles(e, s, depth)
    index = "".join(f"{e._affine(i)}, " for i in s.index)
    if isinstance(s, Copy):
        return _copy(e, s, index, depth)
    if isinstance(s, Arrive):
        return e._line(depth, f"_crew.arrive(_role, {s.token!r}, ({index}))")
    return e._line(depth, f"yield from _crew.wait(_role, {s.token!r}, ({index}), {e._affine(s.phase)})")


def _roles(e: Evaluator, s: Roles, depth: int) -> None:
    e._line(depth, f"_crew = {e._object(Crew)}({e.kernel.name!r}, {e._object(arriving(s))})")
    for n, role in enumerate(s.body):
        e._line(depth, f"def _role{n}(_role={role.name!r}):")
        for c in role.body:
            e._stmt(c, depth + 1)
        e._line(depth + 1, "return")
        e._line(depth + 1, "yield")
    roles = ", ".join(f"{role.name!r}: _role{n}()" for n, role in enumerate(s.body))
    e._line(depth, f"_crew.run({{{roles}}})")


def _copy(e: Evaluator, s: Copy, index: str, depth: int) -> None:
    """The target is unknown from now on; a function that knows the axes of now writes it later."""
    _, store, x = box(s)
    unknown = Const(nan if x.dtype.is_float else 0, x.dtype.compute)
    for c in map_stmts(s.body, lambda t: (replace(t, value=unknown),) if t == store else (t,)):
        e._stmt(c, depth)
    inside = {c.axis for c in walk(s.body) if isinstance(c, Loop)}
    forms = [i for i in (*store.index, *x.index, *(m for m, _ in x.masks)) if isinstance(i, Affine)]
    outer = sorted({n for i in forms for n in i.axes} - inside)
    e._line(depth, f"def _land({', '.join(f'{e.axes[n]}={e.axes[n]}' for n in outer)}):")
    for c in s.body:
        e._stmt(c, depth + 1)
    e._line(depth, f"_crew.copy({s.token!r}, ({index}), _land)")


def in_order(stmts: Sequence[Stmt]) -> bool:
    """Must iterations of a loop around these statements run one after the other?"""
    return any(isinstance(c, Roles | Copy | Arrive | Await) for c in walk(stmts))
