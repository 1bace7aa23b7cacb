"""The requests of the OpenAI protocol that this server understands.

A field that would change the answer and isn't honoured here is an error, never ignored in silence.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kserve_runtime.sources import MAX_STRENGTH

MAX_CHOICES = 16
MAX_PROMPTS = 256
MAX_STOPS = 16
MAX_LOGPROBS = 20

_Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamOptions(_Part):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Accepted, because clients send it; nothing is padded here."""


class TextPart(_Part):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat. Further fields go to the chat template as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: str = Field(min_length=1)
    content: str | list[TextPart] | None = None

    def to_template(self) -> dict[str, Any]:
        """As chat templates want it: content is one text."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        message = {**self.model_dump(exclude={"content"}), "content": content or ""}
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        return message


def _with_parsed_arguments(call: Any) -> Any:
    """A tool call of an earlier answer: OpenAI has its arguments as JSON in a text, templates as
    an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


class AdapterShare(_Part):
    """An adapter in a blend."""

    name: str
    strength: float | None = Field(default=None, ge=-MAX_STRENGTH, le=MAX_STRENGTH)
    """None takes the adapter's own."""


class _Generation(_Part):
    model: str
    """Name of the base model or of an adapter."""
    adapters: list[AdapterShare] | None = None
    """Not in OpenAI's protocol: answer with these instead of what `model` stands for; [] is the
    base model."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Answers to give to each prompt."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """None takes the model's own default, or 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    """Not in OpenAI's protocol; 0 and -1 mean all."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    """Not in OpenAI's protocol; as in transformers' generate. None takes the model's own, or 1."""
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted, not used."""
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _zero_is_zero(cls, value: object) -> object:
        return 0 if value == 0 and not isinstance(value, bool) else value

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or any(not stop for stop in stops):
            raise ValueError(f"up to {MAX_STOPS} texts, none of them empty")
        return value

    @model_validator(mode="after")
    def _options_belong_to_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream=true only")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ResponseFormat(_Part):
    """Only plain text is written here."""

    type: Literal["text"]


class Function(BaseModel):
    """What a tool is. Further fields, its parameters' schema too, go to the chat template."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)


class Tool(_Part):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class ChatCompletionRequest(_Generation):
    """POST /chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """None means up to the server's limit."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of max_tokens; wins over it."""
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(default=None, min_length=1)
    """Handed to the chat template; see tool_calls for what is read back."""
    tool_choice: Literal["auto", "none"] | None = None
    """Nothing is forced here: the other choices are refused."""
    parallel_tool_calls: Literal[True] | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    """Accepted, not used."""

    @property
    def callable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump() for tool in self.tools or ()]

    @model_validator(mode="after")
    def _top_goes_with_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs=true only")
        return self


class CompletionRequest(_Generation):
    """POST /completions."""

    prompt: (
        str
        | _Tokens
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | (Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_PROMPTS)])
    )
    """One prompt or several, each as text or as tokens."""
    max_tokens: int | None = Field(default=None, ge=0)
    """None means 16, OpenAI's default, or the server's limit where that is less; 0 only scores the
    prompt, and goes with echo."""
    echo: bool | None = False
    """Give the prompt back before the answer; with logprobs, the prompt's tokens are scored."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True
    """Not in OpenAI's protocol: whether the tokenizer puts its special tokens around a text."""
    best_of: int | None = None
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _nothing_to_do(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens=0 goes with echo=true only")
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of is not supported beyond n")
        if self.echo and self.stream:
            raise ValueError("echo can't be streamed")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, however they were given."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class _Loading(_Part):
    strength: float = Field(default=1.0, ge=-MAX_STRENGTH, le=MAX_STRENGTH)
    """Where a request names none."""
    watch: bool = False
    """Load it again when the tag, the branch or the files at the source change."""


class LoadAdapterRequest(_Loading):
    """POST /adapters."""

    name: str
    source: str


class RepositoryParameters(_Loading):
    """What KServe's repository API says of a model beside its name."""

    source: str


class RepositoryLoadRequest(_Part):
    """POST /v2/repository/models/{name}/load."""

    parameters: RepositoryParameters | None = None
    """None takes what the name was loaded from before, and how."""
