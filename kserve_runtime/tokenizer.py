"""Text and messages → tokens, and back.

An adapter that brings a chat template was trained with it, so its requests are written with it;
others with the base model's. May import peftjob.errors.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer

from peftjob.errors import ModelError

TEMPLATE_S = 1.0
"""Of the processor's time that a chat template may take; a chat of 5,000 messages takes 0.2 s."""
LINES_BETWEEN_LOOKS = 64
"""At the clock, which takes longer than a line."""


class PromptError(ValueError):
    """The messages can't be written as a prompt."""


class DamagedTemplateError(PromptError):
    """The chat template fails where it should write the messages or say why it doesn't."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a model wants to be talked to."""

    source: str | None
    """Jinja; None where the model has none."""
    turn_ends: frozenset[int]
    """Tokens that end an assistant's turn."""


class PromptTokenizer:
    """The base model's tokenizer, and chat templates in its tokens."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer in `folder`.

        Raises:
            ModelError: none there.
        """
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as err:
            raise ModelError(f"can't load the tokenizer in {folder}: {_one_line(err)}") from err
        self.vocab_size: int = len(self._tokenizer)
        self.longest_token: int = max(map(len, self._tokenizer.get_vocab()), default=1)
        """Characters that a token stands for at most."""
        source = self._tokenizer.chat_template
        try:
            self.template = self._make_template(source)
            """The base model's own."""
        except DamagedTemplateError:
            # Completions need none; whoever chats is told.
            self.template = ChatTemplate(source, self._find_ends())

    def read_template(self, name: str, folder: Path) -> ChatTemplate:
        """The chat template of the adapter in `folder`, or the base model's if it brings none.

        Raises:
            ModelError: the template is damaged.
        """
        try:
            source = _read_template(folder)
        except (OSError, ValueError, RecursionError) as err:
            raise ModelError(f"adapter {name!r}: can't read its chat template: {err}") from err
        if source is None:
            return self.template
        try:
            return self._make_template(source)
        except DamagedTemplateError as err:
            raise ModelError(
                f"adapter {name!r}: {err}; correct it, or take it away to use the base model's"
            ) from err

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's tokens, with those the tokenizer puts around a text unless switched off."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
        return ids

    def write_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template: ChatTemplate,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The messages as the chat template writes them, special tokens included, up to the
        assistant's turn.

        Raises:
            PromptError: no template, or the template refuses the messages or knows no tools.
        """
        if tools and "tools" not in (template.source or ""):
            raise PromptError("this model's chat template has no place for tools; leave them out")
        return self._write_chat(messages, template.source, tools=tools, add_generation_prompt=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens, as an answer shows it."""
        return self._decode(ids, skip_special_tokens=True)

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text with special tokens spelt out, as a prompt has them."""
        return self._decode(ids, skip_special_tokens=False)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _write_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template: str | None,
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        if not template:
            raise PromptError(
                "this model has no chat template; use completions, or put chat_template.jinja "
                "into its folder"
            )
        try:
            write = partial(
                self._tokenizer.apply_chat_template,
                list(messages),
                chat_template=template,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
            text = _run_template(write, TEMPLATE_S)
            text.encode()  # half a surrogate pair is no text to a tokenizer
        except TemplateSyntaxError as err:
            raise DamagedTemplateError(f"the chat template is damaged: {_one_line(err)}") from err
        except TemplateError as err:
            raise PromptError(
                f"the chat template refuses these messages: {_one_line(err)}"
            ) from err
        # A template is a program of somebody else's, which may fail in any way.
        except Exception as err:
            reason = f"{type(err).__name__}: {_one_line(err)}"
            raise DamagedTemplateError(f"the chat template fails: {reason}") from err
        return text

    def _make_template(self, source: str | None) -> ChatTemplate:
        """
        Raises:
            DamagedTemplateError: it can't write a question and its answer.
        """
        return ChatTemplate(source, self._find_ends() | self._find_turn_end(source))

    def _find_ends(self) -> frozenset[int]:
        return frozenset({self._tokenizer.eos_token_id} - {None})

    def _find_turn_end(self, template: str | None) -> frozenset[int]:
        """The special token that the template writes after an assistant's words, if it does.

        A base model's generation config often knows only the end of a document.
        """
        words = "answer"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
        try:
            text = self._write_chat(messages, template, add_generation_prompt=False)
        except DamagedTemplateError:
            raise
        except PromptError:
            return frozenset()
        after = text.rpartition(words)[2].lstrip()
        ids = self.encode(after, special_tokens=False)
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        return frozenset({ids[0]} & special if ids else ())


def _run_template(write: Callable[[], str], seconds: float) -> str:
    """What a chat template writes, if it takes no more than so much of the processor's time.

    Jinja's sandbox bounds a loop, but not loops in loops, and meanwhile no other request goes on.

    Raises:
        TimeoutError: it takes longer.
    """
    end = time.thread_time() + seconds
    lines = count()

    def look(frame: FrameType, event: str, arg: object) -> Any:
        if next(lines) % LINES_BETWEEN_LOOKS == 0 and time.thread_time() > end:
            raise TimeoutError(f"it takes more than {seconds:g} s")
        # Line by line in what Jinja has made of a template; elsewhere each call is enough.
        return look if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        return write()
    finally:
        sys.settrace(before)


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:300] or "no reason given"


def _read_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder, in either of the places where one may lie."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    template = config.get("chat_template") if isinstance(config, dict) else None
    return template if isinstance(template, str) else None
