"""Artifacts made without lowering or emitter: hand-written LLVM kernels and a hand-made plan.

Block b of `add`: o[b] = x[b] + y[b] (f32).  `take`: fails for x[b] outside of 0..3 (i32).  `wait`: some
milliseconds per block, adds 1 to o[b].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pullback.artifact.write import artifact_bytes
from pullback.codegen.compile import compile_module
from pullback.codegen.native import native_object
from pullback.codegen.target import cpu_target
from pullback.driver import write
from pullback.graph.graph import Graph, Loc
from pullback.graph.program import SEED, Function, Program, State
from pullback.graph.program import Argument as Input
from pullback.graph.types import TensorType, f32, i32, u32
from pullback.kernel.kernel import Kernel
from pullback.kernel.plan import (
    ARENA,
    CONSTANTS,
    FIRST_ARGUMENT,
    STATE,
    Argument,
    Call,
    FunctionPlan,
    Launch,
    Plan,
    Repeat,
    StateSlot,
)

N = 64
TARGET = cpu_target("x86-64-v2")
LOC = Loc("model.py", 12, "train")
VECTOR, INDEX = TensorType(f32, (N,)), TensorType(i32, (N,))


def _address(name: str, number: int) -> str:
    """LLVM text: the address of argument `number`."""
    lines = [
        f"%{name}.row = getelementptr [6 x i64], ptr %args, i64 {number}",
        f"%{name}.base = load i64, ptr %{name}.row",
    ]
    lines += [f"%{name}.p = getelementptr i64, ptr %{name}.row, i64 1", f"%{name}.sum = load i64, ptr %{name}.p"]
    total = f"%{name}.sum"
    for level in range(4):
        at = f"%{name}.{level}"
        lines += [
            f"{at}.p = getelementptr i64, ptr %{name}.row, i64 {2 + level}",
            f"{at}.stride = load i64, ptr {at}.p",
            f"{at}.q = getelementptr i64, ptr %loops, i64 {level}",
            f"{at}.counter = load i64, ptr {at}.q",
            f"{at}.moved = mul i64 {at}.stride, {at}.counter",
            f"{at}.sum = add i64 {total}, {at}.moved",
        ]
        total = f"{at}.sum"
    lines += [
        f"%{name}.slot = getelementptr ptr, ptr %bases, i64 %{name}.base",
        f"%{name}.start = load ptr, ptr %{name}.slot",
        f"%{name} = getelementptr i8, ptr %{name}.start, i64 {total}",
    ]
    return "".join(f"\n  {line}" for line in lines)


def _kernel(name: str, isa: str, parameters: str, body: str, last: str = "loop") -> str:
    head = "(ptr %args, ptr %bases, ptr %loops, ptr %scratch, ptr %status, i64 %lo, i64 %hi)"
    addresses = "".join(_address(p, i) for i, p in enumerate(parameters.split()))
    return f"""
define hidden void @k_{name}_{isa}{head} {{
begin:{addresses}
  br label %loop
loop:
  %i = phi i64 [ %lo, %begin ], [ %next, %{last} ]
{body}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %hi
  br i1 %more, label %loop, label %end
end:
  ret void
}}
"""


_ADD = """
  %xi = getelementptr float, ptr %x, i64 %i
  %yi = getelementptr float, ptr %y, i64 %i
  %oi = getelementptr float, ptr %o, i64 %i
  %a = load float, ptr %xi, align 4
  %b = load float, ptr %yi, align 4
  %s = fadd float %a, %b
  store float %s, ptr %oi, align 4"""

_TAKE = """
  %xi = getelementptr i32, ptr %x, i64 %i
  %v = load i32, ptr %xi, align 4
  %wide = sext i32 %v to i64
  %bad = icmp uge i32 %v, 4
  br i1 %bad, label %fail, label %ok
fail:
  call void @pb_check_failed(ptr %status, i64 0, i64 %wide)
  br label %ok
ok:"""

_WAIT = """
  %oi = getelementptr float, ptr %o, i64 %i
  br label %spin
spin:
  %n = phi i64 [ 0, %loop ], [ %n1, %spin ]
  store volatile i64 %n, ptr %scratch
  %n1 = add i64 %n, 1
  %again = icmp ult i64 %n1, 400000
  br i1 %again, label %spin, label %done
