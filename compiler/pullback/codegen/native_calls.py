"""Calls of compiled functions in the C ABI: by pointers, by numpy's array structs, from Python."""

from __future__ import annotations

from .native_builder import Function, Value
from .native_layout import MAGIC, Block, Context, Control, Entry, Header, Pool, Python, Status

# numpy's PyArrayInterface, and the flags that an argument must have: C-contiguous, aligned, native byte order,
# and for an output writeable.
DIMENSIONS, KIND, ITEM, FLAGS, SHAPE, DATA = 4, 8, 12, 16, 24, 40
INPUT_FLAGS, OUTPUT_FLAGS = 0x301, 0x701


def functions() -> list[Function]:
    return [execute(), run(), matches(), call(), python(), call_python()]


def execute() -> Function:
    """A step: `bases` hold the function's arrays from the fourth on; the lock is held."""
    f = Function("void", "execute", "ptr context, ptr entry, ptr bases, ptr status")
    context, bases, status = f["context"], f["bases"], f["status"]
    control = (context + Context.POOL).load("ptr") + Pool.CONTROL
    tables = (context + Context.TABLES).load("ptr")
    bases.store((context + Context.ARENA).load("ptr"), "ptr")
    (bases + 8).store((context + Context.STATE).load("ptr"), "ptr")
    (bases + 16).store(f.symbol("pb_constants"), "ptr")
    for offset, value in (
        (Control.CONTEXT, context),
        (Control.BASES, bases),
        (Control.STATUS, status),
        (Control.POSITION, tables + (f["entry"] + Entry.PROGRAM).load()),
        (Control.TABLES, tables),
        (Control.KERNELS, (context + Context.KERNELS).load("ptr")),
        (Control.SCRATCH, (context + Context.SCRATCH).load("ptr")),
    ):
        (control + offset).store(value, "ptr")
    (control + Control.SCRATCH_SIZE).store((tables + Header.SCRATCH).load())
    (control + Control.COMMITTED).store(0)
    (control + Control.COUNT).store(0)
    for level in range(4):
        (control + Control.LOOPS + 8 * level).store(0)
    threads = (context + Context.THREADS).load()
    with f.when(threads > 1):
        with f.when((control + Control.STARTED).load() == 0):
            f.call("void", "start_workers", control, threads)
        with f.when((control + Control.STARTED).load() > 1):
            with f.when((control + Control.APART).load() == 0):
                f.call("void", "part", control)
            (control + Control.END).store(-1, order="monotonic")
            f.call("void", "proceed", control, 0)
            f.call("void", "work", control, 0)
            f.ret()
    f.call("void", "run_serial", control)
    f.ret()
    return f


def _enter(f: Function, context: Value, function: Value, status: Value) -> tuple[Value, Value, Value]:
    """Checks and space that every call needs: (control page, the function's row, array of bases)."""
    for offset in range(0, Status.SIZE, 8):
        (status + offset).store(0)
    with f.when((context + Context.MAGIC).load() != MAGIC):
        (status + Status.CODE).store(Status.NO_CONTEXT)
        f.ret(Status.NO_CONTEXT)
    tables = (context + Context.TABLES).load("ptr")
    with f.when(function >= (tables + Header.FUNCTIONS).load()):
        (status + Status.CODE).store(Status.NO_FUNCTION)
        f.ret(Status.NO_FUNCTION)
    entry = tables + (tables + Header.FUNCTION_ROWS).load() + function * Entry.SIZE
    count = (entry + Entry.ARRAYS).load() + 3
    bases = f.emit("ptr", f"alloca ptr, {count}, align 16")
    return (context + Context.POOL).load("ptr") + Pool.CONTROL, entry, bases


def _finish(f: Function, control: Value, context: Value, entry: Value, bases: Value, status: Value) -> None:
    f.call("void", "lock", control + Control.LOCK)
    f.call("void", "execute", context, entry, bases, status)
    f.call("void", "unlock", control + Control.LOCK)
    f.ret((status + Status.CODE).load())


def run() -> Function:
    f = Function("i64", "pb_run", "ptr context, i64 function, ptr arrays, ptr status", linkage="")
    context, status = f["context"], f["status"]
    control, entry, bases = _enter(f, context, f["function"], status)
    with f.count_to(0, (entry + Entry.ARRAYS).load()) as i:
        (bases + ((i + 3) << 3)).store((f["arrays"] + (i << 3)).load("ptr"), "ptr")
    _finish(f, control, context, entry, bases, status)
    return f


