"""The content-addressed cache of built artifacts: one file for each key, written atomically."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Cache(Path(options.cache_dir or Path(base) / "pullback"))

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def get(self, key: str) -> bytes | None:
        if self.folder is None:
            return None
        try:
            path = self.path(key)
            data = path.read_bytes()
            os.utime(path)
            return data
        except OSError:
            return None

    def put(self, key: str, data: bytes) -> None:
        if self.folder is None:
            return
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.replace(temporary, path)
            self._trim()
        except OSError:
            return

    def _trim(self) -> None:
        files = [(p.stat().st_atime, p.stat().st_size, p) for p in self.folder.glob("*/*")]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= LIMIT:
                break
            path.unlink(missing_ok=True)
            total -= size
