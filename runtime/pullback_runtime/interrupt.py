"""Ctrl-C within a step: a byte that a signal sets and that the native loop looks at.

Python's own signal handler writes the signal's number to the wake-up file descriptor from C, at once, even
while the main thread is in native code.  Ours is a file in memory that is also mapped, so the step sees the byte
without a system call.  The descriptor is swapped in for one step only and what came is handed on, so asyncio and
others who use it lose nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Iterator

import numpy as np


class Flag:
    """The byte at `address` becomes non-zero when a signal arrives during `watch()`."""

    def __init__(self) -> None:
        self.address, self._pages = 0, None
        self._fd = -1
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("pullback-signals", os.MFD_CLOEXEC)
            os.set_blocking(self._fd, False)
            os.ftruncate(self._fd, mmap.PAGESIZE)
            self._pages = np.frombuffer(mmap.mmap(self._fd, mmap.PAGESIZE), np.uint8)
            self.address = self._pages.ctypes.data

    def clear(self) -> bytes:
        """Reset; the signals that had come."""
        count = os.lseek(self._fd, 0, os.SEEK_CUR)
        came = self._pages[:count].tobytes()
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._pages[: count + 1] = 0
        return came

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Within it signals set the byte.  Does nothing in other threads than the main one."""
        try:
            old = signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False) if self._pages is not None else None
        except ValueError:  # not the main thread of the main interpreter: its signals are not ours
            old = None
        try:
            yield
        finally:
            if old is not None:
                signal.set_wakeup_fd(old, warn_on_full_buffer=False)
                came = self.clear()
                if came and old != -1:
                    with contextlib.suppress(OSError):
                        os.write(old, came)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
