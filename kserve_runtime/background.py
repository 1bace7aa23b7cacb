"""Work that holds up neither the event loop nor the end of the process."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from kserve_runtime.engine import EngineBusyError

Result = TypeVar("Result")

SHORT_BYTES = 20_000
"""Of a request that is read within some milliseconds."""


async def in_background(function: Callable[[], Result]) -> Result:
    """Run `function` in a thread of its own, which is cut off with the process.

    The threads of asyncio.to_thread are waited for when the loop is closed: for as long as a
    registry that doesn't answer is asked for an adapter.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(settle: Callable[[Any], None], outcome: object) -> None:
        # Nobody waits any more where the loop is closed, or the waiting was cancelled.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else settle(outcome))

    def run() -> None:
        try:
            result = function()
        except BaseException as err:
            tell(done.set_exception, err)
        else:
            tell(done.set_result, result)

    threading.Thread(target=run, daemon=True).start()
    return await done


class LongReads:
    """Reads long requests in a thread, one after the other.

    Seconds of tokenising must hold up no other request, and leave the processors to the engine.
    """

    def __init__(self, most: int) -> None:
        """At most so many are read or wait for it."""
        self._most = most
        self._pending = 0
        self._one_at_a_time = asyncio.Semaphore(1)

    async def read(self, read: Callable[[], Result]) -> Result:
        """What `read` returns. Who no longer waits for its turn is never read.

        Raises:
            EngineBusyError: too many are waiting.
        """
        if self._pending >= self._most:
            raise EngineBusyError(f"{self._pending} long requests are read or wait for it already")
        self._pending += 1
        try:
            await self._one_at_a_time.acquire()
        except BaseException:
            self._pending -= 1
            raise
        reading = asyncio.ensure_future(in_background(read))
        reading.add_done_callback(self._end_turn)
        # A thread can't be cut off: its turn lasts until it ends, whoever still waits for it.
        return await asyncio.shield(reading)

    def _end_turn(self, _: asyncio.Future[Any]) -> None:
        self._pending -= 1
        self._one_at_a_time.release()
