"""What the device has free, of a pod's limit or of the machine's."""

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device, *, cgroup: Path = CGROUP) -> int:
    """Memory that can still be taken: on a GPU, or by this container."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available = next(
        int(line.split()[1]) * 1024
        for line in MEMINFO.read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return min(available, _left_of_limit(cgroup) or available)


def _left_of_limit(cgroup: Path) -> int | None:
    """Of a cgroup's limit (version 2, which a container sees at the root); None without one."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except FileNotFoundError:
        return None
    return None if limit == "max" else max(1, int(limit) - used)
