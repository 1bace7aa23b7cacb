"""Tools: written into the prompt by the chat template, read back out of the answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.engine import Capacity, Chunk, LoadedAdapter, Request, Usage
from kserve_runtime.metrics import Metrics
from kserve_runtime.openai_routes import OpenAIRoutes
from kserve_runtime.tokenizer import ChatTemplate, PromptTokenizer
from kserve_runtime.tool_calls import ToolCallReader

TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool.function.name }}"
    "{{ tool.function.parameters | tojson }}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}"
    "{% endfor %}"
)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
DEEP = f"<tool_call>{'[' * 20_000}</tool_call>"
QUESTION = [{"role": "user", "content": "why"}]


class SaidBefore:
    """An Engine that answers with the same text each time, a few characters a token."""

    capacity = Capacity(
        context_tokens=999, batch_rows=1, queue_rows=1, adapter_slots=1, kv_tokens=999
    )

    def __init__(self, text: str) -> None:
        self._text = text
        self.prompts: list[tuple[int, ...]] = []

    def adapters(self) -> tuple[LoadedAdapter, ...]:
        return ()

    def load_adapter(self, name: str, folder: Path) -> LoadedAdapter:
        raise NotImplementedError

    def unload_adapter(self, adapter: LoadedAdapter) -> None:
        raise NotImplementedError

    def usage(self) -> Usage:
        return Usage(running=(), waiting=0, kv_tokens=0, in_slots=(), page_ins=0)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.prompts.append(request.prompt)
        for at in range(0, len(self._text), 3):
            yield Chunk(text=self._text[at : at + 3], new_tokens=1)
        yield Chunk(new_tokens=1, finish_reason="stop")

    def healthy(self) -> bool:
        return True

    def close(self) -> None:
        pass


def ask(world: Any, engine: SaidBefore, *, messages: Any = QUESTION, **options: Any) -> Any:
    """What the openai package makes of the engine's answer: a completion, or a list of chunks."""
    tokenizer = PromptTokenizer(world.base)
    template = ChatTemplate(TEMPLATE, frozenset())
    catalogue = Catalogue(Model(name="tiny", template=template, root="tiny", created=0))
    app = FastAPI()
    routes = OpenAIRoutes(
        engine, tokenizer, catalogue, Metrics("tiny"), max_new_tokens=99, deadline_s=60
    )
    routes.add_to(app)

    async def run() -> Any:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        async with AsyncOpenAI(base_url="http://test/v1", api_key="x", http_client=http) as client:
            answer = await client.chat.completions.create(
                model="tiny", messages=messages, **options
            )
            return [chunk async for chunk in answer] if options.get("stream") else answer

    return asyncio.run(run())


def test_a_call_in_an_answer_is_told_as_one(world: Any) -> None:
    answer = ask(world, SaidBefore("Let me see. " + CALL), tools=[WEATHER]).choices[0]

    (call,) = answer.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    assert answer.message.content == "Let me see."
    assert answer.finish_reason == "tool_calls"


def test_calls_in_a_stream_come_whole_and_their_text_is_not_shown(world: Any) -> None:
    engine = SaidBefore(f"See <b>. {CALL}\n{CALL}")

    chunks = [chunk.choices[0] for chunk in ask(world, engine, tools=[WEATHER], stream=True)]

    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1]
    assert {call.function.name for call in calls} == {"weather"}
    assert "".join(chunk.delta.content or "" for chunk in chunks).strip() == "See <b>."
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("options", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_all_is_text(world: Any, options: dict[str, Any]) -> None:
    answer = ask(world, SaidBefore(CALL), **options).choices[0]

    assert (answer.message.content, answer.message.tool_calls) == (CALL, None)
    assert answer.finish_reason == "stop"


def test_tools_and_earlier_calls_stand_in_the_prompt(world: Any) -> None:
    engine = SaidBefore("x")
    call = {"id": "1", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"city": "Bern"}'}  # type: ignore[assignment]
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]

    ask(world, engine, messages=messages, tools=[WEATHER])

    text = world.tokenizer.decode(engine.prompts[0])
    assert text.startswith("<|system|>weather")
    assert text.endswith("<|assistant|>Bern")


def test_a_template_without_a_place_for_tools_is_told(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        client.chat.completions.create(
            model="tiny",
            messages=QUESTION,  # type: ignore[arg-type]
            tools=[WEATHER],  # type: ignore[list-item]
        )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <tool_call>no json</tool_call> b", "a <tool_call>no json</tool_call> b"),
        ("a <tool_call>{}", "a <tool_call>{}"),
        ("a <tool", "a <tool"),
        pytest.param(DEEP, DEEP, id="deeper than json reads"),
        (CALL.removesuffix("</tool_call>"), ""),
        (f"a{CALL}b", "ab"),
    ],
)
def test_what_is_no_call_stays_text_however_it_comes(text: str, shown: str) -> None:
    for size in (1, 7, len(text)):
        reader = ToolCallReader()
        pieces = [reader.push(text[at : at + size]) for at in range(0, len(text), size)]
        pieces.append(reader.finish())

        assert "".join(piece.text for piece in pieces) == shown
        assert reader.found == (CALL[:40] in text)
