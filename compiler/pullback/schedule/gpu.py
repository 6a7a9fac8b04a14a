"""Schedules for GPUs: which family a nest belongs to, and what serves where its own schedule refuses.

Unscheduled kernels of IR 2 in, kernels with block, thread, warp and lane loops out.  As on the CPU no step changes the
order of a sum, so a GPU gives the CPU's bits.
"""

from __future__ import annotations

from collections.abc import Collection

from ..codegen.target import Target
from ..errors import ScheduleError, VerifyError
from ..kernel.kernel import Kernel
from .gpu_contract import schedule_contraction
from .gpu_exchange import schedule_exchange
from .gpu_limits import GPU, GpuLimits
from .gpu_long import schedule_long
from .gpu_map import schedule_map
from .gpu_mma import schedule_mma
from .gpu_rows import schedule_rows
from .gpu_sums import schedule_sums
from .gpu_wgmma import schedule_wgmma


def schedule_gpu(
    kernel: Kernel, target: Target, family: str, fixed: Collection[str] = (), limits: GpuLimits = GPU
) -> Kernel:
    """One nest of a family (`schedule.family`); maps serve every nest, so others may refuse."""
    for attempt in _OWN.get(family, ()):
        try:
            return attempt(kernel, target, fixed, limits)
        except (ScheduleError, VerifyError):
            continue
    return schedule_map(kernel, target, fixed, limits)


_OWN = {
    "contraction": (schedule_wgmma, schedule_mma, schedule_contraction),
    "rows": (schedule_exchange, schedule_sums, schedule_long, schedule_rows),
}
