"""What a training costs: CPU and wall seconds, peak memory, the loss of each step."""

import ctypes
import gc
import json
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of the training proper: imports, loading and tokenising are over, nothing is published."""

    cpu_s: float
    """Of all threads of the process: what other processes do to the machine hardly changes it."""
    wall_s: float
    peak_mb: float
    """Resident, libraries and weights included: VmHWM, which is reset as the training begins.
    On a GPU what torch has allocated there."""
    before_mb: float
    """The same as the training begins."""
    losses: tuple[float, ...]
    """Of each step, a mean over its targets."""

    def times(self, factor: float) -> Self:
        """The same, of a training so many times as long."""
        return replace(self, cpu_s=self.cpu_s * factor, wall_s=self.wall_s * factor)

    def to_line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """What `to_line` wrote."""
        plain = json.loads(line)
        return cls(**{**plain, "losses": tuple(plain["losses"])})


class Clock:
    """A context around the training proper. The last time that it was entered is what counts."""

    def __init__(self, *, gpu: bool = False) -> None:
        self._gpu = gpu

    def __enter__(self) -> Self:
        _give_back()
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_peak()
        self.before_mb = torch.cuda.memory_allocated() / 2**20 if self._gpu else _status("VmRSS")
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._gpu:
            torch.cuda.synchronize()
        self.cpu_s = time.process_time() - self._cpu
        self.wall_s = time.perf_counter() - self._wall
        peak = torch.cuda.max_memory_allocated() / 2**20 if self._gpu else _status("VmHWM")
        self.peak_mb = peak

    def measurement(self, losses: list[float]) -> Measurement:
        """What was measured."""
        return Measurement(
            cpu_s=self.cpu_s,
            wall_s=self.wall_s,
            peak_mb=self.peak_mb,
            before_mb=self.before_mb,
            losses=tuple(losses),
        )


def _give_back() -> None:
    """Return to the system what the warm-up has freed, which would count as this training's."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _reset_peak() -> None:
    """Linux sets VmHWM to VmRSS when 5 is written there; elsewhere the peak is the process's."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _status(field: str) -> float:
    """A size in /proc/self/status, in MB; the process's peak where there is no such file."""
    path = Path("/proc/self/status")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 2**10
