"""Token classification: a label for each word, such as the kind of thing that it names.

Rows have `tokens` (words, however they were found) and `labels` (or `ner_tags`, `tags`): a number
from 0 or a name for each, -100 for none. A word that the tokenizer makes several tokens of is
labelled at its first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModelForTokenClassification

from llm_trainer.data.fields import FieldError, encodable, parsed, required, show
from llm_trainer.data.read import Row
from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks import labels, reading
from llm_trainer.tasks.adapted import load_adapted
from llm_trainer.tasks.labelled import (
    LabelledData,
    LabelledObjective,
    LabelledRows,
    Tokenised,
    pad,
    score_tokens,
)
from llm_trainer.tasks.reading import Sample
from llm_trainer.tasks.texts import fast_tokenizer, length_limit
from llm_trainer.train.setup import Parts
from peftjob.estimate import Device

LABELS = ("labels", "ner_tags", "tags")
COLUMNS = ("tokens", *LABELS)


def read(job: Job) -> LabelledData:
    """The dataset's rows, tokenised."""
    found = reading.read_samples(job, known=COLUMNS, check=_check)
    columns = job.spec.dataset.columns
    names = labels.names_of(
        found,
        columns=[columns.get(name, name) for name in LABELS],
        values=(label for sample in found.train for label in sample.fields["labels"]),
        wanted=job.spec.num_labels,
    )
    tokenizer = fast_tokenizer(job.model_dir)
    limit, reason = length_limit(job)
    return LabelledData(
        train=_tokenise(found.train, names, tokenizer, limit),
        held_out=_tokenise(found.held_out, names, tokenizer, limit),
        names=names,
        tokenizer=tokenizer,
        limit=reason,
        files=found.files,
    )


def build(job: Job, data: LabelledData, ranks: Ranks, least: Device) -> Parts:
    """The model with a head for the labels, and its loss."""
    made = load_adapted(
        job,
        data.train.rows,
        ranks,
        least,
        model_class=AutoModelForTokenClassification,
        task_type="TOKEN_CLS",
        names=data.names,
        labels=len(data.names),
    )
    objective = TokenObjective.of(job, data)
    return made.parts(job, ranks, objective, facts={"labels": list(data.names)})


def _check(row: Row) -> Row:
    words = _list(row, "tokens")
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise FieldError(f"tokens[{i}]", f"is {show(word)}, not a string")
        encodable(word, f"tokens[{i}]")
    column = next((name for name in LABELS if name in row), LABELS[0])
    values = _list(row, column)
    if len(values) != len(words):
        raise FieldError(column, f"has {len(values)} labels for {len(words)} tokens")
    checked = [
        labels.checked(value, f"{column}[{i}]", may_lack=True) for i, value in enumerate(values)
    ]
    return {"tokens": words, "labels": checked}


def _list(row: Row, column: str) -> list[Any]:
    value = parsed(required(row, column), column, "a list")
    if not isinstance(value, list):
        raise FieldError(column, f"is {show(value)}, not a list")
    if not value:
        raise FieldError(column, "is empty")
    return value


def _tokenise(
    samples: Sequence[Sample], names: tuple[str, ...], tokenizer: Any, limit: int
) -> Tokenised:
    ids: list[list[int]] = []
    marked: list[list[int]] = []
    origins: list[str] = []
    cut = left_out = 0
    numbers = labels.numbered(samples, names, "labels")
    for sample, of_words in zip(samples, numbers, strict=True):
        row, of_tokens, was_cut = _aligned(tokenizer, sample.fields["tokens"], of_words, limit)
        cut += was_cut
        if all(label == labels.NONE for label in of_tokens):
            left_out += 1
            continue
        ids.append(row)
        marked.append(of_tokens)
        origins.append(sample.where)
    targets = [sum(label != labels.NONE for label in row) for row in marked]
    rows = LabelledRows(
        ids=ids, labels=marked, origins=origins, targets=np.array(targets, np.int64)
    )
    return Tokenised(rows, cut=cut, left_out=left_out)


def _aligned(
    tokenizer: Any, words: Sequence[str], of_words: Sequence[int], limit: int
) -> tuple[list[int], list[int], bool]:
    """Tokens of the words with a space between, a label for each, and whether some were cut."""
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    text = " ".join(words)
    made = tokenizer(text, return_offsets_mapping=True, verbose=False)
    was_cut = len(made["input_ids"]) > limit
    if was_cut:
        made = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=limit)
    of_tokens, last = [], -1
    for start, stop in made["offset_mapping"]:
        # Some tokenizers count the space before a word to its token, others don't.
        word = int(np.searchsorted(starts, stop, side="left")) - 1 if stop > start else last
        of_tokens.append(of_words[word] if word > last else labels.NONE)
        last = max(last, word)
    return made["input_ids"], of_tokens, was_cut


class TokenObjective(LabelledObjective):
    """The cross entropy of the words' labels."""

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """Padded rows with their labels, (rows, longest)."""
        assert isinstance(rows, LabelledRows)
        of_tokens = [rows.labels[int(i)] for i in indices] or [[labels.NONE]]
        return {**rows.padded(indices, self.pad_id), "labels": pad(of_tokens, labels.NONE)}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """Summed over the labelled tokens."""
        return score_tokens(model, batch, smoothing=self.label_smoothing, accuracy=accuracy)
