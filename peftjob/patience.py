"""How long a cluster that does not answer is asked again. May import peftjob.errors."""

import time

from peftjob.errors import ClusterUnavailableError

UNANSWERED_S = 300.0
"""An upgrade of the API's server takes minutes."""
ASK_AGAIN_S = 1.0


class Patience:
    """Bears errors until they have come for too long without an answer between them."""

    def __init__(self, limit_s: float = UNANSWERED_S) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def answered(self) -> None:
        self._since = None

    def wait(self, err: ClusterUnavailableError) -> None:
        """Wait a moment; raises `err` where it has been too many."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > self._limit_s:
            raise err
        time.sleep(ASK_AGAIN_S)
