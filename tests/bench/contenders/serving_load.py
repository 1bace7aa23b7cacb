"""Clients of a server: each asks, reads its stream to the end, and asks again."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp

MARK = b"data: "
DONE = b"[DONE]"
LONGEST_S = 1200


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the clients of one run ask for."""

    clients: int
    requests: int
    """Of each client, one after the other."""
    max_tokens: int
    prompts: Sequence[str]
    """One for each request: the first ones of all clients, then the second ones."""
    models: Sequence[str]
    """Dealt out to the clients in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """How a server did."""

    tokens_per_s: float
    """Of all clients, from the first request to the end of the last answer."""
    first_token_s: tuple[float, ...]
    """From each request to its first text, sorted."""
    texts: tuple[str, ...]
    """The answers, in the order of the prompts."""

    @property
    def ttft_s(self) -> float:
        """The median time to the first token."""
        return median(self.first_token_s)

    @property
    def ttft_p95_s(self) -> float:
        return self.first_token_s[int(len(self.first_token_s) * 0.95)]


@dataclass(slots=True)
class _Answer:
    begin: float
    events: list[tuple[float, bytes]] = field(default_factory=list)
    """As they came; read when nothing is timed any more."""
    first_token_s: float | None = None
    text: str = ""
    tokens: int = 0

    def read(self) -> None:
        for when, line in self.events:
            event = json.loads(line)
            if "error" in event:
                raise RuntimeError(f"the server answered {event['error']}")
            for choice in event["choices"]:
                if choice["text"] and self.first_token_s is None:
                    self.first_token_s = when - self.begin
                self.text += choice["text"]
            self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)


def run(url: str, load: Load, extra: dict[str, Any]) -> Served:
    """Have all clients ask the server at `url`; `extra` are fields of its own in each request.

    Raises:
        RuntimeError: an answer failed, or is not as long as was asked for.
    """
    return asyncio.run(_run(url, load, extra))


async def _run(url: str, load: Load, extra: dict[str, Any]) -> Served:
    answers: dict[int, _Answer] = {}
    timeout = aiohttp.ClientTimeout(total=LONGEST_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:

        async def client(number: int) -> None:
            model = load.models[number % len(load.models)]
            for turn in range(load.requests):
                at = turn * load.clients + number
                body = {
                    "model": model,
                    "prompt": load.prompts[at],
                    "max_tokens": load.max_tokens,
                    "temperature": 0,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    **extra,
                }
                answers[at] = await _ask(session, body)

        begin = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(load.clients)))
        seconds = time.perf_counter() - begin
    for answer in answers.values():
        answer.read()
    _check(answers, load)
    return Served(
        tokens_per_s=sum(answer.tokens for answer in answers.values()) / seconds,
        first_token_s=tuple(sorted(answer.first_token_s or 0.0 for answer in answers.values())),
        texts=tuple(answers[at].text for at in sorted(answers)),
    )


async def _ask(session: aiohttp.ClientSession, body: dict[str, Any]) -> _Answer:
    answer = _Answer(time.perf_counter())
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(MARK) and not line.startswith(DONE, len(MARK)):
                answer.events.append((time.perf_counter(), line[len(MARK) :]))
    return answer


def _check(answers: dict[int, _Answer], load: Load) -> None:
    lengths = {answer.tokens for answer in answers.values()}
    if lengths != {load.max_tokens} or any(not answer.text for answer in answers.values()):
        raise RuntimeError(
            f"answers of {sorted(lengths)} tokens, where each was to have {load.max_tokens}"
        )
