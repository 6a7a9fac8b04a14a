"""NVPTX LLVM IR in; LLVM IR for this machine out, with a check before every access and a place for every call.

The text is LLVM's own (one instruction a line, after SROA), so lines are all that is parsed:

* `@llvm.nvvm.*` and `@pb.*` become shims (intrinsics.py); each call gets its place, a number, as one more operand;
* before a load, store or atomic comes a call of the checker with address, size, alignment and place;
* shared arrays become external symbols that the launcher lays out; kernels lose their calling convention.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .intrinsics import INTRINSICS, Shim, wrapper

_SHARED = re.compile(r'^@("[^"]+"|[\w.$-]+) = .*?addrspace\(3\) (?:global|constant) (.*)$')
_GLOBAL = re.compile(r'^@("[^"]+"|[\w.$-]+) = (?:[a-z_]+ )*?(?:addrspace\(\d+\) )?(global|constant) ')
_FUNCTION = re.compile(r"^define .*?@([\w.$-]+)\(")
_CALLEE = re.compile(r"@(llvm\.nvvm\.|pb\.)([\w.$-]+)\(")
_ACCESS = re.compile(r"^\s+(?:%[^ ]+ = )?(load|store|atomicrmw|cmpxchg) ")
_ATTRIBUTE = re.compile(r"^(?:(?:noundef|nonnull|nocapture|noalias|readonly|writeonly|align \d+|\w+\([^)]*\)) )+")
_POINTER = re.compile(r"^ptr(?: addrspace\(\d+\))? ")
_SIZES = {"half": 2, "bfloat": 2, "float": 4, "double": 8, "ptr": 8}


class UnsupportedError(ValueError):
    """Something in the module that the emulator does not know."""


def split(text: str) -> list[str]:
    """The parts between the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}>":
            depth -= 1
        elif c == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def closing(text: str, at: int) -> int:
    """The position of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        if text[i] in "([{<":
            depth += 1
        elif text[i] in ")]}>":
            depth -= 1
            if not depth:
                return i
    raise UnsupportedError(f"unbalanced brackets: {text}")


def take_type(text: str) -> tuple[str, str]:
    """(type, rest)."""
    if text[0] in "<[{":
        end = closing(text, 0) + 1
    elif m := re.match(r"ptr addrspace\(\d+\)|[\w.]+", text):
        end = m.end()
    else:
        raise UnsupportedError(f"expected a type: {text}")
    return text[:end], text[end:].strip()


def layout(type: str) -> tuple[int, int]:
    """(bytes, alignment) of a type."""
    if type.startswith("i") and type[1:].isdigit():
        size = 1 << max(0, (int(type[1:]) - 1).bit_length() - 3)
        return size, min(size, 16)
    if type.startswith("ptr"):
        return 8, 8
    if type in _SIZES:
        return _SIZES[type], _SIZES[type]
    if type[0] in "<[":
        count, item = type[1:-1].split(" x ", 1)
        size, align = layout(item.strip())
        if type[0] == "<" and item.strip() == "i1":
            return -(-int(count) // 8), 1
        return int(count) * size, align
    if type[0] == "{":
        offset, most = 0, 1
        for item in split(type[1:-1]):
            size, align = layout(item)
            offset, most = -(-offset // align) * align + size, max(most, align)
        return -(-offset // most) * most, most
    raise UnsupportedError(f"the size of type {type}")


@dataclass
class SharedArray:
    name: str
    size: int
    align: int
    dynamic: bool


@dataclass
class Instrumented:
    text: str
    sites: list[str] = field(default_factory=lambda: ["?"])
    """The instruction at each place, and its function."""
    shared: list[SharedArray] = field(default_factory=list)
    globals: dict[str, int] = field(default_factory=dict)
    """Bytes of each other global array."""
    symbols: set[str] = field(default_factory=set)
    """The C functions that the text calls."""


def _access(line: str, kind: str) -> tuple[str, str, int, int]:
    """(checker, pointer with its type, bytes, alignment) of a load, store or atomic."""
    body = line.split(f"{kind} ", 1)[1]
    atomic = kind in ("atomicrmw", "cmpxchg") or body.startswith(("atomic ", "volatile "))
    body = re.sub(r"^(?:(?:atomic|volatile|weak) )*", "", body)
    if kind == "atomicrmw":
        body = body.split(" ", 1)[1]
    parts = split(body)
    if kind in ("load", "store"):
        type, pointer = take_type(parts[0])[0], parts[1]
    else:
        type, pointer = take_type(parts[1])[0], parts[0]
    if atomic and kind in ("load", "store"):  # what follows the operand is its ordering
        pointer = re.sub(r'(?: syncscope\("[^"]*"\))? (?:unordered|monotonic|acquire|release|seq_cst)$', "", pointer)
    align = next((int(p[6:]) for p in parts if p.startswith("align ")), layout(type)[1])
    writes = {"load": "read", "store": "write"}.get(kind, "atomic")
    checker = ("atomic_read" if kind == "load" else "atomic") if atomic else writes
    return checker, pointer, layout(type)[0], align


def _call(line: str, match: re.Match, site: int) -> str:
    """The call with its place as last operand, under the shim's name."""
    end = closing(line, match.end() - 1)
    comma = ", " if line[match.end() : end].strip() else ""
    return f"{line[: match.start()]}@simt.{match[1]}{match[2]}({line[match.end() : end]}{comma}i32 {site}{line[end:]}"