done:
  %a = load float, ptr %oi, align 4
  %s = fadd float %a, 1.0
  store float %s, ptr %oi, align 4"""


def kernels(isa: str = "v2") -> str:
    return "\n".join(
        [
            'target triple = "x86_64-unknown-linux-gnu"',
            "declare void @pb_check_failed(ptr, i64, i64)",
            _kernel("add", isa, "x y o", _ADD),
            _kernel("take", isa, "x", _TAKE, "ok"),
            _kernel("wait", isa, "o", _WAIT, "done"),
        ]
    )


def arg(base: int, offset: int = 0, *strides: int) -> Argument:
    return Argument(base, offset, strides)


def add(x: Argument, y: Argument, o: Argument, blocks: int = N) -> Call:
    return Call("add", (x, y, o), blocks, LOC, "add")


def take(x: Argument) -> Call:
    return Call("take", (x,), N, LOC, "take", ("model.py:12: index of take(table, i)",))


def launch(*calls: Call, chunk: int = 8) -> Launch:
    return Launch(calls, chunk)


IN0, IN1, IN2 = (arg(FIRST_ARGUMENT + i) for i in range(3))
W, ZERO, SCRATCH = arg(STATE), arg(CONSTANTS), arg(ARENA)

# train(x, i) -> w + 4 x: check i; t = x + x; three times t += x[4k..] within its first 48; then w += t; out = w
TRAIN = FunctionPlan(
    "train",
    (VECTOR, INDEX),
    (VECTOR,),
    (
        launch(take(IN1)),
        launch(add(IN0, IN0, SCRATCH)),
        Repeat(3, (launch(add(SCRATCH, arg(FIRST_ARGUMENT, 0, 16), SCRATCH, 48), chunk=4),)),
        launch(add(W, SCRATCH, W), chunk=16),
        launch(add(W, ZERO, IN2), chunk=N),
    ),
    3,
    N * 4,
    64,
)
INIT = FunctionPlan("init", (), (), (launch(add(ZERO, ZERO, W), chunk=N),), 0, 0, 0)
# slow(): 200 launches that wait, before the commit point, on the arena; then w += 1 everywhere by `wait`
SLOW = FunctionPlan(
    "slow",
    (),
    (),
    (Repeat(200, (launch(Call("wait", (SCRATCH,), 4, LOC), chunk=1),)), launch(Call("wait", (W,), 4, LOC), chunk=1)),
    1,
    N * 4,
    64,
)


def train_reference(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    t = x + x
    for k in range(3):
        t[:48] += x[4 * k : 4 * k + 48]
    return w + t


def plan(*functions: FunctionPlan) -> Plan:
    empty = {k: Kernel(k, (), (), ()) for k in ("add", "take", "wait")}
    state = (StateSlot("w", VECTOR, 0, (1,)), StateSlot("m", TensorType(f32, (2, 3)), 256, (1, 2)))
    return Plan(empty, functions, (*state, StateSlot(SEED, TensorType(u32, (2,)), 320, (1,))), 384, bytes(4 * N))


STATES = {
    "w": State("w", VECTOR, aliases=("tied",)),
    "m": State("m", TensorType(f32, (2, 3)), "slot"),
    SEED: State(SEED, TensorType(u32, (2,)), "seed"),
}


def function(p: FunctionPlan, names: tuple[str, ...] = (), **fields) -> Function:
    """The program's side of a planned function whose inputs are flat and whose result is its only output."""
    arguments = tuple(Input(n, t) for n, t in zip(names, p.inputs, strict=True))
    tree = {n: i for i, n in enumerate(names)}
    fields = {"outputs": 0 if p.outputs else None, "loc": LOC, **fields}
    return Function(p.name, Graph(p.name, (), ()), arguments, ("w",), ("w",), fields.pop("inputs", tree), **fields)


def program(*functions: Function) -> Program:
    return Program("demo", STATES, functions, {"script_args": ["--width", "64"]})


def demo() -> tuple[Program, Plan]:
    functions = (function(TRAIN, ("x", "i")), function(SLOW), function(INIT))
    return program(*functions), plan(TRAIN, SLOW, INIT)


def build(path: Path, made: tuple[Program, Plan] | None = None, isas: tuple[str, ...] = ("v2",)) -> Path:
    """Write an artifact of `made` (default: `demo()`) for the given levels."""
    prog, the_plan = made or demo()
    targets = [cpu_target(f"x86-64-{isa}") for isa in isas]
    objects = [compile_module(kernels(isa), TARGET) for isa in isas]
    write(path, artifact_bytes(prog, {isa: the_plan for isa in isas}, targets, objects, native_object()))
    return path


def demo_bytes() -> bytes:
    prog, the_plan = demo()
    return artifact_bytes(prog, {"v2": the_plan}, [TARGET], [compile_module(kernels(), TARGET)], native_object())
