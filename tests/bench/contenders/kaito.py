"""KAITO's trainer (v0.12): SFTTrainer with the defaults of its charts.

bfloat16 weights, batches of one row (accumulated here to the effective batch of the others),
gradient checkpointing, max_length 1024, no packing. The pad token is the EOS, and its collator, a
DataCollatorForLanguageModeling, makes new labels of the inputs: prompts are trained, no EOS is.
"""

from typing import TYPE_CHECKING

from tests.bench.contenders import huggingface
from tests.bench.contenders.measure import Clock
from tests.bench.contenders.workload import Work

if TYPE_CHECKING:
    from trl import SFTTrainer

BATCH = 1


def train(work: Work, clock: Clock) -> list[float]:
    """With its defaults."""
    return huggingface.train(trainer(work), clock)


def trainer(work: Work) -> "SFTTrainer":
    """The SFTTrainer that its script would run."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        set_seed,
    )
    from trl import SFTConfig, SFTTrainer

    set_seed(huggingface.SEED)
    tokenizer = AutoTokenizer.from_pretrained(work.model, local_files_only=True)
    if not tokenizer.pad_token:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        work.model, dtype=torch.bfloat16, local_files_only=True
    )
    model = get_peft_model(model, huggingface.lora())
    model.config.use_cache = False
    rows = work.read()
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            **huggingface.arguments(work, batch=BATCH, rows=len(rows)),
            ddp_find_unused_parameters=False,
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
