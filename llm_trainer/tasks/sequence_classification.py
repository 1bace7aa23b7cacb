"""Sequence classification: a label for a text, or for a pair of texts.

Rows have `text` (or `sentence`), perhaps `text_pair`, and `label`: a number from 0, a name, or,
where the spec's num_labels is 1, any number to be predicted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import nn
from transformers import AutoModelForSequenceClassification

from llm_trainer.data.fields import FieldError, required, show, string
from llm_trainer.data.read import Row
from llm_trainer.model import load
from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks import labels, reading
from llm_trainer.tasks.adapted import load_adapted
from llm_trainer.tasks.labelled import LabelledData, LabelledObjective, LabelledRows, Tokenised
from llm_trainer.tasks.reading import Sample
from llm_trainer.tasks.texts import length_limit, pad_id, token_types
from llm_trainer.train.setup import Parts
from peftjob.estimate import Device

COLUMNS = ("text", "sentence", "text_pair", "label")


def read(job: Job) -> LabelledData:
    """The dataset's rows, tokenised."""
    regression = job.spec.num_labels == 1
    found = reading.read_samples(job, known=COLUMNS, check=partial(_check, regression=regression))
    names: tuple[str, ...] = ()
    if not regression:
        names = labels.names_of(
            found,
            columns=(job.spec.dataset.columns.get("label", "label"),),
            values=(sample.fields["label"] for sample in found.train),
            wanted=job.spec.num_labels,
        )
    tokenizer = load.load_tokenizer(job.model_dir)
    limit, reason = length_limit(job)
    call = partial(tokenizer, return_token_type_ids=token_types(job.model_dir), verbose=False)
    return LabelledData(
        train=_tokenise(found.train, names, call, limit),
        held_out=_tokenise(found.held_out, names, call, limit),
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
        model_class=AutoModelForSequenceClassification,
        task_type="SEQ_CLS",
        names=data.names,
        labels=len(data.names) or 1,
        # A decoder's answer is at its last token.
        pad_id=pad_id(data.tokenizer),
    )
    objective = SequenceObjective.of(job, data, regression=not data.names)
    return made.parts(job, ranks, objective, facts={"labels": list(data.names)})


def _check(row: Row, *, regression: bool) -> Row:
    column = "text" if "text" in row or "sentence" not in row else "sentence"
    kept: Row = {"text": string(row, column)}
    if row.get("text_pair") is not None:
        kept["text_pair"] = string(row, "text_pair")
    value = required(row, "label")
    if not regression:
        return {**kept, "label": labels.checked(value, "label")}
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not np.isfinite(number):
        raise FieldError("label", f"is {show(value)}, not a number, which num_labels 1 asks for")
    return {**kept, "label": number}


def _tokenise(
    samples: Sequence[Sample], names: tuple[str, ...], tokenizer: Callable[..., Any], limit: int
) -> Tokenised:
    values = (
        labels.numbered(samples, names, "label")
        if names
        else [sample.fields["label"] for sample in samples]
    )
    ids, types, cut = [], [], 0
    for sample in samples:
        pair = sample.fields.get("text_pair")
        made = tokenizer(sample.fields["text"], pair)
        if len(made["input_ids"]) > limit:
            cut += 1
            made = tokenizer(sample.fields["text"], pair, truncation=True, max_length=limit)
        ids.append(made["input_ids"])
        types.append(made.get("token_type_ids"))
    count = len(ids)
    rows = LabelledRows(
        ids=ids,
        labels=values,
        origins=[sample.where for sample in samples],
        targets=np.ones(count, np.int64),
        types=types if types and types[0] is not None else None,
    )
    return Tokenised(rows, cut=cut)


@dataclass(frozen=True, kw_only=True)
class SequenceObjective(LabelledObjective):
    """The cross entropy of the labels, or the squared error of the numbers."""

    regression: bool

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """Padded rows, and (rows,) labels; without rows, one that has none."""
        assert isinstance(rows, LabelledRows)
        values = [rows.labels[int(i)] for i in indices]
        dtype = torch.float32 if self.regression else torch.int64
        return {**rows.padded(indices, self.pad_id), "labels": torch.tensor(values, dtype=dtype)}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """Summed over the rows."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        wanted = batch["labels"]
        logits = model(**inputs).logits.float()[: len(wanted)]
        if self.regression:
            return Score((logits[:, 0] - wanted).square().sum())
        loss = F.cross_entropy(
            logits, wanted, reduction="sum", label_smoothing=self.label_smoothing
        )
        return Score(loss, (logits.argmax(-1) == wanted).sum() if accuracy else None)
