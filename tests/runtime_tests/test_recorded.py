"""Decoding steps that are recorded once and replayed. A tape stands in for CUDA graphs."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest
import torch

from kserve_runtime.base_model import BaseModel, load_base_model
from kserve_runtime.engine import LoadedAdapter, Request, Sampling, Share
from kserve_runtime.recorded import (
    STEPS_BEFORE,
    Recorder,
    Step,
    choose_recorder,
    record_graph,
    takes_masks,
)
from kserve_runtime.transformers_engine import TransformersEngine
from tests.runtime_tests.tape import TapeRecorder

Start = Callable[[Recorder | None], TransformersEngine]


@pytest.fixture(scope="module")
def base(world: Any) -> BaseModel:
    return replace(load_base_model(world.base, dtype="float32"), eos_token_ids=frozenset())


@pytest.fixture
def start(base: BaseModel) -> Iterator[Start]:
    with ExitStack() as ending:

        def start(record: Recorder | None) -> TransformersEngine:
            return ending.enter_context(closing(TransformersEngine(base, str, record=record)))

        yield start


@pytest.fixture
def plain(base: BaseModel, world: Any) -> list[list[int]]:
    """Without recording."""
    with closing(TransformersEngine(base, str)) as engine:
        small = engine.load_adapter("small", world.adapters["small"])
        return answer(engine, {small: 1.0}, {small: 0.5}, {})


def answer(
    engine: TransformersEngine, *mixes: dict[LoadedAdapter, float], tokens: int = 40
) -> list[list[int]]:
    """Of the same prompt with each mix, at the same time."""

    async def one(mix: dict[LoadedAdapter, float]) -> list[int]:
        shares = tuple(Share(adapter, strength) for adapter, strength in mix.items())
        wanted = Sampling(max_tokens=tokens, logprobs=0)
        request = Request(prompt=(7, 31, 99, 12), mix=shares, sampling=wanted)
        return [token.id async for chunk in engine.generate(request) for token in chunk.tokens]

    async def every() -> list[list[int]]:
        return await asyncio.gather(*map(one, mixes))

    return asyncio.run(every())


def test_one_recording_serves_all_steps_of_the_same_shapes(
    start: Start, world: Any, plain: list[list[int]]
) -> None:
    tape = TapeRecorder()
    engine = start(tape)
    small = engine.load_adapter("small", world.adapters["small"])

    answers = answer(engine, {small: 1.0}, {small: 0.5}, {})

    assert answers == plain
    assert tape.recordings == 1
    assert tape.replays > 20


def test_short_answers_are_not_recorded(start: Start) -> None:
    tape = TapeRecorder()
    answer(start(tape), {}, tokens=STEPS_BEFORE)
    assert tape.recordings == 0


def test_longer_rows_and_other_adapters_are_recorded_anew(start: Start, world: Any) -> None:
    tape = TapeRecorder()
    engine = start(tape)
    small, large = (engine.load_adapter(name, world.adapters[name]) for name in ("small", "large"))

    (moved,) = answer(engine, {}, tokens=100)
    assert tape.recordings == 2
    answer(engine, {small: 1.0}, {large: 1.0})
    answer(engine, {small: 1.0}, {small: 0.5}, {large: 1.0})
    assert tape.recordings == 4
    assert len(moved) == 100


def test_a_model_that_can_not_be_recorded_is_served_all_the_same(
    start: Start, world: Any, plain: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def refuse(step: Step) -> Step:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = start(refuse)
    small = engine.load_adapter("small", world.adapters["small"])

    answers = [answer(engine, {small: 1.0}, {small: 0.5}, {}) for _ in range(2)]

    assert answers == [plain, plain]
    assert len(tried) == 1
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "its steps can't be recorded: operation not permitted" in warning.getMessage()


def test_a_replay_that_differs_is_not_used(
    start: Start, world: Any, plain: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    engine = start(lambda step: lambda: torch.zeros_like(step()))
    small = engine.load_adapter("small", world.adapters["small"])
    assert answer(engine, {small: 1.0}, {small: 0.5}, {}) == plain
    assert "a recorded step computed something else" in caplog.text


def test_steps_on_a_cpu_are_not_recorded(base: BaseModel) -> None:
    assert takes_masks(base)
    assert choose_recorder(base) is None


@pytest.mark.gpu
def test_a_graph_answers_as_steps_do(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    base = replace(load_base_model(world.base, dtype="float32"), eos_token_ids=frozenset())
    answers = []
    for record in (None, choose_recorder(base)):
        with closing(TransformersEngine(base, str, record=record)) as engine:
            small = engine.load_adapter("small", world.adapters["small"])
            answers.append(answer(engine, {small: 1.0}, {small: 0.5}, {}, tokens=200))
    assert answers[0] == answers[1]
    assert "slower than need be" not in caplog.text


@pytest.mark.gpu
def test_a_step_that_can_not_be_in_a_graph_leaves_the_stream_as_it_was() -> None:
    here = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        record_graph(lambda: torch.zeros(1, device="cuda").cpu())
    assert torch.cuda.current_stream() == here
