"""Requests wait for their part of the memory."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kserve_runtime.base_model import BaseModel, load_base_model
from kserve_runtime.engine import Request, Sampling
from kserve_runtime.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def base(world: Any) -> BaseModel:
    return load_base_model(world.base, dtype="float32")


@pytest.fixture
def engine(base: BaseModel) -> Iterator[TransformersEngine]:
    """With room for 150 tokens."""
    engine = TransformersEngine(base, str, kv_bytes=150 * base.measure_kv_bytes())
    yield engine
    engine.close()


def test_requests_wait_for_their_part_of_the_memory(engine: TransformersEngine) -> None:
    most = most_places = 0

    async def ask(tokens: int) -> int:
        nonlocal most, most_places
        count = 0
        sampling = Sampling(max_tokens=tokens, logprobs=0)
        async for chunk in engine.generate(Request(prompt=(9, 8), sampling=sampling)):
            usage = engine.usage()
            most = max(most, len(usage.running))
            if len(usage.running) > 1:
                most_places = max(most_places, usage.kv_tokens)
            count += chunk.new_tokens
        return count

    async def ask_all() -> list[int]:
        # Two of 2 + 40 tokens fit, with half as much for copies, and three don't; the one of 200
        # runs alone.
        return await asyncio.gather(*(ask(tokens) for tokens in (40, 40, 40, 200, 40)))

    assert all(count > 0 for count in asyncio.run(ask_all()))
    assert most == 2
    assert 0 < most_places <= 100
