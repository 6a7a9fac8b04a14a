"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: bytes, *, durable: bool = False, mode: int = 0o644) -> None:
    """Write beside `path`, then rename into place.  Errors: `OSError`, and then nothing has changed.

    A loaded library must never be overwritten in place: the processes that run it would crash.  `durable` waits
    until the bytes are on disk, for checkpoints.  `mode` is reduced by the process's umask, as for any new file.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(content)
            if durable:
                f.flush()
                os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
