"""The stock Kubeflow trainer (Training Operator v1.9): transformers.Trainer on a `text` column.

Every row is padded to the tokenizer's model_max_length before the training, the pad token is the
EOS, and the collator makes labels of everything that is not the pad token: prompts are trained, no
EOS is, and every row costs what the longest would. Weights are float32, as the file has them;
`bf16` is the only switch that a user has. The dataset is divided by rank here, and once more by
the Trainer's sampler.
"""

import os
from typing import TYPE_CHECKING, Any

from tests.bench.contenders import huggingface
from tests.bench.contenders.measure import Clock
from tests.bench.contenders.workload import Row, Work

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

BATCH = 8
"""The default of TrainingArguments."""


def train(work: Work, clock: Clock) -> list[float]:
    """As shipped."""
    return huggingface.train(trainer(work), clock)


def train_bf16(work: Work, clock: Clock) -> list[float]:
    """With bf16=True among the training parameters: autocast over float32 weights."""
    return huggingface.train(trainer(work, bf16=True), clock)


def trainer(work: Work, *, bf16: bool = False) -> "Trainer":
    """The Trainer that the stock script would run."""
    from peft import get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(huggingface.SEED)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(work.model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    rows = work.read()
    data = dataset(rows, tokenizer)
    model.enable_input_require_grads()
    made = Trainer(
        model=get_peft_model(model, huggingface.lora()),
        train_dataset=data,
        args=TrainingArguments(
            **huggingface.arguments(work, batch=BATCH, rows=len(rows)), bf16=bf16
        ),
    )
    made.data_collator = DataCollatorForLanguageModeling(tokenizer, pad_to_multiple_of=8, mlm=False)
    return made


def dataset(rows: list[Row], tokenizer: Any) -> "Dataset":
    """This rank's rows, padded."""
    from datasets import Dataset
    from datasets.distributed import split_dataset_by_node

    texts = Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in rows])
    padded = texts.map(
        lambda batch: tokenizer(batch["text"], padding="max_length", truncation=True), batched=True
    )
    rank, world_size = (
        int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    return split_dataset_by_node(padded, rank=rank, world_size=world_size)
