"""Masked language models: words that were hidden are told from those around them.

Rows have `text`; one that is too long becomes several. Of each, 15 % of the tokens are to be told,
as BERT had it: 80 % of these are hidden, 10 % replaced by another, 10 % left as they are. Which
ones is drawn anew each time a row is trained on, and once for all for a held-out row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from llm_trainer.data.fields import string
from llm_trainer.model import load
from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks import reading
from llm_trainer.tasks.adapted import load_adapted
from llm_trainer.tasks.labelled import (
    LabelledData,
    LabelledObjective,
    LabelledRows,
    Tokenised,
    pad,
    score_tokens,
)
from llm_trainer.tasks.labels import NONE
from llm_trainer.tasks.reading import Sample
from llm_trainer.tasks.texts import fast_tokenizer, length_limit
from llm_trainer.train.setup import Parts
from peftjob.errors import ModelError
from peftjob.estimate import Device

COLUMNS = ("text",)
SHARE = 0.15
"""Of a row's tokens, those that are to be told."""
HIDDEN, REPLACED = 0.8, 0.1


def read(job: Job) -> LabelledData:
    """The dataset's rows, tokenised."""
    found = reading.read_samples(
        job, known=COLUMNS, check=lambda row: {"text": string(row, "text")}
    )
    tokenizer = fast_tokenizer(job.model_dir)
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"the tokenizer in {job.model_dir} has no mask token, which task masked-lm needs; take "
            "a base model such as BERT, or task causal-lm"
        )
    limit, reason = length_limit(job)
    return LabelledData(
        train=_tokenise(found.train, tokenizer, limit),
        held_out=_tokenise(found.held_out, tokenizer, limit),
        tokenizer=tokenizer,
        limit=reason,
        files=found.files,
    )


def build(job: Job, data: LabelledData, ranks: Ranks, least: Device) -> Parts:
    """The model with its own head, and its loss."""
    vocabulary = len(data.tokenizer)
    made = load_adapted(
        job,
        data.train.rows,
        ranks,
        least,
        model_class=AutoModelForMaskedLM,
        task_type=None,
        check=lambda base: load.check_vocabulary(base, vocabulary - 1),
    )
    objective = MaskedObjective.of(
        job,
        data,
        mask_id=int(data.tokenizer.mask_token_id),
        vocabulary=vocabulary,
        seed=job.spec.training.seed,
    )
    return made.parts(job, ranks, objective)


def _tokenise(samples: Sequence[Sample], tokenizer: Any, limit: int) -> Tokenised:
    ids, maskable, origins = [], [], []
    divided = left_out = 0
    special = set(tokenizer.all_special_ids)
    for sample in samples:
        made = tokenizer(
            sample.fields["text"], truncation=True, max_length=limit, return_overflowing_tokens=True
        )
        pieces = made["input_ids"]
        divided += len(pieces) > 1
        for piece in pieces:
            places = [i for i, token in enumerate(piece) if token not in special]
            left_out += not places
            if places:
                ids.append(piece)
                maskable.append(places)
                origins.append(sample.where)
    targets = np.array([_count(len(places)) for places in maskable], np.int64)
    rows = LabelledRows(ids=ids, labels=maskable, origins=origins, targets=targets)
    return Tokenised(rows, divided=divided, left_out=left_out)


def _count(maskable: int) -> int:
    """Tokens of a row that are to be told: always as many, so that a loss's units are known."""
    return max(1, round(SHARE * maskable))


@dataclass(frozen=True, kw_only=True)
class MaskedObjective(LabelledObjective):
    """The cross entropy of the tokens that are to be told."""

    is_language: ClassVar[bool] = True
    mask_id: int
    vocabulary: int
    seed: int

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """Padded rows with some tokens hidden, and what stood there, (rows, longest)."""
        assert isinstance(rows, LabelledRows)
        batch = rows.padded(indices, self.pad_id)
        # torch's numbers are those of the step, so that a training that goes on repeats them.
        drawn = int(torch.randint(2**62, ())) if rows is self.train else None
        wanted = []
        for line, index in enumerate(map(int, indices)):
            random = np.random.default_rng([self.seed if drawn is None else drawn, index])
            places = random.permutation(rows.labels[index])[: int(rows.targets[index])]
            of_row = [NONE] * len(rows.ids[index])
            for place, kind in zip(places, random.random(len(places)), strict=True):
                of_row[place] = rows.ids[index][place]
                if kind < HIDDEN:
                    batch["input_ids"][line, place] = self.mask_id
                elif kind < HIDDEN + REPLACED:
                    batch["input_ids"][line, place] = int(random.integers(self.vocabulary))
            wanted.append(of_row)
        return {**batch, "labels": pad(wanted or [[NONE]], NONE)}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """Summed over the tokens that are to be told."""
        return score_tokens(model, batch, smoothing=self.label_smoothing, accuracy=accuracy)
