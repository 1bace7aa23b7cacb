"""SIGTERM: a replica is asked to leave, and has until its grace period ends.

Outside of the training a worker leaves at once. Within it the loop looks here: at the next end of
a step all ranks learn of it together and leave with a checkpoint; a rank whose step takes too long
for that leaves in the middle of it, for what it had at the last end of a step is all there.
"""

import signal
import time
from types import FrameType

from peftjob.errors import RetryableError

PATIENCE_S = 12.0
"""How long a step may go on after the signal. Kubernetes grants 30 s, of which the checkpoint and
the end of the processes need some."""


class StoppedError(RetryableError):
    """Asked to leave."""

    exit_code = 128 + signal.SIGTERM


class StopSignal:
    """Whether and when SIGTERM came; a context, for the time that the training takes."""

    def __init__(self) -> None:
        self._came: float | None = None
        self._before: signal._HANDLER = signal.SIG_DFL

    def __enter__(self) -> "StopSignal":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    @property
    def came(self) -> bool:
        """Whether this process was asked to leave."""
        return self._came is not None

    @property
    def urgent(self) -> bool:
        """Whether it can't wait for the end of the step any more."""
        return self._came is not None and time.monotonic() - self._came > PATIENCE_S

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self._came = self._came or time.monotonic()
