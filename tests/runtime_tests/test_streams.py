"""What a client is told of an engine that goes wrong in the middle of an answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.engine import Capacity, Chunk, EngineBusyError, EngineFailedError, Request
from kserve_runtime.metrics import Metrics
from kserve_runtime.openai_routes import OpenAIRoutes
from kserve_runtime.tokenizer import PromptTokenizer


class Breaking:
    """An engine that raises after the first chunk of an answer."""

    capacity = Capacity(context_tokens=64, batch_rows=1, queue_rows=1, adapter_slots=1)

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
