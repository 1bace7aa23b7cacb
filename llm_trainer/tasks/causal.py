"""Causal language models: every token that the model should say is predicted from those before."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from llm_trainer.data import dataset, template
from llm_trainer.data.dataset import Data
from llm_trainer.data.examples import Examples
from llm_trainer.fast.collate import collate
from llm_trainer.fast.loss import TargetLoss
from llm_trainer.fast.prepare import prepare
from llm_trainer.model import load, methods
from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks.adapted import load_adapted
from llm_trainer.tasks.texts import length_limit, pad_id
from llm_trainer.train.setup import Parts
from llm_trainer.watch.samples import Samples
from peftjob.estimate import Device

log = logging.getLogger("llm_trainer")


@dataclass(frozen=True, kw_only=True)
class CausalData:
    """Training and held-out rows, and the tokenizer that made them."""

    data: Data
    tokenizer: Any
    limit: str
    """The length of a row and where it comes from, for the notes."""

    def notes(self) -> Iterator[str]:
        """What a user should know about it, a line each."""
        return self.data.notes(self.limit)


def read(job: Job) -> CausalData:
    """The dataset's rows as tokens, each marked as trained or not."""
    spec, training = job.spec, job.spec.training
    tokenizer = load.load_tokenizer(job.model_dir)
    template.override(tokenizer, spec.base_model.chat_template, job.model_dir)
    max_length, limit = length_limit(job)
    data = dataset.prepare(
        job.dataset_dir,
        spec.dataset,
        training,
        tokenizer,
        max_length=max_length,
        cache_dir=job.cache_dir,
        manifest=job.dataset_manifest,
    )
    return CausalData(data=data, tokenizer=tokenizer, limit=limit)


def build(job: Job, data: CausalData, ranks: Ranks, least: Device) -> Parts:
    """The base model with its adapter, fast where that is proven, and its loss."""
    training, rows = job.spec.training, data.data
    made = load_adapted(
        job,
        rows.train,
        ranks,
        least,
        check=lambda base: load.check_vocabulary(base, rows.highest_id),
    )
    prepared = prepare(
        made.model,
        packs=methods.packs(job.spec.method),
        label_smoothing=training.label_smoothing_factor,
        note=log.info,
    )
    objective = CausalObjective(
        train=rows.train,
        held_out=rows.held_out,
        target_loss=prepared.target_loss,
        pad_id=pad_id(data.tokenizer),
        packed=prepared.packed,
    )
    return made.parts(
        job,
        ranks,
        objective,
        packed=prepared.packed,
        samples=Samples.of(job.spec, data.tokenizer, positions=load.positions(job.model_dir)),
    )


@dataclass(frozen=True, kw_only=True)
class CausalObjective:
    """The loss on trained tokens."""

    train: Rows
    held_out: Rows | None
    is_language: ClassVar[bool] = True
    target_loss: TargetLoss
    pad_id: int
    packed: bool

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """The rows one after the other, or padded where the model can't tell them apart so."""
        assert isinstance(rows, Examples)
        return collate(rows, indices, self.pad_id, packed=self.packed)

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """The cross entropies, summed."""
        return self.target_loss(model, batch, accuracy=accuracy)
