"""A request on its way through the batch: what it has so far, and when it ends."""

import time
from collections.abc import Callable, Sequence
from typing import cast

from kserve_runtime.adapter_files import AdapterFiles
from kserve_runtime.detokenizer import CONTEXT_TOKENS, Decode, Detokenizer, StopTexts
from kserve_runtime.engine import (
    Chunk,
    EngineFailedError,
    FinishReason,
    Request,
    ScoredToken,
)
from kserve_runtime.sampling import make_generator


class Row:
    """The state of one running request. The engine's thread owns it, except for `cancelled`."""

    def __init__(
        self,
        request: Request,
        eos_token_ids: frozenset[int],
        decode: Decode,
        deliver: Callable[[Chunk | Exception], None],
    ) -> None:
        self.request = request
        # An engine is asked for what it has loaded itself.
        self.mix = cast(tuple[tuple[AdapterFiles, float], ...], request.mix)
        self.submitted = time.monotonic()
        self.queued_s = 0.0
        """From then until the engine's thread took it."""
        self.generator = make_generator(request.sampling.seed)
        self.seen = (
            None if request.sampling.repetition_penalty == 1 else dict.fromkeys(request.prompt)
        )
        """The tokens of the prompt and the answer so far, where these are penalised."""
        self.last_token = -1
        self._answer: list[int] = []
        self.finished = False
        self.failed = False
        """With an error: nothing that was computed for it is used again."""
        self.cancelled = False
        """Set from any thread when nobody waits for the answer any more."""
        self._ends = eos_token_ids | request.sampling.stop_token_ids
        context = request.prompt[-CONTEXT_TOKENS:] if request.continues_text else ()
        self._text = Detokenizer(decode, context)
        self._stops = StopTexts(request.sampling.stop)
        self._deliver = deliver

    @property
    def adapters(self) -> list[AdapterFiles]:
        return [adapter for adapter, _ in self.mix]

    @property
    def tokens(self) -> int:
        """Of the prompt and the answer so far."""
        return len(self.request.prompt) + len(self._answer)

    @property
    def most_tokens(self) -> int:
        """Of the prompt and the whole answer, if nothing ends it before."""
        return len(self.request.prompt) + self.request.sampling.max_tokens

    @property
    def read(self) -> list[int]:
        """The tokens that keys and values are there for: all but the last."""
        return [*self.request.prompt, *self._answer[:-1]]

    def begin(self) -> None:
        """Note that the engine's thread has taken the request."""
        self.queued_s = time.monotonic() - self.submitted

    def show_prompt(self, tokens: Sequence[ScoredToken]) -> None:
        """Deliver the prompt's scores."""
        self._deliver(Chunk(prompt_tokens=tuple(tokens)))

    def take(self, token: int, scored: ScoredToken | None, *, room: int) -> None:
        """Take the next token; `room` is what the context has beside the prompt."""
        self.last_token = token
        self._answer.append(token)
        if self.seen is not None:
            self.seen[token] = None
        if token in self._ends:
            self.end("stop", new_tokens=1)
            return
        text = self._stops.push(self._text.push(token))
        tokens = () if scored is None else (scored,)
        if self._stops.found:
            self._finish(Chunk(text=text, new_tokens=1, tokens=tokens, finish_reason="stop"))
        elif len(self._answer) >= min(self.request.sampling.max_tokens, room):
            self.end("length", text=text, new_tokens=1, tokens=tokens)
        else:
            self._deliver(Chunk(text=text, new_tokens=1, tokens=tokens))

    def end(
        self,
        reason: FinishReason,
        *,
        text: str = "",
        new_tokens: int = 0,
        tokens: tuple[ScoredToken, ...] = (),
    ) -> None:
        """Deliver the last chunk, with the text that was held back."""
        text += self._stops.push(self._text.finish())
        if self._stops.found:
            reason = "stop"
        text += self._stops.finish()
        self._finish(Chunk(text=text, new_tokens=new_tokens, tokens=tokens, finish_reason=reason))

    def fail(self, reason: str) -> None:
        """Deliver an error instead of the rest."""
        self.finished = self.failed = True
        self._deliver(EngineFailedError(reason))

    def _finish(self, chunk: Chunk) -> None:
        self.finished = True
        self._deliver(chunk)
