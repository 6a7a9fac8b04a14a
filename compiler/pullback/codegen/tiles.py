"""Tiles that the emitter knows by name.  A tile's body is its meaning: what has no rule here runs as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kernel.kernel import Stmt, Tile

if TYPE_CHECKING:
    from .emit import Emitter


def tile(em: Emitter, s: Tile) -> None:
    """Emit a tile."""
    if s.name == "fold":
        em.body(_fold(em, s))
    else:
        em.body(s.body)


def _fold(em: Emitter, s: Tile) -> tuple[Stmt, ...]:
    return s.body
