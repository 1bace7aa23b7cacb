"""Samples → tokens, with the ones that the model should say marked.

A text is tokenised once and whole, as the model will see it. Which of its tokens are trained
follows from the tokenizer's own character offsets; a tokenizer without offsets is asked for every
prefix, which must then be a prefix of the whole. The token that ends a text or a turn is always
trained: without it a tuned model does not learn to stop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llm_trainer.data.chat import ChatTemplate, SpanError
from llm_trainer.data.examples import Examples
from llm_trainer.data.rows import (
    SHOWN_PROBLEMS,
    Completion,
    Conversation,
    Instruction,
    RowsError,
    Sample,
    Text,
)
from peftjob.errors import DataError, ModelError

BATCH_ROWS = 512
"""Rows given to the tokenizer at once."""


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows and what was lost on the way."""

    examples: Examples
    truncated: int
    """Rows cut at max_length."""
    dropped: int
    """Rows of which nothing to train was left; they are not in `examples`."""


@dataclass(frozen=True)
class _Source:
    """A text to tokenise."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Trained characters."""
    add_start: bool
    add_end: bool


class Encoder:
    """What of a tokenizer the training of a dataset depends on."""

    def __init__(self, tokenizer: Any, *, max_length: int, train_all: bool) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the base model's tokenizer has no EOS token, so that no text can end; set "
                "eos_token in its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._train_all = train_all
        self._special_ids = _special_ids(tokenizer)
        self._start = _start_token(tokenizer)
        self._end = int(tokenizer.eos_token_id)
        template = tokenizer.chat_template
        # A dict of named templates has the usual one under this name.
        template = template.get("default") if isinstance(template, dict) else template
        self._chat = (
            ChatTemplate(
                template,
                tokenizer.convert_ids_to_tokens(sorted(self._special_ids)),
                dict(tokenizer.special_tokens_map),
            )
            if template
            else None
        )

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Tokenise and mark.

        Raises:
            RowsError: conversations that the chat template can't take.
            DataError: nothing to train is left.
        """
        rows = []
        truncated = dropped = 0
        for ids, trained in self._rows(self._sources(samples)):
            if len(ids) > self._max_length:
                truncated += 1
                ids, trained = ids[: self._max_length], trained[: self._max_length]
            if any(trained[1:]):
                rows.append((ids, trained))
            else:
                dropped += 1
        if not rows:
            raise DataError(
                f"no row has anything left to train after {self._max_length} tokens; raise "
                "training.max_length, or take a base model with more positions"
            )
        return Encoded(Examples.of(rows), truncated, dropped)

    def _sources(self, samples: Sequence[Sample]) -> list[_Source]:
        sources = []
        problems = []
        for sample in samples:
            try:
                sources.append(self._source(sample))
            except SpanError as err:
                problems.append(f"{sample.where}: {err}")
        if problems:
            raise RowsError(problems[:SHOWN_PROBLEMS], len(problems), len(samples))
        return sources

    def _source(self, sample: Sample) -> _Source:
        if isinstance(sample, Instruction):
            sample = self._as_turns(sample)
        if isinstance(sample, Conversation):
            if self._chat is None:
                raise DataError(
                    f"{sample.where} is a conversation, but the base model's tokenizer has no chat "
                    "template; use a model that has one, or rows of prompt and completion"
                )
            rendered = self._chat.render(sample)
            spans = ((0, len(rendered.text)),) if self._train_all else rendered.spans
            return _Source(rendered.text, spans, False, rendered.open_end)
        if isinstance(sample, Text):
            return _Source(sample.text, ((0, len(sample.text)),), True, True)
        text = sample.prompt + sample.completion
        start = 0 if self._train_all else len(sample.prompt)
        return _Source(text, ((start, len(text)),), True, True)

    def _as_turns(self, sample: Instruction) -> Conversation | Completion:
        """A chat, as the server will be asked; without a template, the form Alpaca made known."""
        if self._chat is None:
            prompt = f"### Instruction:\n{sample.instruction}\n\n### Response:\n"
            return Completion(prompt, sample.output, sample.where)
        turns = (
            {"role": "user", "content": sample.instruction},
            {"role": "assistant", "content": sample.output},
        )
        return Conversation(turns, sample.where)

    def _rows(self, sources: Sequence[_Source]) -> Iterator[tuple[list[int], list[bool]]]:
        left = iter(sources)
        while batch := list(islice(left, BATCH_ROWS)):
            for source, (ids, trained) in zip(batch, self._tokenise(batch), strict=True):
                if source.add_start and self._start is not None and ids[:1] != [self._start]:
                    ids, trained = [self._start, *ids], [False, *trained]
                if source.add_end and ids[-1:] != [self._end]:
                    ids, trained = [*ids, self._end], [*trained, True]
                yield ids, trained

    def _tokenise(self, batch: Sequence[_Source]) -> Iterator[tuple[list[int], list[bool]]]:
        texts = [source.text for source in batch]
        fast = self._tokenizer.is_fast
        made = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=fast,
            verbose=False,
        )
        for row, source in enumerate(batch):
            ids = made["input_ids"][row]
            if fast:
                yield ids, self._marks(ids, made["offset_mapping"][row], source.spans)
            else:
                yield ids, self._marks_by_prefix(ids, source)

    def _marks(
        self, ids: list[int], offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]]
    ) -> list[bool]:
        """Tokens that reach into a span. Both are in order, so one pass finds them.

        A token that begins before the span and ends in it is trained, or the first word would be
        lost where a tokenizer joins it with the blank before; unless it is a special token that
        swallows blanks after it, which no model says there.
        """
        marks = []
        position = 0
        for token, (start, end) in zip(ids, offsets, strict=True):
            while position < len(spans) and spans[position][1] <= start:
                position += 1
            inside = position < len(spans) and end > spans[position][0]
            if inside and start < spans[position][0]:
                inside = token not in self._special_ids
            marks.append(inside)
        return marks

    def _marks_by_prefix(self, ids: list[int], source: _Source) -> list[bool]:
        marks = [False] * len(ids)
        for start, end in source.spans:
            first, last = (self._prefix_length(ids, source.text[:at]) for at in (start, end))
            marks[first:last] = [True] * (last - first)
        return marks

    def _prefix_length(self, ids: list[int], text: str) -> int:
        prefix = self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if ids[: len(prefix)] != prefix:
            raise DataError(
                "the base model's tokenizer gives no character offsets, and the tokens of "
                f"{text[-40:]!r} change with what follows, so that trained tokens can't be told "
                "from the prompt's; use a model with a tokenizer.json"
            )
        return len(prefix)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _start_token(tokenizer: Any) -> int | None:
    """The BOS token, where the tokenizer itself begins every text with it."""
    begun = tokenizer("a")["input_ids"][:1]
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and begun == [bos] else None
