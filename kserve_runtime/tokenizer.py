"""Text and messages → tokens, and back.

An adapter that brings a chat template was trained with it, so its requests are written with it;
others with the base model's. May import peftjob.errors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from peftjob.errors import ModelError


class PromptError(ValueError):
    """The messages can't be written as a prompt."""


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
            reason = " ".join(str(err).split())[:500]
            raise ModelError(f"can't load the tokenizer in {folder}: {reason}") from err
        self.vocab_size: int = len(self._tokenizer)
        self.template = self._make_template(self._tokenizer.chat_template)
        """The base model's own."""

    def read_template(self, name: str, folder: Path) -> ChatTemplate:
        """The chat template of the adapter in `folder`, or the base model's if it brings none.

        Raises:
            ModelError: the template is damaged.
        """
        try:
            source = _read_template(folder)
        except (OSError, ValueError) as err:
            raise ModelError(f"adapter {name!r}: can't read its chat template: {err}") from err
        return self.template if source is None else self._make_template(source)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's tokens, with those the tokenizer puts around a text unless switched off."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template: ChatTemplate,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """The messages as the chat template writes them, up to the assistant's turn.

        Raises:
            PromptError: no template, or the template refuses the messages or knows no tools.
        """
        if tools and "tools" not in (template.source or ""):
            raise PromptError("this model's chat template has no place for tools; leave them out")
        text = self._write_chat(messages, template.source, tools=tools, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return self.encode(text, special_tokens=False)

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
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as err:
            raise PromptError(f"the chat template refuses these messages: {err}") from err
        return text

    def _make_template(self, source: str | None) -> ChatTemplate:
        return ChatTemplate(source, self._find_turn_ends(source))

    def _find_turn_ends(self, template: str | None) -> frozenset[int]:
        """The special token that the template writes after an assistant's words, if it does.

        A base model's generation config often knows only the end of a document.
        """
        ends = {self._tokenizer.eos_token_id} - {None}
        words = "answer"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
        try:
            text = self._write_chat(messages, template, add_generation_prompt=False)
        except PromptError:
            return frozenset(ends)
        after = text.rpartition(words)[2].lstrip()
        ids = self.encode(after, special_tokens=False)
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        return frozenset(ends | ({ids[0]} & special if ids else set()))


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
