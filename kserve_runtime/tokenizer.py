"""Text and messages → tokens, and back.

An adapter that brings a chat template was trained with it, so its requests are written with it;
others with the base model's. May import peftjob.errors.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from peftjob.errors import ModelError


class PromptError(ValueError):
    """The messages can't be written as a prompt."""


class PromptTokenizer:
    """The base model's tokenizer with the chat templates of the base model and its adapters."""

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
        self._templates: dict[str | None, str | None] = {None: self._tokenizer.chat_template}
        self._turn_ends: dict[str | None, frozenset[int]] = {None: self._find_turn_ends(None)}

    def use_adapter(self, name: str, folder: Path) -> None:
        """Take the chat template of the adapter in `folder`, if it brings one.

        Raises:
            ModelError: the template is damaged.
        """
        try:
            template = _read_template(folder)
        except (OSError, ValueError) as err:
            raise ModelError(f"adapter {name!r}: can't read its chat template: {err}") from err
        self._templates[name] = template or self._templates[None]
        self._turn_ends[name] = self._find_turn_ends(name)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's tokens, with those the tokenizer puts around a text unless switched off."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], adapter: str | None) -> list[int]:
        """The messages as the adapter's chat template writes them, up to the assistant's turn.

        Raises:
            PromptError: no template, or the template refuses the messages.
        """
        text = self._write_chat(messages, adapter, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return self.encode(text, special_tokens=False)

    def turn_ends(self, adapter: str | None) -> frozenset[int]:
        """Tokens that end an assistant's turn in the adapter's chat template."""
        return self._turn_ends[adapter]

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
        adapter: str | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        template = self._templates[adapter]
        if not template:
            raise PromptError(
                "this model has no chat template; use completions, or put chat_template.jinja "
                "into its folder"
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as err:
            raise PromptError(f"the chat template refuses these messages: {err}") from err
        return text

    def _find_turn_ends(self, adapter: str | None) -> frozenset[int]:
        """The special token that the template writes after an assistant's words, if it does.

        A base model's generation config often knows only the end of a document.
        """
        ends = {self._tokenizer.eos_token_id} - {None}
        words = "answer"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
        try:
            text = self._write_chat(messages, adapter, add_generation_prompt=False)
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
