"""Causal language models: every token that the model should say is predicted from those before."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from llm_trainer.data import dataset
from llm_trainer.data.dataset import Data
from llm_trainer.data.examples import Examples
from llm_trainer.fast.loss import TargetLoss
from llm_trainer.fast.prepare import prepare
from llm_trainer.model import adapter, load, methods
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.train import fit, noise, parallel
from llm_trainer.train.collate import collate
from llm_trainer.train.objective import Batch, Indices, Rows, Score
from llm_trainer.train.setup import Parts
from llm_trainer.watch.samples import Samples
from peftjob.estimate import Device
from peftjob.method import QLora

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
    positions = load.positions(job.model_dir) or sys.maxsize
    max_length = min(training.max_length, positions)
    reason = "training.max_length" if max_length < positions else "the base model's positions"
    data = dataset.prepare(
        job.dataset_dir, spec.dataset, training, tokenizer, max_length=max_length
    )
    return CausalData(data=data, tokenizer=tokenizer, limit=f"{max_length} tokens ({reason})")


def build(job: Job, data: CausalData, ranks: Ranks, least: Device) -> Parts:
    """The base model with its adapter, fast where that is proven, and its loss."""
    spec, training, rows = job.spec, job.spec.training, data.data
    dtype = load.choose_dtype(training.dtype, ranks.device)
    chosen = fit.choose(
        spec,
        job.model_dir,
        device=least,
        processes=ranks.world_size,
        rows=rows.train,
        dtype=dtype,
    )
    log.info(chosen.note)
    shards = chosen.parallel == "fsdp" and ranks.world_size > 1
    device = load.CPU if shards else ranks.device
    base = load.load_base(
        job.model_dir,
        dtype,
        device=device,
        quantisation=spec.method if isinstance(spec.method, QLora) else None,
    )
    load.check_vocabulary(base, rows.highest_id)
    model = adapter.add_adapter(base, spec.method)
    model.to(device)
    prepared = prepare(
        model,
        packs=methods.packs(spec.method),
        label_smoothing=training.label_smoothing_factor,
        note=log.info,
    )
    if chosen.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if training.neftune_noise_alpha is not None:
        noise.install(model.get_input_embeddings(), training.neftune_noise_alpha)
    if shards:
        parallel.shard(model, ranks)
    objective = CausalObjective(
        train=rows.train,
        held_out=rows.held_out,
        target_loss=prepared.target_loss,
        pad_id=_pad_id(data.tokenizer),
        packed=prepared.packed,
    )
    positions = load.positions(job.model_dir)
    return Parts(
        model=model,
        objective=objective,
        micro_batch_tokens=chosen.micro_batch_tokens,
        packed=prepared.packed,
        rounds=partial(parallel.rounds, ranks) if shards else None,
        samples=Samples.of(spec, data.tokenizer, positions=positions),
    )


@dataclass(frozen=True, kw_only=True)
class CausalObjective:
    """The loss on trained tokens."""

    train: Rows
    held_out: Rows | None
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


def _pad_id(tokenizer: Any) -> int:
    """What fills up a batch: never looked at, so any token will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)
