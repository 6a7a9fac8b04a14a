"""A small structured builder of LLVM IR text for the scheduler in `native.py`.

Python's `with` gives the control flow and operators give the arithmetic, so the scheduler reads like C.
Comparisons and shifts are unsigned.  Mutable variables are allocas, which SROA turns into registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "ptr": 64}


class Value:
    """An SSA value (or constant) of one function."""

    __slots__ = ("f", "name", "type")

    def __init__(self, f: Function, type: str, name: str):
        self.f, self.type, self.name = f, type, name

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    def _binary(self, op: str, other: Value | int) -> Value:
        return self.f.emit(self.type, f"{op} {self}, {self.f.operand(other, self.type).name}")

    def _compare(self, op: str, other: Value | int) -> Value:
        return self.f.emit("i1", f"icmp {op} {self}, {self.f.operand(other, self.type).name}")

    def __add__(self, other: Value | int) -> Value:
        """Integer addition, or a pointer that many bytes further."""
        if self.type == "ptr":
            return self.f.emit("ptr", f"getelementptr i8, {self}, {self.f.operand(other, 'i64')}")
        return self._binary("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._binary("mul", other)

    def __and__(self, other: Value | int) -> Value:
        return self._binary("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("or", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._binary("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._binary("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        return self._binary("lshr", other)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._binary("udiv", other)

    def __eq__(self, other: Value | int) -> Value:
        return self._compare("eq", other)

    def __ne__(self, other: Value | int) -> Value:
        return self._compare("ne", other)

    def __lt__(self, other: Value | int) -> Value:
        return self._compare("ult", other)

    def __le__(self, other: Value | int) -> Value:
        return self._compare("ule", other)

    def __gt__(self, other: Value | int) -> Value:
        return self._compare("ugt", other)

    def __ge__(self, other: Value | int) -> Value:
        return self._compare("uge", other)

    __hash__ = None  # comparisons build code, so values are no keys

    def signed_less(self, other: Value | int) -> Value:
        return self._compare("slt", other)

    def to(self, type: str) -> Value:
        """Converted to another integer type or to or from a pointer."""
        if type == self.type:
            return self
        if "ptr" in (type, self.type):
            op = "inttoptr" if type == "ptr" else "ptrtoint"
        else:
            op = "zext" if BITS[type] > BITS[self.type] else "trunc"
        return self.f.emit(type, f"{op} {self} to {type}")

    # ---- memory: this value is the address -----------------------------------------------------------
    def load(self, type: str = "i64", order: str = "") -> Value:
        align = max(BITS[type] // 8, 1)
        if order:
            return self.f.emit(type, f"load atomic {type}, {self} {order}, align {align}")
        return self.f.emit(type, f"load {type}, {self}, align {align}")

    def store(self, value: Value | int, type: str = "i64", order: str = "") -> None:
        value = self.f.operand(value, type)
        align = max(BITS[value.type] // 8, 1)
        if order:
            self.f.line(f"store atomic {value}, {self} {order}, align {align}")
        else:
            self.f.line(f"store {value}, {self}, align {align}")

    def fetch_add(self, value: Value | int, order: str, type: str = "i64") -> Value:
        return self.f.emit(type, f"atomicrmw add {self}, {self.f.operand(value, type)} {order}")

    def exchange(self, value: Value | int, order: str, type: str = "i64") -> Value:
        return self.f.emit(type, f"atomicrmw xchg {self}, {self.f.operand(value, type)} {order}")

    def compare_exchange(self, old: Value | int, new: Value | int, type: str = "i64") -> Value:
        """True if *self was `old` and is now `new` (acquire and release)."""
        old, new = self.f.operand(old, type), self.f.operand(new, type)
        pair = f"{{ {type}, i1 }}"
        both = self.f.emit(pair, f"cmpxchg {self}, {old}, {new} acq_rel acquire")
        return self.f.emit("i1", f"extractvalue {both}, 1")


class Variable:
    """A mutable local."""

    def __init__(self, address: Value, type: str):
        self.address, self.type = address, type

    def get(self) -> Value:
        return self.address.load(self.type)

    def set(self, value: Value | int) -> None:
        self.address.store(value, self.type)


class Function:
    """One function definition.  `params`: "ptr name, i64 name"."""

    def __init__(self, result: str, name: str, params: str = "", linkage: str = "internal", attributes: str = "#0"):
        self.result, self.name, self.linkage, self.attributes = result, name, linkage, attributes
        pairs = [p.split() for p in params.split(",")] if params else []
        self.params = {n: Value(self, t, f"%{n}") for t, n in pairs}
        self.entry: list[str] = []
        self.lines: list[str] = []
        self.open, self.count = True, 0
        self.loops: list[tuple[str, str]] = []

    def __getitem__(self, name: str) -> Value:
        return self.params[name]

    # ---- instructions --------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def emit(self, type: str, text: str) -> Value:
        self.count += 1
        name = f"%v{self.count}"
        self.line(f"{name} = {text}")
        return Value(self, type, name)

    def operand(self, value: Value | int, type: str) -> Value:
        if isinstance(value, Value):
            return value
        return Value(self, type, "null" if type == "ptr" else str(value))

    def symbol(self, name: str) -> Value:
        return Value(self, "ptr", f"@{name}")

    def null(self) -> Value:
        return Value(self, "ptr", "null")

    def variable(self, type: str, value: Value | int) -> Variable:
        out = Variable(self.space(BITS[type] // 8), type)
        out.set(value)
        return out

    def space(self, nbytes: int) -> Value:
        """`nbytes` of the function's frame, eight-byte aligned."""
        self.count += 1
        name = f"%a{self.count}"
        self.entry.append(f"  {name} = alloca i{8 * nbytes}, align 8" if nbytes <= 8 else "")
        if nbytes > 8:
            self.entry[-1] = f"  {name} = alloca [{nbytes} x i8], align 8"
        return Value(self, "ptr", name)

    def call(self, result: str, callee: str | Value, *args: Value | int, types: str = "") -> Value | None:
        """Call a function by name (or address); integers are i64 unless `types` names them."""
        names = types.split() or ["i64"] * len(args)
        values = ", ".join(str(self.operand(a, t)) for a, t in zip(args, names, strict=True))
        target = callee.name if isinstance(callee, Value) else f"@{callee}"
        if result == "void":
            self.line(f"call void {target}({values})")
            return None
        return self.emit(result, f"call {result} {target}({values})")

    def syscall(self, number: int, *args: Value | int) -> Value:
        values = ", ".join(str(self.operand(a, "i64")) for a in (number, *args))
        return self.emit("i64", f"call i64 (i64, ...) @syscall({values})")

    def select(self, condition: Value, a: Value | int, b: Value | int, type: str = "i64") -> Value:
        return self.emit(type, f"select {condition}, {self.operand(a, type)}, {self.operand(b, type)}")

    def minimum(self, a: Value, b: Value) -> Value:
        return self.select(a < b, a, b, a.type)

    # ---- control flow --------------------------------------------------------------------------------
    def _label(self) -> str:
        self.count += 1
        return f"b{self.count}"

    def _place(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.open = True

    def _jump(self, label: str) -> None:
        if self.open:
            self.line(f"br label %{label}")
        self.open = False

    @contextmanager
    def when(self, condition: Value, likely: bool | None = None) -> Iterator[None]:
        then, end = self._label(), self._label()
        weights = "" if likely is None else f", !prof !{0 if likely else 1}"
        self.line(f"br {condition}, label %{then}, label %{end}{weights}")
        self._place(then)
        yield
        self._jump(end)
        self._place(end)

    @contextmanager
    def forever(self) -> Iterator[None]:
        """A loop that ends by `stop()` or `ret()`."""
        head, end = self._label(), self._label()
        self._jump(head)
        self._place(head)
        self.loops.append((head, end))
        yield
        self._jump(head)
        self.loops.pop()
        self._place(end)

    @contextmanager
    def count_to(self, start: Value | int, end: Value | int) -> Iterator[Value]:
        """for i = start; i < end; i += 1 (the body may be left by `stop()`, not by `again()`)."""
        i = self.variable("i64", start)
        with self.forever():
            now = i.get()
            with self.when(now >= end):
                self.stop()
            yield now
            if self.open:
                i.set(now + 1)

    def stop(self) -> None:
        self._jump(self.loops[-1][1])

    def again(self) -> None:
        self._jump(self.loops[-1][0])

    def ret(self, value: Value | int | None = None) -> None:
        self.line("ret void" if value is None else f"ret {self.operand(value, self.result)}")
        self.open = False

    def __str__(self) -> str:
        params = ", ".join(str(p) for p in self.params.values())
        end = [] if self.open is False else ["  unreachable"] if self.result != "void" else ["  ret void"]
        head = f"define {self.linkage} {self.result} @{self.name}({params}) {self.attributes} {{"
        return "\n".join([head, "begin:", *self.entry, *self.lines, *end, "}", ""])
