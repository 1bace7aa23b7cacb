"""A conversation → the text that the model's template makes of it, and what of it is trained.

The trained spans are exact, in characters of the rendered text. Three ways, tried in this order,
each of which proves itself or is passed over:
1. The template marks them with {% generation %}.
2. Prefixes: the conversation up to before an assistant turn (with the generation prompt) and up to
   and with it are rendered; both must be prefixes of the whole text. What lies between is the turn.
3. Replacement (replacement.py), for templates that render a turn differently once others follow,
   as those of reasoning models do.
Nothing is searched for by its text: content that also occurs in a prompt is never mistaken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers.utils.chat_template_utils import render_jinja_template

from llm_trainer.data import replacement
from llm_trainer.data.messages import Message
from llm_trainer.data.rows import Conversation

Span = tuple[int, int]
"""Start and end, in characters."""
TrainOn = Literal["completion", "last", "all"]
"""As training.train_on has it."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class SpanError(Exception):
    """A conversation that the template refuses, or whose turns can't be told apart in its text."""


@dataclass(frozen=True)
class Rendered:
    """Text and what of it is trained."""

    text: str
    spans: tuple[Span, ...]
    open_end: bool
    """Whether the last trained turn is the text's end and no token there says so."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, template: str, special_tokens: Sequence[str], variables: Mapping[str, Any]):
        """`special_tokens` end turns; `variables` are what the template may ask for."""
        self._template = template
        self._variables = dict(variables)
        self._marked = _GENERATION.search(template) is not None
        tokens = "|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))) or r"(?!)"
        self._next_token = re.compile(rf"\s*(?:{tokens})")
        self._last_token = re.compile(rf"(?:{tokens})(\s*)\Z")
        self._pause = re.compile(rf"(?:{tokens})|\n")

    def render(self, conversation: Conversation, train_on: TrainOn = "completion") -> Rendered:
        """The conversation's text and its trained spans.

        Raises:
            SpanError: the template refuses it, or no way above applies.
        """
        text, marked = self._apply(conversation, conversation.messages)
        if train_on == "all":
            spans = [(0, len(text))]
        else:
            turns = [
                i
                for i, message in enumerate(conversation.messages)
                if message["role"] == "assistant" and i >= conversation.trained_from
            ]
            turns = turns[-1:] if train_on == "last" else turns
            if self._marked:
                spans = self._by_generation(conversation, text, marked, turns)
            else:
                spans = [self._turn(conversation, text, i) for i in turns]
        start, end = spans[-1]
        ended = self._last_token.search(text, start, end) is not None
        return Rendered(text, tuple(spans), not ended and not text[end:].strip())

    def _by_generation(
        self, conversation: Conversation, text: str, marked: list[Span], turns: list[int]
    ) -> list[Span]:
        given = conversation.messages[: turns[0]]
        skip = len(self._apply(conversation, given)[1]) if given and _speaks(given) else 0
        spans = [self._to_end_of_turn(text, span) for span in marked[skip:]]
        if len(spans) < len(turns):
            raise SpanError(
                f"the chat template marks {len(spans)} turns with generation, but the row has "
                f"{len(turns)} to train"
            )
        return spans

    def _turn(self, conversation: Conversation, text: str, i: int) -> Span:
        span = self._by_prefix(conversation, text, i) or self._by_replacement(conversation, text, i)
        if span is None:
            raise SpanError(
                f"messages[{i}] can't be told apart in the text that the chat template makes; add "
                "{% generation %} and {% endgeneration %} around the assistant's turn to the "
                "template"
            )
        return span

    def _by_prefix(self, conversation: Conversation, text: str, i: int) -> Span | None:
        before, through = self._before(conversation, i), self._through(conversation, text, i)
        if before is None or through is None or before == through:
            return None
        if not (text.startswith(through) and through.startswith(before)):
            return None
        # Line breaks after the token that ends the turn belong to the template, not to the turn.
        last = self._last_token.search(through, len(before))
        return len(before), last.start(1) if last else len(through)

    def _by_replacement(self, conversation: Conversation, text: str, i: int) -> Span | None:
        messages = conversation.messages
        said = self._replaced(conversation, messages, text, i)
        if said is None:
            return None
        start = self._start(conversation, text, i, said[0])
        if start is None:
            # The turn begins with what the row says; of a call, the template says the beginning.
            if not messages[i]["content"]:
                return None
            start = said[0]
        return start, self._end(conversation, text, i, said[1])

    def _start(self, conversation: Conversation, text: str, i: int, said: int) -> int | None:
        """Where the generation prompt ends, in what the template says since the last message."""
        before = self._before(conversation, i)
        bare = self._try(conversation, conversation.messages[:i]) if before else None
        asked = self._replaced(conversation, conversation.messages, text, i - 1) if i else None
        if before is None or bare is None or not before.startswith(bare) or asked is None:
            return None
        prompt = before[len(bare) :]
        # It may begin a turn in a way that only the last one has, with <think>: then as far as its
        # last line break or token that is there.
        for end in sorted({len(prompt), *(m.end() for m in self._pause.finditer(prompt))})[::-1]:
            at = text.find(prompt[:end], asked[1], said) if end else -1
            if at >= 0:
                return at + end
        return None

    def _end(self, conversation: Conversation, text: str, i: int, said: int) -> int:
        """Where the turn ends, as it does where it is the conversation's last."""
        messages = conversation.messages[: i + 1]
        through = self._through(conversation, text, i)
        alone = None if through is None else self._replaced(conversation, messages, through, i)
        if through is not None and alone is not None:
            rest = through[alone[1] :]
            last = self._last_token.search(rest)
            rest = rest[: last.start(1)] if last else rest
            if text.startswith(rest, said):
                return said + len(rest)
        following = self._next_token.match(text, said)
        return following.end() if following else said

    def _replaced(
        self, conversation: Conversation, messages: Sequence[Message], text: str, i: int
    ) -> Span | None:
        variants = [
            self._try(conversation, [*messages[:i], variant, *messages[i + 1 :]])
            for variant in replacement.variants(messages[i])
        ]
        one, other = variants
        return None if one is None or other is None else replacement.span(text, one, other)

    def _to_end_of_turn(self, text: str, span: Span) -> Span:
        """`span` with the token that ends the turn, where it follows or is followed by blanks."""
        start, end = span
        last = self._last_token.search(text, start, end)
        if last:
            return start, last.start(1)
        following = self._next_token.match(text, end)
        return start, following.end() if following else end

    def _before(self, conversation: Conversation, i: int) -> str | None:
        # No template renders an empty conversation.
        return self._try(conversation, conversation.messages[:i], prompt=True) if i else None

    def _through(self, conversation: Conversation, text: str, i: int) -> str | None:
        messages = conversation.messages
        return text if i + 1 == len(messages) else self._try(conversation, messages[: i + 1])

    def _try(
        self, conversation: Conversation, messages: Sequence[Message], *, prompt: bool = False
    ) -> str | None:
        """The text, or None: a template may refuse a part of what it takes as a whole."""
        try:
            return self._apply(conversation, messages, prompt=prompt)[0]
        except SpanError:
            return None

    def _apply(
        self, conversation: Conversation, messages: Sequence[Message], *, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=list(conversation.tools) if conversation.tools else None,
                chat_template=self._template,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except RecursionError as err:
            raise SpanError("is nested too deeply for the chat template") from err
        except Exception as err:
            # A template is a program: it fails by its own raise_exception, or as programs do on
            # a message that they did not expect.
            reason = " ".join(str(err).split()) or type(err).__name__
            raise SpanError(f"the chat template refuses it: {reason}") from err
        marked = spans[0] if self._marked else []
        return texts[0], [(start, end) for start, end in marked if start < end]


def _speaks(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "assistant" for message in messages)
