"""The native module: what every artifact contains besides kernels and tables.  Out: LLVM IR text.

It is the same for every program, so its object code is compiled once and cached.  It interprets the tables
that `artifact/tables.py` packs from a `Plan`, deals the blocks of launches out to worker threads in the plan's
portions, and is the C ABI (`artifact/header.py` documents it).

*Claim and complete*: one word `launch number << 32 | first << 16 | last` is all that workers compete for: portions
first <= p < last are left.  They claim `chunk` of them by compare-exchange, even workers from the front and odd ones
from the back, so that with two workers each finds about the same data in its cache launch for launch and step for
step: to write what another processor has read costs an exchange between them for every cache line.  Who finishes a
launch's last portion starts the next.  A launch ends when its portions are done, not when all workers arrive, so a
worker that the machine took away holds up nobody.  What a
launch is (its row, portions, chunk) is written before the word is published, and only after every portion of the
launch before it is done.  So what a worker read between loading the word and claiming by it belongs to that
word: were it stale, the claim would fail.

*Processors*: workers stay off the processor on which the step's caller runs.  Left to itself a kernel may put a
woken worker behind the thread that woke it (to save power, or to keep it near the data), and there it waits until
that one has done all the work alone.

*Memory*: the caller owns context, state, arena and scratch.  Workers and the step in progress live in a *pool*,
pages of the library's own, one for each open context, of which all but the first are wiped on fork: a child sees
a pool without workers and starts its own when it first needs them.

*Failures*: a failed check is kept in the worker's record, then in the status (the lowest call and block of the
launch, whatever the number of threads).  Before the commit point a failure or stop request ends the step; after
it the step runs to its end, so state is either as it was before or as it is after the step.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm

from . import native_abi, native_system
from .compile import compile_module
from .native_builder import Function, Value
from .native_layout import MOST_PORTIONS, Context, Control, Op, Record, Row, Status
from .target import Target

_AFFINITY = 128
"""Bytes of a set of processors: 1024 of them."""


@cache
def native_module(triple: str = "x86_64-unknown-linux-gnu") -> str:
    """The LLVM IR text of the native module for one machine."""
    llvm.initialize_native_asmparser()  # cpuid is inline assembly, on which LLVM aborts without a parser
    functions = [
        *native_system.functions(),
        check_failed(),
        report(),
        interrupted(),
        advance(),
        run_range(),
        wake(),
        part(),
        proceed(),
        work(),
        worker(),
        run_serial(),
        *native_abi.functions(),
    ]
    return "\n".join([f'target triple = "{triple}"', native_abi.GLOBALS, *map(str, functions), native_abi.ATTRIBUTES])


def field(base: Value, offset: int, type: str = "i64") -> Value:
    """A field that others write while this thread may read it."""
    return (base + offset).load(type, "monotonic")


def check_failed() -> Function:
    """Kernels call it when a check fails: the worker's first failure of this launch is kept."""
    f = Function("void", "pb_check_failed", "ptr status, i64 site, i64 value", "hidden", "#1")
    record = f["status"]
    with f.when((record + Record.CODE).load() == 0):
        (record + Record.CODE).store(Status.CHECK)
        (record + Record.SITE).store(f["site"])
        (record + Record.VALUE).store(f["value"])
    f.ret()
    return f


