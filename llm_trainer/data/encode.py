"""Samples → tokens, with the ones that the model should say marked.

A text is tokenised once and whole, as the model will see it. Which of its tokens are trained
follows from the tokenizer's own character offsets (marks). The token that ends a text or a turn is
always trained: without it a tuned model does not learn to stop.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_trainer.data import marks
from llm_trainer.data.chat import ChatTemplate, Span, SpanError, TrainOn
from llm_trainer.data.read import Problem
from llm_trainer.data.rows import Completion, Conversation, Instruction, Sample, Text, Tokens
from peftjob.errors import DataError, ModelError

BATCH_ROWS = 512
"""Rows given to the tokenizer at once: enough for all cores."""
BATCH_CHARS = 1 << 20
"""Characters, so that long documents don't fill the memory: a token takes 100 bytes on its way."""


@dataclass(frozen=True)
class Encoded:
    """A row of tokens."""

    where: str
    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    """Of each token, whether the model should say it; never of the first: nothing comes before."""
    full_length: int
    """Tokens before the row was cut."""


@dataclass(frozen=True)
class _Source:
    """A text to tokenise."""

    where: str
    text: str
    spans: tuple[Span, ...]
    """Trained characters."""
    add_start: bool
    add_end: bool


_Item = _Source | Tokens | Problem


class Encoder:
    """What of a tokenizer the training of a dataset depends on."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        train_on: TrainOn = "completion",
        chat_template: str | None = None,
    ) -> None:
        """Of a tokenizer and, where it is given, a Jinja template in place of its own.

        Raises:
            ModelError: the tokenizer has no EOS token.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the base model's tokenizer has no EOS token, so that no text can end; set "
                "eos_token in its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._train_on = train_on
        self._special_ids = _special_ids(tokenizer)
        self._start = _start_token(tokenizer)
        self._end = int(tokenizer.eos_token_id)
        template = chat_template or own_template(tokenizer)
        self._chat = (
            ChatTemplate(
                template,
                tokenizer.convert_ids_to_tokens(sorted(self._special_ids)),
                dict(tokenizer.special_tokens_map),
            )
            if template
            else None
        )

    def encode(self, samples: Iterable[Sample | Problem]) -> Iterator[Encoded | Problem]:
        """Tokenise and mark, in the samples' order, a batch in memory at a time.

        A conversation that the template can't take becomes a problem.

        Raises:
            DataError: the samples can't be tokenised at all: conversations without a template.
        """
        # Templates hold Python's lock and the tokenizer does not: one batch is rendered while the
        # one before is tokenised.
        with ThreadPoolExecutor(1) as pool:
            before: list[_Item] = []
            made: Any = None
            for batch in self._batches(samples):
                following = pool.submit(self._tokenise, batch)
                yield from self._finished(before, made)
                before, made = batch, following
            yield from self._finished(before, made)

    def _batches(self, samples: Iterable[Sample | Problem]) -> Iterator[list[_Item]]:
        batch: list[_Item] = []
        chars = 0
        for sample in samples:
            item = self._item(sample)
            batch.append(item)
            chars += len(item.text) if isinstance(item, _Source) else 0
            if len(batch) == BATCH_ROWS or chars >= BATCH_CHARS:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def _item(self, sample: Sample | Problem) -> _Item:
        if isinstance(sample, Problem | Tokens):
            return sample
        try:
            return self._source(sample)
        except SpanError as err:
            return Problem(str(err), where=sample.where)

    def _source(self, sample: Conversation | Completion | Instruction | Text) -> _Source:
        if isinstance(sample, Instruction):
            sample = self._as_turns(sample)
        if isinstance(sample, Conversation):
            return self._rendered(sample)
        if isinstance(sample, Text):
            return _Source(sample.where, sample.text, ((0, len(sample.text)),), True, True)
        text = sample.prompt + sample.completion
        start = 0 if self._train_on == "all" else len(sample.prompt)
        return _Source(sample.where, text, ((start, len(text)),), True, True)

    def _rendered(self, sample: Conversation) -> _Source:
        if self._chat is None:
            raise DataError(
                f"{sample.where} is a conversation, but the base model's tokenizer has no chat "
                "template; set base_model.chat_template, or use a model that has one or rows of "
                "prompt and completion"
            )
        rendered = self._chat.render(sample, self._train_on)
        return _Source(sample.where, rendered.text, rendered.spans, False, rendered.open_end)

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

    def _tokenise(self, batch: Sequence[_Item]) -> Any:
        texts = [item.text for item in batch if isinstance(item, _Source)]
        if not texts:
            return None
        return self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def _finished(self, batch: Sequence[_Item], future: Any) -> Iterator[Encoded | Problem]:
        made: Any = future.result() if batch else None
        number = 0
        for item in batch:
            if isinstance(item, Problem):
                yield item
            elif isinstance(item, Tokens):
                ids, trained = np.array(item.ids, np.int32), np.array(item.trained, np.bool_)
                yield self._cut(item.where, ids, trained)
            else:
                encodings = made.encodings
                yield self._of_source(
                    item, made["input_ids"][number], encodings[number] if encodings else None
                )
                number += 1

    def _of_source(self, source: _Source, ids: list[int], encoding: Any) -> Encoded:
        if source.spans == ((0, len(source.text)),):
            trained = np.ones(len(ids), np.bool_)
        elif encoding is not None:
            trained = marks.by_offsets(ids, encoding, source.spans, self._special_ids)
        else:
            trained = marks.by_prefix(ids, source.text, source.spans, self._tokenizer)
        tokens = np.array(ids, np.int32)
        if source.add_start and self._start is not None and ids[:1] != [self._start]:
            tokens = np.concatenate([[np.int32(self._start)], tokens])
            trained = np.concatenate([[np.False_], trained])
        if source.add_end and ids[-1:] != [self._end]:
            tokens = np.concatenate([tokens, [np.int32(self._end)]])
            trained = np.concatenate([trained, [np.True_]])
        return self._cut(source.where, tokens, trained)

    def _cut(
        self, where: str, ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_]
    ) -> Encoded:
        full_length = len(ids)
        trained[:1] = False
        return Encoded(where, ids[: self._max_length], trained[: self._max_length], full_length)


def own_template(tokenizer: Any) -> str | None:
    """The chat template that comes with a tokenizer."""
    template = tokenizer.chat_template
    # A dict of named templates has the usual one under this name.
    template = template.get("default") if isinstance(template, dict) else template
    return template or None


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _start_token(tokenizer: Any) -> int | None:
    """The BOS token, where the tokenizer itself begins every text with it."""
    begun = tokenizer("a")["input_ids"][:1]
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and begun == [bos] else None
