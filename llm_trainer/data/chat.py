"""A conversation → the text that the model's template makes of it, and what of it is trained.

The trained spans are exact, in characters of the rendered text. Three ways, tried in this order,
each of which proves itself or is passed over:
1. The template marks them with {% generation %}.
2. Prefixes: the conversation up to before an assistant turn (with the generation prompt) and up to
   and with it are rendered; both must be prefixes of the whole text. What lies between is the turn.
3. Replacement, for templates that render a turn differently once others follow (dropping its
   reasoning, say): the turn's content is replaced by two different marks. Where the two renderings
   agree is what surrounds the content, and the whole text must agree with it as well.
Nothing is searched for by its text: content that also occurs in a prompt is never mistaken.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from llm_trainer.data.rows import Conversation, Message

Span = tuple[int, int]
"""Start and end, in characters."""

# Private-use characters, no two in the same place of both marks.
_MARKS = ("\ue000peftjob\ue001", "\ue002peftjob\ue003")
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

    def __init__(self, template: str, special_tokens: Sequence[str], variables: dict[str, Any]):
        """`special_tokens` end turns; `variables` are what the template may ask for."""
        self._template = template
        self._variables = variables
        self._marked = _GENERATION.search(template) is not None
        tokens = "|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))) or r"(?!)"
        self._next_token = re.compile(rf"\s*(?:{tokens})")
        self._last_token = re.compile(rf"(?:{tokens})(\s*)\Z")

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation's text and its trained spans.

        Raises:
            SpanError: the template refuses it, or no way above applies.
        """
        turns = [
            i
            for i, message in enumerate(conversation.messages)
            if message["role"] == "assistant" and i >= conversation.trained_from
        ]
        text, marked = self._apply(conversation, conversation.messages)
        if self._marked:
            given = conversation.messages[: conversation.trained_from]
            skip = len(self._apply(conversation, given)[1]) if given else 0
            spans = [self._to_end_of_turn(text, span) for span in marked[skip:]]
            if len(spans) < len(turns):
                raise SpanError(
                    f"the chat template marks {len(spans)} turns with generation, but the row has "
                    f"{len(turns)} to train"
                )
        else:
            spans = [self._turn(conversation, text, i) for i in turns]
        end = spans[-1][1]
        is_open = not text[end:].strip() and self._last_token.search(text[:end]) is None
        return Rendered(text, tuple(spans), is_open)

    def _turn(self, conversation: Conversation, text: str, i: int) -> Span:
        span = self._by_prefix(conversation, text, i) or self._by_marks(conversation, text, i)
        if span is None:
            raise SpanError(
                f"messages[{i}] can't be told apart in the text that the chat template makes; add "
                "{% generation %} and {% endgeneration %} around the assistant's turn to the "
                "template"
            )
        return span

    def _by_prefix(self, conversation: Conversation, text: str, i: int) -> Span | None:
        if i == 0:
            return None  # No template renders an empty conversation.
        messages = conversation.messages
        try:
            before, _ = self._apply(conversation, messages[:i], prompt=True)
            through, _ = self._apply(conversation, messages[: i + 1])
        except SpanError:
            return None  # A template may refuse a part of what it takes as a whole.
        if not (text.startswith(through) and through.startswith(before) and before != through):
            return None
        # Line breaks after the token that ends the turn belong to the template, not to the turn.
        last = self._last_token.search(through, len(before))
        return len(before), last.start(1) if last else len(through)

    def _by_marks(self, conversation: Conversation, text: str, i: int) -> Span | None:
        messages = list(conversation.messages)
        try:
            first, second = (
                self._apply(
                    conversation, [*messages[:i], {**messages[i], "content": m}, *messages[i + 1 :]]
                )[0]
                for m in _MARKS
            )
        except SpanError:
            return None
        head = _shared_start(first, second)
        tail = _shared_start(first[::-1], second[::-1])[::-1]
        end = len(text) - len(tail)
        found = first == head + _MARKS[0] + tail and second == head + _MARKS[1] + tail
        if not (found and text.startswith(head) and text.endswith(tail) and len(head) < end):
            return None
        return self._to_end_of_turn(text, (len(head), end))

    def _to_end_of_turn(self, text: str, span: Span) -> Span:
        """`span` with the token that ends the turn, where it follows or is followed by blanks."""
        start, end = span
        last = self._last_token.search(text[start:end])
        if last:
            return start, start + last.start(1)
        following = self._next_token.match(text, end)
        return start, following.end() if following else end

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
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as err:
            # Templates fail by their own raise_exception, or on a message they did not expect.
            reason = " ".join(str(err).split())
            raise SpanError(f"the chat template refuses it: {reason}") from err
        marked = spans[0] if self._marked else []
        return texts[0], [(start, end) for start, end in marked if start < end]


def _shared_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[:length]
