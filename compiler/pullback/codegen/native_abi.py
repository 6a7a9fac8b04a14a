"""The C ABI of an artifact, written with the builder.  `artifact/header.py` says what each function promises."""

from __future__ import annotations

from . import native_system as system
from .native_builder import Function, Value
from .native_layout import (
    ABI,
    MAGIC,
    MAX_WORKERS,
    Block,
    Context,
    Control,
    Entry,
    Header,
    Level,
    Options,
    Pool,
    Record,
    Sizes,
    Status,
)

EXPORTS = (
    "pb_abi", "pb_manifest", "pb_features", "pb_level", "pb_sizes", "pb_open", "pb_init", "pb_run", "pb_call",
    "pb_call_python", "pb_state", "pb_close",
)  # fmt: skip
"""The functions that an artifact exports."""

# Defined by the linker from the artifact's data: the manifest, the levels, the constants.
GLOBALS = """
@pb_manifest_data = external hidden constant i8
@pb_manifest_end = external hidden constant i8
@pb_levels = external hidden constant i8
@pb_level_count = external hidden constant i64
@pb_constants = external hidden constant i8
@pools = internal global ptr null
@pb_fini = internal constant [1 x ptr] [ptr @stop_all], section ".fini_array", align 8
@llvm.used = appending global [1 x ptr] [ptr @pb_fini], section "llvm.metadata"
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i64 @syscall(i64, ...)
"""

ATTRIBUTES = """
attributes #0 = { nounwind }
attributes #1 = { nounwind noinline cold }
attributes #2 = { nounwind "no-builtins" }
!0 = !{!"branch_weights", i32 2000, i32 1}
!1 = !{!"branch_weights", i32 1, i32 2000}
"""

READ_WRITE, PRIVATE_ANONYMOUS, WIPE_ON_FORK = 3, 0x22, 18
"""mmap's protection and flags, madvise's advice."""

# numpy's PyArrayInterface, and the flags that an argument must have: C-contiguous, aligned, native byte order,
# and for an output writeable.
DIMENSIONS, KIND, ITEM, FLAGS, SHAPE, DATA = 4, 8, 12, 16, 24, 40
INPUT_FLAGS, OUTPUT_FLAGS = 0x301, 0x701


def functions() -> list[Function]:
    return [
        abi(), manifest(), level_of(), sizes(), take_pool(), start_workers(), stop_workers(), stop_all(),
        open_context(), execute(), run(), matches(), call(), call_python(), initialise(), state(), close(),
    ]  # fmt: skip


def abi() -> Function:
    f = Function("i32", "pb_abi", linkage="")
    f.ret(ABI)
    return f


def manifest() -> Function:
    f = Function("ptr", "pb_manifest", "ptr length", linkage="")
    start, end = f.symbol("pb_manifest_data"), f.symbol("pb_manifest_end")
    with f.when(f["length"] != f.null()):
        f["length"].store(end.to("i64") - start.to("i64"))
    f.ret(start)
    return f


def level_of() -> Function:
    """The best level that this machine can run, counted from 0; -1 if there is none."""
    f = Function("i64", "pb_level", linkage="")
    best, have = f.variable("i64", -1), f.call("i64", "pb_features")
    with f.count_to(0, f.symbol("pb_level_count").load()) as i:
        needs = (f.symbol("pb_levels") + i * Level.SIZE + Level.NEEDS).load()
        with f.when((needs & have) == needs):
            best.set(i)
    f.ret(best.get())
    return f


def _tables(f: Function, level: Value) -> Value:
    return (f.symbol("pb_levels") + level * Level.SIZE + Level.TABLES).load("ptr")


def _level(f: Function, wanted: Value) -> Value:
    """The level to use: `wanted` - 1, or the best if that is 0; -1 if this machine lacks it."""
    best = f.call("i64", "pb_level")
    usable = (wanted == 0) | (wanted <= best + 1)
    return f.select(usable, f.select(wanted == 0, best, wanted - 1), -1)


def _threads(f: Function, wanted: Value) -> Value:
    """The number of threads to use: what was asked for, or one for each processor of this process."""
    out = f.variable("i64", wanted)
    with f.when(wanted == 0):
        mask, count = f.space(128), f.variable("i64", 0)
        nbytes = f.syscall(system.SCHED_GETAFFINITY, 0, 128, mask)
        with f.when(f.operand(0, "i64").signed_less(nbytes)), f.count_to(0, nbytes >> 3) as i:
            bits = f.variable("i64", (mask + (i << 3)).load())
            with f.forever():
                word = bits.get()
                with f.when(word == 0):
                    f.stop()
                bits.set(word & (word - 1))
                count.set(count.get() + 1)
        out.set(count.get())
    n = out.get()
    return f.select(n == 0, 1, f.minimum(n, f.operand(MAX_WORKERS, "i64")))


