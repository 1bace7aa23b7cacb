"""The OpenAI protocol over an Engine: models, chat completions and completions, streamed or not."""

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from kserve_runtime import engine as engines
from kserve_runtime.answers import (
    Answer,
    Envelope,
    Json,
    chat_choice,
    chat_delta,
    chat_logprobs,
    completion_choice,
    completion_logprobs,
    model_card,
    usage,
)
from kserve_runtime.catalogue import Catalogue
from kserve_runtime.errors import ApiError, busy, failed, invalid_request
from kserve_runtime.prompts import PromptReader
from kserve_runtime.schemas import ChatCompletionRequest, CompletionRequest
from kserve_runtime.streams import ClientGoneError, merge, while_connected
from kserve_runtime.tokenizer import PromptTokenizer

log = logging.getLogger(__name__)

PREFIXES = ("/openai/v1", "/v1")
"""KServe's prefix, and the one that most clients assume."""

MAX_BODY_BYTES = 16 * 2**20
"""Far above any context; keeps one request from filling the memory."""

CLIENT_GONE = 499
"""nginx's status for a client that didn't wait; nobody reads it but a log."""

Body = TypeVar("Body", bound=BaseModel)


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's shape, whatever happens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except ApiError as err:
                return err.to_response()
            except engines.EngineBusyError as err:
                return busy(str(err)).to_response()
            except engines.EngineFailedError as err:
                return failed(str(err)).to_response()
            except (ClientGoneError, ClientDisconnect):
                return Response(status_code=CLIENT_GONE)
            except Exception as err:
                log.exception("%s %s failed", request.method, request.url.path)
                return failed(f"{type(err).__name__} in the server; see its log").to_response()

        return guarded


class OpenAIRoutes:
    """Handlers of the routes."""

    def __init__(
        self,
        engine: engines.Engine,
        tokenizer: PromptTokenizer,
        catalogue: Catalogue,
        *,
        max_new_tokens: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._catalogue = catalogue
        self._prompts = PromptReader(engine.capacity, tokenizer, max_new_tokens=max_new_tokens)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; those added first win over KServe's own `/v1/models`."""
        router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])
        router.add_api_route("/models", self.list_models, methods=["GET"])
        router.add_api_route("/models/{name:path}", self.get_model, methods=["GET"])
        router.add_api_route("/chat/completions", self.chat, methods=["POST"])
        router.add_api_route("/completions", self.complete, methods=["POST"])
        for prefix in PREFIXES:
            app.include_router(router, prefix=prefix)

    async def list_models(self) -> Response:
        return JSONResponse(
            {"object": "list", "data": [self._card(name) for name in self._catalogue.names()]}
        )

    async def get_model(self, name: str) -> Response:
        self._catalogue.find(name)
        return JSONResponse(self._card(name))

    async def chat(self, http: Request) -> Response:
        body = await _read(http, ChatCompletionRequest)
        model = self._catalogue.find(body.model)
        requests = self._prompts.from_chat(body, model.adapter)
        prompt_tokens = len(requests[0].prompt)
        stream = merge([self._engine.generate(request) for request in requests])
        envelope = _envelope("chatcmpl", "chat.completion", body.model)

        def choice(index: int, answer: Answer) -> Json:
            scores = chat_logprobs(answer.tokens, self._tokenizer) if body.logprobs else None
            return chat_choice(index, answer, scores)

        def delta(index: int, chunk: engines.Chunk) -> Json:
            scores = chat_logprobs(chunk.tokens, self._tokenizer) if body.logprobs else None
            words = {"content": chunk.text} if chunk.text or chunk.tokens else {}
            return chat_delta(index, words, scores, chunk.finish_reason)

        if not body.stream:
            return await _answer_whole(http, envelope, stream, len(requests), prompt_tokens, choice)
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
        body = await _read(http, CompletionRequest)
        model = self._catalogue.find(body.model)
        prompts, requests = self._prompts.from_completion(body, model.adapter)
        prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
        stream = merge([self._engine.generate(request) for request in requests])
        envelope = _envelope("cmpl", "text_completion", body.model)

        def choice(index: int, answer: Answer) -> Json:
            echoed = prompts[index // body.n].text if body.echo else ""
            scores = None
            if body.logprobs is not None:
                scores = completion_logprobs(answer.prompt_tokens, answer.tokens, self._tokenizer)
            return completion_choice(index, echoed + answer.text, scores, answer.finish_reason)

        offsets = [0] * len(requests)

        def delta(index: int, chunk: engines.Chunk) -> Json:
            scores = None
            if body.logprobs is not None:
                scores = completion_logprobs(
                    (), chunk.tokens, self._tokenizer, offset=offsets[index]
                )
            offsets[index] += len(chunk.text)
            return completion_choice(index, chunk.text, scores, chunk.finish_reason)

        if not body.stream:
            return await _answer_whole(http, envelope, stream, len(requests), prompt_tokens, choice)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await _answer_streaming(
            http, envelope, stream, delta, [], prompt_tokens if with_usage else None
        )

    def _card(self, name: str) -> Json:
        model = self._catalogue.find(name)
        return model_card(
            name,
            created=self._catalogue.created,
            root=model.root,
            parent=self._catalogue.base if model.adapter else None,
            context=self._engine.capacity.context_tokens,
        )


async def _answer_whole(
    http: Request,
    envelope: Envelope,
    stream: AsyncGenerator[tuple[int, engines.Chunk]],
    count: int,
    prompt_tokens: int,
    choice: Callable[[int, Answer], Json],
) -> Response:
    answers = [Answer() for _ in range(count)]
    async for index, chunk in while_connected(http, stream):
        answers[index].add(chunk)
    new_tokens = sum(answer.new_tokens for answer in answers)
    choices = [choice(index, answer) for index, answer in enumerate(answers)]
    return JSONResponse(envelope.wrap(choices, usage=usage(prompt_tokens, new_tokens)))


async def _answer_streaming(
    http: Request,
    envelope: Envelope,
    stream: AsyncGenerator[tuple[int, engines.Chunk]],
    delta: Callable[[int, engines.Chunk], Json],
    opening: Sequence[Json],
    usage_of_prompt: int | None,
) -> Response:
    """Server-sent events. The first chunk is awaited before the status goes out, so that a full
    queue or a failing prompt is an HTTP error and no broken stream."""
    chunks = while_connected(http, stream)
    first = await anext(chunks)

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
                    index, chunk = await anext(chunks)
                except StopAsyncIteration:
                    break
            if usage_of_prompt is not None:
                yield _event(envelope.wrap([], usage=usage(usage_of_prompt, new_tokens)))
            yield b"data: [DONE]\n\n"
        except ClientGoneError:
            return
        except engines.EngineFailedError as err:
            yield _event(failed(str(err)).body)
        finally:
            await chunks.aclose()

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


def _event(data: Json) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _envelope(prefix: str, kind: str, model: str) -> Envelope:
    return Envelope(id=f"{prefix}-{uuid4().hex}", kind=kind, created=int(time.time()), model=model)


async def _read(http: Request, schema: type[Body]) -> Body:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body has more than {MAX_BODY_BYTES} bytes")
    try:
        # Pydantic's own reader also refuses what no tokenizer takes, such as half a surrogate pair.
        return schema.model_validate_json(bytes(body))
    except ValidationError as err:
        raise invalid_request(err) from err
