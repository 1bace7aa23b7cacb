"""Chunks of an engine → the JSON of the OpenAI protocol. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kserve_runtime.detokenizer import Detokenizer
from kserve_runtime.engine import Chunk, FinishReason, ScoredToken
from kserve_runtime.tokenizer import PromptTokenizer

Json = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """One answer, put together from its chunks."""

    text: str = ""
    new_tokens: int = 0
    tokens: list[ScoredToken] = field(default_factory=list)
    prompt_tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.new_tokens += chunk.new_tokens
        self.tokens += chunk.tokens
        self.prompt_tokens += chunk.prompt_tokens
        self.finish_reason = chunk.finish_reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """What all objects of one response have in common."""

    id: str
    kind: str
    """The `object` field."""
    created: int
    """Seconds since the epoch."""
    model: str

    def wrap(self, choices: list[Json], **more: Json | None) -> Json:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_choice(index: int, answer: Answer, logprobs: Json | None) -> Json:
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": answer.finish_reason,
    }


def chat_delta(
    index: int, delta: Json, logprobs: Json | None = None, finish_reason: str | None = None
) -> Json:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }


def completion_choice(
    index: int, text: str, logprobs: Json | None, finish_reason: str | None
) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_logprobs(tokens: Sequence[ScoredToken], tokenizer: PromptTokenizer) -> Json:
    """The `logprobs` of a chat's choice."""

    def entry(token: int, logprob: float | None) -> Json:
        text = tokenizer.decode_all([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {
            **entry(token.id, token.logprob),
            "top_logprobs": [entry(other, value) for other, value in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    prompt: Sequence[ScoredToken],
    answer: Sequence[ScoredToken],
    tokenizer: PromptTokenizer,
    *,
    offset: int = 0,
) -> Json:
    """The `logprobs` of a completion's choice.

    `text_offset` counts the characters before each token from `offset`: special tokens are spelt
    out in a prompt and have no text in an answer. A token in the middle of a character begins
    where that character begins.
    """
    scored = [*prompt, *answer]
    offsets = []
    for tokens, decode in ((prompt, tokenizer.decode_all), (answer, tokenizer.decode)):
        spelt = Detokenizer(decode)
        for token in tokens:
            offsets.append(offset)
            offset += len(spelt.push(token.id))
    return {
        "tokens": [tokenizer.decode_all([token.id]) for token in scored],
        "token_logprobs": [token.logprob for token in scored],
        "top_logprobs": [_alternatives(token, tokenizer) for token in scored],
        "text_offset": offsets,
    }


def _alternatives(token: ScoredToken, tokenizer: PromptTokenizer) -> dict[str, float] | None:
    """The likeliest tokens and the token itself, as the protocol has it."""
    if token.logprob is None:
        return None
    found = [*token.top, (token.id, token.logprob)]
    best: dict[str, float] = {}
    for other, value in found:
        best.setdefault(tokenizer.decode_all([other]), value)
    return best


def model_card(name: str, *, created: int, root: str, parent: str | None, context: int) -> Json:
    """An entry of GET /models. `name` and `ready` are KServe's, whose v1 route this one shadows."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "peftjob",
        "root": root,
        "parent": parent,
        "max_model_len": context,
        "name": name,
        "ready": True,
    }
