"""Rows of any length and adapter share a batch on other architectures than Llama too."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from kserve_runtime.base_model import load_base_model
from kserve_runtime.engine import LoadedAdapter, Request, Sampling, Share
from kserve_runtime.recorded import takes_masks
from kserve_runtime.transformers_engine import TransformersEngine
from peftjob.errors import ModelError
from tests.runtime_tests.tape import TapeRecorder

NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
USUAL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
SLIDING = {**USUAL, "sliding_window": 8}
TYPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},  # Conv1D projections
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # ALiBi: positions from the mask
    "mistral": SLIDING,
    "gemma3_text": {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "qwen3": USUAL,
}

RECORDED = ["gpt2", "qwen3"]
"""Those whose steps can be recorded: the others' layers see a part only, or they make positions
of a mask."""


def make(folder: Path, model_type: str, **config: Any) -> Path:
    torch.manual_seed(0)
    full = {"vocab_size": 120, "initializer_range": 0.3, **NO_ENDS, **config}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **full)).save_pretrained(
        folder / "base"
    )
    return folder / "base"


def add_adapter(base: Path, folder: Path, rank: int) -> Any:
    """Save a random adapter and return the reference model with it."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def add_both(base: Path, folder: Path) -> Any:
    """The reference model with both adapters active."""
    fresh = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(fresh, folder / "a", adapter_name="a")
    model.load_adapter(folder / "b", "b")
    model.base_model.set_adapter(["a", "b"])
    return model.eval()


def answer_together(engine: TransformersEngine, jobs: list[tuple[list[int], Any]]) -> Any:
    async def answer(ids: list[int], adapters: list[LoadedAdapter]) -> list[int]:
        wanted = Sampling(max_tokens=20, logprobs=0)
        mix = tuple(Share(adapter) for adapter in adapters)
        chunks = engine.generate(Request(prompt=tuple(ids), mix=mix, sampling=wanted))
        return [token.id async for chunk in chunks for token in chunk.tokens]

    async def answer_all() -> list[list[int]]:
        return await asyncio.gather(*(answer(*job) for job in jobs))

    return asyncio.run(answer_all())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    ("model_type", "recorded"),
    [*((each, False) for each in TYPES), *((each, True) for each in RECORDED)],
)
def test_a_mixed_batch_equals_peft_alone(model_type: str, recorded: bool, tmp_path: Path) -> None:
    base = make(tmp_path, model_type, **TYPES[model_type])
    models = {"": AutoModelForCausalLM.from_pretrained(base).eval()}
    record = TapeRecorder() if recorded else None
    engine = TransformersEngine(load_base_model(base, dtype="float32"), str, record=record)
    try:
        loaded = {}
        for name, rank in (("a", 2), ("b", 8)):
            models[name] = add_adapter(base, tmp_path / name, rank)
            loaded[name] = engine.load_adapter(name, tmp_path / name)
        models["ab"] = add_both(base, tmp_path)
        jobs = [(list(range(3, 3 + n)), names) for n in (2, 19, 40) for names in models]

        answers = answer_together(
            engine, [(ids, [loaded[name] for name in names]) for ids, names in jobs]
        )
    finally:
        engine.close()

    assert record is None or record.replays > 5
    for (ids, names), answer in zip(jobs, answers, strict=True):
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        expected = models[names].generate(**inputs, max_new_tokens=20, do_sample=False)
        assert answer == expected[0, len(ids) :].tolist()


def test_a_model_that_counts_positions_from_the_longest_row_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path, "mbart", d_model=32, decoder_layers=1, decoder_attention_heads=4)

    with pytest.raises(ModelError, match=r"MBartForCausalLM in .* can't share one"):
        load_base_model(base, dtype="float32")


@pytest.mark.parametrize("model_type", TYPES)
def test_only_models_that_take_masks_are_recorded(model_type: str, tmp_path: Path) -> None:
    base = load_base_model(make(tmp_path, model_type, **TYPES[model_type]), dtype="float32")
    assert takes_masks(base) == (model_type in RECORDED)


def test_a_model_with_a_recurrent_state_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path, "mamba", hidden_size=32, num_hidden_layers=1)

    with pytest.raises(ModelError, match="attention only"):
        load_base_model(base, dtype="float32")
