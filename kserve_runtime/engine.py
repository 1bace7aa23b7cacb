"""What an engine is: requests go in, chunks of an answer come out, token by token.

The routes know this Protocol and nothing of what stands behind it. May import peftjob.errors.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length"]


class EngineBusyError(Exception):
    """The queue is full; the same request may be taken later."""


class EngineFailedError(Exception):
    """The engine met an error of its own while it worked on a request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen and when to end."""

    max_tokens: int
    """Tokens to generate at most; 0 only scores the prompt."""
    temperature: float = 0.0
    """0 takes the likeliest token (greedy)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the answer so far become less likely, below 1 more."""
    seed: int | None = None
    """The same seed gives the same answer, whatever else is in the batch. None is random."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer; counted, not shown."""
    logprobs: int | None = None
    """Alternatives to report for each token, with its own log-probability; None reports none."""


class LoadedAdapter(Protocol):
    """An adapter in an engine. Who holds one can use it, also when another has taken its name."""

    @property
    def name(self) -> str: ...

    @property
    def rank(self) -> int:
        """The highest of its modules' ranks."""
        ...

    @property
    def modules(self) -> int:
        """Number of projections that it changes."""
        ...


class Share(NamedTuple):
    """An adapter's part in a mix: its update, times `strength`, is added to the base model's."""

    adapter: LoadedAdapter
    strength: float = 1.0


Mix = tuple[Share, ...]
"""The adapters that a request is answered with, each at most once; () is the base model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt, the adapters to answer with, and how."""

    prompt: tuple[int, ...]
    mix: Mix = ()
    sampling: Sampling
    prompt_logprobs: bool = False
    """Score the prompt's tokens too; they come in the first chunk."""
    continues_text: bool = False
    """The answer continues the prompt's text, so that a leading space counts (completions)."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and how likely the model found it."""

    id: int
    logprob: float | None
    """Natural logarithm; None for the first token of a prompt, which nothing precedes."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of an answer. The last one has a finish reason."""

    text: str = ""
    """Whole characters only."""
    new_tokens: int = 0
    """Tokens generated since the last chunk, the one that ends the answer included."""
    tokens: tuple[ScoredToken, ...] = ()
    """Those tokens without an ending one; empty unless log-probabilities were asked for."""
    prompt_tokens: tuple[ScoredToken, ...] = ()
    finish_reason: FinishReason | None = None
    queued_s: float | None = None
    """How long the request has waited for its place; in the first chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What an engine can take."""

    context_tokens: int
    """Prompt and answer together."""
    batch_rows: int
    """Requests that run at once."""
    queue_rows: int
    """Requests that may wait."""
    adapter_slots: int
    """Adapters that run at once, and so the most that one request may blend."""
    kv_tokens: int
    """Tokens that keys and values may be held for, all requests together."""
    default_sampling: dict[str, float] = field(default_factory=dict)
    """temperature, top_p, top_k and repetition_penalty that the model's own generation config
    recommends, where it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What an engine is doing at a moment."""

    running: Sequence[tuple[Mix, int]]
    """The requests in the batch: what each is answered with, and the tokens it has so far."""
    waiting: int
    """Requests in the queue."""
    kv_tokens: int
    """Tokens that keys and values take the memory of, padding included."""
    in_slots: Sequence[LoadedAdapter]
    page_ins: int
    """How often an adapter was brought into a slot, from the beginning."""
    prefix_tokens: int = 0
    """Tokens of prompts that were known from requests before, from the beginning."""


class Engine(Protocol):
    """A base model with adapters. Safe to call from any thread or event loop."""

    @property
    def capacity(self) -> Capacity: ...

    def warm_up(self) -> None:
        """Compute a first token, so that no user's request pays for it.

        Raises:
            ModelError: the model can't be run.
        """
        ...

    def adapters(self) -> Sequence[LoadedAdapter]:
        """The loaded adapters, in the order in which they were loaded."""
        ...

    def load_adapter(self, name: str, folder: Path) -> LoadedAdapter:
        """Load the adapter in `folder`, all or nothing, while requests run.

        Names may repeat: a new version is loaded beside the old one, and the old one unloaded.

        Raises:
            ModelError: it is no adapter, doesn't fit the base model, or can't be mixed.
        """
        ...

    def unload_adapter(self, adapter: LoadedAdapter) -> None:
        """Let go of an adapter; requests that were made with it are answered with it to the end."""
        ...

    def usage(self) -> Usage: ...

    def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """Answer a request. Closing the iterator frees its place in the batch or the queue.

        Raises:
            UsageError: this engine can't blend so many ranks, or take so long a prompt.
            EngineBusyError: the queue is full.
            EngineFailedError: the engine failed.
        """
        ...

    def healthy(self) -> bool:
        """Whether the engine is running and takes requests."""
        ...

    def close(self) -> None:
        """Stop, fail what is running, and wait for the engine's thread to end."""
        ...
