"""This process, as Linux tells of it: how old it is, and the memory that it holds."""

import os
import time
from pathlib import Path

_PROC = Path("/proc/self")


def age_s() -> float:
    """Seconds since the process was started, the interpreter's own beginnings included."""
    # The name in brackets may hold anything; the 22nd field is the 20th after it.
    ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    """Memory that it has in RAM, that of libraries which others share with it included."""
    pages = int((_PROC / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
