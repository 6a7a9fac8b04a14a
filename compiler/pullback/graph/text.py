"""Graphs and programs as text, and back: graph IR in, text out, and the other way round.

    graph predict {
      %0 = input() label="image": f32[64,64]
      %1 = input() label="weight": f32[128,64]
      %2 = contract(%0, %1) lhs="bi" rhs="oi" out="bo": f32[64,128]  # mlp.py:12 in __call__
      %3 = tanh@1(%2): f32[64,128]  # mlp.py:12 in __call__ (gradient)
      return %3
    }

`@1` is a node's tag.  Fields named `dtype` and `shape` that the type says already are not repeated, and fields that
have their default are left out.  Regions
stand below their node, numbered from %0 again.  Large constants are shown by their first values, which does
not parse; `full=True` writes them whole (base64), and then `parse(print(g))` is `g` again.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from base64 import b64decode, b64encode
from dataclasses import MISSING, fields
from functools import cache

import numpy as np

from ..errors import PullbackError
from ..ops.op import OPS, Op
from .content import region_fields
from .graph import NOWHERE, Graph, Loc, Node
from .program import Argument, Function, Print, Program, State
from .types import DTYPES, TensorType, TupleType, Type

FEW = 8
"""Constants of at most this many elements are written as numbers."""


# ---- printing -------------------------------------------------------------------------------------------
def to_text(what: Graph | Program, full: bool = False) -> str:
    """The text of a graph or program; `full` writes constants of any size, for `parse`."""
    lines = _program_lines(what, full) if isinstance(what, Program) else _graph_lines(what, full)
    return "\n".join(lines) + "\n"


def _graph_lines(graph: Graph, full: bool, indent: str = "") -> list[str]:
    names: dict[Node, str] = {}
    texts: dict[int, str] = {}  # of types and places, by their objects: many nodes share them
    lines = [f"{indent}graph {graph.name} {{"]
    for k, n in enumerate(graph.nodes):
        name, op = f"%{k}", n.op
        names[n] = name
        tag = f"@{n.tag}" if n.tag else ""
        operands = ", ".join([names[x] for x in n.inputs])
        attrs = _attrs(n, full) if _printed_fields(type(op)) else ""
        type_, loc = texts.get(id(n.type)), texts.get(id(n.loc))
        if type_ is None:
            type_ = texts[id(n.type)] = str(n.type)
        if loc is None:
            loc = texts[id(n.loc)] = _loc_text(n.loc)
        lines.append(f"{indent}  {name} = {op.name}{tag}({operands}){attrs}: {type_}{loc}")
        for region in region_fields(type(op)):
            body = _graph_lines(getattr(op, region), full, indent + "    ")
            lines += [f"{indent}    {region} = {body[0].lstrip()}", *body[1:]]
    return [*lines, f"{indent}  return {', '.join([names[x] for x in graph.outputs])}", f"{indent}}}"]


@cache
def _printed_fields(cls: type[Op]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.name not in region_fields(cls))


@cache
def _defaults(cls: type[Op]) -> dict[str, object]:
    return {f.name: f.default for f in fields(cls) if f.default is not MISSING}


def _attrs(node: Node, full: bool) -> str:
    out = []
    for name in _printed_fields(type(node.op)):
        value = getattr(node.op, name)
        if name in ("dtype", "shape") and isinstance(node.type, TensorType) and value == getattr(node.type, name):
            continue
        if name in (defaults := _defaults(type(node.op))) and value == defaults[name]:
            continue
        text = _data_text(value, node.type, full) if isinstance(value, bytes) else _value_text(value)
        out.append(f" {name}={text}")
    return "".join(out)


def _value_text(value: object) -> str:
    """A field's value without spaces outside of quotes."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join([_value_text(v) for v in value])})"
    if callable(value):  # a custom derivative: only shown, `settle` takes it out
        return f"<{value.__qualname__}>"
    return json.dumps(value) if isinstance(value, str) else str(value)


def _data_text(data: bytes, type_: TensorType, full: bool) -> str:
    if type_.dtype.name != "bf16" and 0 < type_.size <= FEW:
        text = f"[{','.join([_value_text(v) for v in np.frombuffer(data, type_.dtype.numpy).tolist()])}]"
        if _data_from_list(text, type_) == data:  # not so for a NaN with a payload
            return text
    shown = data[: FEW * type_.dtype.size]
    if full or len(data) == len(shown):
        return f"base64({b64encode(data).decode()})"
    return f"<{len(data)} bytes: {shown.hex()}...>"


