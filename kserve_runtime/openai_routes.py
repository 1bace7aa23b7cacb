"""The OpenAI protocol over an Engine: models, chat completions and completions, streamed or not."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar
from uuid import uuid4

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from kserve_runtime.answers import (
    Answer,
    CompletionScores,
    Envelope,
    Json,
    chat_choice,
    chat_delta,
    chat_logprobs,
    completion_choice,
    model_card,
    usage,
    words,
)
from kserve_runtime.background import SHORT_BYTES, LongReads
from kserve_runtime.blends import Voice, resolve
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.engine import Chunk, Engine
from kserve_runtime.engine import Request as EngineRequest
from kserve_runtime.metrics import Metrics
from kserve_runtime.prompts import PromptReader
from kserve_runtime.routing import PREFIXES, guarded_route, read_body, to_api_error
from kserve_runtime.schemas import ChatCompletionRequest, CompletionRequest
from kserve_runtime.streams import (
    ClientGoneError,
    merge,
    while_wanted,
)
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.tool_calls import ToolCallReader

Read = TypeVar("Read")


class OpenAIRoutes:
    """Handlers of the routes."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PromptTokenizer,
        catalogue: Catalogue,
        metrics: Metrics,
        *,
        max_new_tokens: int,
        max_prompt_tokens: int | None = None,
        deadline_s: float,
    ) -> None:
        """The limits are those of one request; `deadline_s` is for its whole answer, the reading of
        its prompt and the time in the queue included."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._catalogue = catalogue
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._reads = LongReads(engine.capacity.batch_rows + engine.capacity.queue_rows)
        self._prompts = PromptReader(
            engine.capacity,
            tokenizer,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; those added first win over KServe's own `/v1/models`."""
        router = APIRouter(route_class=guarded_route(self._metrics), tags=["OpenAI"])
        router.add_api_route("/models", self.list_models, methods=["GET"])
        router.add_api_route("/models/{name:path}", self.get_model, methods=["GET"])
        router.add_api_route("/chat/completions", self.chat, methods=["POST"])
        router.add_api_route("/completions", self.complete, methods=["POST"])
        for prefix in PREFIXES:
            app.include_router(router, prefix=prefix)

    async def list_models(self) -> Response:
        return JSONResponse(
            {"object": "list", "data": [self._card(model) for model in self._catalogue.models()]}
        )

    async def get_model(self, name: str) -> Response:
        return JSONResponse(self._card(self._catalogue.find(name)))

    async def chat(self, http: Request) -> Response:
        body = await read_body(http, ChatCompletionRequest)
        voice = self._resolve(body)
        requests = await self._read(http, voice, partial(self._prompts.from_chat, body, voice))
        prompt_tokens = len(requests[0].prompt)
        stream = self._answer(http, requests, voice, prompt_tokens)
        envelope = _envelope("chatcmpl", "chat.completion", body.model)

        tools = [ToolCallReader() if body.callable_tools else None for _ in requests]
        calls = [0] * len(requests)

        def choice(index: int, answer: Answer) -> Json:
            scores = chat_logprobs(answer.tokens, self._tokenizer) if body.logprobs else None
            return chat_choice(index, answer, scores, tools[index])

        def delta(index: int, chunk: Chunk) -> Json:
            scores = chat_logprobs(chunk.tokens, self._tokenizer) if body.logprobs else None
            shown = words(chunk, tools[index], calls_before=calls[index])
            calls[index] += len(shown.get("tool_calls", ()))
            return chat_delta(index, shown, scores, chunk.finish_reason, tools[index])

        if not body.stream:
            return await _answer_whole(envelope, stream, len(requests), prompt_tokens, choice)
        opening = [
            chat_delta(index, {"role": "assistant", "content": ""})
            for index in range(len(requests))
        ]
        envelope = _envelope("chatcmpl", "chat.completion.chunk", body.model)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await _answer_streaming(
            http, envelope, stream, delta, opening, prompt_tokens if with_usage else None
        )

    async def complete(self, http: Request) -> Response:
        body = await read_body(http, CompletionRequest)
        voice = self._resolve(body)
        prompts, requests = await self._read(
            http, voice, partial(self._prompts.from_completion, body, voice)
        )
        prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
        stream = self._answer(http, requests, voice, prompt_tokens)
        envelope = _envelope("cmpl", "text_completion", body.model)
        scores = [CompletionScores(self._tokenizer, request.prompt) for request in requests]

        def score(index: int, piece: Answer | Chunk) -> Json | None:
            if body.logprobs is None:
                return None
            return scores[index].push(piece.prompt_tokens, piece.tokens)

        def choice(index: int, answer: Answer) -> Json:
            echoed = prompts[index // body.n].text if body.echo else ""
            text = echoed + answer.text
            return completion_choice(index, text, score(index, answer), answer.finish_reason)

        def delta(index: int, chunk: Chunk) -> Json:
            return completion_choice(index, chunk.text, score(index, chunk), chunk.finish_reason)

        if not body.stream:
            return await _answer_whole(envelope, stream, len(requests), prompt_tokens, choice)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await _answer_streaming(
            http, envelope, stream, delta, [], prompt_tokens if with_usage else None
        )

    def _resolve(self, body: ChatCompletionRequest | CompletionRequest) -> Voice:
        slots = self._engine.capacity.adapter_slots
        return resolve(body.model, body.adapters, self._catalogue, slots=slots)

    async def _read(self, http: Request, voice: Voice, read: Callable[[], Read]) -> Read:
        """What `read` makes of the body, while the client is there and in time."""

        async def reading() -> AsyncGenerator[Read]:
            yield await self._reads.read(read)

        with self._metrics.unanswered(voice.mix):
            if http.state.body_bytes <= SHORT_BYTES:
                return read()
            wanted = while_wanted(http, reading(), self._deadline_s, since=http.state.began)
            async with aclosing(wanted):
                return await anext(wanted)

    def _answer(
        self, http: Request, requests: Sequence[EngineRequest], voice: Voice, prompt_tokens: int
    ) -> AsyncGenerator[tuple[int, Chunk]]:
        """The chunks of all answers, while the client is there and in time, and measured."""
        stream = merge([self._engine.generate(request) for request in requests])
        stream = while_wanted(http, stream, self._deadline_s, since=http.state.began)
        read_s = asyncio.get_running_loop().time() - http.state.began
        return self._metrics.measured(stream, voice.mix, prompt_tokens=prompt_tokens, read_s=read_s)

    def _card(self, model: Model) -> Json:
        return model_card(
            model,
            parent=self._catalogue.base.name if model.adapter else None,
            context=self._engine.capacity.context_tokens,
        )


async def _answer_whole(
    envelope: Envelope,
    stream: AsyncGenerator[tuple[int, Chunk]],
    count: int,
    prompt_tokens: int,
    choice: Callable[[int, Answer], Json],
) -> Response:
    answers = [Answer() for _ in range(count)]
    async for index, chunk in stream:
        answers[index].add(chunk)
    new_tokens = sum(answer.new_tokens for answer in answers)
    choices = [choice(index, answer) for index, answer in enumerate(answers)]
    return JSONResponse(envelope.wrap(choices, usage=usage(prompt_tokens, new_tokens)))


async def _answer_streaming(
    http: Request,
    envelope: Envelope,
    stream: AsyncGenerator[tuple[int, Chunk]],
    delta: Callable[[int, Chunk], Json],
    opening: Sequence[Json],
    usage_of_prompt: int | None,
) -> Response:
    """Server-sent events. The first chunk is awaited before the status goes out, so that a full
    queue or a failing prompt is an HTTP error and no broken stream."""
    first = await anext(stream)

    async def events() -> AsyncIterator[bytes]:
        new_tokens = 0
        more = {} if usage_of_prompt is None else {"usage": None}
        try:
            for choice in opening:
                yield _event(envelope.wrap([choice], **more))
            index, chunk = first
            while True:
                new_tokens += chunk.new_tokens
                # A token in the middle of a character has nothing to show yet.
                if chunk.text or chunk.tokens or chunk.finish_reason:
                    yield _event(envelope.wrap([delta(index, chunk)], **more))
                try:
                    index, chunk = await anext(stream)
                except StopAsyncIteration:
                    break
            if usage_of_prompt is not None:
                yield _event(envelope.wrap([], usage=usage(usage_of_prompt, new_tokens)))
            yield b"data: [DONE]\n\n"
        except ClientGoneError:
            return
        # The status is out: whatever goes wrong now is told as the stream's last event.
        except Exception as err:
            yield _event(to_api_error(err, http).body)
        finally:
            await stream.aclose()

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


def _event(data: Json) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _envelope(prefix: str, kind: str, model: str) -> Envelope:
    return Envelope(id=f"{prefix}-{uuid4().hex}", kind=kind, created=int(time.time()), model=model)
