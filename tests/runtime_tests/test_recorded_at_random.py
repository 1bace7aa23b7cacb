"""Rows that come, go and change their adapters between steps that are recorded, at random."""

import random
from dataclasses import replace
from typing import Any

import pytest

from kserve_runtime import recorded
from kserve_runtime.adapter_files import AdapterFiles, read_adapter
from kserve_runtime.base_model import BaseModel, load_base_model
from kserve_runtime.engine import Chunk, Request, Sampling, Share
from kserve_runtime.row import Row
from kserve_runtime.running_batch import RunningBatch
from tests.runtime_tests.tape import TapeRecorder

STEPS = 60


@pytest.fixture(scope="module")
def base(world: Any) -> BaseModel:
    return replace(load_base_model(world.base, dtype="float32"), eos_token_ids=frozenset())


def make_row(chance: random.Random, adapters: list[AdapterFiles], answer: list[Any]) -> Row:
    mixed = chance.sample(adapters, chance.choice([0, 1, 1, 2]))
    request = Request(
        prompt=tuple(chance.choices(range(100), k=chance.choice([1, 5, 30, 90]))),
        mix=tuple(Share(adapter, chance.choice([0.2, -0.1])) for adapter in mixed),
        sampling=Sampling(max_tokens=chance.choice([1, 9, 40]), logprobs=0),
    )
    return Row(request, frozenset(), str, answer.append)


def run(
    base: BaseModel, adapters: list[AdapterFiles], record: TapeRecorder | None, seed: int
) -> list[list[int]]:
    """The tokens of all rows, in the order in which they came."""
    chance = random.Random(seed)
    limit = chance.choice([None, 500])
    batch = RunningBatch(
        base,
        rows=5,
        slots=2,
        kv_tokens=limit,
        prefix_bytes=chance.choice([0, 10**5]),
        record=record,
    )
    answers: list[list[Chunk | Exception]] = []
    waiting: list[Row] = []
    everyone: list[Row] = []
    for _ in range(STEPS):
        if chance.random() < 0.3:
            answers.append([])
            everyone.append(make_row(chance, adapters, answers[-1]))
            waiting.append(everyone[-1])
        if everyone and chance.random() < 0.05:
            chance.choice(everyone).cancelled = True
        fits = next(batch.fitting(waiting), None) if batch.reading is None else None
        if fits:
            waiting.remove(fits)
            batch.add(fits)
        batch.read()
        batch.step()
        batch.retain(chance.choices(adapters, k=2))
    tokens = [[t.id for c in a if isinstance(c, Chunk) for t in c.tokens] for a in answers]
    batch.fail("the end")
    batch.retain(())
    return tokens


@pytest.mark.parametrize("seed", range(5))
def test_recorded_steps_answer_as_others_do(
    world: Any, base: BaseModel, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(recorded, "STEPS_BEFORE", 2)
    adapters = [read_adapter(n, world.adapters[n], base.module) for n in ("small", "large")]
    adapters.append(read_adapter("third", world.adapters["small"], base.module))
    tape = TapeRecorder()
    assert run(base, adapters, tape, seed) == run(base, adapters, None, seed)
    assert tape.replays > 5
