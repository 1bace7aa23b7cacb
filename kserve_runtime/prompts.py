"""Requests of the OpenAI protocol → requests of an engine, with every limit checked."""

from dataclasses import dataclass, replace

from kserve_runtime.blends import Voice
from kserve_runtime.engine import Capacity, Request, Sampling
from kserve_runtime.errors import ApiError, context_exceeded
from kserve_runtime.schemas import ChatCompletionRequest, CompletionRequest
from kserve_runtime.tokenizer import PromptError, PromptTokenizer

DEFAULT_TEMPERATURE = 1.0
"""OpenAI's, where the model's generation config recommends none."""

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, of a completion; a chat's answer ends where the model ends it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a completion."""

    text: str
    tokens: list[int]


class PromptReader:
    """Reads requests for one base model."""

    def __init__(
        self,
        capacity: Capacity,
        tokenizer: PromptTokenizer,
        *,
        max_new_tokens: int,
        max_prompt_tokens: int | None = None,
    ) -> None:
        """
        Args:
            max_new_tokens: the server's limit on an answer's length.
            max_prompt_tokens: the server's limit on a prompt's; None is the context alone.
        """
        self._capacity = capacity
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._max_prompt_tokens = max_prompt_tokens
        self._most_tokens = capacity.context_tokens
        if max_prompt_tokens is not None:
            self._most_tokens = min(max_prompt_tokens, self._most_tokens)

    def from_chat(self, body: ChatCompletionRequest, voice: Voice) -> list[Request]:
        """One request a choice.

        Raises:
            ApiError: 400, with what is wrong.
        """
        self._check_choices(body.n)
        messages = [message.to_template() for message in body.messages]
        try:
            text = self._tokenizer.write_chat(messages, voice.template, tools=body.callable_tools)
        except PromptError as err:
            raise ApiError(400, str(err), param="messages") from err
        # The template writes the special tokens itself.
        tokens = self._encode(text, "messages", special_tokens=False)
        self._check_prompt(tokens, "messages")
        wanted = body.max_completion_tokens or body.max_tokens
        sampling = self._sampling(
            body,
            self._check_max_tokens(wanted),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            stop_token_ids=voice.template.turn_ends,
        )
        return [
            Request(prompt=tuple(tokens), mix=voice.mix, sampling=_nth(sampling, choice))
            for choice in range(body.n)
        ]

    def from_completion(
        self, body: CompletionRequest, voice: Voice
    ) -> tuple[list[Prompt], list[Request]]:
        """The prompts, and `n` requests for each of them.

        Raises:
            ApiError: 400, with what is wrong.
        """
        self._check_choices(body.n * len(body.prompts))
        prompts = [self._read_prompt(prompt, body) for prompt in body.prompts]
        wanted = body.max_tokens
        if wanted is None:
            wanted = min(DEFAULT_COMPLETION_TOKENS, self._max_new_tokens)
        sampling = self._sampling(
            body,
            self._check_max_tokens(wanted),
            logprobs=body.logprobs,
            stop_token_ids=frozenset(),
        )
        requests = [
            Request(
                prompt=tuple(prompt.tokens),
                mix=voice.mix,
                sampling=_nth(sampling, choice),
                prompt_logprobs=bool(body.echo) and body.logprobs is not None,
                continues_text=True,
            )
            for prompt in prompts
            for choice in range(body.n)
        ]
        return prompts, requests

    def _check_choices(self, choices: int) -> None:
        most = self._capacity.batch_rows + self._capacity.queue_rows
        if choices > most:
            # Never taken, however often it was tried again.
            raise ApiError(
                400,
                f"n: {choices} answers at once are more than this server takes, {most}",
                param="n",
            )

    def _read_prompt(self, prompt: str | list[int], body: CompletionRequest) -> Prompt:
        # Scoring alone leaves the whole context to the prompt.
        room = 0 if body.max_tokens == 0 else 1
        if isinstance(prompt, str):
            tokens = self._encode(prompt, "prompt", special_tokens=body.add_special_tokens)
            self._check_prompt(tokens, "prompt", room=room)
            return Prompt(prompt, tokens)
        self._check_prompt(prompt, "prompt", room=room)
        unknown = next((t for t in prompt if t >= self._tokenizer.vocab_size), None)
        if unknown is not None:
            raise ApiError(
                400,
                f"prompt: token {unknown} is not in the vocabulary, which has "
                f"{self._tokenizer.vocab_size} tokens",
                param="prompt",
            )
        return Prompt(self._tokenizer.decode_all(prompt), prompt)

    def _encode(self, text: str, param: str, *, special_tokens: bool) -> list[int]:
        """The text's tokens, unless it would not fit if it were made of the longest ones alone."""
        most = self._most_tokens * self._tokenizer.longest_token
        if len(text) > most:
            raise ApiError(
                400,
                f"{param}: {len(text)} characters are more than the {self._most_tokens} tokens "
                f"that this server takes can hold, {most}; shorten it",
                param=param,
                code="context_length_exceeded",
            )
        return self._tokenizer.encode(text, special_tokens=special_tokens)

    def _check_prompt(self, tokens: list[int], param: str, *, room: int = 1) -> None:
        if not tokens:
            raise ApiError(400, f"{param}: holds no tokens", param=param)
        if len(tokens) + room > self._capacity.context_tokens:
            raise context_exceeded(len(tokens), self._capacity.context_tokens, param=param)
        if self._max_prompt_tokens is not None and len(tokens) > self._max_prompt_tokens:
            raise ApiError(
                400,
                f"{param}: {len(tokens)} tokens are more than the {self._max_prompt_tokens} that "
                "this server takes; shorten it",
                param=param,
            )

    def _check_max_tokens(self, wanted: int | None) -> int:
        if wanted is None:
            return self._max_new_tokens
        if wanted > self._max_new_tokens:
            raise ApiError(
                400,
                f"max_tokens: {wanted} is more than the {self._max_new_tokens} tokens that this "
                "server generates at most",
                param="max_tokens",
            )
        return wanted

    def _sampling(
        self,
        body: ChatCompletionRequest | CompletionRequest,
        max_tokens: int,
        *,
        logprobs: int | None,
        stop_token_ids: frozenset[int],
    ) -> Sampling:
        """The request's own values win, then the model's generation config, then OpenAI's."""
        own = {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "repetition_penalty": body.repetition_penalty,
        }
        values = {
            "temperature": DEFAULT_TEMPERATURE,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            **self._capacity.default_sampling,
            **{name: value for name, value in own.items() if value is not None},
        }
        return Sampling(
            max_tokens=max_tokens,
            temperature=values["temperature"],
            top_p=values["top_p"],
            top_k=max(0, int(values["top_k"])),
            repetition_penalty=values["repetition_penalty"],
            seed=body.seed,
            stop=body.stops,
            stop_token_ids=stop_token_ids,
            logprobs=logprobs,
        )


def _nth(sampling: Sampling, choice: int) -> Sampling:
    """Each choice draws with a seed of its own."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)
