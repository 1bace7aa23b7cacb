"""What a client is told of an engine that goes wrong in the middle of an answer."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.engine import Capacity, Chunk, EngineBusyError, EngineFailedError, Request
from kserve_runtime.metrics import Metrics
from kserve_runtime.openai_routes import OpenAIRoutes
from kserve_runtime.streams import DeadlineError, while_wanted
from kserve_runtime.tokenizer import PromptTokenizer


class Breaking:
    """An engine that raises after the first chunk of an answer."""

    capacity = Capacity(
        context_tokens=64, batch_rows=1, queue_rows=1, adapter_slots=1, kv_tokens=64
    )

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(text="a", new_tokens=1)
        raise self._error


def ask(world: Any, error: Exception, *, stream: bool) -> httpx.Response:
    tokenizer = PromptTokenizer(world.base)
    catalogue = Catalogue(Model(name="tiny", template=tokenizer.template, root="tiny", created=0))
    engine: Any = Breaking(error)
    app = FastAPI()
    OpenAIRoutes(
        engine, tokenizer, catalogue, Metrics("tiny"), max_new_tokens=16, deadline_s=9
    ).add_to(app)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            body = {"model": "tiny", "prompt": "a", "stream": stream}
            return await http.post("/v1/completions", json=body)

    return asyncio.run(post())


@pytest.mark.parametrize(
    ("error", "status", "words", "logged"),
    [
        (EngineFailedError("out of memory"), 500, "out of memory", 0),
        (EngineBusyError("the queue is full"), 429, "the queue is full; try again", 0),
        (KeyError("secret"), 500, "KeyError in the server; see its log", 1),
    ],
)
def test_an_error_ends_an_answer_with_openais_error_and_the_unforeseen_one_is_logged(
    world: Any,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    words: str,
    logged: int,
) -> None:
    whole = ask(world, error, stream=False)
    streamed = ask(world, error, stream=True)

    assert (whole.status_code, whole.json()["error"]["message"]) == (status, words)
    first, last = streamed.text.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "a"
    assert json.loads(last.removeprefix("data: ")) == whole.json()
    assert len([record for record in caplog.records if record.exc_info]) == 2 * logged


def test_the_deadline_ends_an_answer_whose_client_does_not_read() -> None:
    async def stall() -> list[Any]:
        closed = asyncio.Event()

        async def answer() -> AsyncGenerator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.set()

        class Silent:
            async def receive(self) -> None:
                await asyncio.Event().wait()

        silent: Any = Silent()
        now = asyncio.get_running_loop().time()
        stream = while_wanted(silent, answer(), 0.01, since=now)
        first = await anext(stream)
        await closed.wait()  # before anybody asks for more
        with pytest.raises(DeadlineError):
            await anext(stream)
        return [first, closed.is_set()]

    assert asyncio.run(asyncio.wait_for(stall(), 10)) == [1, True]


def test_the_tokens_of_a_prompt_are_counted_when_it_is_taken() -> None:
    metrics = Metrics("tiny")

    async def ask(error: Exception | None) -> None:
        async def chunks() -> AsyncGenerator[tuple[int, Chunk]]:
            if error:
                raise error
            yield 0, Chunk(text="a", new_tokens=1)
            yield 0, Chunk(text="b", new_tokens=1, finish_reason="stop")

        with suppress(EngineBusyError):
            async for _ in metrics.measured(chunks(), (), prompt_tokens=7):
                pass

    asyncio.run(ask(EngineBusyError("full")))
    asyncio.run(ask(None))

    assert 'peftjob_prompt_tokens_total{adapter="tiny"} 7.0' in metrics.to_text().decode()
