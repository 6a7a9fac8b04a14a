"""Pausing Python's collector of cyclic garbage: the compiler makes hundreds of thousands of objects that stay, hardly a
cycle among them, and the collector would look at all of them again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection inside (also as a decorator: `@collector_paused()`)."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():  # what was made inside counts as old without being looked at
                gc.freeze()
                gc.unfreeze()
            gc.enable()
