"""Several threads, each with a connection of its own, that work off one list of tasks.

The first error ends them all and is the one that is raised. May import provider.{base,download}.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from provider.base import Unavailable
from provider.download import STALLED_S, Connection, Stopped

Task = Callable[[Connection], Sequence["Task"]]
"""Does something, and names what is to be done next."""

AT_ONCE = 8
"""Connections of one fetch: what hides a far store's delays without crowding a near one out."""
LOOK_EVERY_S = 1.0
LEAVE_AFTER_S = 5.0
"""How long the others may take to notice that the fetch is over."""


class Connections:
    """Works tasks off."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = deque(tasks)
        self._open = len(self._tasks)
        """Tasks that are waiting or under way."""
        self._change = threading.Condition()
        self._stopping = threading.Event()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._connections = [Connection(self._stopping) for _ in range(AT_ONCE)]
        self._threads = [
            # Daemons: a provider that never answers must not keep the process from its end.
            threading.Thread(target=self._run, args=(connection,), daemon=True)
            for connection in self._connections
        ]

    @property
    def ended(self) -> bool:
        """Whether no thread is at work any more."""
        return not any(thread.is_alive() for thread in self._threads)

    def run(self) -> None:
        """Do all tasks.

        Raises:
            Unavailable: a source is stuck in a way that can't be ended from here.
            BaseException: the first that a task raised.
        """
        try:
            for thread in self._threads:
                thread.start()
            while not self.ended:
                self._look()
            if not self._errors.empty():
                raise self._errors.get()
        finally:
            self._stop()

    def _look(self) -> None:
        with self._change:
            if self._open and self._errors.empty():
                self._change.wait(LOOK_EVERY_S)
        if not self._errors.empty():
            raise self._errors.get()
        for connection in self._connections:
            if connection.stalled:
                connection.interrupt()
                since = connection.since
                if since is not None and time.monotonic() - since > 2 * STALLED_S:
                    raise Unavailable(f"a source has said nothing for {2 * STALLED_S:.0f} s")
        if not self._open:
            for thread in self._threads:
                thread.join()

    def _run(self, connection: Connection) -> None:
        while (task := self._next()) is not None:
            try:
                more = task(connection)
            except Stopped:
                return
            except BaseException as err:
                self._errors.put(err)
                self._stopping.set()
                with self._change:
                    self._change.notify_all()
                return
            with self._change:
                # Before the others: what has been begun is ended first.
                self._tasks.extendleft(reversed(more))
                self._open += len(more) - 1
                self._change.notify_all()

    def _next(self) -> Task | None:
        """The next task, waited for while another one may still lead to some."""
        with self._change:
            while not self._tasks and self._open and not self._stopping.is_set():
                self._change.wait()
            if self._stopping.is_set() or not self._tasks:
                return None
            return self._tasks.popleft()

    def _stop(self) -> None:
        self._stopping.set()
        with self._change:
            self._change.notify_all()
        for connection in self._connections:
            connection.interrupt()
        end = time.monotonic() + LEAVE_AFTER_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