def _data_from_list(text: str, type_: TensorType) -> bytes:
    return np.array([_value(v) for v in text[1:-1].split(",")], type_.dtype.numpy).tobytes()


def _loc_text(loc: Loc) -> str:
    if loc == NOWHERE:
        return ""
    function = f" in {loc.function}" if loc.function else ""
    return f"  # {loc.file}:{loc.line}{function}{' (gradient)' if loc.gradient else ''}"


def _program_lines(program: Program, full: bool) -> list[str]:
    lines = [f"program {program.name} {{", f"  options {json.dumps(program.options)}"]
    for s in program.states.values():
        aliases = f" {json.dumps(s.aliases)}" if s.aliases else ""
        lines.append(f"  state {json.dumps(s.name)} {s.kind}{aliases}: {s.type}{_loc_text(s.loc)}")
    for f in program.functions:
        lines.append(f"  function {f.name} {{{_loc_text(f.loc)}")
        lines += [f"    argument {json.dumps(a.name)}: {a.type}" for a in f.arguments]
        lines += [f"    {name} {json.dumps(getattr(f, name))}" for name in _FUNCTION_FIELDS]
        lines += [f"    print {json.dumps([p.format, p.results])}" for p in f.prints]
        lines += [*_graph_lines(f.graph, full, "    "), "  }"]
    return [*lines, "}"]


_FUNCTION_FIELDS = ("reads", "writes", "inputs", "outputs", "dims", "training", "padded", "unpadded")


# ---- parsing --------------------------------------------------------------------------------------------
_NODE = re.compile(r"%(\d+) = (\w+)(?:@(\d+))?\(([%\d, ]*)\)")
_ATTR = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|<[^>]*>|[^\s:]+)')
_TYPE = re.compile(r": (\([^)]*\)|\w+\[[\d,]*\])")
_TENSOR = re.compile(r"(\w+)\[([\d,]*)\]")
_LOC = re.compile(r"  # (.*):(\d+)(?: in (\S+))?( \(gradient\))?$")
_STATE = re.compile(r'state ("(?:[^"\\]|\\.)*") (\w+)(?: (\[.*?\]))?(?=: )')


def parse(text: str) -> Graph:
    """The graph that `to_text(graph, full=True)` wrote."""
    return _Parser(text).parse_all("graph")


def parse_program(text: str) -> Program:
    """The program that `to_text(program, full=True)` wrote."""
    return _Parser(text).parse_all("program")


def parse_type(text: str) -> Type:
    """`f32[2,3]`, or a tuple of such."""
    if text.startswith("("):
        return TupleType(tuple(parse_type(m.group()) for m in _TENSOR.finditer(text)))
    m = _TENSOR.fullmatch(text)
    if m is None or m[1] not in DTYPES:
        raise PullbackError(f"expected a type such as f32[2,3], got {text!r}")
    return TensorType(DTYPES[m[1]], tuple(int(d) for d in m[2].split(",") if d))


def _value(text: str) -> object:
    if text in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text]
    if text in ("nan", "inf", "-inf"):
        return float(text)
    if text in DTYPES:
        return DTYPES[text]
    if text.startswith("("):
        inner = text[1:-1]
        return tuple(_value(v) for v in re.findall(r'"(?:[^"\\]|\\.)*"|\([^()]*\)|[^,]+', inner))
    return json.loads(text) if text.startswith('"') else literal_eval(text)


