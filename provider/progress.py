"""How far a fetch is, how fast, and how long it will still take. May import provider.base."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence, Sized

from provider.base import RemoteFile, Transfer

OnProgress = Callable[[Transfer], None]

WINDOW_S = 10.0
"""Rates are over this time: long enough to be calm, short enough to show a source that slows."""
SAMPLE_EVERY_S = 0.25


def counted(files: Sized) -> str:
    """`1 file`, `2 files`."""
    return "1 file" if len(files) == 1 else f"{len(files)} files"


class Rate:
    """Bytes a second over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def at(self, done: int, now: float) -> float:
        """The rate, now that `done` bytes are there."""
        samples = self._samples
        if not samples or now - samples[-1][0] >= SAMPLE_EVERY_S:
            samples.append((now, done))
        while len(samples) > 2 and now - samples[1][0] > WINDOW_S:
            samples.popleft()
        began, before = samples[0]
        return max(0.0, (done - before) / (now - began)) if now > began else 0.0


class Progress:
    """Counts over all files, and tells whoever asked, one call at a time."""

    def __init__(
        self, uri: str, files: Sequence[RemoteFile], on_progress: OnProgress | None
    ) -> None:
        self._uri = uri
        self._files = files
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._bytes = [0] * len(files)
        self._rates = [Rate() for _ in files]
        self._rate = Rate()
        self._done_bytes = 0
        self._done_files = 0
        sizes = [file.size for file in files]
        known = [size for size in sizes if size is not None]
        self._total = sum(known) if len(known) == len(sizes) else None

    def reached(self, index: int, file_bytes: int, *, ended: bool = False) -> None:
        """So many bytes of a file are there; `ended`: it is finished."""
        if self._on_progress is None:
            return
        with self._lock:
            now = time.monotonic()
            self._done_bytes += file_bytes - self._bytes[index]
            self._bytes[index] = file_bytes
            self._done_files += ended
            file = self._files[index]
            self._on_progress(
                Transfer(
                    uri=self._uri,
                    path=file.path,
                    file_bytes=file_bytes,
                    file_total_bytes=file.size,
                    file_bytes_per_s=self._rates[index].at(file_bytes, now),
                    done_bytes=self._done_bytes,
                    total_bytes=self._total,
                    done_files=self._done_files,
                    total_files=len(self._files),
                    bytes_per_s=self._rate.at(self._done_bytes, now),
                )
            )
