"""The optimiser and its learning rate's schedule, by the names that transformers gives them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.optimization import get_scheduler

from peftjob.errors import SpecError
from peftjob.training import Training

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
)
"""Those of transformers that depend on the step alone: not on the metrics, not on the optimiser."""


def make(training: Training, groups: Iterable[Mapping[str, Any]]) -> Optimizer:
    """The optimiser.

    Args:
        groups: parameter groups as torch has them, with `lr` where it is not training's.

    Raises:
        SpecError: it is not known, or what it needs is not installed.
    """
    if training.optim in ("adamw_torch", "adamw_torch_fused") and not training.optim_args:
        return torch.optim.AdamW(
            [dict(group) for group in groups],
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )
    # Imported here: it takes half a second, and hardly anyone needs it.
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    known = [name.value for name in OptimizerNames]
    if training.optim not in known:
        import difflib

        near = difflib.get_close_matches(training.optim, known, n=3) or known
        raise SpecError(
            [f"training.optim: {training.optim!r} is not known; did you mean {', '.join(near)}?"]
        )
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(
            TrainingArguments(
                output_dir="unused",
                optim=training.optim,
                optim_args=training.optim_args,
                learning_rate=training.learning_rate,
                adam_beta1=training.adam_beta1,
                adam_beta2=training.adam_beta2,
                adam_epsilon=training.adam_epsilon,
                use_cpu=not torch.cuda.is_available(),
            )
        )
        optimiser: Optimizer = kind([dict(group) for group in groups], **options)
    except (ImportError, ValueError, TypeError, RuntimeError) as err:
        reason = " ".join(str(err).split())[:300]
        raise SpecError([f"training.optim: {training.optim!r} can't be used: {reason}"]) from err
    return optimiser


def schedule(training: Training, optimiser: Optimizer, *, total_steps: int) -> LRScheduler:
    """The schedule; it has to be told of every step.

    Raises:
        SpecError: it is not known, or training.lr_scheduler_kwargs don't fit it.
    """
    name = training.lr_scheduler_type
    if name not in SCHEDULES:
        raise SpecError(
            [f"training.lr_scheduler_type: {name!r} is not known; valid are {', '.join(SCHEDULES)}"]
        )
    warmup = training.warmup_steps
    if warmup is None:
        warmup = round(training.warmup_ratio * total_steps)
    try:
        made: LRScheduler = get_scheduler(
            name,
            optimiser,
            num_warmup_steps=warmup,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=dict(training.lr_scheduler_kwargs),
        )
    except (TypeError, ValueError) as err:
        reason = " ".join(str(err).split())[:300]
        raise SpecError(
            [f"training.lr_scheduler_kwargs: {name} doesn't take them: {reason}"]
        ) from err
    return made