class _Parser:
    """Reads line by line; `self.at` is the number of the current line."""

    def __init__(self, text: str):
        self.lines = text.splitlines()
        self.at = -1

    def parse_all(self, what: str) -> Graph | Program:
        self.next()
        return self.graph("graph ") if what == "graph" else self.program()

    def next(self) -> str:
        self.at += 1
        while self.at < len(self.lines) and not self.lines[self.at].strip():
            self.at += 1
        if self.at >= len(self.lines):
            raise PullbackError("the text ends too early: a } is missing")
        return self.line

    @property
    def line(self) -> str:
        return self.lines[self.at].strip()

    def fail(self, expected: str) -> PullbackError:
        return PullbackError(f"line {self.at + 1}: expected {expected}, got {self.line!r}")

    def match(self, pattern: re.Pattern, pos: int, expected: str) -> re.Match:
        m = pattern.match(self.line, pos)
        if m is None:
            raise self.fail(expected)
        return m

    def loc(self, pos: int) -> Loc:
        if pos == len(self.line):
            return NOWHERE
        m = self.match(_LOC, pos, "a location or the end of the line")
        return Loc(m[1], int(m[2]), m[3] or "", bool(m[4]))

    # -- graphs
    def graph(self, prefix: str) -> Graph:
        if not (self.line.startswith(prefix) and self.line.endswith(" {")):
            raise self.fail(f"{prefix}<name> {{")
        name = self.line[len(prefix) : -2]
        nodes: dict[str, Node] = {}
        line = self.next()
        while line.startswith("%"):
            line = self.node(nodes)
        if not line.startswith("return "):
            raise self.fail("a node or return")
        outputs = self.operands(line.removeprefix("return "), nodes)
        if self.next() != "}":
            raise self.fail("}")
        return Graph(name, tuple(n for n in nodes.values() if n.op.name == "input"), outputs)

    def operands(self, text: str, nodes: dict[str, Node]) -> tuple[Node, ...]:
        names = re.findall(r"%(\d+)", text)
        if missing := [x for x in names if x not in nodes]:
            raise self.fail(f"%{missing[0]} to be defined before")
        return tuple(nodes[x] for x in names)

    def node(self, nodes: dict[str, Node]) -> str:
        """One node and its regions; returns the line after."""
        m = self.match(_NODE, 0, "%number = op(operands)")
        number, opname, tag, operands = m.groups()
        cls = OPS.get(opname)
        if cls is None:
            raise self.fail("a known op")
        inputs = self.operands(operands, nodes)
        pos, texts = m.end(), {}
        while m := _ATTR.match(self.line, pos):
            texts[m[1]], pos = m[2], m.end()
        m = self.match(_TYPE, pos, "attributes and a type")
        type_, loc, start = parse_type(m[1]), self.loc(m.end()), self.at
        values = {k: self.attribute(v, type_) for k, v in texts.items()}
        line = self.next()
        for name in region_fields(cls):
            values[name] = self.graph(f"{name} = graph ")
            line = self.next()
        for name in _printed_fields(cls):
            if name in ("dtype", "shape") and name not in values:
                values[name] = getattr(type_, name)
        known = {f.name for f in fields(cls)}
        if not known - _defaults(cls).keys() <= set(values) <= known:
            self.at = start
            raise self.fail(f"the attributes {', '.join(f.name for f in fields(cls))}")
        nodes[number] = Node(cls(**values), inputs, type_, loc, int(tag or 0))
        return line

    def attribute(self, text: str, type_: Type) -> object:
        if text.startswith("["):
            return _data_from_list(text, type_)
        if text.startswith("base64("):
            return b64decode(text[7:-1])
        if text.startswith("<"):
            raise self.fail("a whole constant (print with full=True)")
        return _value(text)

    # -- programs
    def program(self) -> Program:
        if not (self.line.startswith("program ") and self.line.endswith(" {")):
            raise self.fail("program <name> {")
        name = self.line[len("program ") : -2]
        options = json.loads(self.next().removeprefix("options "))
        states, functions = {}, []
        while (line := self.next()) != "}":
            if line.startswith("state "):
                s = self.state()
                states[s.name] = s
            elif line.startswith("function "):
                functions.append(self.function())
            else:
                raise self.fail("state, function or }")
        return Program(name, states, tuple(functions), options)

    def state(self) -> State:
        m = self.match(_STATE, 0, 'state "name" kind: type')
        t = self.match(_TYPE, m.end(), "a type")
        aliases = tuple(json.loads(m[3])) if m[3] else ()
        return State(json.loads(m[1]), parse_type(t[1]), m[2], aliases, self.loc(t.end()))

    def function(self) -> Function:
        m = self.match(re.compile(r"function (\S+) \{"), 0, "function <name> {")
        name, loc, arguments, prints, values = m[1], self.loc(m.end()), [], [], {}
        while not self.next().startswith("graph "):
            word, _, rest = self.line.partition(" ")
            if word == "argument":
                label, _, type_ = rest.rpartition(": ")
                arguments.append(Argument(json.loads(label), parse_type(type_)))
            elif word == "print":
                text, results = json.loads(rest)
                prints.append(Print(text, tuple(results)))
            elif word in _FUNCTION_FIELDS:
                values[word] = json.loads(rest)
            else:
                raise self.fail(f"argument, print, {', '.join(_FUNCTION_FIELDS)} or graph")
        values |= {k: tuple(values[k]) for k in ("reads", "writes")}
        graph = self.graph("graph ")
        if self.next() != "}":
            raise self.fail("}")
        return Function(name=name, graph=graph, arguments=tuple(arguments), loc=loc, prints=tuple(prints), **values)
