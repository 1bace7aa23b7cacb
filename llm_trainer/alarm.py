"""Telling the other ranks, amid training, why this one can't go on.

A failing rank can't wait for the others in a collective call: they are in another one. It leaves
its failure in the rendezvous store, where a thread of every rank looks once in a while. So a rank
whose collective call breaks knows why, and one that hangs in it (NCCL does, for many minutes) is
ended.
"""

import threading
import time
from collections.abc import Callable

from torch.distributed import Store  # type: ignore[attr-defined]

from llm_trainer.failures import Failure

WAIT_S = 5.0
"""How long a broken call waits for its reason, a reason for its readers, and a reader for its main
thread to end by itself."""
LOOK_S = 1.0
_FAILED = "peftjob/failed"
_READERS = "peftjob/readers"


class Alarm:
    """One rank's end of it.

    Args:
        open_store: A new client of the rendezvous store; a client serves one thread.
        others: How many other ranks there are.
    """

    def __init__(self, open_store: Callable[[], Store], others: int) -> None:
        self._open_store = open_store
        self._store = open_store()
        self._others = others
        self._failure: Failure | None = None
        self._own = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        """Set when the failure of another rank is known, or can't be any more."""

    def ring(self, failure: Failure) -> None:
        """Leave this rank's failure, and give the others a moment to read it: rank 0 hosts the
        store, which ends with it."""
        self._own = True
        try:
            self._store.set(_FAILED, failure.to_json())
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline and self._store.add(_READERS, 0) < self._others:
                time.sleep(0.05)
        except RuntimeError:
            return  # The store went with rank 0, and so did the readers.

    def heard(self) -> Failure | None:
        """Another rank's failure, waited for at most WAIT_S."""
        self._settled.wait(WAIT_S)
        return self._failure

    def listen(self, stop: Callable[[Failure], None]) -> None:
        """Look for a failure from a thread; call `stop` if this process outlives it by WAIT_S."""
        self._thread = threading.Thread(
            target=self._listen, args=(stop,), name="alarm", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread: an interpreter that ends while one is in the store's code is aborted."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(WAIT_S)

    def _listen(self, stop: Callable[[Failure], None]) -> None:
        try:
            store = self._open_store()
            while not store.check([_FAILED]):
                if self._closed.wait(LOOK_S):
                    return
            if self._own:
                return
            self._failure = Failure.from_json(store.get(_FAILED))
            store.add(_READERS, 1)
        except RuntimeError:
            return  # Rank 0 has ended, with the store.
        finally:
            self._settled.set()
        if not self._closed.wait(WAIT_S):
            stop(self._failure)
