"""Kernels as text that reads like the loops it stands for, and back.

    kernel linear(x: f32[128,784], w: f32[512,784]) -> h: f32[128,512]
      acc: f32[8,32] register
      block jo < 16
        serial io < 16
          unroll ii < 8
            vector ji < 32
              acc[ii, ji] = 0.0
          ...
              h[io*8 + ii, jo*32 + ji | io*8 + ii < 97] = acc[ii, ji] + b[jo*32 + ji]

A loop prints its binding and its role; `serial` and `parallel` are left out where the other says enough.
Behind `|` in brackets stand the masks, then `else` and what holds outside of them.  `:f64` after a constant
or a function gives its type where it is not the usual one.  `let` names an expression that is used twice.
`async` stands before a store that `wait` waits for.
Plans: `plan_text.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ..errors import PullbackError
from ..graph.types import DTYPES, DType, bool_, f32, i64
from .concurrent import Arrive, Await, Copy, Role, Roles, words
from .kernel import (
    Affine,
    Apply,
    AxisValue,
    Barrier,
    Buffer,
    Checked,
    Commit,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Mask,
    Stmt,
    Store,
    Tile,
    Wait,
    children,
    exprs,
    written,
)
from .scalars import SCALARS

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/",
         "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}  # fmt: skip
_LEVEL = {"+": 2, "-": 2, "*": 3, "/": 3} | {op: 1 for op in ("<", "<=", ">", ">=", "==", "!=")}
ROLES = ("parallel", "reduce", "ordered")
BINDINGS = ("serial", "unroll", "vector", "block", "thread", "warp", "lane")


def usual_dtype(fn: str, args: tuple[Expr, ...]) -> DType | None:
    """The result type of a scalar function where its arguments decide it."""
    scalar = SCALARS.get(fn)
    if scalar is None or scalar.result == "cast" or not args:
        return None
    return bool_ if scalar.result == "bool" else args[-1].dtype


# ---- printing -------------------------------------------------------------------------------------------
def print_kernel(kernel: Kernel, comment: str = "") -> str:
    """The kernel's text; `comment` (where it comes from) goes behind its first line."""
    outputs, n = written(kernel.body), len(kernel.params)
    while n and kernel.params[n - 1].name in outputs:
        n -= 1
    head = f"kernel {kernel.name}({', '.join(map(_declare, kernel.params[:n]))})"
    if kernel.params[n:]:
        head += f" -> {', '.join(map(_declare, kernel.params[n:]))}"
    lines = [f"{head}  # {comment}" if comment else head]
    lines += [f"  {_declare(b)} {b.space}" for b in kernel.locals]
    for s in kernel.body:
        lines += print_stmt(s, 1)
    return "\n".join(lines) + "\n"


def _declare(b: Buffer) -> str:
    strides = f" strides({','.join(map(str, b.strides))})" if b.strides else ""
    return f"{b.name}: {b.dtype}[{','.join(map(str, b.shape))}]{strides}"


def print_stmt(s: Stmt, depth: int = 0) -> list[str]:
    """The lines of one statement."""
    pad = "  " * depth
    if isinstance(s, Store):
        names: dict[int, str] = {}
        lines = []
        for e in _shared(s):
            text = _expr(e, names)
            names[id(e)] = f"%{len(names)}"
            lines.append(f"{pad}let {names[id(e)]} = {text}")
        at = _access(s.buffer, s.index, s.masks, None if s.other == "keep" else s.other, names)
        where = "" if s.where is None else f" where {_expr(s.where, names)}"
        how = "async " if s.asynchronous else ""
        return [*lines, f"{pad}{how}{at} = {_expr(s.value, names)}{where}"]
    if isinstance(s, Barrier | Commit):
        return [f"{pad}{'barrier' if isinstance(s, Barrier) else 'commit'}"]
    if isinstance(s, Wait):
        return [f"{pad}wait {s.pending}"]
    if isinstance(s, Loop):
        head = f"{loop_words(s)} {s.axis} < {s.extent}"
    else:
        head = words(s)
    return [pad + head] + [line for c in getattr(s, "body", ()) for line in print_stmt(c, depth + 1)]


