"""TRL's SFTTrainer on our tokens, our batches and our loss.

What is left to TRL and transformers: the optimiser and its schedule, clipping, DDP, precision,
callbacks. What is replaced, and why:
- batches: accelerate fills the last one with rows that were trained already;
- the loss: TRL's gathers four metrics over all ranks and waits for them at every micro-batch;
- counting tokens: the plan knows them, so that no rank has to ask the others at every step;
- evaluation: an average of batches' averages is not the loss per token.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from llm_trainer.data.examples import Examples
from llm_trainer.fast.loss import TargetLoss
from llm_trainer.ranks import Ranks
from llm_trainer.train.collate import Batch, collate
from llm_trainer.train.heldout import evaluate
from llm_trainer.train.plan import Indices, Plan
from llm_trainer.watch.lines import Lines
from llm_trainer.watch.meter import Meter, ProgressLines
from peftjob.errors import SpecError
from peftjob.spec import Training

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Those of transformers that need no arguments of their own."""


def config(training: Training, ranks: Ranks, *, dtype: torch.dtype, output_dir: Path) -> SFTConfig:
    """TRL's configuration for `training`, with everything switched off that costs at every step.

    Raises:
        SpecError: a schedule that is not known.
    """
    if training.lr_scheduler_type not in SCHEDULES:
        raise SpecError(
            [
                f"training.lr_scheduler_type: {training.lr_scheduler_type!r} is not known; valid "
                f"are {', '.join(SCHEDULES)}"
            ]
        )
    on_gpu = ranks.device.type == "cuda"
    backend = "nccl" if on_gpu else "gloo"
    return SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        # Below 1, transformers takes it as a share of the steps.
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        max_length=training.max_length,
        seed=training.seed,
        bf16=dtype == torch.bfloat16,
        use_cpu=not on_gpu,
        ddp_backend=backend if ranks.world_size > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        # TRL's default is True, and costs a third of the speed.
        gradient_checkpointing=False,
        eval_strategy="steps" if training.eval_steps else "no",
        eval_steps=training.eval_steps,
        logging_strategy="no",
        logging_steps=training.logging_steps,
        # transformers reads the loss at every step for this.
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


@dataclass(frozen=True)
class Batches:
    """This rank's micro-batches of an epoch, as a data loader."""

    dataset: Examples
    plan: Plan
    rank: int
    pad_id: int
    epoch: list[int]
    """One number; a list, so that it can be set."""

    def __len__(self) -> int:
        return self.plan.micro_batches_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers before each epoch."""
        self.epoch[0] = epoch

    def __iter__(self) -> "EpochBatches":
        return EpochBatches(self, self.plan.steps(self.epoch[0]))


class EpochBatches:
    """An epoch's micro-batches in order; knows the step that the last one belongs to."""

    def __init__(self, batches: Batches, steps: Iterator[Indices]) -> None:
        self._batches = batches
        self._steps = steps
        self._left: deque[Indices] = deque()
        self.step_rows: Indices
        """Of all ranks."""

    def __iter__(self) -> "EpochBatches":
        return self

    def __next__(self) -> Batch:
        batches = self._batches
        if not self._left:
            self.step_rows = next(self._steps)
            self._left.extend(batches.plan.micro_batches(self.step_rows, batches.rank))
        return collate(batches.dataset, self._left.popleft(), batches.pad_id)


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with the replacements that the module's docstring lists."""

    def __init__(
        self,
        *,
        model: nn.Module,
        args: SFTConfig,
        tokenizer: Any,
        train: Examples,
        held_out: Examples | None,
        plan: Plan,
        ranks: Ranks,
        lines: Lines,
    ) -> None:
        self._plan = plan
        self._ranks = ranks
        self._held_out = held_out
        pad_id = tokenizer.pad_token_id
        self._pad_id = int(tokenizer.eos_token_id if pad_id is None else pad_id)
        self._batches = Batches(train, plan, ranks.rank, self._pad_id, [0])
        self.meter = Meter(ranks)
        self._progress = ProgressLines(self.meter, ranks, lines)
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # Never called: batches come collated.
            train_dataset=train.to_dataset(),
            eval_dataset=None if held_out is None else held_out.to_dataset(),
            processing_class=tokenizer,
            callbacks=[self._progress],
        )
        self.remove_callback(PrinterCallback)
        self._target_loss = TargetLoss(self.model)
        self._last_evaluation: tuple[int, float] | None = None
        # The loss is divided by the step's tokens, so not by the accumulation as well.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        if ranks.world_size > 1:
            # Every rank has read the same files: only what is trained has to be made equal.
            frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
            buffers = [name for name, _ in self.model.named_buffers()]
            self.model._ddp_params_and_buffers_to_ignore = frozen + buffers

    def get_train_dataloader(self) -> Batches:
        """This rank's batches, which accelerate must not divide again."""
        return self._batches

    def get_batch_samples(
        self, epoch_iterator: EpochBatches, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """A step's micro-batches, and the trained tokens of all ranks' in it."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        rows = epoch_iterator.step_rows
        trained = self._plan.trained_tokens(rows)
        self.meter.add_step(self._plan.tokens(rows), trained)
        return batches, trained

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """A micro-batch's share of the step's mean loss per trained token.

        DDP averages gradients over ranks, hence the factor: their mean becomes the sum again.
        """
        summed = self._target_loss(model, inputs)
        self.meter.add_loss(summed)
        assert num_items_in_batch is not None  # By get_batch_samples.
        return summed * (self._ranks.world_size / num_items_in_batch)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Nothing: transformers would count all parameters at every step."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The exact held-out loss, on all ranks; once a step at most."""
        step = self.state.global_step
        if self._held_out is None:
            return {}
        if self._last_evaluation is None or self._last_evaluation[0] != step:
            with self.accelerator.autocast():
                loss = evaluate(
                    self.model,
                    self._target_loss,
                    self._held_out,
                    ranks=self._ranks,
                    batch_rows=self.args.per_device_eval_batch_size,
                    pad_id=self._pad_id,
                )
            self._last_evaluation = step, loss
            self._progress.write_evaluation(self.state, self.total_steps, loss)
        metrics = {"eval_loss": self._last_evaluation[1]}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training, as transformers counts them."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return int(-(-self.args.num_train_epochs * self._plan.steps_per_epoch // 1))
