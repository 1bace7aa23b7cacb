"""Telling the other ranks, amid training, why this one can't go on.

A failing rank can't wait for the others in a collective call: they are in another one. It leaves
its failure in the rendezvous store, where a thread of every rank looks once in a while. So a rank
whose collective call breaks knows why, and one that hangs in it (NCCL does, for many minutes) is
ended.

A rank that ends without a word is missed: each counts up in the store and watches that the next
one does. Its failure is then left by the one that misses it, and a store that is gone is missed by
all.
"""

import threading
import time
from collections.abc import Callable

from torch.distributed import Store  # type: ignore[attr-defined]

from llm_trainer.failures import Failure, lost_contact

WAIT_S = 5.0
"""How long a broken call waits for its reason, a reason for its readers, and a reader for its main
thread to end by itself."""
LOOK_S = 1.0
MISSED_S = 300.0
"""Without a sign of the next rank. Long, for its main thread may keep its others from running."""
_FAILED = "failed"
_READERS = "readers"
_ALIVE = "alive"


class Alarm:
    """One rank's end of it.

    Args:
        open_store: A new client of the store, of this attempt's keys; a client serves one thread.
        rank: This process's.
        world_size: How many ranks there are, more than one.
    """

    def __init__(self, open_store: Callable[[], Store], rank: int, world_size: int) -> None:
        # Both are opened while rank 0 is known to be there: a thread that had to connect to one
        # that is gone would try for as long as replicas may take to come.
        self._store, self._seen = open_store(), open_store()
        self._rank = rank
        self._world_size = world_size
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
        others = self._world_size - 1
        try:
            self._store.set(_FAILED, failure.to_json())
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline and self._store.add(_READERS, 0) < others:
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
        failure: Failure | None = None
        try:
            failure = self._look()
        except RuntimeError:
            # Rank 0 has ended, with the store. A call that breaks of it is told what it says.
            failure = lost_contact(self._rank, "the rendezvous store is gone")
        finally:
            self._settled.set()
        if failure is not None and not self._own and not self._closed.wait(WAIT_S):
            stop(failure)

    def _look(self) -> Failure | None:
        """Wait for a failure of another rank; None where this one has ended before."""
        store = self._seen
        following = (self._rank + 1) % self._world_size
        count, seen = 0, time.monotonic()
        while not store.check([_FAILED]):
            if self._closed.wait(LOOK_S):
                return None
            store.add(f"{_ALIVE}/{self._rank}", 1)
            now = store.add(f"{_ALIVE}/{following}", 0)
            if now != count:
                count, seen = now, time.monotonic()
            elif time.monotonic() - seen > MISSED_S:
                missed = lost_contact(self._rank, f"no sign of rank {following}")
                store.set(_FAILED, missed.to_json())
        if self._own:
            return None
        self._failure = Failure.from_json(store.get(_FAILED))
        store.add(_READERS, 1)
        return self._failure
