"""What this container may use: the limits of its cgroup (version 2), or the machine's."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cpus(*, cgroup: Path = CGROUP) -> int:
    """Its affinity and its quota, rounded up."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))


def free_memory_bytes(*, cgroup: Path = CGROUP) -> int:
    """What it can still take: of its limit, and of what the machine has."""
    available = next(
        int(line.split()[1]) * 1024
        for line in _MEMINFO.read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except OSError:
        return available
    return available if limit == "max" else max(1, min(available, int(limit) - used))