def matches() -> Function:
    """Is an array (numpy's PyArrayInterface) what the function expects, and apart from the state?"""
    f = Function("i1", "matches", "ptr array, ptr type, ptr tables, ptr context, i32 flags")
    array, type = f["array"], f["type"]
    dimensions = (type + Entry.DIMENSIONS).load()
    same = (array + DIMENSIONS).load("i32").to("i64") == dimensions
    same = same & ((array + KIND).load("i8").to("i64") == (type + Entry.KIND).load())
    same = same & ((array + ITEM).load("i32").to("i64") == (type + Entry.ITEM).load())
    same = same & (((array + FLAGS).load("i32") & f["flags"]) == f["flags"])
    with f.when(same):
        actual, expected = (array + SHAPE).load("ptr"), f["tables"] + (type + Entry.SHAPE).load()
        with f.count_to(0, dimensions) as i, f.when((actual + (i << 3)).load() != (expected + (i << 3)).load()):
            f.ret(0)
        state = (f["context"] + Context.STATE).load()
        nbytes = (f["tables"] + Header.STATE).load()
        f.ret(((array + DATA).load() - state) >= nbytes)
    f.ret(0)
    return f


def call() -> Function:
    f = Function("i64", "pb_call", "ptr block", linkage="")
    block = f["block"]
    context, status = (block + Block.CONTEXT).load("ptr"), (block + Block.STATUS).load("ptr")
    control, entry, bases = _enter(f, context, (block + Block.FUNCTION).load(), status)
    tables, arrays = (context + Context.TABLES).load("ptr"), (block + Block.ARRAYS).load("ptr")
    types, inputs = tables + (entry + Entry.TYPES).load(), (entry + Entry.INPUTS).load()
    with f.count_to(0, (entry + Entry.ARRAYS).load()) as i:
        array = (arrays + (i << 3)).load("ptr")
        flags = f.select(i < inputs, INPUT_FLAGS, OUTPUT_FLAGS, "i32")
        ok = f.call("i1", "matches", array, types + i * Entry.TYPE_SIZE, tables, context, flags)
        with f.when(ok == 0, likely=False):
            (status + Status.CODE).store(Status.ARGUMENT)
            (status + Status.VALUE).store(i)
            f.ret(Status.ARGUMENT)
        (bases + ((i + 3) << 3)).store((array + DATA).load("ptr"), "ptr")
    _finish(f, control, context, entry, bases, status)
    return f


def python() -> Function:
    """Tell where CPython's functions are, so that an artifact does not depend on Python."""
    f = Function("void", "pb_python", "ptr functions", linkage="")
    for offset in range(0, Python.SIZE, 8):
        (f.symbol("python") + offset).store((f["functions"] + offset).load("ptr"), "ptr")
    f.ret()
    return f


def call_python() -> Function:
    """`pb_call` as a builtin function of CPython (METH_FASTCALL): self is a capsule of the block, the arguments are
    `__array_struct__` capsules, the result is the status code.  The interpreter lock is released during the step.
    """
    f = Function("ptr", "pb_call_python", "ptr self, ptr capsules, i64 count", linkage="")
    api = f.symbol("python")
    pointer, integer = (api + Python.CAPSULE_POINTER).load("ptr"), (api + Python.INTEGER).load("ptr")
    block = f.call("ptr", pointer, f["self"], f.null())
    with f.when(block == f.null()):  # it has set the exception
        f.ret(f.null())
    context, arrays = (block + Block.CONTEXT).load("ptr"), (block + Block.ARRAYS).load("ptr")
    with f.when((context + Context.MAGIC).load() != MAGIC):
        f.ret(f.call("ptr", integer, f.operand(Status.NO_CONTEXT, "i64")))
    tables = (context + Context.TABLES).load("ptr")
    entry = tables + (tables + Header.FUNCTION_ROWS).load() + (block + Block.FUNCTION).load() * Entry.SIZE
    with f.when((entry + Entry.ARRAYS).load() != f["count"]):
        f.ret(f.call("ptr", integer, f.operand(Status.ARGUMENT, "i64")))
    with f.count_to(0, f["count"]) as i:
        array = f.call("ptr", pointer, (f["capsules"] + (i << 3)).load("ptr"), f.null())
        with f.when(array == f.null()):
            f.ret(f.null())
        (arrays + (i << 3)).store(array, "ptr")
    thread = f.call("ptr", (api + Python.SAVE_THREAD).load("ptr"))
    code = f.call("i64", "pb_call", block)
    f.call("void", (api + Python.RESTORE_THREAD).load("ptr"), thread)
    f.ret(f.call("ptr", integer, code))
    return f
