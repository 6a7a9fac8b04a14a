"""Between turns of a comparison: nobody's idle threads may take a processor from whose turn is next."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

LONGEST_SPIN = 1.0
"""Seconds for which we wait.  Threads of OpenBLAS were seen to spin for 0.1 after their work."""


def wait_until_idle() -> None:
    """Wait until all other threads of this process sleep (on Linux; elsewhere nothing is known of them)."""
    me, end, tasks = str(threading.get_native_id()), time.perf_counter() + LONGEST_SPIN, Path("/proc/self/task")
    while tasks.exists() and time.perf_counter() < end:
        states = []
        for task in os.listdir(tasks):
            with contextlib.suppress(OSError):  # it has ended
                stat = (tasks / task / "stat").read_text()
                states.append("S" if task == me else stat[stat.rindex(")") + 2])
        if "R" not in states:
            return
        time.sleep(0.002)