def sizes() -> Function:
    f = Function("i64", "pb_sizes", "ptr options, ptr out", linkage="")
    options, out = f["options"], f["out"]
    level, threads = f.variable("i64", 0), f.variable("i64", 0)
    with f.when(options != f.null()):
        level.set((options + Options.LEVEL).load())
        threads.set((options + Options.THREADS).load())
    chosen = _level(f, level.get())
    with f.when(chosen == -1):
        f.ret(Status.NO_LEVEL)
    tables, count = _tables(f, chosen), _threads(f, threads.get())
    (out + Sizes.CONTEXT).store(Context.SIZE)
    (out + Sizes.STATE).store((tables + Header.STATE).load())
    (out + Sizes.ARENA).store((tables + Header.ARENA).load())
    (out + Sizes.SCRATCH).store((tables + Header.SCRATCH).load() * count)
    f.ret(0)
    return f


def take_pool() -> Function:
    """A pool that no context uses, or a new one.  Pools are never unmapped, so the list needs no lock."""
    f = Function("ptr", "take_pool")
    head = f.symbol("pools")
    at = f.variable("ptr", head.load("ptr", "acquire"))
    with f.forever():
        pool = at.get()
        with f.when(pool == f.null()):
            f.stop()
        with f.when((pool + Pool.USED).compare_exchange(0, 1)):
            f.ret(pool)
        at.set((pool + Pool.NEXT).load("ptr"))
    address = f.syscall(system.MMAP, 0, Pool.SIZE, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0)
    with f.when(address > -4096):
        f.ret(f.null())
    pool = address.to("ptr")
    # A system that cannot wipe on fork gets no workers, because a child would wait for them.
    failed = f.syscall(system.MADVISE, pool + Pool.CONTROL, Pool.SIZE - Pool.CONTROL, WIPE_ON_FORK)
    (pool + Pool.ALONE).store((failed != 0).to("i64"))
    (pool + Pool.USED).store(1)
    with f.forever():
        old = head.load("ptr", "acquire")
        (pool + Pool.NEXT).store(old, "ptr")
        with f.when(head.compare_exchange(old, pool, "ptr")):
            f.ret(pool)
    return f


def start_workers() -> Function:
    """Start the workers of a context, on its first step or its first after a fork.  They get no signals."""
    f = Function("void", "start_workers", "ptr control, i64 threads", attributes="#1")
    control = f["control"]
    everything, old = f.space(8), f.space(8)
    everything.store(-1)
    f.syscall(system.SIGPROCMASK, 2, everything, old, 8)
    started = f.variable("i64", 1)
    with f.count_to(1, f["threads"]) as i:
        record = control + Control.RECORDS + i * Record.SIZE
        (record + Record.WORKER).store(i)
        (record + Record.POOL).store(control, "ptr")
        failed = f.call(
            "i32", "pthread_create", control + Control.THREADS + (i << 3), f.null(), f.symbol("worker"), record,
            types="ptr ptr ptr ptr",
        )  # fmt: skip
        with f.when(failed != 0):
            f.stop()
        started.set(started.get() + 1)
    f.syscall(system.SIGPROCMASK, 2, old, 0, 8)
    (control + Control.STARTED).store(started.get())
    f.ret()
    return f


def stop_workers() -> Function:
    f = Function("void", "stop_workers", "ptr control", attributes="#1")
    control = f["control"]
    started = (control + Control.STARTED).load()
    with f.when(started > 1):
        (control + Control.QUIT).store(1, "i32", "release")
        # Another launch number, no blocks: everybody looks again.  A step in progress ends on its caller's thread.
        (control + Control.WORD).fetch_add(1 << 32, "seq_cst")
        f.call("void", "wake", control, 0x7FFFFFFF)
        with f.count_to(1, started) as i:
            thread = (control + Control.THREADS + (i << 3)).load()
            f.call("i32", "pthread_join", thread, f.null(), types="i64 ptr")
        (control + Control.QUIT).store(0, "i32", "release")
    (control + Control.STARTED).store(0)
    f.ret()
    return f


def stop_all() -> Function:
    """Run when the library is unloaded or the process exits: no thread may be left in code that goes away."""
    f = Function("void", "stop_all")
    at = f.variable("ptr", f.symbol("pools").load("ptr", "acquire"))
    with f.forever():
        pool = at.get()
        with f.when(pool == f.null()):
            f.ret()
        f.call("void", "stop_workers", pool + Pool.CONTROL)
        at.set((pool + Pool.NEXT).load("ptr"))
    return f


