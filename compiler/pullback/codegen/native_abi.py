"""The C ABI of an artifact but for the calls: sizes, contexts, threads.  `artifact/header.py` documents it."""

from __future__ import annotations

from . import native_calls
from . import native_system as system
from .native_builder import Function, Value
from .native_layout import (
    ABI,
    MAGIC,
    MAX_WORKERS,
    Context,
    Control,
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
    "pb_python", "pb_call_python", "pb_state", "pb_close",
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
@python = internal global [4 x ptr] zeroinitializer
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


def functions() -> list[Function]:
    return [
        abi(), manifest(), level_of(), sizes(), take_pool(), start_workers(), stop_workers(), stop_all(),
        open_context(), *native_calls.functions(), initialise(), state(), close(),
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
        (record + Record.THREAD).store(0)
        failed = f.call(
            "i32", "pthread_create", control + Control.THREADS + (i << 3), f.null(), f.symbol("worker"), record,
            types="ptr ptr ptr ptr",
        )  # fmt: skip
        with f.when(failed != 0):
            f.stop()
        started.set(started.get() + 1)
    f.syscall(system.SIGPROCMASK, 2, old, 0, 8)
    (control + Control.APART).store(0)
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
    with f.when((options + Options.SIZE_OF).load() != Options.SIZE):
        f.ret(Status.NO_OPTIONS)
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
    row = f.symbol("pb_levels") + level * Level.SIZE
    (context + Context.TABLES).store((row + Level.TABLES).load("ptr"), "ptr")
    (context + Context.KERNELS).store((row + Level.KERNELS).load("ptr"), "ptr")
    (context + Context.INJECT).store((options + Options.INJECT).load() - 1)
    (context + Context.MAGIC).store(MAGIC)
    f.ret(0)
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
