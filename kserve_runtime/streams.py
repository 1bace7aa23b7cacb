"""Several answers as one stream, and a stream that ends with its client."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request

Item = TypeVar("Item")


class ClientGoneError(Exception):
    """The client has closed its connection."""


class DeadlineError(Exception):
    """The answer took longer than it may."""


async def merge(sources: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """The items of all sources as they come, each with the number of its source.

    Closing the merged stream closes the sources; the first error ends it.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for alone in only:
                yield 0, alone
        return
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue()

    async def drain(index: int, source: AsyncGenerator[Item]) -> None:
        try:
            async for item in source:
                queue.put_nowait((index, item))
            queue.put_nowait(None)
        except Exception as err:  # all of them: raised again where the merged stream is read
            queue.put_nowait(err)

    tasks = [asyncio.create_task(drain(*pair)) for pair in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_wanted(
    http: Request, source: AsyncGenerator[Item], seconds: float, *, since: float
) -> AsyncGenerator[Item]:
    """The items of `source`, all within `seconds` after `since` of the event loop's clock, while
    the client is there.

    Call after the request's body was read.

    Raises:
        DeadlineError: it is not through by then; the source is closed.
        ClientGoneError: the client went away before the end; the source is closed.
    """
    loop = asyncio.get_running_loop()
    error: Exception | None = None
    step: asyncio.Timeout | None = None
    closing: asyncio.Task[None] | None = None

    def end(why: Exception) -> None:
        nonlocal error, closing
        error = error or why
        if step is not None:
            step.reschedule(loop.time())
        elif closing is None:
            # The item before is still on its way: to a client that doesn't read, for ever.
            closing = asyncio.create_task(source.aclose())

    def gone(_: asyncio.Task[None]) -> None:
        end(ClientGoneError())

    late = DeadlineError(
        f"the answer was not complete after {seconds:g} s; ask for fewer tokens, or shorten the "
        "prompt"
    )
    deadline = loop.call_at(since + seconds, end, late)
    watch = asyncio.create_task(_wait_until_gone(http))
    watch.add_done_callback(gone)
    try:
        while error is None:
            try:
                # One timer for all items: a token comes every few milliseconds.
                async with asyncio.timeout(None) as step:
                    item = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError as err:
                if error is None:
                    raise
                raise error from err
            finally:
                step = None
            yield item
        raise error
    finally:
        deadline.cancel()
        watch.remove_done_callback(gone)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await (closing or source.aclose())


async def _wait_until_gone(http: Request) -> None:
    # After the body a server has only one more thing to say: that the client is gone.
    while (await http.receive())["type"] != "http.disconnect":
        pass
