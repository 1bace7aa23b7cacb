"""TRL's SFTTrainer: with its defaults, and as one who knows it would set it up.

Of chats both train the assistant's turns alone, so that they train the tokens that ours does;
TRL's default is every token, which costs it the same on a CPU: it computes all logits.
"""

from typing import TYPE_CHECKING, Any

from tests.bench.contenders import huggingface
from tests.bench.contenders.measure import Clock
from tests.bench.contenders.workload import Work

if TYPE_CHECKING:
    from trl import SFTTrainer

BATCH = 8
"""The default of SFTConfig."""
KEPT_TOKENS = 4096
"""Of a micro-batch whose activations a GPU keeps: those of 8k tokens of an 8B model take 100 GB."""


def train(work: Work, clock: Clock) -> list[float]:
    """Defaults: float32 weights under a bfloat16 autocast, padding, gradient checkpointing."""
    return huggingface.train(trainer(work, batch=BATCH), clock)


def train_packing(work: Work, clock: Clock) -> list[float]:
    """bfloat16 weights, rows packed into rows of max_length, activations kept."""
    return huggingface.train(packing_trainer(work), clock)


def packing_trainer(work: Work) -> "SFTTrainer":
    """On a CPU one packed row at a time: that is fastest there, and needs the least memory."""
    return trainer(
        work,
        batch=max(1, KEPT_TOKENS // work.max_length) if work.gpu else 1,
        quantised=work.bits == 4,
        packing=True,
        packing_strategy="bfd",
        max_length=work.max_length,
        gradient_checkpointing=work.max_length > KEPT_TOKENS,
        model_init_kwargs={"dtype": "bfloat16", "attn_implementation": _attention(work)},
    )


def _attention(work: Work) -> str:
    """The fastest that is installed and keeps attention within documents."""
    if not work.gpu:
        return "sdpa"
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def trainer(work: Work, *, batch: int, quantised: bool = False, **options: Any) -> "SFTTrainer":
    """An SFTTrainer that loads the model from its path."""
    import torch
    from datasets import Dataset
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    rows = work.read()
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return SFTTrainer(
        model=str(work.model),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            **huggingface.arguments(work, batch=batch, rows=len(rows)),
            assistant_only_loss="messages" in rows[0],
            **options,
        ),
        peft_config=huggingface.lora(),
        quantization_config=nf4 if quantised else None,
    )