def report() -> Function:
    """A worker's record -> the step's status; the lowest (call, block) of the first failing launch wins."""
    f = Function("void", "report", "ptr control, ptr launch, i64 call, i64 block, ptr record", attributes="#1")
    control, record = f["control"], f["record"]
    status = (control + Control.STATUS).load("ptr")
    f.call("void", "lock", control + Control.FAILURE_LOCK)
    number, order = (f["launch"] + Row.NUMBER).load(), (control + Control.COUNT).load()
    code, at = (status + Status.CODE).load(), (status + Status.ORDER).load()
    call, block = (status + Status.CALL).load(), (status + Status.BLOCK).load()
    earlier = (f["call"] < call) | ((f["call"] == call) & (f["block"] < block))
    with f.when((code == 0) | ((order == at) & earlier)):
        (status + Status.ORDER).store(order)
        (status + Status.LAUNCH).store(number)
        (status + Status.CALL).store(f["call"])
        (status + Status.BLOCK).store(f["block"])
        (status + Status.SITE).store((record + Record.SITE).load())
        (status + Status.VALUE).store((record + Record.VALUE).load())
        (status + Status.CODE).store((record + Record.CODE).load())
    (record + Record.CODE).store(0)
    f.call("void", "unlock", control + Control.FAILURE_LOCK)
    f.ret()
    return f


def interrupted() -> Function:
    """Must a step that has not committed end here?  Sets the status if somebody asked for it."""
    f = Function("i1", "interrupted", "ptr control")
    control = f["control"]
    status, context = (control + Control.STATUS).load("ptr"), (control + Control.CONTEXT).load("ptr")
    with f.when((status + Status.CODE).load() != 0):
        f.ret(1)
    stop = (context + Context.STOP).load("ptr")
    with f.when(stop != f.null()), f.when((stop).load("i8", "monotonic") != 0):
        (status + Status.CODE).store(Status.STOPPED)
        f.ret(1)
    count = (control + Control.COUNT).load()
    with f.when(count == (context + Context.INJECT).load()):
        (status + Status.CODE).store(Status.INJECTED)
        f.ret(1)
    f.ret(0)
    return f


def advance() -> Function:
    """Interpret rows up to the next launch; null at the end of the step.  One thread at a time runs it."""
    f = Function("ptr", "advance", "ptr control")
    control = f["control"]
    position = control + Control.POSITION
    with f.forever():
        row = position.load("ptr")
        op = (row + Row.OP).load()
        with f.when(op == Op.LAUNCH):
            early = (control + Control.COMMITTED).load() == 0
            with f.when(early), f.when(f.call("i1", "interrupted", control)):
                f.ret(f.null())
            count = control + Control.COUNT
            count.store(count.load() + 1)
            position.store(row + Row.SIZE, "ptr")
            f.ret(row)
        with f.when(op == Op.LOOP):
            counter = control + Control.LOOPS + ((row + Row.LEVEL).load() << 3)
            counter.store((row + Row.START).load())
            position.store(row + Row.SIZE, "ptr")
            f.again()
        with f.when(op == Op.NEXT):
            counter = control + Control.LOOPS + ((row + Row.LEVEL).load() << 3)
            value = counter.load() + (row + Row.STEP).load()
            done = value == (row + Row.END).load()
            counter.store(f.select(done, 0, value))
            target = (control + Control.TABLES).load("ptr") + (row + Row.TARGET).load()
            position.store(f.select(done, row + Row.SIZE, target, "ptr"), "ptr")
            f.again()
        with f.when(op == Op.COMMIT):
            with f.when(f.call("i1", "interrupted", control)):
                f.ret(f.null())
            (control + Control.COMMITTED).store(1)
            position.store(row + Row.SIZE, "ptr")
            f.again()
        f.ret(f.null())
    return f


