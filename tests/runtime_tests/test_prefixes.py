"""A prompt that begins like another isn't read twice, and is answered as if it were."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kserve_runtime.base_model import BaseModel, load_base_model
from kserve_runtime.engine import Chunk, Mix, Request, Sampling, Share
from kserve_runtime.prefixes import Prefixes
from kserve_runtime.transformers_engine import TransformersEngine

PLENTY = 10_000_000


@pytest.fixture(scope="module")
def base(world: Any) -> BaseModel:
    return replace(load_base_model(world.base, dtype="float32"), eos_token_ids=frozenset())


@pytest.fixture
def start_engine(base: BaseModel) -> Iterator[Callable[[int], TransformersEngine]]:
    """Starts an engine; they share the base model, so the one before is closed."""
    engines: list[TransformersEngine] = []

    def start(prefix_bytes: int) -> TransformersEngine:
        for before in engines:
            before.close()
        engines[:] = [TransformersEngine(base, str, prefix_bytes=prefix_bytes)]
        return engines[0]

    yield start
    for engine in engines:
        engine.close()


def prompt(length: int, salt: int = 31) -> list[int]:
    return [7 + (at * salt) % 120 for at in range(length)]


def ask(engine: TransformersEngine, ids: list[int], mix: Mix = (), **options: Any) -> list[Chunk]:
    async def read() -> list[Chunk]:
        sampling = Sampling(max_tokens=12, logprobs=0)
        request = Request(prompt=tuple(ids), mix=mix, sampling=sampling, **options)
        return [chunk async for chunk in engine.generate(request)]

    return asyncio.run(read())


def tokens(chunks: list[Chunk]) -> list[int]:
    return [token.id for chunk in chunks for token in chunk.tokens]


def test_the_second_turn_of_a_chat_reads_only_what_is_new(
    world: Any, start_engine: Callable[[int], TransformersEngine]
) -> None:
    engine = start_engine(PLENTY)
    mix = (Share(engine.load_adapter("small", world.adapters["small"])),)
    first = tokens(ask(engine, prompt(40), mix))
    turn = [*prompt(40), *first, *prompt(9, salt=17)]

    second = tokens(ask(engine, turn, mix))

    # The last token of the first answer was never read.
    assert engine.usage().prefix_tokens == 40 + len(first) - 1
    fresh = start_engine(0)
    mix = (Share(fresh.load_adapter("small", world.adapters["small"])),)
    assert second == tokens(ask(fresh, turn, mix))
    assert fresh.usage().prefix_tokens == 0


def test_a_prompt_that_was_asked_before_is_answered_the_same(
    start_engine: Callable[[int], TransformersEngine],
) -> None:
    alone = tokens(ask(start_engine(0), prompt(700)))
    engine = start_engine(PLENTY)

    assert [tokens(ask(engine, prompt(700))) for _ in range(3)] == [alone] * 3
    assert engine.usage().prefix_tokens == 2 * 699


def test_nothing_is_shared_between_mixes(
    world: Any, start_engine: Callable[[int], TransformersEngine]
) -> None:
    engine = start_engine(PLENTY)
    small, large = (engine.load_adapter(name, world.adapters[name]) for name in ("small", "large"))
    mixes: list[Mix] = [
        (),
        (Share(small),),
        (Share(small, 0.5),),
        (Share(large),),
        (Share(small), Share(large)),
    ]

    for mix in mixes:
        ask(engine, prompt(40), mix)

    assert engine.usage().prefix_tokens == 0


def test_a_prompt_that_is_scored_is_read_to_the_last_token(
    start_engine: Callable[[int], TransformersEngine],
) -> None:
    engine = start_engine(PLENTY)
    ask(engine, prompt(40))

    first = ask(engine, prompt(40), prompt_logprobs=True)[0]

    assert len(first.prompt_tokens) == 40
    assert engine.usage().prefix_tokens == 0


def test_an_unloaded_adapter_is_not_kept_alive(
    world: Any, start_engine: Callable[[int], TransformersEngine]
) -> None:
    engine = start_engine(PLENTY)
    adapter = engine.load_adapter("small", world.adapters["small"])
    ask(engine, prompt(40), (Share(adapter),))
    gone = weakref.ref(adapter)

    engine.unload_adapter(adapter)
    del adapter
    ask(engine, prompt(40))
    gc.collect()

    assert gone() is None


def _layers(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(1, 2, count, 4), torch.ones(1, 2, count, 4))]


def test_the_least_recently_used_goes_first() -> None:
    bytes_of_20 = 2 * 2 * 20 * 4 * 4
    prefixes = Prefixes(limit_bytes=2 * bytes_of_20)
    for salt in (3, 5):
        prefixes.keep((), prompt(20, salt), _layers(20))
    assert prefixes.begin((), [*prompt(20, 3), 0]).get_seq_length() == 20

    prefixes.keep((), prompt(20, 11), _layers(20))

    assert prefixes.size_bytes == 2 * bytes_of_20
    kept = [prefixes.begin((), [*prompt(20, salt), 0]).get_seq_length() for salt in (3, 5, 11)]
    assert kept == [20, 0, 20]


def test_the_longer_takes_the_place_of_its_beginning() -> None:
    prefixes = Prefixes(PLENTY)
    prefixes.keep((), prompt(20), _layers(20))
    size = prefixes.size_bytes

    prefixes.keep((), prompt(40), _layers(40))
    prefixes.keep((), prompt(30, salt=9), _layers(30))

    assert prefixes.size_bytes == size * (40 + 30) // 20


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    prefixes = Prefixes(limit_bytes=100)
    prefixes.keep((), prompt(20), _layers(20))
    assert prefixes.size_bytes == 0
