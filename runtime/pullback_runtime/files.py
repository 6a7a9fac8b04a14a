"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: str | os.PathLike,
    content: bytes | Callable[[Path], object],
    *,
    durable: bool = False,
    mode: int = 0o644,
) -> None:
    """Write beside `path`, then rename into place; `content` is bytes, or writes a file at the path it is given.

    A loaded library must never be overwritten in place: the processes that run it would crash.  `durable` waits
    until the bytes are on disk, for checkpoints.
    """
    path = Path(path)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as f:
            if not callable(content):
                f.write(content)
        if callable(content):
            content(temporary)
        os.chmod(temporary, mode & ~_umask())
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
