"""Instructions of LLVM IR text, placed in scopes: the ground of `builder.py`.

In: typed operands; out: lines, each pure instruction once, in the outermost scope where its operands exist.  Here are
constants, vectors and what every operation is made with; `arithmetic.py` has the operations on numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .target import Target
from .values import Type, Value, literal, ty


class Scope:
    """Lines within one loop or condition, and what they have computed."""

    __slots__ = ("lines", "memo")

    def __init__(self):
        self.lines: list[str] = []
        self.memo: dict = {}


class Instructions:
    """One function under way.  `target` decides how fma and half precision are spelled."""

    def __init__(self, target: Target):
        self.target = target
        self.scopes = [Scope()]
        self.allocas: list[str] = []
        self.block = "entry"
        self.known: list[str] = []  # conditions that hold here
        self.halves: dict[str, Value | None] = {}  # floats that bf16 holds, and where they lie as 16 bits
        self._count = 0
        self._epoch: dict[str, int] = {}  # buffer -> how often it was stored to
        self._floor: dict[str, int] = {}  # buffer -> the innermost scope that stores to it

    # ---- values and constants ----------------------------------------------------------------------------
    def const(self, type: Type, number: float | int | bool) -> Value:
        """A number in every lane."""
        key = (type, number, number.__class__, str(number) if number == 0 else "")  # 0.0 == -0.0 == False
        memo = self.scopes[0].memo
        v = memo.get(key)
        if v is None:
            text = literal.__wrapped__(type.elem, number)
            if type.lanes > 1:
                text = f"splat ({type.elem} {text})"
            v = memo[key] = Value(text, type, 0, number)
        return v

    def like(self, x: Value, number: float | int | bool) -> Value:
        """A number in every lane, of x's type."""
        return self.const(x.ty, number)

    def constants(self, elem: str, numbers: Sequence[float | int | bool]) -> Value:
        """A vector of these numbers (a scalar if there is one)."""
        t = ty(elem, len(numbers))
        if all(n == numbers[0] for n in numbers):
            return self.const(t, numbers[0])
        return Value("<" + ", ".join(f"{elem} {literal.__wrapped__(elem, n)}" for n in numbers) + ">", t)

    def poison(self, type: Type) -> Value:
        return Value("poison", type)

    def name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def pure(self, type: Type, text: str, depth: int) -> Value:
        """An instruction without effects whose operands exist at `depth`: placed there, once."""
        scope = self.scopes[depth]
        v = scope.memo.get(text)
        if v is None:
            self._count = n = self._count + 1
            v = scope.memo[text] = Value(f"%v{n}", type, depth)
            scope.lines.append(f"  %v{n} = {text}")
        return v

    def here(self, type: Type, text: str) -> Value:
        """An instruction that must stay where it is."""
        v = Value(self.name(), type, len(self.scopes) - 1)
        self.scopes[-1].lines.append(f"  {v.ref} = {text}")
        return v

    def line(self, text: str) -> None:
        """An instruction without a result, here."""
        self.scopes[-1].lines.append("  " + text)

    def label(self, name: str) -> None:
        """A block begins here; what ended the one before is a line of its own."""
        self.scopes[-1].lines.append(f"{name}:")
        self.block = name

    def together(self, *args: Value | float | int | bool) -> list[Value]:
        """The operands of one operation: numbers become constants, scalars are splatted to the lanes of the rest."""
        widest = None
        for a in args:
            if a.__class__ is Value and (widest is None or a.ty.lanes > widest.lanes):
                widest = a.ty
        return [
            self.const(widest, a)
            if a.__class__ is not Value
            else a
            if a.ty.lanes == widest.lanes
            else self.splat(a, widest.lanes)
            for a in args
        ]

    def _binary(self, op: str, a, b) -> Value:
        if a.__class__ is not Value or b.__class__ is not Value or a.ty is not b.ty:
            a, b = self.together(a, b)
        return self.pure(a.ty, f"{op} {a.ty.text} {a.ref}, {b.ref}", a.depth if a.depth > b.depth else b.depth)

    def _convert(self, op: str, a: Value, elem: str) -> Value:
        t = ty(elem, a.ty.lanes)
        return a if t is a.ty else self.pure(t, f"{op} {a.ty.text} {a.ref} to {t.text}", a.depth)

    def intrinsic(self, name: str, *args: Value, result: Type | None = None, mangle: str | None = None) -> Value:
        """A pure intrinsic, overloaded on its first operand's type unless `mangle` says otherwise."""
        r = result or args[0].ty
        suffix = "." + args[0].ty.mangled if mangle is None else mangle
        operands = ", ".join([f"{a.ty.text} {a.ref}" for a in args])
        return self.pure(r, f"call {r.text} @llvm.{name}{suffix}({operands})", max([a.depth for a in args]))

    # ---- vectors -----------------------------------------------------------------------------------------
    def splat(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == a.ty.lanes:
            return a
        t = ty(a.ty.elem, lanes)
        if a.const is not None:
            return self.const(t, a.const)
        one = self.pure(t, f"insertelement {t.text} poison, {a.ty.text} {a.ref}, i64 0", a.depth)
        text = f"shufflevector {t.text} {one.ref}, {t.text} poison, <{lanes} x i32> zeroinitializer"
        return self.pure(t, text, a.depth)

    def extract(self, v: Value, lane: int | Value) -> Value:
        """One lane (a scalar is its own)."""
        if v.ty.lanes == 1:
            return v
        t = ty(v.ty.elem)
        if v.const is not None:
            return self.const(t, v.const)
        if isinstance(lane, Value):
            return self.pure(t, f"extractelement {v} , {lane}", max(v.depth, lane.depth))
        return self.pure(t, f"extractelement {v.ty.text} {v.ref}, i64 {lane}", v.depth)

    def insert(self, v: Value, x: Value, lane: int) -> Value:
        text = f"insertelement {v.ty.text} {v.ref}, {x.ty.text} {x.ref}, i64 {lane}"
        return self.pure(v.ty, text, max(v.depth, x.depth))

    def gather(self, lanes: Sequence[Value]) -> Value:
        """A vector of scalars."""
        if len(lanes) == 1:
            return lanes[0]
        if all(x is lanes[0] for x in lanes):
            return self.splat(lanes[0], len(lanes))
        v = self.poison(ty(lanes[0].ty.elem, len(lanes)))
        for i, x in enumerate(lanes):
            v = self.insert(v, x, i)
        return v

    def shuffle(self, a: Value, b: Value | None, lanes: Iterable[int]) -> Value:
        """Lanes of a (0 ..) and b (a's width ..); negative: nobody reads this lane."""
        lanes = tuple(lanes)
        t = a.ty.text
        mask = ", ".join(["i32 poison" if i < 0 else f"i32 {i}" for i in lanes])
        other, depth = ("poison", a.depth) if b is None else (b.ref, max(a.depth, b.depth))
        text = f"shufflevector {t} {a.ref}, {t} {other}, <{len(lanes)} x i32> <{mask}>"
        return self.pure(ty(a.ty.elem, len(lanes)), text, depth)
