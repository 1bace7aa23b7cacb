"""What is served: random Llamas, their adapters, and prompts. Made here, the same each time.

The models differ in size only, and have no token that ends an answer, so that every answer is as
long as was asked for. One word is one token (workload.tokenizer).
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contenders import workload
from tests.bench.contenders.workload import Shape

SHAPES = {
    "tiny": Shape(hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1),
    "11m": Shape(hidden=256, intermediate=704, layers=4, heads=4, kv_heads=2),
    "63m": Shape(hidden=768, intermediate=2048, layers=6, heads=12, kv_heads=4),
    "100m": Shape(hidden=768, intermediate=2048, layers=12, heads=12, kv_heads=4),
}
"""By their number of parameters, the 16k rows of the embeddings and of the head included."""

RANK = 16
ALPHA = 32
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WORDS = 16_000
B_SCALE = 0.02
"""Of the random B matrices: enough to change the answers of a model with weights of 0.02."""


@dataclass(frozen=True, slots=True)
class Served:
    """A base model's folder, and its adapters' by their names."""

    base: Path
    adapters: dict[str, Path]


def write(folder: Path, shape: Shape, *, adapters: int) -> Served:
    """Make a model and its adapters below `folder`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = workload.write_model(folder / "base", shape)
    _end_never(base)
    names = [f"adapter{number}" for number in range(adapters)]
    return Served(
        base,
        {
            name: _write_adapter(folder / name, base, seed=seed)
            for seed, name in enumerate(names, start=1)
        },
    )


def prompts(count: int, *, seed: int, low: int = 64, high: int = 128) -> Sequence[str]:
    """Texts of `low` to `high` tokens."""
    rng = random.Random(seed)

    def words() -> str:
        return "".join(
            f" {workload.word(rng.randrange(WORDS))}" for _ in range(rng.randint(low, high))
        )

    return [words() for _ in range(count)]


def _end_never(base: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        path = base / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))


def _write_adapter(folder: Path, base: Path, *, seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=list(PROJECTIONS)
    )
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=B_SCALE)
    tuned.save_pretrained(folder)
    return folder
