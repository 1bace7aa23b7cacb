"""The base model of a task with its adapter on it, run as the estimate says."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from llm_trainer.model import adapter, load
from llm_trainer.objective import Objective, Rows
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.train import fit, noise, parallel
from llm_trainer.train.fit import Fit
from llm_trainer.train.parallel import Shards
from llm_trainer.train.setup import Parts
from llm_trainer.watch.samples import Samples
from peftjob.estimate import Device
from peftjob.method import QLora

log = logging.getLogger("llm_trainer")


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model with its adapter, before it is spread over the ranks."""

    model: PeftModel
    fit: Fit
    shards: Shards | None

    def parts(
        self,
        job: Job,
        ranks: Ranks,
        objective: Objective,
        *,
        packed: bool = False,
        samples: Samples | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Parts:
        """What the loop needs, the model finished as it will be run."""
        if self.fit.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        alpha = job.spec.training.neftune_noise_alpha
        if alpha is not None:
            noise.install(self.model.get_input_embeddings(), alpha)
        if self.shards is not None:
            self.shards.apply(self.model)
        return Parts(
            model=self.model,
            objective=objective,
            packed=packed,
            micro_batch_tokens=self.fit.micro_batch_tokens,
            rounds=partial(parallel.rounds, ranks) if self.shards is not None else None,
            samples=samples,
            facts=facts or {},
        )


def load_adapted(
    job: Job,
    rows: Rows,
    ranks: Ranks,
    least: Device,
    *,
    model_class: Any = AutoModelForCausalLM,
    task_type: str | None = "CAUSAL_LM",
    names: tuple[str, ...] = (),
    labels: int | None = None,
    pad_id: int | None = None,
    check: Callable[[Any], None] = lambda _: None,
) -> Adapted:
    """The base model, with a head for the task where it has none, and the method's adapter.

    Args:
        rows: that are trained on.
        least: the device of the rank that has the least memory.
        names: of the labels of a classification.
        labels: outputs of its head; None takes what the model has.
        pad_id: where the model must know what only fills up, as a decoder that classifies.
        check: of the base model, before it gets its adapter.
    """
    spec = job.spec
    dtype = load.choose_dtype(spec.training.dtype, ranks.device)
    chosen = fit.choose(
        spec,
        job.model_dir,
        device=least,
        processes=ranks.world_size,
        rows=rows,
        dtype=dtype,
        labels=labels,
    )
    log.info(chosen.note)
    shards = None
    if chosen.parallel == "fsdp" and ranks.world_size > 1:
        shards = Shards.begin(ranks)
    base = load.load_base(
        job.model_dir,
        dtype,
        device=ranks.device if shards is None else load.CPU,
        quantisation=spec.method if isinstance(spec.method, QLora) else None,
        model_class=model_class,
        num_labels=labels,
    )
    if names:
        base.config.id2label = dict(enumerate(names))
        base.config.label2id = {name: i for i, name in enumerate(names)}
    if pad_id is not None:
        base.config.pad_token_id = pad_id
    check(base)
    model = adapter.add_adapter(
        base, spec.method, task_type=task_type, heads=load.fresh_modules(base)
    )
    if shards is None:
        model.to(ranks.device)
    return Adapted(model=model, fit=chosen, shards=shards)
