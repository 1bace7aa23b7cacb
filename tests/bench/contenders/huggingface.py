"""What the contenders that train with transformers' Trainer, or a subclass of it, have in common.

All get the same LoRA, learning rate and effective batch: a step takes every row. Where a dataset
has fewer batches than an accumulation asks for (rows are packed), the Trainer ends the step with
the epoch.
"""

import math
from typing import TYPE_CHECKING, Any

from tests.bench.contenders.measure import Clock
from tests.bench.contenders.workload import Work

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Trainer

RANK, ALPHA = 16, 32
LEARNING_RATE = 2e-4
SEED = 42
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora() -> "LoraConfig":
    """LoRA on all seven projections of a block."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=list(PROJECTIONS)
    )


def arguments(work: Work, *, batch: int, rows: int) -> dict[str, Any]:
    """Of TrainingArguments or SFTConfig; what is not here is left at its default."""
    return {
        "output_dir": str(work.output),
        "num_train_epochs": work.steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": math.ceil(rows / batch),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not work.gpu,
    }


def train(trainer: "Trainer", clock: Clock) -> list[float]:
    """Train; the losses of the steps."""
    with clock:
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
