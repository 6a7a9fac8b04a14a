"""Lines of the model script in PTX: `.loc` at the start of each kernel, for profilers, debuggers and disassemblers.

PTX goes in and comes out.  It is done to the text, so that PTX in the cache does not depend on where its script's lines
are.  A kernel that serves several lines has the first one's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..graph.graph import Loc
from ..kernel.plan import Launch, Plan, Step
from .cpu import symbol
from .target import Target

_ENTRY = re.compile(r"^\.visible \.entry ([\w$.]+?)(_loop)?\((?:.*\n)*?\{\n", re.M)
_HEAD = ".address_size 64\n"


def with_lines(ptx: str, plan: Plan, target: Target) -> str:
    """The PTX of a plan's kernels, each with the script's line of its first call."""
    places: dict[str, Loc] = {}
    for f in plan.functions:
        for key, loc in _calls(f.steps):
            places.setdefault(symbol(key, target), loc)
    files: dict[str, int] = {}

    def mark(m: re.Match) -> str:
        loc = places.get(m[1])
        if loc is None or not loc.file:
            return m[0]
        file = files.setdefault(loc.file, len(files) + 1)
        return f"{m[0]}\t.loc\t{file} {loc.line} 0\n"

    marked = _ENTRY.sub(mark, ptx)
    names = "".join(f'.file\t{n} "{_quoted(name)}"\n' for name, n in files.items())
    return marked.replace(_HEAD, f"{_HEAD}{names}", 1)


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _calls(steps: tuple[Step, ...]) -> Iterator[tuple[str, Loc]]:
    for s in steps:
        if isinstance(s, Launch):
            yield from ((c.kernel, c.loc) for c in s.calls)
        else:
            yield from _calls(s.body)
