"""The content-addressed cache of artifacts and object code: one file for each key, checked when it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pullback_runtime.files import write_atomically

from .config import Options

LIMIT = 512 << 20
"""Bytes that the cache may hold; the files used longest ago go first."""


@dataclass(frozen=True)
class Cache:
    """`folder` None: no cache.  A cache that cannot be read or written is as good as none."""

    folder: Path | None

    @staticmethod
    def of(options: Options) -> Cache:
        if not options.cache:
            return Cache(None)
        if options.cache_dir:
            return Cache(Path(options.cache_dir))
        return Cache(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pullback")

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def find(self, parts: object, make: Callable[[], bytes]) -> bytes:
        """What `make` gives, now or when it was last asked with equal `parts`: all that it depends on, told by repr."""
        if self.folder is None:
            return make()
        key = hashlib.sha256(repr((compiler(), parts)).encode()).hexdigest()
        data = self._get(key)
        if data is None:
            data = make()
            self._put(key, data)
        return data

    def _get(self, key: str) -> bytes | None:
        """None also for a file that a crash or a full disk has damaged."""
        path = self.path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        check, data = data[:32], data[32:]
        return data if hashlib.sha256(data).digest() == check else None

    def _put(self, key: str, data: bytes) -> None:
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, hashlib.sha256(data).digest() + data)
            self._trim()
        except OSError:
            return

    def _trim(self) -> None:
        stats = [(p, p.stat()) for p in self.folder.glob("*/*")]
        total = sum(s.st_size for _, s in stats)
        for path, s in sorted(stats, key=lambda x: x[1].st_mtime):
            if total <= LIMIT:
                break
            path.unlink(missing_ok=True)
            total -= s.st_size


@cache
def compiler() -> str:
    """What tells this compiler from any other, a changed source file included."""
    import llvmlite

    import pullback_runtime

    roots = (Path(__file__).parent, Path(pullback_runtime.__file__).parent)
    files = sorted(p for root in roots for p in root.rglob("*.py"))
    stats = [(str(p), s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    return hashlib.sha256(repr((llvmlite.__version__, stats)).encode()).hexdigest()
