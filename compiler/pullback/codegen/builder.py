"""A typed builder of LLVM IR text: what the emitter and `math.py` write through.

In: calls with typed values; out: the lines of one function.  Text is some 15 times cheaper to make than
llvmlite's objects.  Three properties make the text good enough that LLVM needs no optimiser but SROA:

* pure instructions are *value-numbered*: each is placed once, in the outermost scope where its operands
  exist, which is common subexpression elimination and loop-invariant code motion in one;
* loads are not hoisted (but for private arrays, which SROA turns into registers), but shared while nothing was
  stored to their buffer;
* loops test at the bottom.

Instructions and vectors are in `instructions.py`, operations on numbers in `arithmetic.py`, memory and control here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .arithmetic import Arithmetic
from .instructions import Scope
from .values import DOUBLE, FLOAT, HALF, I1, I8, I16, I32, I64, PTR, Type, Value, ty

__all__ = ["DOUBLE", "FLOAT", "HALF", "I1", "I8", "I16", "I32", "I64", "PTR", "Builder", "Type", "Value", "ty"]


class Builder(Arithmetic):
    """Builds one function."""

    # ---- memory ------------------------------------------------------------------------------------------
    def alloca(self, elem: str, count: int, align: int = 64) -> Value:
        """An array in the entry block; with constant indices SROA turns it into registers."""
        v = Value(self.name(), PTR)
        self.allocas.append(f"  {v.ref} = alloca [{count} x {elem}], align {align}")
        return v

    def offset(self, p: Value, elem: str, index: Value | int) -> Value:
        """The address of an element."""
        if index.__class__ is int:
            return p if index == 0 else self.pure(p.ty, f"getelementptr {elem}, ptr {p.ref}, i64 {index}", p.depth)
        return self.pure(p.ty, f"getelementptr {elem}, ptr {p.ref}, i64 {index.ref}", max(p.depth, index.depth))

    def recall(self, key) -> bool:
        """Was this remembered in a scope around?"""
        return any(key in scope.memo for scope in self.scopes)

    def remember(self, key) -> None:
        """Note that something has been done in this scope, for all that follows in it."""
        self.scopes[-1].memo[key] = True

    def touch(self, buffers: Iterable[str]) -> None:
        """Something was or will be stored to these in this scope: loads before are not shared with loads after."""
        for b in buffers:
            self._epoch[b] = self._epoch.get(b, 0) + 1
            self._floor[b] = len(self.scopes) - 1

    def read(self, type: Type, text: str, depth: int, buffer: str, private: bool = False) -> Value:
        """An instruction that reads `buffer` with operands of `depth`.

        From private memory (which cannot fault) it is placed as far out as nothing is stored to the buffer;
        else it stays here.
        """
        key = (text, self._epoch.get(buffer, 0))
        if private:
            depth = min(max(depth, self._floor.get(buffer, 0)), len(self.scopes) - 1)
            scope = self.scopes[depth]
            v = scope.memo.get(key)
            if v is None:
                v = scope.memo[key] = Value(self.name(), type, depth)
                scope.lines.append(f"  {v.ref} = {text}")
            return v
        for scope in reversed(self.scopes):
            if key in scope.memo:
                return scope.memo[key]
        v = self.scopes[-1].memo[key] = self.here(type, text)
        return v

    def load(self, type: Type, p: Value, align: int, buffer: str = "", private: bool = False) -> Value:
        return self.read(type, f"load {type.text}, ptr {p.ref}, align {align}", p.depth, buffer, private)

    def store(self, x: Value, p: Value, align: int, buffer: str = "") -> None:
        self.line(f"store {x.ty.text} {x.ref}, ptr {p.ref}, align {align}")
        self.touch((buffer,))

    def masked_load(self, p: Value, mask: Value, default: Value, align: int, buffer: str = "") -> Value:
        t = default.ty
        text = f"call {t.text} @llvm.masked.load.{t.mangled}.p0(ptr align {align} {p.ref}, {mask}, {default})"
        return self.read(t, text, max(p.depth, mask.depth), buffer)

    def masked_store(self, x: Value, p: Value, mask: Value, align: int, buffer: str = "") -> None:
        active = [i for i, lane in enumerate(mask.ref[1:-1].split(", ")) if lane == "i1 true"]
        if mask.ref[0] == "<" and len(active) == 1:
            # LLVM 22 turns a truncation and a store of one lane into a store of the wide element.
            return self.store(self.extract(x, active[0]), self.offset(p, x.ty.elem, active[0]), align, buffer)
        self.line(f"call void @llvm.masked.store.{x.ty.mangled}.p0({x}, ptr align {align} {p.ref}, {mask})")
        self.touch((buffer,))

    # ---- control -----------------------------------------------------------------------------------------
    @contextmanager
    def loop(self, lo: int | Value, hi: int | Value, touched: Iterable[str] = ()) -> Iterator[Value]:
        """for lo <= i < hi (i64), tested at the bottom; `touched`: the buffers stored to inside."""
        touched = tuple(touched)
        self._count += 1
        head, exit, before = f"loop{self._count}", f"done{self._count}", self.block
        enter = f"  br label %{head}"
        if not (isinstance(lo, int) and isinstance(hi, int)):
            c = self.icmp("slt", *self.together(lo, hi))
            enter = f"  br i1 {c.ref}, label %{head}, label %{exit}"
        scope = Scope()
        self.scopes.append(scope)
        self.touch(touched)
        i = Value(self.name(), I64, len(self.scopes) - 1)
        scope.lines += [enter, f"{head}:", ""]
        self.block = head
        yield i
        lo, hi = (x.ref if isinstance(x, Value) else x for x in (lo, hi))
        following = self.here(I64, f"add nuw nsw i64 {i.ref}, 1")
        c = self.here(I1, f"icmp slt i64 {following.ref}, {hi}")
        scope.lines[2] = f"  {i.ref} = phi i64 [{lo}, %{before}], [{following.ref}, %{self.block}]"
        scope.lines += [f"  br i1 {c.ref}, label %{head}, label %{exit}", f"{exit}:"]
        self._leave(exit)
        self.touch(touched)

    @contextmanager
    def when(self, condition: Value | None) -> Iterator[None]:
        """If the (scalar) condition holds; None: always."""
        if condition is None or condition.const is True:
            yield
            return
        self._count += 1
        then, exit = f"then{self._count}", f"end{self._count}"
        self.scopes.append(Scope())
        self.scopes[-1].lines += [f"  br i1 {condition.ref}, label %{then}, label %{exit}", f"{then}:"]
        self.block = then
        self.known.append(condition.ref)
        yield
        self.known.pop()
        self.scopes[-1].lines += [f"  br label %{exit}", f"{exit}:"]
        self._leave(exit)

    def _leave(self, block: str) -> None:
        inner = self.scopes.pop()
        self.scopes[-1].lines += inner.lines
        self.block = block

    @property
    def lines(self) -> list[str]:
        """The function's body so far."""
        return ["entry:", *self.allocas, *self.scopes[0].lines]
