"""Program -> text inside an artifact, and back, so that an artifact shows every stage that a script does.

What is kept is the traced program once `settle` has been over it: derivatives that the script states itself
(`custom_vjp`) are Python functions, and loops that save values are known by the identity of their nodes, which
text does not have.  All later stages are derived from the same graphs as they were when it was built.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import fields, replace

from pullback_runtime.format import PROGRAM_SECTION, Manifest, read_manifest
from pullback_runtime.sections import read_section

from ..config import Options
from ..errors import BuildError, PullbackError
from ..graph.program import Program
from ..graph.text import parse_program, to_text
from ..passes.settle import settle


def program_text(program: Program) -> bytes:
    """What an artifact carries of its program."""
    settled = replace(program, functions=tuple(replace(f, graph=settle(f.graph)) for f in program.functions))
    return zlib.compress(to_text(settled, full=True).encode(), 1)


def program_of(path: str | os.PathLike) -> tuple[Program, Options]:
    """The program that an artifact was built from, and how it was built.  The code is not loaded."""
    manifest = read_manifest(path)
    _, data = read_section(path, PROGRAM_SECTION)
    try:
        program = parse_program(zlib.decompress(data).decode())
    except (zlib.error, UnicodeDecodeError, PullbackError) as e:
        raise BuildError(f"{os.fspath(path)}: its program cannot be read ({e}); it is {manifest.compiler}'s") from None
    return program, _options(manifest)


def _options(manifest: Manifest) -> Options:
    """The options of the build; `native` means the level of the machine that built, not of this one."""
    known = {f.name for f in fields(Options)} & set(manifest.options)
    options = Options(**{name: manifest.options[name] for name in known})
    names = options.cpu.split(",")
    if "native" in names:
        from ..codegen.target import cpu_target

        levels = {level.name: level.cpu for level in manifest.levels}
        if levels.get("native") != cpu_target().cpu:
            names = [levels.get("native", n) if n == "native" else n for n in names]
    return replace(options, cpu=",".join(names))
