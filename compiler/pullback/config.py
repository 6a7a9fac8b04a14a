"""Every option of a build, documented once.  The README's table of switches is this class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How to build.  Each field is also a flag of `pullback build` (underscores become dashes)."""

    cpu: str = "native"
    """Instruction sets, comma separated: native, x86-64-v2, x86-64-v3, x86-64-v4; chosen among at load."""
    fusion: bool = True
    """Fuse operations into kernels; off: one kernel for each operation (same bits, for debugging)."""
    recompute: bool = True
    """Recompute cheap values in the backward pass instead of saving them (same bits)."""
    watch_nan: bool = False
    """Check every kernel's floating results for NaN and infinity before the step writes state."""
    debug_info: bool = False
    """Line tables that name the model script, for debuggers and profilers."""
    cache: bool = True
    """Keep compiled artifacts and objects under `cache_dir`."""
    cache_dir: Path | None = None
    """Default: $XDG_CACHE_HOME/pullback or ~/.cache/pullback."""

    def content(self) -> dict[str, object]:
        """What the built code depends on (the cache's own settings left out); recorded in the manifest."""
        skip = ("cache", "cache_dir")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}