def loop_words(s: Loop) -> str:
    if s.binding == "serial":
        return s.role
    return s.binding if s.role == "parallel" else f"{s.binding} {s.role}"


def _shared(s: Store) -> list[Expr]:
    """The inner expressions that this store uses more than once, each after what it is made of."""
    uses: dict[int, int] = {}
    order: list[Expr] = []

    def visit(e: Expr) -> None:
        uses[id(e)] = uses.get(id(e), 0) + 1
        if uses[id(e)] == 1:
            for c in children(e):
                visit(c)
            order.append(e)

    for e in exprs(s):
        visit(e)
    return [e for e in order if uses[id(e)] > 1 and isinstance(e, Apply)]


def _number(value) -> str:
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def _mask(m: Mask) -> str:
    return f"{m[0]} < {m[1]}"


def _access(buffer: str, index: tuple[Index, ...], masks: tuple[Mask, ...], other, names) -> str:
    inside = ", ".join(str(i) if isinstance(i, Affine) else _expr(i, names) for i in index)
    if masks:
        inside += f" | {', '.join(map(_mask, masks))}" if inside else f"| {', '.join(map(_mask, masks))}"
        if other is not None:
            inside += f" else {other if isinstance(other, str) else _number(other)}"
    return f"{buffer}[{inside}]" if inside else buffer


def _expr(e: Expr, names: dict[int, str], level: int = 0) -> str:
    if id(e) in names:
        return names[id(e)]
    if isinstance(e, Const):
        value = float(e.value) if e.dtype.is_float else bool(e.value) if e.dtype.kind == "b" else int(e.value)
        return _number(value) + ("" if e.dtype in (f32, bool_) else f":{e.dtype}")
    if isinstance(e, Load):
        return _access(e.buffer, e.index, e.masks, e.other, names)
    if isinstance(e, AxisValue):
        return f"axis{'' if e.dtype == i64 else f':{e.dtype}'}({e.index})"
    if isinstance(e, Checked):
        return f"check({_expr(e.value, names)}, {e.bound}, {e.site})"
    usual = usual_dtype(e.fn, e.args)
    if e.fn in INFIX and e.dtype == usual and len(e.args) == 2:
        op = INFIX[e.fn]
        mine = _LEVEL[op]
        text = f"{_expr(e.args[0], names, mine)} {op} {_expr(e.args[1], names, mine + 1)}"
        return f"({text})" if mine < level or (mine == 1 and level == 1) else text
    note = "" if e.dtype == usual else f":{e.dtype}"
    return f"{e.fn}{note}({', '.join(_expr(a, names) for a in e.args)})"


# ---- parsing --------------------------------------------------------------------------------------------
_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf\b|nan\b))|(?P<name>%\d+|[A-Za-z_][\w.]*)|(?P<op><=|>=|==|!=|->|\S))"
)


