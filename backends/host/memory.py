"""The memory of this process, as the system counts it."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

from ..types import MemoryUse


def process_memory() -> MemoryUse:
    """The process's resident memory now and at its peak.

    Linux's /proc is preferred to getrusage's ru_maxrss, which also includes the memory of the process that started this
    one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "VmHWM" in sizes and "VmRSS" in sizes:
        current, peak = (int(sizes[name][0]) * 1024 for name in ("VmRSS", "VmHWM"))
    else:
        # KiB on Linux, bytes on macOS.
        unit = 1 if platform.system() == "Darwin" else 1024
        current = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return MemoryUse(current, peak, "resident memory of the process")
