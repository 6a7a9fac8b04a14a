"""Byte offsets of what the native module shares with itself, with the tables and with C.

Everything is little-endian and made of eight-byte fields, so that `artifact/tables.py` can pack it.
"""

from __future__ import annotations

MAGIC = 0x6B636162_6C6C7570
"""Marks an open context ("pullback")."""

ABI = 3
MAX_WORKERS = 256
MOST_PORTIONS = 0xFFFF
"""Of one launch that several workers share: a mask of half of the word that they compete for."""


class Op:
    """What a row of a function's program says."""

    FINISH, LAUNCH, LOOP, NEXT, COMMIT = range(5)


class Row:
    """A row of a program, eight fields (one cache line); a call; an argument is six fields as kernels expect."""

    OP = 0
    # LAUNCH: its calls (offset in the tables), portions of all calls together, how many to claim, its number
    CALLS, CALL_COUNT, PORTIONS, CHUNK, NUMBER = 8, 16, 24, 32, 40
    # LOOP: set counter `level` to `start`.  NEXT: add `step`; go back to `target` unless it is `end`.
    LEVEL, START, STEP, END, TARGET = 8, 16, 24, 32, 40
    SIZE = 64
    # a call: number of its kernel, offset of its arguments, its first portion in the launch, its portions, the
    # blocks of one portion, all its blocks
    KERNEL, ARGUMENTS, FIRST, CALL_PORTIONS, GRAIN, BLOCKS = 0, 8, 16, 24, 32, 40
    CALL_SIZE = 48


class Level:
    """A row of `pb_levels`: one instruction set that the artifact holds code for, best last."""

    NEEDS, TABLES, KERNELS = 0, 8, 16
    SIZE = 32


class Header:
    """The start of a level's tables."""

    FUNCTIONS, FUNCTION_ROWS, STATE, ARENA, SCRATCH, SEED, INIT = range(0, 56, 8)
    SIZE = 64


class Entry:
    """A function's row: offset of its program, number of its arrays (inputs, outputs), offset of their types."""

    PROGRAM, INPUTS, ARRAYS, TYPES = 0, 8, 16, 24
    SIZE = 32
    # a type: numpy's kind (0: never matches), bytes of an element, dimensions, offset of the shape
    KIND, ITEM, DIMENSIONS, SHAPE = 0, 8, 16, 24
    TYPE_SIZE = 32


class Status:
    """`pb_status`: what became of a step."""

    CODE, LAUNCH, CALL, SITE, VALUE, BLOCK, ORDER = range(0, 56, 8)
    SIZE = 56
    OK, CHECK, STOPPED, INJECTED, ARGUMENT = range(5)
    NO_CONTEXT, NO_FUNCTION, NO_MEMORY, NO_LEVEL, NO_OPTIONS = -1, -2, -3, -4, -5


class Record:
    """A worker's record: its first failure in this launch, its number, its pool's control page, its thread."""

    CODE, SITE, VALUE, WORKER, POOL, THREAD = range(0, 48, 8)
    SIZE = 64


class Context:
    """`pb_context`, memory of the caller."""

    MAGIC, POOL, STATE, ARENA, SCRATCH, THREADS, TABLES, KERNELS, STOP, INJECT, LEVEL = range(0, 88, 8)
    SIZE = 128


class Options:
    """`pb_options`: zero means the default."""

    SIZE_OF, STATE, ARENA, SCRATCH, STOP, THREADS, LEVEL, INJECT = range(0, 64, 8)
    SIZE = 64


class Sizes:
    """`pb_sizes`: bytes to allocate, each aligned to 64 bytes; scratch is for all threads."""

    CONTEXT, STATE, ARENA, SCRATCH = range(0, 32, 8)
    SIZE = 32


class Block:
    """`pb_call_block`: arguments of `pb_call`."""

    CONTEXT, FUNCTION, ARRAYS, STATUS = range(0, 32, 8)
    SIZE = 32


class Python:
    """The functions of CPython's API that `pb_call_python` uses, all of its stable ABI."""

    CAPSULE_POINTER, SAVE_THREAD, RESTORE_THREAD, INTEGER = range(0, 32, 8)
    SIZE = 32


class Pool:
    """The first page of a pool: not wiped on fork."""

    NEXT, USED, ALONE = 0, 8, 16
    CONTROL = 4096
    SIZE = CONTROL + 4096 + MAX_WORKERS * Record.SIZE


class Control:
    """The rest of a pool: wiped on fork.  What workers write to at once lies on cache lines of its own."""

    WORD, NUMBER = 0, 4
    DONE = 64
    SLEEPERS, CALLER_SLEEPS, WORKER_SLEEPS = 128, 132, 136
    LAUNCH, BLOCKS, CHUNK, END = 192, 200, 208, 216
    CONTEXT, BASES, STATUS, POSITION, COMMITTED, COUNT = range(256, 304, 8)
    LOOPS = 320
    TABLES, KERNELS, SCRATCH, SCRATCH_SIZE = range(384, 416, 8)
    LOCK, FAILURE_LOCK, QUIT, STARTED, APART = 448, 452, 456, 464, 472
    THREADS = 1024
    RECORDS = 4096
