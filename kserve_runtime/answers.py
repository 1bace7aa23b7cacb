"""Chunks of an engine → the JSON of the OpenAI protocol. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kserve_runtime.catalogue import Model
from kserve_runtime.detokenizer import CONTEXT_TOKENS, Detokenizer
from kserve_runtime.engine import Chunk, FinishReason, ScoredToken
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.tool_calls import Piece, ToolCall, ToolCallReader

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


def chat_choice(
    index: int, answer: Answer, logprobs: Json | None, tools: ToolCallReader | None
) -> Json:
    """`tools`: what reads calls of tools out of the text; None where there are no tools."""
    message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
    if tools is not None:
        begun, ended = tools.push(answer.text), tools.finish()
        message["content"] = begun.text + ended.text
        if calls := (*begun.calls, *ended.calls):
            message["content"] = message["content"].strip() or None
            message["tool_calls"] = [_tool_call(call) for call in calls]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": _finish_reason(answer.finish_reason, tools),
    }


def words(chunk: Chunk, tools: ToolCallReader | None, *, calls_before: int) -> Json:
    """The `delta` of a chunk; empty where it has nothing to show."""
    if tools is None:
        return {"content": chunk.text} if chunk.text or chunk.tokens else {}
    piece = tools.push(chunk.text)
    if chunk.finish_reason:
        last = tools.finish()
        piece = Piece(piece.text + last.text, (*piece.calls, *last.calls))
    delta: Json = {"content": piece.text} if piece.text else {}
    if piece.calls:
        delta["tool_calls"] = [
            {"index": calls_before + at, **_tool_call(call)} for at, call in enumerate(piece.calls)
        ]
    return delta


def _tool_call(call: ToolCall) -> Json:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _finish_reason(reason: FinishReason | None, tools: ToolCallReader | None) -> str | None:
    return "tool_calls" if reason == "stop" and tools is not None and tools.found else reason


def chat_delta(
    index: int,
    delta: Json,
    logprobs: Json | None = None,
    finish_reason: FinishReason | None = None,
    tools: ToolCallReader | None = None,
) -> Json:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": _finish_reason(finish_reason, tools),
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


class CompletionScores:
    """The `logprobs` of a completion's choice, of all its chunks one after the other."""

    def __init__(self, tokenizer: PromptTokenizer, prompt: Sequence[int]) -> None:
        """`prompt`: what the answer continues."""
        self._tokenizer = tokenizer
        # Special tokens are spelt out in a prompt and have no text in an answer.
        self._prompt = Detokenizer(tokenizer.decode_all)
        self._answer = Detokenizer(tokenizer.decode, prompt[-CONTEXT_TOKENS:])
        self._offset = 0
        """Characters of the tokens so far; some may still be held back, see StopTexts."""

    def push(self, prompt: Sequence[ScoredToken], answer: Sequence[ScoredToken]) -> Json:
        """The scores of the next tokens.

        `text_offset` counts the characters before each. A token in the middle of a character
        begins where that character begins.
        """
        scored = [*prompt, *answer]
        offsets = []
        for tokens, spelt in ((prompt, self._prompt), (answer, self._answer)):
            for token in tokens:
                offsets.append(self._offset)
                self._offset += len(spelt.push(token.id))
        spell = self._tokenizer.decode_all
        return {
            "tokens": [spell([token.id]) for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [_alternatives(token, self._tokenizer) for token in scored],
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


def model_card(model: Model, *, parent: str | None, context: int) -> Json:
    """An entry of GET /models. `name` and `ready` are KServe's, whose v1 route this one shadows."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "peftjob",
        "root": model.root,
        "parent": parent,
        "max_model_len": context,
        "name": model.name,
        "ready": True,
    }


def adapter_card(model: Model, *, watched: bool) -> Json:
    """An entry of GET /adapters."""
    assert model.adapter is not None
    return {
        "id": model.name,
        "object": "adapter",
        "created": model.created,
        "source": model.root,
        "digest": model.digest,
        "base_model": model.trained_on,
        "strength": model.strength,
        "watch": watched,
        "rank": model.adapter.rank,
        "modules": model.adapter.modules,
    }