def open_context() -> Function:
    f = Function("i64", "pb_open", "ptr context, ptr options", linkage="")
    context, options = f["context"], f["options"]
    level = _level(f, (options + Options.LEVEL).load())
    with f.when(level == -1):
        f.ret(Status.NO_LEVEL)
    pool = f.call("ptr", "take_pool")
    with f.when(pool == f.null()):
        f.ret(Status.NO_MEMORY)
    threads = f.select((pool + Pool.ALONE).load() != 0, 1, _threads(f, (options + Options.THREADS).load()))
    (context + Context.POOL).store(pool, "ptr")
    for name in ("STATE", "ARENA", "SCRATCH", "STOP"):
        (context + getattr(Context, name)).store((options + getattr(Options, name)).load("ptr"), "ptr")
    (context + Context.THREADS).store(threads)
    (context + Context.LEVEL).store(level)
    # A claim is at most 1 / (2 threads) of what is left, the threads rounded up to a power of two.
    shift = f.variable("i64", 1)
    with f.forever():
        with f.when((f.operand(2, "i64") << (shift.get() - 1)) >= threads * 2):
            f.stop()
        shift.set(shift.get() + 1)
    (context + Context.SHIFT).store(shift.get())
    row = f.symbol("pb_levels") + level * Level.SIZE
    (context + Context.TABLES).store((row + Level.TABLES).load("ptr"), "ptr")
    (context + Context.KERNELS).store((row + Level.KERNELS).load("ptr"), "ptr")
    (context + Context.INJECT).store((options + Options.INJECT).load() - 1)
    (context + Context.MAGIC).store(MAGIC)
    f.ret(0)
    return f


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
    (control + Control.SHIFT).store((context + Context.SHIFT).load())
    (control + Control.COMMITTED).store(0)
    (control + Control.COUNT).store(0)
    for level in range(4):
        (control + Control.LOOPS + 8 * level).store(0)
    threads = (context + Context.THREADS).load()
    with f.when(threads > 1):
        with f.when((control + Control.STARTED).load() == 0):
            f.call("void", "start_workers", control, threads)
        with f.when((control + Control.STARTED).load() > 1):
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


def call_python() -> Function:
    """`pb_call` on a tuple of `__array_struct__` capsules, with the interpreter lock released while the step runs.

    CPython's functions come in the block, so an artifact does not depend on Python.
    """
    f = Function("i64", "pb_call_python", "ptr block, ptr capsules", linkage="")
    block, capsules = f["block"], f["capsules"]
    context, arrays = (block + Block.CONTEXT).load("ptr"), (block + Block.ARRAYS).load("ptr")
    with f.when((context + Context.MAGIC).load() != MAGIC):
        f.ret(Status.NO_CONTEXT)
    tables = (context + Context.TABLES).load("ptr")
    entry = tables + (tables + Header.FUNCTION_ROWS).load() + (block + Block.FUNCTION).load() * Entry.SIZE
    item, pointer = (block + Block.TUPLE_ITEM).load("ptr"), (block + Block.CAPSULE_POINTER).load("ptr")
    with f.count_to(0, (entry + Entry.ARRAYS).load()) as i:
        capsule = f.call("ptr", item, capsules, i)
        with f.when(capsule == f.null()):
            f.ret(Status.ARGUMENT)
        array = f.call("ptr", pointer, capsule, f.null())
        with f.when(array == f.null()):
            f.ret(Status.ARGUMENT)
        (arrays + (i << 3)).store(array, "ptr")
    thread = f.call("ptr", (block + Block.SAVE_THREAD).load("ptr"))
    code = f.call("i64", "pb_call", block)
    f.call("void", (block + Block.RESTORE_THREAD).load("ptr"), thread)
    f.ret(code)
    return f


def initialise() -> Function:
    """Sets the seed and runs the program's `init` function."""
    f = Function("i64", "pb_init", "ptr context, i64 seed, ptr status", linkage="")
    context = f["context"]
    with f.when((context + Context.MAGIC).load() != MAGIC):
        f.ret(Status.NO_CONTEXT)
    tables = (context + Context.TABLES).load("ptr")
    seed = (tables + Header.SEED).load()
    with f.when(seed != -1):
        ((context + Context.STATE).load("ptr") + seed).store(f["seed"])
    init = (tables + Header.INIT).load()
    with f.when(init == -1):
        f.ret(0)
    f.ret(f.call("i64", "pb_run", context, init, f.null(), f["status"]))
    return f


def state() -> Function:
    f = Function("ptr", "pb_state", "ptr context", linkage="")
    f.ret((f["context"] + Context.STATE).load("ptr"))
    return f


def close() -> Function:
    """Stop the workers and give the pool back.  No step of this context may be running."""
    f = Function("void", "pb_close", "ptr context", linkage="")
    context = f["context"]
    with f.when((context + Context.MAGIC).load() != MAGIC):
        f.ret()
    pool = (context + Context.POOL).load("ptr")
    f.call("void", "stop_workers", pool + Pool.CONTROL)
    (context + Context.MAGIC).store(0)
    (pool + Pool.USED).store(0, order="release")
    f.ret()
    return f
