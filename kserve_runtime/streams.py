"""Several answers as one stream, and a stream that ends with its client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

from fastapi import Request

Item = TypeVar("Item")


class ClientGoneError(Exception):
    """The client has closed its connection."""


class DeadlineError(Exception):
    """The answer took longer than it may."""


async def merge(sources: Sequence[AsyncIterator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """The items of all sources as they come, each with the number of its source.

    Closing the merged stream closes the sources; the first error ends it.
    """
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue()

    async def drain(index: int, source: AsyncIterator[Item]) -> None:
        try:
            async for item in source:
                queue.put_nowait((index, item))
            queue.put_nowait(None)
        except Exception as err:
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


async def until_deadline(source: AsyncGenerator[Item], seconds: float) -> AsyncGenerator[Item]:
    """The items of `source`, all within `seconds`.

    Raises:
        DeadlineError: it is not through by then; the source is closed.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    item = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError as err:
                raise DeadlineError(
                    f"the answer was not complete after {seconds:g} s; ask for fewer tokens"
                ) from err
            yield item
    finally:
        await source.aclose()


async def while_connected(http: Request, source: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
    """The items of `source` until its end or until the client goes away.

    Call after the request's body was read.

    Raises:
        ClientGoneError: the client went away before the end; the source is closed.
    """
    watch = asyncio.create_task(_wait_until_gone(http))
    step = asyncio.create_task(_next(source))
    try:
        while True:
            await asyncio.wait({step, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                raise ClientGoneError
            try:
                item = step.result()
            except StopAsyncIteration:
                return
            step = asyncio.create_task(_next(source))
            yield item
    finally:
        for task in (watch, step):
            task.cancel()
        await asyncio.gather(watch, step, return_exceptions=True)
        await source.aclose()


async def _next(source: AsyncGenerator[Item]) -> Item:
    return await anext(source)


async def _wait_until_gone(http: Request) -> None:
    # After the body a server has only one more thing to say: that the client is gone.
    while (await http.receive())["type"] != "http.disconnect":
        pass
