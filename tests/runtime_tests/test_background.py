"""Work beside the event loop."""

import asyncio
import threading
from functools import partial
from typing import NoReturn

import pytest

from kserve_runtime.background import LongReads, in_background
from kserve_runtime.engine import EngineBusyError


def test_what_work_in_the_background_raises_is_raised() -> None:
    def fail() -> NoReturn:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        asyncio.run(in_background(fail))


def test_work_that_never_ends_does_not_keep_the_loop_from_its_end() -> None:
    never = threading.Event()

    async def give_up() -> None:
        await asyncio.wait_for(in_background(never.wait), timeout=0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    never.set()


def test_whoever_no_longer_waits_is_not_read_and_a_read_that_nobody_waits_for_keeps_its_turn() -> (
    None
):
    begun: list[str] = []
    allowed = threading.Event()

    async def read_all() -> None:
        reads = LongReads(3)

        def long(name: str) -> None:
            begun.append(name)
            allowed.wait()

        first, second, third = (
            asyncio.create_task(reads.read(partial(long, name)))
            for name in ("first", "second", "third")
        )
        while not begun:
            await asyncio.sleep(0)
        with pytest.raises(EngineBusyError, match="3 long requests are read or wait for it"):
            await reads.read(partial(long, "too many"))
        for gone in (first, second):
            gone.cancel()
        await asyncio.wait([first, second])
        assert begun == ["first"]
        allowed.set()
        await third

    asyncio.run(read_all())

    assert begun == ["first", "third"]
