"""The C ABI of an artifact through ctypes: the loaded library, and a context with the memory that it works in."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from ctypes import c_int64, c_uint32, c_uint64, c_void_p

import numpy as np

from .errors import ArtifactError
from .format import FEATURES, VERSION, Manifest
from .interrupt import Flag

# Status codes of a step, as in the C header.
OK, CHECK, STOPPED, INJECTED, ARGUMENT = range(5)
ERRORS = {
    -1: "the context is not open",
    -2: "no such function",
    -3: "out of memory",
    -4: "no usable instruction set",
    -5: "options of another version",
}

HUGE = 4 << 20
"""Memory of this size or more asks for huge pages."""


class Status(ctypes.Structure):
    """`pb_status`"""

    _fields_ = [(n, c_int64) for n in ("code", "launch", "call", "site", "value", "block", "order")]


class Options(ctypes.Structure):
    """`pb_options`"""

    _fields_ = [
        ("size", c_uint64),
        ("state", c_void_p),
        ("arena", c_void_p),
        ("scratch", c_void_p),
        ("stop", c_void_p),
        ("threads", c_int64),
        ("level", c_int64),
        ("inject", c_int64),
    ]


class Sizes(ctypes.Structure):
    """`pb_sizes`"""

    _fields_ = [(n, c_uint64) for n in ("context", "state", "arena", "scratch")]


class CallBlock(ctypes.Structure):
    """`pb_call_block`"""

    _fields_ = [
        ("context", c_void_p),
        ("function", c_int64),
        ("arrays", c_void_p),
        ("status", c_void_p),
    ]


class Method(ctypes.Structure):
    """CPython's `PyMethodDef`, part of its stable ABI."""

    _fields_ = [("name", ctypes.c_char_p), ("function", c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]
    FASTCALL = 0x80


_NEEDED = ("PyCapsule_GetPointer", "PyEval_SaveThread", "PyEval_RestoreThread", "PyLong_FromLongLong")
"""What `pb_call_python` calls, in the order of `pb_python`."""


def _address(function) -> int:
    return ctypes.cast(function, c_void_p).value


def memory(nbytes: int) -> np.ndarray:
    """Zeroed, page-aligned, private memory, given back when the last array over it goes."""
    pages = mmap.mmap(-1, max(nbytes, 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: only slower
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _load(path: str) -> ctypes.CDLL:
    """The loader knows libraries by their names and gives the old code of a file that was replaced since it was loaded.
    Then a copy under a name of its own is loaded."""
    lib = ctypes.CDLL(os.path.abspath(path))
    if _file_at(_address(lib.pb_abi)) in (None, os.stat(path).st_ino):
        return lib
    with tempfile.NamedTemporaryFile(prefix="pullback-", suffix=".so") as copy:
        shutil.copyfile(path, copy.name)
        return ctypes.CDLL(copy.name)


def _file_at(address: int) -> int | None:
    """The inode of the file that is mapped at an address, if the system tells."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                span, _, _, _, inode, *_ = line.split()
                low, high = (int(x, 16) for x in span.split("-"))
                if low <= address < high:
                    return int(inode)
    except OSError:
        pass  # another system than Linux
    return None


class Library:
    """A loaded artifact.  Loading one file twice gives the same code; every context has its own state."""

    def __init__(self, path: str, manifest: Manifest):
        try:
            self.lib = _load(path)
            abi = self._function("pb_abi", c_uint32)()
        except (OSError, AttributeError) as e:
            raise ArtifactError(f"{path}: cannot be loaded ({e})") from None
        if abi != VERSION:
            raise ArtifactError(f"{path}: ABI version {abi}, but this runtime speaks version {VERSION}")
        self.level = self._function("pb_level", c_int64)
        if self.level() < 0:
            have = self._function("pb_features", c_uint64)()
            least = manifest.levels[0]
            lacks = [f for f in least.features if not have >> FEATURES.index(f) & 1]
            raise ArtifactError(
                f"{path}: built for {least.cpu}, but this processor lacks {', '.join(lacks)}; build with a lower --cpu"
            )
        self.sizes = self._function("pb_sizes", c_int64, c_void_p, c_void_p)
        self.open = self._function("pb_open", c_int64, c_void_p, c_void_p)
        self.close = self._function("pb_close", None, c_void_p)
        self.init = self._function("pb_init", c_int64, c_void_p, c_uint64, c_void_p)
        self.run = self._function("pb_run", c_int64, c_void_p, c_int64, c_void_p, c_void_p)
        addresses = [_address(getattr(ctypes.pythonapi, name)) for name in _NEEDED]
        self._function("pb_python", None, c_void_p)((c_void_p * len(addresses))(*addresses))
        self.method = Method(b"call", _address(self.lib.pb_call_python), Method.FASTCALL, None)

    def _function(self, name: str, result, *arguments):
        f = getattr(self.lib, name)
        f.restype, f.argtypes = result, arguments
        return f

    def builtin(self, block: CallBlock) -> Callable[..., int]:
        """Native code as a builtin function: `__array_struct__` capsules in, status out, nothing of ctypes between.

        The caller keeps library and block alive.
        """
        capsule = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_void_p, c_void_p)(("PyCapsule_New", ctypes.pythonapi))
        create = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.py_object, c_void_p)(
            ("PyCFunction_NewEx", ctypes.pythonapi)
        )
        return create(ctypes.addressof(self.method), capsule(ctypes.addressof(block), None, None), None)


class Context:
    """One state, the memory and threads that work on it, and the lock that its callers hold.

    Functions refer to their context, not to their program, so that a program's memory goes with its last user.
    """

    def __init__(self, library: Library, threads: int):
        self.library = library
        self.lock, self.flag = threading.Lock(), Flag()
        self.level = library.level()
        self.is_open = False
        self.options = Options(size=ctypes.sizeof(Options), stop=self.flag.address, threads=threads)
        sizes = self._sizes()
        self.memory = memory(sizes.context)
        self.address = self.memory.ctypes.data
        self.state, self.arena = memory(sizes.state), memory(sizes.arena)
        self.options.state, self.options.arena = self.state.ctypes.data, self.arena.ctypes.data
        self.open(threads)
        _free_lock_after_fork(self)

    def open(self, threads: int) -> None:
        """Work with this many threads from now on."""
        self.close()
        self.options.threads = threads
        self.scratch = memory(self._sizes().scratch)
        self.options.scratch = self.scratch.ctypes.data
        self._check(self.library.open(self.address, ctypes.addressof(self.options)))
        self.is_open = True

    def close(self) -> None:
        """Stop the workers.  The state stays readable."""
        if self.is_open:
            self.is_open = False
            self.library.close(self.address)

    def inject(self, launch: int | None) -> None:
        """Make steps fail once `launch` launches are done, as if asked to stop: for tests of what is left behind."""
        self.options.inject = 0 if launch is None else launch + 1
        self.open(self.options.threads)

    def _sizes(self) -> Sizes:
        sizes = Sizes()
        self._check(self.library.sizes(ctypes.addressof(self.options), ctypes.addressof(sizes)))
        return sizes

    def _check(self, code: int) -> None:
        if code < 0:
            raise MemoryError(ERRORS[code]) if code == -3 else ArtifactError(ERRORS.get(code, f"error {code}"))

    def __del__(self) -> None:
        if getattr(self, "is_open", False):
            self.close()


def _free_lock_after_fork(context: Context) -> None:
    """Another thread may hold the lock when a process forks; in the child that thread is gone."""
    ref = weakref.ref(context)

    def free() -> None:
        c = ref()
        if c is not None and c.lock.locked():
            c.lock.release()

    os.register_at_fork(after_in_child=free)