def run_range() -> Function:
    """Run portions low <= p < high of a launch: each call's share in one call of its kernel."""
    f = Function("void", "run_range", "ptr control, ptr launch, i64 worker, i64 low, i64 high")
    control = f["control"]
    tables, kernels = (control + Control.TABLES).load("ptr"), (control + Control.KERNELS).load("ptr")
    bases, loops = (control + Control.BASES).load("ptr"), control + Control.LOOPS
    stride, memory = (control + Control.SCRATCH_SIZE).load(), (control + Control.SCRATCH).load("ptr")
    scratch = memory + f["worker"] * stride
    record = control + Control.RECORDS + (f["worker"] << 6)
    call = f.variable("ptr", tables + (f["launch"] + Row.CALLS).load())
    index, low = f.variable("i64", 0), f.variable("i64", f["low"])
    with f.forever():
        row, at = call.get(), low.get()
        first = (row + Row.FIRST).load()
        end = first + (row + Row.CALL_PORTIONS).load()
        with f.when(at < end):
            stop = f.minimum(end, f["high"])
            grain = (row + Row.GRAIN).load()
            low_block, high_block = (at - first) * grain, (stop - first) * grain
            high_block = f.minimum(high_block, (row + Row.BLOCKS).load())
            kernel = (kernels + ((row + Row.KERNEL).load() << 3)).load("ptr")
            arguments = tables + (row + Row.ARGUMENTS).load()
            f.call(
                "void", kernel, arguments, bases, loops, scratch, record, low_block, high_block,
            )  # fmt: skip
            with f.when((record + Record.CODE).load() != 0, likely=False):
                f.call("void", "report", control, f["launch"], index.get(), at, record)
            low.set(stop)
            with f.when(stop == f["high"]):
                f.ret()
        call.set(row + Row.CALL_SIZE)
        index.set(index.get() + 1)
    return f


def wake() -> Function:
    """Wake up to `count` of those who sleep on the word."""
    f = Function("void", "wake", "ptr control, i64 count", attributes="#1")
    native_system.futex_wake(f, f["control"] + Control.NUMBER, f["count"])
    f.ret()
    return f


def part() -> Function:
    """Keep the workers off the caller's processor, if the caller may run on others too.  The caller calls it."""
    f = Function("void", "part", "ptr control", attributes="#1")
    control = f["control"]
    here, mask = f.space(8), f.space(_AFFINITY)
    here.store(0)
    f.syscall(native_system.GETCPU, here, 0, 0)
    cpu = here.load("i32").to("i64")
    with f.when((control + Control.APART).load() == cpu + 1):
        f.ret()
    nbytes = f.syscall(native_system.SCHED_GETAFFINITY, 0, _AFFINITY, mask)
    with f.when((nbytes > _AFFINITY) | (cpu >= nbytes << 3)):  # an error, or more processors than the mask has
        f.ret()
    word = mask + ((cpu >> 6) << 3)
    word.store(word.load() & ((f.operand(1, "i64") << (cpu & 63)) ^ -1))
    others, missing = f.variable("i64", 0), f.variable("i64", 0)
    with f.count_to(0, nbytes >> 3) as i:
        others.set(others.get() | (mask + (i << 3)).load())
    with f.when(others.get() != 0), f.count_to(1, (control + Control.STARTED).load()) as i:
        thread = (control + Control.RECORDS + i * Record.SIZE + Record.THREAD).load(order="monotonic")
        with f.when(thread == 0):  # it has not run yet
            missing.set(1)
        with f.when(thread != 0):
            f.syscall(native_system.SCHED_SETAFFINITY, thread, nbytes, mask)
    (control + Control.APART).store(f.select(missing.get() == 0, cpu + 1, 0))
    f.ret()
    return f


