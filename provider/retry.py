"""Trying again: how often, and how long in between. May import peftjob.errors and provider.base."""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from provider.base import Unavailable

T = TypeVar("T")

DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts, so six attempts in all: enough for a server that restarts, and short
beside the kubelet's own back-off, which takes over afterwards."""

LONGEST_WAIT_S = 60.0
"""The most a source's Retry-After is obeyed; longer waits are the kubelet's."""

log = logging.getLogger(__name__)


class Attempts:
    """Counts failures of one piece of work; progress in between starts the count again."""

    def __init__(self) -> None:
        self._failures = 0

    def progressed(self) -> None:
        """Something was achieved since the last failure."""
        self._failures = 0

    def failed(self, error: Unavailable) -> None:
        """Wait before the next attempt, or give up by raising `error`.

        Raises:
            Unavailable: `error` itself, after the last attempt.
        """
        if self._failures >= len(DELAYS_S):
            raise error
        # Jitter keeps the replicas of a job from coming back all at once.
        delay_s = DELAYS_S[self._failures] * random.uniform(0.75, 1.25)
        if error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, LONGEST_WAIT_S))
        self._failures += 1
        log.info(
            "%s; trying again in %.1f s (%d of %d)",
            error,
            delay_s,
            self._failures,
            len(DELAYS_S),
        )
        sleep(delay_s)


def sleep(seconds: float) -> None:
    """Wait before another attempt."""
    time.sleep(seconds)


def retried(work: Callable[[], T]) -> T:
    """Run `work` until it does not raise Unavailable, bounded.

    Raises:
        Unavailable: of the last attempt.
    """
    attempts = Attempts()
    while True:
        try:
            return work()
        except Unavailable as err:
            attempts.failed(err)
