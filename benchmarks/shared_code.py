"""What the CPU and the GPU share, and what is theirs alone, in lines of code, from kernel IR downwards.

    python benchmarks/shared_code.py            # prints the table
    python benchmarks/shared_code.py --write    # puts it into docs/gpu.md

Counted are lines with code: no blank lines, comments or docstrings.  `OWNERS` says whose a file is; a file without an
owner is an error, so that the table stays whole.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu.md"
ROOMS = {
    "kernel": "compiler/pullback/kernel",
    "schedule": "compiler/pullback/schedule",
    "codegen": "compiler/pullback/codegen",
    "artifact": "compiler/pullback/artifact",
    "runtime": "runtime/pullback_runtime",
}
OWNERS = {
    # room/file -> whose it is; the first pattern that fits counts
    "kernel/*": "shared",
    "schedule/gpu*": "GPU",
    "schedule/pipeline.py": "GPU",
    "schedule/pairs.py": "CPU",
    "schedule/cpu*": "CPU",
    "schedule/limits.py": "CPU",
    "schedule/tiling.py": "CPU",
    "schedule/__init__.py": "shared",
    "schedule/common.py": "shared",
    "schedule/contraction.py": "shared",
    "schedule/liveness.py": "shared",
    "schedule/masks.py": "shared",
    "schedule/nest.py": "shared",
    "schedule/sinking.py": "shared",
    "schedule/staging.py": "shared",
    "schedule/steps.py": "shared",
    "codegen/ptx*": "GPU",
    "codegen/threads.py": "GPU",
    "codegen/sass.py": "GPU",
    "codegen/copies.py": "GPU",
    "codegen/inline.py": "GPU",
    "codegen/roles.py": "GPU",
    "codegen/tensor_maps.py": "GPU",
    "codegen/pairs.py": "CPU",
    "codegen/shuffles.py": "CPU",
    "codegen/warp*": "GPU",
    "codegen/wgmma*": "GPU",
    "codegen/mma*": "GPU",
    "codegen/tma*": "GPU",
    "codegen/cpu.py": "CPU",
    "codegen/native*": "CPU",
    "codegen/tiles.py": "CPU",
    "codegen/__init__.py": "shared",
    "codegen/access.py": "shared",
    "codegen/arithmetic.py": "shared",
    "codegen/builder.py": "shared",
    "codegen/compile.py": "shared",
    "codegen/emit.py": "shared",
    "codegen/exact.py": "shared",
    "codegen/instructions.py": "shared",
    "codegen/math*": "shared",
    "codegen/numpy_math.py": "shared",
    "codegen/scalar.py": "shared",
    "codegen/target.py": "shared",
    "codegen/values.py": "shared",
    "artifact/gpu*": "GPU",
    "artifact/elf*": "shared",
    "artifact/header.py": "CPU",  # the C ABI
    "artifact/tables.py": "CPU",  # what the native module interprets
    "artifact/__init__.py": "shared",
    "artifact/reopen.py": "shared",
    "artifact/write.py": "shared",
    "runtime/cuda*": "GPU",
    "runtime/dlpack.py": "GPU",
    "runtime/library.py": "CPU",
    "runtime/fastcall.py": "CPU",
    "runtime/interrupt.py": "CPU",
    "runtime/*": "shared",
}
KINDS = ("shared", "CPU", "GPU")


def files() -> list[tuple[str, Path]]:
    """(room/file, path) of every source file from kernel IR downwards."""
    return [(f"{room}/{p.name}", p) for room, folder in ROOMS.items() for p in sorted((ROOT / folder).glob("*.py"))]


def owner(name: str) -> str:
    for pattern, kind in OWNERS.items():
        if fnmatch(name, pattern):
            return kind
    raise LookupError(
        f"{name}: say in OWNERS of benchmarks/shared_code.py whether it is shared, the CPU's or the GPU's"
    )


def lines_of_code(text: str) -> int:
    """Lines that hold more than a comment or a docstring."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    fresh = True  # at the beginning of a statement
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        if t.type not in layout and not (fresh and t.type == tokenize.STRING):
            found.update(range(t.start[0], t.end[0] + 1))
        fresh = t.type in layout and (fresh or t.type == tokenize.NEWLINE)
    return len(found)


def count() -> dict[str, dict[str, int]]:
    """room -> owner -> lines of code."""
    out: dict[str, dict[str, int]] = {room: dict.fromkeys(KINDS, 0) for room in ROOMS}
    for name, path in files():
        out[name.split("/")[0]][owner(name)] += lines_of_code(path.read_text())
    return out


def table(rooms: dict[str, dict[str, int]]) -> str:
    total: dict[str, int] = defaultdict(int)
    rows = ["| | shared | CPU only | GPU only |", "|---|---|---|---|"]
    for room, found in rooms.items():
        rows.append(f"| `{ROOMS[room]}` | " + " | ".join(str(found[k]) for k in KINDS) + " |")
        for k in KINDS:
            total[k] += found[k]
    whole = sum(total.values())
    rows.append("| all | " + " | ".join(f"{total[k]} ({total[k] / whole:.0%})" for k in KINDS) + " |")
    return "\n".join(rows) + "\n"


def shares(text: str) -> list[int]:
    """The percentages in the last line of a table."""
    return [int(n) for n in re.findall(r"\((\d+)%\)", text.strip().splitlines()[-1])]


BEGIN, END = "<!-- benchmarks/shared_code.py --write -->\n", "<!-- end -->\n"


def written() -> str:
    """The table that docs/gpu.md holds."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    text = table(count())
    print(text, end="")
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
