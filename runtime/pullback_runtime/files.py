"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: bytes, *, durable: bool = False, mode: int = 0o644) -> None:
    """Write beside `path`, then rename into place.  Errors: `OSError` that names `path`, and nothing has changed.

    A loaded library must never be overwritten in place: the processes that run it would crash.  `durable` waits
    until the bytes are on disk, for checkpoints.  `mode` is reduced by the process's umask, as for any new file.
    """
    path = Path(path)
    with _errors_name(path):
        fd, temporary = _create_beside(path, mode)
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


def check_writable(path: str | os.PathLike) -> None:
    """Raise what `write_atomically` would: no such folder, no permission, a folder of that name."""
    path = Path(path)
    with _errors_name(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        fd, temporary = _create_beside(path, 0o600)
        os.close(fd)
        temporary.unlink()


def _create_beside(path: Path, mode: int) -> tuple[int, Path]:
    """A new, empty file in the same folder: its descriptor and name."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), temporary


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Errors name the file that the caller gave, not the temporary one beside it."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None


def _sync(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
