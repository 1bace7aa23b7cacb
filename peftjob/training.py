"""How a model is trained: steps, batches, rates, what is watched and kept.

May import part.
"""

from typing import Any, Literal

from pydantic import Field

from peftjob.part import Part


class Training(Part):
    """How to train; the names and meanings are those of transformers' TrainingArguments."""

    num_train_epochs: float = Field(default=3.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1 means that num_train_epochs decides."""
    per_device_train_batch_size: int = Field(default=8, gt=0)
    """Rows a process takes at once."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    """The default suits LoRA, about ten times what full tuning takes."""
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises to its value."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Gradients are scaled down to this norm; 0 switches it off."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens a row may have; a longer one is cut at its end and counted."""
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base weights; auto is bfloat16 where the hardware computes in it, else float32.
    The adapter's weights are trained in float32 either way."""
    train_on: Literal["completion", "last", "all"] = "completion"
    """What the loss covers: completions and every assistant turn, the last turn only, or every
    token. Plain text rows are always trained whole."""

    tokens_per_step: int | None = Field(default=None, gt=0)
    """Tokens of an optimiser step on all processes, in place of a number of rows: rows are taken
    until they are reached. None counts rows: per_device_train_batch_size x
    gradient_accumulation_steps x processes."""
    micro_batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens that a process computes at once. Changes memory and speed, not what is trained. None
    takes what the estimate says will fit."""
    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass: a third slower, much less memory. None
    does so where the estimate says that it would not fit otherwise."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: the base model whole on every process. fsdp: its weights shared out among them. auto
    takes ddp where the estimate says that it fits."""

    optim: str = "adamw_torch"
    """An optimiser of transformers' OptimizerNames."""
    optim_args: str | None = None
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    adam_beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimiser steps over which the learning rate rises; None takes warmup_ratio."""
    label_smoothing_factor: float = Field(default=0.0, ge=0.0, lt=1.0)
    neftune_noise_alpha: float | None = Field(default=None, gt=0)
    """Noise on the embeddings of the training's inputs, of alpha / sqrt(tokens x hidden size)."""

    logging_steps: int = Field(default=10, gt=0)
    """Optimiser steps between two progress lines."""
    eval_steps: int | None = Field(default=None, gt=0)
    """Optimiser steps between two evaluations; None evaluates before and after only."""
    eval_strategy: Literal["steps", "epoch"] = "steps"
    """epoch evaluates after every epoch, whatever eval_steps says."""
    early_stopping_patience: int | None = Field(default=None, gt=0)
    """Stop after so many evaluations without a better loss; None never does."""
    early_stopping_threshold: float = Field(default=0.0, ge=0.0)
    """What counts as better, in nats."""
    load_best_model_at_end: bool = False
    """Publish the adapter of the evaluation with the lowest loss, not the last one."""
    prompts: tuple[str, ...] = ()
    """Answered before and after the training, greedily, for the model card."""
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """tensorboard, mlflow, wandb: where metrics go beside the progress lines."""
    metrics_port: int | None = Field(default=None, ge=0, lt=65536)
    """Serve the metrics as Prometheus text on this port of rank 0; None does not."""

    save_steps: int | None = Field(default=None, gt=0)
    """Optimiser steps between two checkpoints; None makes one every few minutes."""
    save_total_limit: int = Field(default=2, gt=0)
    """Checkpoints kept on the output volume."""
    on_non_finite_loss: Literal["stop", "skip"] = "stop"
    """What a loss of NaN or infinity does: fail the job, or leave the step out and go on."""
