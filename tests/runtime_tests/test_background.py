"""Work beside the event loop."""

import asyncio
import threading
from typing import NoReturn

import pytest

from kserve_runtime.background import SHORT_BYTES, LongReads, in_background


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


def test_a_short_request_is_read_while_long_ones_are_read_one_after_the_other() -> None:
    begun: list[str] = []
    allowed = threading.Event()

    async def read_all() -> None:
        reads = LongReads()

        def long(name: str) -> None:
            begun.append(name)
            allowed.wait()

        pending = [
            asyncio.create_task(reads.read(lambda: long("first"), size_bytes=SHORT_BYTES + 1)),
            asyncio.create_task(reads.read(lambda: long("second"), size_bytes=SHORT_BYTES + 1)),
        ]
        while not begun:
            await asyncio.sleep(0)
        await reads.read(lambda: begun.append("short"), size_bytes=SHORT_BYTES)
        allowed.set()
        await asyncio.gather(*pending)

    asyncio.run(read_all())

    assert begun == ["first", "short", "second"]
