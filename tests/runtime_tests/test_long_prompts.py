"""Prompts that take seconds to read: beside the others, in time, only while the client waits."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kserve_runtime.background import SHORT_BYTES
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.engine import Capacity, Chunk, Request
from kserve_runtime.metrics import Metrics
from kserve_runtime.openai_routes import OpenAIRoutes
from kserve_runtime.tokenizer import PromptTokenizer


class Silent:
    """An engine whose answers are empty."""

    capacity = Capacity(
        context_tokens=100_000, batch_rows=1, queue_rows=1, adapter_slots=1, kv_tokens=100_000
    )

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(finish_reason="stop")


class Held(PromptTokenizer):
    """A tokenizer that reads a long text when it may."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self.begun: list[str] = []
        self.allowed = threading.Event()

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        if len(text) > SHORT_BYTES:
            self.begun.append(text[0])
            self.allowed.wait(timeout=10)  # a test that goes wrong ends
        return [1]


@pytest.fixture
def held(world: Any) -> Iterator[Held]:
    tokenizer = Held(world.base)
    yield tokenizer
    tokenizer.allowed.set()


def make_app(held: Held, *, deadline_s: float, metrics: Metrics | None = None) -> FastAPI:
    catalogue = Catalogue(Model(name="tiny", template=held.template, root="tiny", created=0))
    engine: Any = Silent()
    app = FastAPI()
    metrics = metrics or Metrics("tiny")
    OpenAIRoutes(engine, held, catalogue, metrics, max_new_tokens=16, deadline_s=deadline_s).add_to(
        app
    )
    return app


async def ask(app: FastAPI, prompt: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        return await http.post("/v1/completions", json={"model": "tiny", "prompt": prompt})


async def ask_and_leave(app: FastAPI, prompt: str, left: asyncio.Event) -> int:
    """The status that is logged for a client which goes when `left` is set."""
    body = json.dumps({"model": "tiny", "prompt": prompt}).encode()
    events = iter([{"type": "http.request", "body": body}])
    statuses = []

    async def receive() -> Any:
        for event in events:
            return event
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        statuses.append(event.get("status"))

    path = "/v1/completions"
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return int(statuses[0])


async def until_begun(held: Held) -> None:
    while not held.begun:
        await asyncio.sleep(0)


def test_a_short_prompt_is_read_while_long_ones_are_read_one_after_the_other(held: Held) -> None:
    app = make_app(held, deadline_s=60)

    async def ask_all() -> list[int]:
        long = [asyncio.create_task(ask(app, letter * (SHORT_BYTES + 1))) for letter in "ab"]
        await until_begun(held)
        short = await ask(app, "c")
        assert len(held.begun) == 1
        held.allowed.set()
        return [answer.status_code for answer in (short, *await asyncio.gather(*long))]

    assert asyncio.run(ask_all()) == [200, 200, 200]


def test_the_deadline_holds_for_prompts_that_are_read_and_that_wait_for_it(held: Held) -> None:
    app = make_app(held, deadline_s=0.05)

    async def ask_both() -> list[int]:
        answers = [await ask(app, letter * (SHORT_BYTES + 1)) for letter in "ab"]
        return [answer.status_code for answer in answers]

    assert asyncio.run(ask_both()) == [504, 504]
    assert "b" not in held.begun


def test_requests_that_end_while_prompts_are_read_are_counted(held: Held) -> None:
    metrics = Metrics("tiny")
    app = make_app(held, deadline_s=0.3, metrics=metrics)
    patient = make_app(held, deadline_s=60, metrics=metrics)

    async def ask_all() -> list[int]:
        answers = await asyncio.gather(*(ask(app, "a" * (SHORT_BYTES + 1)) for _ in range(3)))
        left = asyncio.Event()
        left.set()
        gone = await ask_and_leave(patient, "b" * (SHORT_BYTES + 1), left)
        return [*sorted(answer.status_code for answer in answers), gone]

    assert asyncio.run(ask_all()) == [429, 504, 504, 499]
    counted = metrics.to_text().decode()
    for outcome, count in (("busy", 1), ("late", 2), ("cancelled", 1)):
        assert f'requests_total{{adapter="tiny",outcome="{outcome}"}} {count}.0' in counted


def test_the_time_of_an_answer_begins_before_its_prompt_is_read(held: Held) -> None:
    metrics = Metrics("tiny")
    app = make_app(held, deadline_s=60, metrics=metrics)
    name = "peftjob_request_seconds_sum"

    async def ask_one() -> None:
        answer = asyncio.create_task(ask(app, "a" * (SHORT_BYTES + 1)))
        await until_begun(held)
        await asyncio.sleep(0.05)
        held.allowed.set()
        await answer

    asyncio.run(ask_one())
    assert (metrics.registry.get_sample_value(name, {"adapter": "tiny"}) or 0) >= 0.05


def test_the_prompt_of_a_client_that_went_away_is_not_read(held: Held) -> None:
    app = make_app(held, deadline_s=60)

    async def ask_all() -> list[int]:
        first = asyncio.create_task(ask(app, "a" * (SHORT_BYTES + 1)))
        await until_begun(held)
        left = asyncio.Event()
        gone = asyncio.create_task(ask_and_leave(app, "b" * (SHORT_BYTES + 1), left))
        left.set()
        statuses = [await gone]
        full = [asyncio.create_task(ask(app, "c" * (SHORT_BYTES + 1))) for _ in range(2)]
        done, _ = await asyncio.wait(full, return_when=asyncio.FIRST_COMPLETED)
        statuses += [answer.result().status_code for answer in done]
        held.allowed.set()
        return [*statuses, (await first).status_code]

    assert asyncio.run(ask_all()) == [499, 429, 200]
    assert "b" not in held.begun
