"""Inline assembly for NVIDIA GPUs: the functions `@pb.<name>` that a module calls; names in, LLVM IR out.

What LLVM has no instruction for stands alone in such a function, so that the emulator can put its own meaning in its
place (docs/gpu-emulation.md).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..kernel.kernel import Checked, Load, Store, exprs, walk_expr
from . import scalar
from .builder import Value

if TYPE_CHECKING:
    from .threads import ThreadEmitter

_CALLED = re.compile(r"@(pb\.[\w.]+)\(")
_STORE = re.compile(r"pb\.store\.(?:v([24]))?(f16|f32|f64|i8|i16|i32|i64)$")
_ELEMENTS = {
    "f16": ("half", "h", "b16"),
    "f32": ("float", "f", "b32"),
    "f64": ("double", "d", "b64"),
    "i8": ("i8", "h", "b8"),
    "i16": ("i16", "h", "b16"),
    "i32": ("i32", "r", "b32"),
    "i64": ("i64", "l", "b64"),
}
"""Element, as LLVM mangles it -> its type, its register, its bits."""


def definitions(text: str) -> str:
    """The functions that a module's text calls."""
    return "".join(filter(None, (definition(name) for name in sorted(set(_CALLED.findall(text))))))


def definition(name: str) -> str:
    """One function, or nothing if it is none of these."""
    if m := _STORE.match(name):
        return _store(name, int(m[1] or 1), *_ELEMENTS[m[2]])
    return ""


def _store(name: str, lanes: int, element: str, register: str, bits: str) -> str:
    """A store to device memory where a condition holds, without a branch."""
    type = element if lanes == 1 else f"<{lanes} x {element}>"
    parts = ["%x"] if lanes == 1 else [f"%x{i}" for i in range(lanes)]
    taken = "".join(f"  {p} = extractelement {type} %x, i32 {i}\n" for i, p in enumerate(parts) if lanes > 1)
    if element == "i8":  # there are no registers of 8 bits
        taken += "".join(f"  %w{i} = zext i8 {p} to i16\n" for i, p in enumerate(parts))
        element, parts = "i16", [f"%w{i}" for i in range(lanes)]
    values = ", ".join(f"${i + 2}" for i in range(lanes))
    what = f"{bits} [$0], {values}" if lanes == 1 else f"v{lanes}.{bits} [$0], {{{values}}}"
    body = f"{{ .reg .pred p; setp.ne.b32 p, $1, 0; @p st.global.{what}; }}"
    constraints = ",".join(["l", "r", *[register] * lanes, "~{memory}"])
    operands = ", ".join(["ptr addrspace(1) %q", "i32 %n", *(f"{element} {p}" for p in parts)])
    return f"""
define internal void @{name}({type} %x, ptr %p, i1 %c) alwaysinline nounwind {{
  %q = addrspacecast ptr %p to ptr addrspace(1)
  %n = zext i1 %c to i32
{taken}  call void asm sideeffect "{body}", "{constraints}"({operands})
  ret void
}}
"""


# ---- masked stores --------------------------------------------------------------------------------------
def store(em: ThreadEmitter, s: Store) -> bool:
    """Emit a masked store to device memory without branches, if it is one whose value may be computed anywhere.

    For what is made of sums: into the branch of a masked store the compilers move the last steps of its sum, and keep
    all their factors in registers until then.
    """
    b, buffer = em.b, em.buffers[s.buffer]
    if buffer.space != "global" or not s.masks or s.other != "keep" or s.where is not None:
        return False
    parts = [x for e in exprs(s) for x in walk_expr(e)]
    if any(isinstance(x, Checked) or (isinstance(x, Load) and x.buffer in em.kernel.outputs) for x in parts):
        return False
    condition, mask = em.conditions(s.masks)
    if condition is False:
        return True
    if condition is None and mask is None:
        return False
    place, k = em.place(buffer, s.index, s)
    if not isinstance(place, Value) or k != (em.width > 1):
        return False
    value = scalar.to_memory(b, b.splat(em.evaluate(s.value), em.width), buffer.dtype)
    size = buffer.dtype.size
    if mask is None and em.width in (1, 2, 4) and size * em.width <= 16 and em.alignment(buffer, s) == size * em.width:
        _store_where(em, value, place, condition, s)
    else:
        for i, on in enumerate(em.lane_values(mask)):
            if on is not False:
                where = condition if on is True else em.both(condition, on)
                _store_where(em, b.extract(value, i), b.offset(place, value.ty.elem, i), where, s)
    b.touch((buffer.name,))
    return True


def _store_where(em: ThreadEmitter, v: Value, p: Value, condition: Value | None, s: Store) -> None:
    if condition is None:
        return em.b.store(v, p, em.buffers[s.buffer].dtype.size, s.buffer)
    em.b.line(f"call void @pb.store.{v.ty.mangled}({v}, ptr {p.ref}, {condition})")
