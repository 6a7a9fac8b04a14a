"""The C part of the emulator: compiled once by the machine's C compiler, kept in a cache folder, loaded by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = ("fibers.c", "sync.c", "memory.c", "warp.c", "async.c", "wgmma.c")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-Wall", "-Wextra")

MAX_THREADS, MAX_RANKS, MAX_REGIONS, ARENA = 2048, 8, 256, 1 << 18
CELL = 40
"""Bytes of a `cell`: what is remembered of 4 bytes of memory."""

u32, u64, i32, i64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
triple = u32 * 3


class Report(ctypes.Structure):
    _fields_ = [
        *((n, i32) for n in ("kind", "region", "other", "thread")),
        ("block", triple),
        *((n, u32) for n in ("site", "other_site", "size")),
        ("offset", i64),
        ("text", ctypes.c_char * 6000),
    ]


class Region(ctypes.Structure):
    _fields_ = [
        ("base", pointer),
        ("size", u64),
        ("cells", pointer),
        ("flags", pointer),
        ("granule", u32),
        ("writable", i32),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        ("entries", pointer),
        ("arguments", pointer),
        *((n, triple) for n in ("grid", "block", "cluster")),
        ("order", i32),
        ("seed", u32),
        ("regions", pointer),
        ("n_regions", i32),
        ("check", i32),
        ("initial_flags", pointer),
        ("shared_used", u64),
        ("first", u64),
        ("report", ctypes.POINTER(Report)),
    ]


@cache
def compiler() -> str | None:
    """The machine's C compiler: $CC, cc, gcc or clang."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def missing() -> str:
    """Why the emulator cannot run here; "" if it can."""
    if platform.machine() != "x86_64":
        return f"the emulator's stack switch is for x86-64, this machine is {platform.machine()}"
    return "" if compiler() else "no C compiler (cc, gcc, clang or $CC) was found"


needs_emulator = pytest.mark.skipif(bool(missing()), reason=missing() or "the emulator can run")


@cache
def library() -> ctypes.CDLL:
    """The compiled C part; a file named by its contents, so that a change of the sources makes a new one."""
    from pullback.codegen.target import host_level

    level = min(host_level(), "x86-64-v3")
    digest = hashlib.sha256(" ".join([compiler() or "", level, *FLAGS]).encode())
    for name in ("simt.h", *SOURCES):
        digest.update((HERE / name).read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path(tempfile.gettempdir()) / f"pullback-{os.getuid()}")
    path = root / "simt" / f"{digest.hexdigest()[:20]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / "simt.so"
            command = [compiler(), *FLAGS, f"-march={level}", *(str(HERE / s) for s in SOURCES), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"the emulator's C part does not compile:\n{result.stderr}")
            os.replace(made, path)
    return ctypes.CDLL(str(path))


def address(symbol: str) -> int:
    return ctypes.cast(getattr(library(), symbol), pointer).value
