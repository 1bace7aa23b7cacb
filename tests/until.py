"""Waiting in tests, bounded."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Return when `condition()` holds; fail when it does not within `timeout_s`.

    The default is far above what anything takes: only a failing test waits for its end.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {timeout_s} s"
        time.sleep(0.02)