def proceed() -> Function:
    """Start the next launch that has work for several workers; run smaller ones here, without publishing them."""
    f = Function("void", "proceed", "ptr control, i64 worker")
    control = f["control"]
    with f.forever():
        launch = f.call("ptr", "advance", control)
        number = (((control + Control.WORD).load(order="monotonic") >> 32) + 1) << 32
        with f.when(launch == f.null()):
            (control + Control.END).store(number, order="monotonic")
            (control + Control.WORD).exchange(number, "seq_cst")
            with f.when((control + Control.CALLER_SLEEPS).load("i32", "seq_cst") != 0):
                f.call("void", "wake", control, 0x7FFFFFFF)
            f.ret()
        blocks, chunk = (launch + Row.PORTIONS).load(), (launch + Row.CHUNK).load()
        with f.when(blocks <= chunk):
            f.call("void", "run_range", control, launch, f["worker"], 0, blocks)
            f.again()
        (control + Control.LAUNCH).store(launch, order="monotonic")
        (control + Control.BLOCKS).store(blocks, order="monotonic")
        (control + Control.CHUNK).store(chunk, order="monotonic")
        (control + Control.DONE).store(0, order="monotonic")
        (control + Control.WORD).exchange(number | blocks, "seq_cst")
        with f.when((control + Control.SLEEPERS).load("i32", "seq_cst") != 0):
            with f.when(f["worker"] == 0):
                f.call("void", "part", control)
            f.call("void", "wake", control, (blocks - 1) // chunk)
        f.ret()
    return f


def work() -> Function:
    """Claim and run portions.  The caller of a step returns when it ends; a worker when it is told to quit."""
    f = Function("void", "work", "ptr control, i64 worker")
    control, worker = f["control"], f["worker"]
    mine = f.variable("i64", 0)
    caller, front = worker == 0, (worker & 1) == 0
    with f.forever():
        word = (control + Control.WORD).load(order="acquire")
        first, last, number = (word >> 16) & MOST_PORTIONS, word & MOST_PORTIONS, word >> 32
        with f.when(first != last):
            launch, chunk = field(control, Control.LAUNCH, "ptr"), field(control, Control.CHUNK)
            share = f.minimum(chunk, last - first)
            left = f.select(front, word + (share << 16), word - share)
            with f.when((control + Control.WORD).compare_exchange(word, left)):
                low = f.select(front, first, last - share)
                f.call("void", "run_range", control, launch, worker, low, low + share)
                mine.set(mine.get() + share)
            f.again()
        share = mine.get()
        with f.when(share != 0):  # nothing is left to claim: tell what this worker has done
            mine.set(0)
            blocks = field(control, Control.BLOCKS)
            with f.when((control + Control.DONE).fetch_add(share, "acq_rel") + share == blocks):
                f.call("void", "proceed", control, worker)
            f.again()
        with f.when(caller), f.when(word == field(control, Control.END)):
            f.ret()
        with f.when((control + Control.QUIT).load("i32", "acquire") != 0), f.when(worker != 0):
            f.ret()
        with f.when(f.call("i1", "changes", control, number)):
            f.again()
        asleep = f.select(caller, control + Control.CALLER_SLEEPS, control + Control.WORKER_SLEEPS, "ptr")
        asleep.fetch_add(1, "seq_cst", "i32")
        (control + Control.SLEEPERS).fetch_add(1, "seq_cst", "i32")
        # The kernel compares the launch number again, so a wake-up between here and there is not lost.
        native_system.futex_wait(f, control + Control.NUMBER, number)
        (control + Control.SLEEPERS).fetch_add(-1, "seq_cst", "i32")
        asleep.fetch_add(-1, "seq_cst", "i32")
    return f


def worker() -> Function:
    """The body of a worker thread.  Its argument is its record, which knows its number and its pool."""
    f = Function("ptr", "worker", "ptr record")
    (f["record"] + Record.THREAD).store(f.syscall(native_system.GETTID), order="monotonic")
    f.call("void", "work", (f["record"] + Record.POOL).load("ptr"), (f["record"] + Record.WORKER).load())
    f.ret(f.null())
    return f


def run_serial() -> Function:
    """The whole step on the caller's thread, without an atomic operation."""
    f = Function("void", "run_serial", "ptr control")
    with f.forever():
        launch = f.call("ptr", "advance", f["control"])
        with f.when(launch == f.null()):
            f.ret()
        f.call("void", "run_range", f["control"], launch, 0, 0, (launch + Row.PORTIONS).load())
    return f


@cache
def native_object() -> bytes:
    """The native module's object code.  It runs on every x86-64 processor: it is what finds out which one it is."""
    return compile_module(native_module(), Target("x86-64", "base", "x86_64-unknown-linux-gnu", "x86-64"))