def _memory_intrinsic(line: str, site: int) -> list[str]:
    """Checks before llvm.memcpy, memmove, memset."""
    at = line.index("(", line.index("@llvm.mem"))
    operands = split(line[at + 1 : closing(line, at)])
    out = []
    for i, checker in enumerate(("write_range", "read_range")[: 1 if "@llvm.memset" in line else 2]):
        kind = _POINTER.match(operands[i])[0]
        pointer = kind + _ATTRIBUTE.sub("", operands[i][len(kind) :])
        out.append(f"  call void @simt_{checker}({pointer}, {operands[2]}, i32 {site})")
    return out


def _masked(line: str, kind: str, site: int) -> list[str]:
    """A check before llvm.masked.load or store of the lanes that are switched on."""
    at = line.index("(", line.index("@llvm.masked."))
    operands = split(line[at + 1 : closing(line, at)])
    pointer = next(p for p in operands if p.startswith("ptr"))
    mask = next(p for p in operands if re.match(r"<\d+ x i1>", p))
    vector = take_type(operands[0] if kind == "store" else operands[-1])[0]
    count, element = vector[1:-1].split(" x ", 1)
    align = int(a[1]) if (a := re.search(r"align (\d+)", pointer)) else 1
    space = _POINTER.match(pointer)[0]
    pointer = space + _ATTRIBUTE.sub("", pointer[len(space) :])
    checker = "read_lanes" if kind == "load" else "write_lanes"
    call = f"call void @simt_{checker}({pointer}, i32 {layout(element)[0]}, i64 %simt.l{site}, i32 {align}, i32 {site})"
    widened = f"zext i{count} %simt.m{site} to i64" if count != "64" else f"add i64 %simt.m{site}, 0"
    return [f"  %simt.m{site} = bitcast {mask} to i{count}", f"  %simt.l{site} = {widened}", f"  {call}"]


def instrument(text: str, check: bool = True) -> Instrumented:
    """`text` must be LLVM's own print of a module."""
    result = Instrumented("")
    out, used, function, skip = [], {}, "", False
    declared = {m[1] for m in re.finditer(r"^declare .*@([\w.]+)\(", text, re.M)}

    def shim_of(prefix: str, name: str) -> Shim:
        shim = INTRINSICS.get(name) if prefix == "llvm.nvvm." else wrapper(name)
        if shim is None:
            where = f" (in @{function})" if function else ""
            raise UnsupportedError(f"the emulator has no @{prefix}{name}{where}: add it to tests/simt/intrinsics.py")
        return shim

    for line in text.splitlines():
        if skip:
            skip = line != "}"
            continue
        if line.startswith("define ") and (m := _FUNCTION.match(line)):
            function = m[1]
            if function.startswith("pb."):
                skip = True
                continue
            line = line.replace(" ptx_kernel ", " ").replace(" ptx_device ", " ")
            line = re.sub(r" byval\((?:[^()]|\([^()]*\))*\)", "", line)
            out.append(line)
        elif line.startswith("declare ") and _CALLEE.search(line):
            continue
        elif m := _SHARED.match(line):
            type, rest = take_type(m[2])
            align = int(a[1]) if (a := re.search(r", align (\d+)", rest)) else layout(type)[1]
            size = layout(type)[0]
            result.shared.append(SharedArray(m[1].strip('"'), size, align, not size))
            out.append(f"@{m[1]} = external addrspace(3) global {type}, align {align}")
        elif m := _GLOBAL.match(line):
            if m[2] != "constant" or " external " in line:
                raise UnsupportedError(f"a global variable that is neither shared nor constant: @{m[1]}")
            result.globals[m[1].strip('"')] = layout(take_type(line[m.end() :])[0])[0]
            out.append(
                re.sub(r" = (?:(?:internal|private|unnamed_addr|local_unnamed_addr|hidden) )*", " = ", line, count=1)
            )
        elif line.startswith("  ") and function:
            site = len(result.sites)
            shown = line.strip() if len(line) < 200 else f"{line.strip()[:120]} ... {line[-60:]}"
            result.sites.append(f"{shown}   (in @{function})")
            if " asm " in line and re.search(r"\bcall\b.*\basm ", line):
                raise UnsupportedError(f"inline assembly outside of an @pb. wrapper, in @{function}: {line.strip()}")
            if m := _CALLEE.search(line):
                used.setdefault(f"simt.{m[1]}{m[2]}", shim_of(m[1], m[2]))
                line = _call(line, m, site)
            elif check and line.startswith("  fence "):
                out.append(
                    f"  call void @simt_fence(i32 {int('syncscope(' not in line or 'device' in line)}, i32 {site})"
                )
                result.symbols.add("simt_fence")
            elif check and (m := re.search(r"@llvm\.masked\.(load|store)\.", line)):
                out += _masked(line, m[1], site)
                result.symbols.add("simt_read_lanes" if m[1] == "load" else "simt_write_lanes")
            elif check and "@llvm.masked." in line:
                raise UnsupportedError(f"a masked access, in @{function}: {line.strip()}")
            elif check and re.search(r"@llvm\.mem(cpy|move|set)\.", line):
                out += _memory_intrinsic(line, site)
                result.symbols |= {"simt_read_range", "simt_write_range"}
            elif check and (m := _ACCESS.match(line)):
                checker, pointer, size, align = _access(line, m[1])
                out.append(f"  call void @simt_{checker}({pointer}, i32 {size}, i32 {align}, i32 {site})")
                result.symbols.add(f"simt_{checker}")
            out.append(line)
        else:
            out.append(line)
            if line == "}":
                function = ""
    for name, shim in used.items():
        out.append(shim.definition(name))
        result.symbols |= set(shim.symbols)
        for need in shim.needs.splitlines():
            if (symbol := need.split("@")[1].split("(")[0]) not in declared:
                declared.add(symbol)
                out.append(need)
    out += [f"declare void @{s}()" for s in sorted(result.symbols)]
    result.text = "\n".join(out) + "\n"
    return result