class Parser:
    """One line of a kernel's text at a time."""

    def __init__(self, line: str, number: int, buffers: dict[str, Buffer]):
        self.number, self.line, self.buffers = number, line, buffers
        self.tokens = [(m.lastgroup, m[m.lastgroup]) for m in _TOKEN.finditer(line.rstrip())]
        self.at = 0

    def fail(self, expected: str) -> PullbackError:
        got = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end of the line"
        return PullbackError(f"line {self.number}: expected {expected}, got {got}: {self.line.strip()}")

    def peek(self, *texts: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][1] in texts

    def take(self, *texts: str) -> bool:
        found = self.peek(*texts)
        self.at += found
        return found

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.fail(repr(text))

    def kind(self, kind: str, what: str = "") -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != kind:
            raise self.fail(what or f"a {kind}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise self.fail("the end of the line")

    def integer(self) -> int:
        sign = -1 if self.take("-") else 1
        text = self.kind("number", "an integer")
        try:
            return sign * int(text)
        except ValueError:
            self.at -= 1
            raise self.fail("an integer") from None

    def list(self, close: str, item) -> list:
        out = []
        while not self.take(close):
            if out:
                self.need(",")
            out.append(item())
        return out

    # ---- pieces
    def dtype(self) -> DType:
        name = self.kind("name", "a dtype")
        if name not in DTYPES:
            self.at -= 1
            raise self.fail(f"one of {', '.join(DTYPES)}")
        return DTYPES[name]

    def buffer(self, space: str | None = None) -> Buffer:
        name = self.kind("name", "a buffer's name")
        self.need(":")
        dtype = self.dtype()
        self.need("[")
        shape = tuple(self.list("]", self.integer))
        strides: tuple[int, ...] = ()
        if self.take("strides"):
            self.need("(")
            strides = tuple(self.list(")", self.integer))
        b = Buffer(name, shape, dtype, space or self.kind("name", "a space"), strides)
        self.buffers[name] = b
        return b

    def affine(self) -> Affine:
        total, sign = Affine(), 1
        while True:
            if self.take("-"):
                sign = -sign
            if self.at < len(self.tokens) and self.tokens[self.at][0] == "number":
                total = total + self.integer() * sign
            else:
                axis = Affine.of(self.kind("name", "an axis or a number"))
                total = total + axis * (sign * (self.integer() if self.take("*") else 1))
            if not self.take("+") and not self.peek("-"):
                return total
            sign = 1

    def mask(self) -> Mask:
        a = self.affine()
        self.need("<")
        return a, self.integer()

    def access(self, lets: dict[str, Expr]) -> tuple[tuple[Index, ...], tuple[Mask, ...], object]:
        """What stands in brackets: index, masks, and what holds outside of them."""
        if not self.take("["):
            return (), (), None
        index: list[Index] = []
        while not self.peek("|", "]"):
            if index:
                self.need(",")
            index.append(self.expr(lets) if self.peek("check") else self.affine())
        masks: list[Mask] = []
        other = None
        if self.take("|"):
            masks.append(self.mask())
            while self.take(","):
                masks.append(self.mask())
            if self.take("else"):
                other = "any" if self.take("any") else self.number_value()
        self.need("]")
        return tuple(index), tuple(masks), other

    def number_value(self) -> float | int | bool:
        if self.peek("true", "false"):
            return self.kind("name") == "true"
        text = self.kind("number", "a number")
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def expr(self, lets: dict[str, Expr], level: int = 1) -> Expr:
        left = self.atom(lets) if level > 3 else self.expr(lets, level + 1)
        while self.at < len(self.tokens):
            op = self.tokens[self.at][1]
            if _LEVEL.get(op) != level:
                break
            self.at += 1
            args = (left, self.expr(lets, level + 1))
            fn = next(f for f, o in INFIX.items() if o == op)
            left = Apply(fn, args, usual_dtype(fn, args))
        return left

    def atom(self, lets: dict[str, Expr]) -> Expr:
        if self.take("("):
            e = self.expr(lets)
            self.need(")")
            return e
        if self.peek("true", "false") or (self.at < len(self.tokens) and self.tokens[self.at][0] == "number"):
            value = self.number_value()
            usual = bool_ if isinstance(value, bool) else f32
            return Const(value, self.dtype() if self.take(":") else usual)
        name = self.kind("name", "an expression")
        if name in lets:
            return lets[name]
        if name in self.buffers and not self.peek("(", ":"):
            index, masks, other = self.access(lets)
            return Load(name, index, self.buffers[name].dtype, masks, 0 if other is None else other)
        dtype = self.dtype() if self.take(":") else None
        if not self.peek("("):
            self.at -= 1
            raise self.fail("a buffer, a function or a number")
        self.need("(")
        if name == "axis":
            a = self.affine()
            self.need(")")
            return AxisValue(a, dtype or i64)
        if name == "check":
            value = self.expr(lets)
            self.need(",")
            bound = self.integer()
            self.need(",")
            site = self.integer()
            self.need(")")
            return Checked(value, bound, site)
        args = tuple(self.list(")", lambda: self.expr(lets)))
        dtype = dtype or usual_dtype(name, args)
        if dtype is None:
            raise PullbackError(f"line {self.number}: {name} is no scalar function, or lacks its type: {self.line}")
        return Apply(name, args, dtype)


def parse_kernel(text: str) -> Kernel:
    """The kernel that `print_kernel` printed; `#` starts a comment."""
    lines = [(i, line.split("#")[0].rstrip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line]
    if not lines:
        raise PullbackError("expected a kernel, got no text")
    buffers: dict[str, Buffer] = {}
    p = Parser(lines[0][1], lines[0][0], buffers)
    p.need("kernel")
    name = p.kind("name", "the kernel's name")
    p.need("(")
    params = p.list(")", lambda: p.buffer("global"))
    if p.take("->"):
        params.append(p.buffer("global"))
        while p.take(","):
            params.append(p.buffer("global"))
    p.end()
    at, locals_ = 1, []
    while at < len(lines) and re.match(r"\s*[\w.]+: ", lines[at][1]):
        q = Parser(lines[at][1], lines[at][0], buffers)
        locals_.append(q.buffer())
        q.end()
        at += 1
    rest = iter([(len(line) - len(line.lstrip()), Parser(line, i, buffers)) for i, line in lines[at:]])
    body, after = _block(rest, next(rest, None), 0)
    if after is not None:
        raise after[1].fail("more indentation")
    return Kernel(name, tuple(params), tuple(locals_), body)


_Line = tuple[int, Parser]


def _block(rest: Iterator[_Line], line: _Line | None, outside: int) -> tuple[tuple[Stmt, ...], _Line | None]:
    """The statements that are indented by more than `outside`, and the line after them."""
    out: list[Stmt] = []
    lets: dict[str, Expr] = {}
    while line is not None and line[0] > outside:
        indent, p = line
        if p.peek("tile", "roles", "role", "copy") and not (len(p.tokens) > 1 and p.tokens[1][1] in ("[", "=")):
            whole = _tile(p)
            p.end()
            body, line = _block(rest, next(rest, None), indent)
            out.append(replace(whole, body=body))
            continue
        if p.peek(*ROLES, *BINDINGS):
            words = [p.kind("name")]
            if p.peek(*ROLES) and len(p.tokens) > 2 and p.tokens[2][1] != "<":
                words.append(p.kind("name"))
            axis = p.kind("name", "an axis")
            p.need("<")
            extent = p.affine()
            p.end()
            role = words[-1] if words[-1] in ROLES else "parallel"
            binding = words[0] if words[0] in BINDINGS else "serial"
            body, line = _block(rest, next(rest, None), indent)
            out.append(Loop(axis, extent if extent.terms else extent.const, role, body, binding))
            continue
        if p.take("barrier"):
            out.append(Barrier())
        elif p.take("commit"):
            out.append(Commit())
        elif p.take("wait"):
            out.append(Wait(p.integer()))
        elif p.take("arrive"):
            out.append(Arrive(*_token(p)))
        elif p.take("await"):
            token = _token(p)
            p.need("phase")
            out.append(Await(*token, p.affine()))
        elif p.take("let"):
            title = p.kind("name")
            p.need("=")
            lets[title] = p.expr(lets)
        else:
            asynchronous = p.take("async")
            buffer = p.kind("name", "a statement")
            if buffer not in p.buffers:
                p.at -= 1
                raise p.fail("a buffer's name")
            index, masks, other = p.access(lets)
            p.need("=")
            value = p.expr(lets)
            where = p.expr(lets) if p.take("where") else None
            out.append(Store(buffer, index, value, masks, "keep" if other is None else other, where, asynchronous))
            lets = {}
        p.end()
        line = next(rest, None)
    return tuple(out), line


def _tile(p: Parser) -> Tile:
    """A tile of any kind, still without its body."""
    if p.take("roles"):
        blocks = p.integer() if p.take("of") else 1
        if blocks > 1:
            p.need("blocks")
        return Roles("roles", (), blocks)
    if p.take("copy"):
        return Copy("copy", (), *_token(p))
    if p.take("role"):
        name = p.kind("name", "the role's name")
        p.need("warps")
        return Role(name, (), p.integer())
    p.need("tile")
    return Tile(p.kind("name", "the tile's name"), ())


def _token(p: Parser) -> tuple[str, tuple[Affine, ...]]:
    name = p.kind("name", "a token")
    return name, tuple(p.list("]", p.affine)) if p.take("[") else ()
