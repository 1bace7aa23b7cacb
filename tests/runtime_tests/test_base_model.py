"""How the base model is loaded, quantised or not, and what it answers then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from kserve_runtime import base_model
from kserve_runtime.base_model import load_base_model
from kserve_runtime.packed import PackedLinear
from kserve_runtime.transformers_engine import TransformersEngine
from tests.runtime_tests.test_architectures import TYPES, USUAL, add_adapter, answer_together, make

# bitsandbytes' blocks of 64 weights lie within a row.
WIDE = {**USUAL, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}


def store(base: Path, folder: Path, dtype: torch.dtype) -> Path:
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("stored", "has_bf16", "loaded"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_16_bits_stay_16_bits_where_the_processor_has_them(
    world: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
    has_bf16: bool,
    loaded: torch.dtype,
) -> None:
    # Which processor this is must not decide what the test says.
    monkeypatch.setattr(base_model, "_processor_has_bf16", lambda: has_bf16)

    base = load_base_model(store(world.base, tmp_path, stored), dtype="auto")

    assert base.module.dtype == loaded
    assert any(isinstance(module, PackedLinear) for module in base.module.modules())


def test_the_models_own_penalty_holds_for_greedy_answers_too(world: Any, tmp_path: Path) -> None:
    shutil.copytree(world.base, tmp_path, dirs_exist_ok=True)
    recommended = {"do_sample": False, "repetition_penalty": 1.1, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(recommended))

    assert load_base_model(tmp_path, dtype="float32").default_sampling == {
        "repetition_penalty": 1.1
    }


def answers_of(folder: Path, adapter: Path, prompts: list[list[int]], **options: Any) -> Any:
    engine = TransformersEngine(load_base_model(folder, **options), str)
    try:
        loaded = engine.load_adapter("a", adapter)
        return answer_together(engine, [(ids, mix) for ids in prompts for mix in ([], [loaded])])
    finally:
        engine.close()


def references(model: PeftModel, prompts: list[list[int]]) -> list[list[int]]:
    def generate(ids: list[int]) -> list[int]:
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        tokens: list[int] = out[0, len(ids) :].tolist()
        return tokens

    answers = []
    for ids in prompts:
        with model.disable_adapter():
            answers.append(generate(ids))
        answers.append(generate(ids))
    return answers


@pytest.mark.parametrize("stored_quantised", [False, True])
def test_a_4_bit_base_model_answers_as_with_peft(tmp_path: Path, stored_quantised: bool) -> None:
    folder = make(tmp_path, "qwen3", **WIDE)
    add_adapter(folder, tmp_path / "a", rank=4)
    prompts = [list(range(3, 3 + count)) for count in (2, 19, 40)]
    quantised = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**NF4), dtype=torch.float32
    )
    if stored_quantised:
        folder = tmp_path / "quantised"
        quantised.save_pretrained(folder)

    answers = answers_of(
        folder, tmp_path / "a", prompts, dtype="float32", in_4bit=not stored_quantised
    )

    assert answers == references(PeftModel.from_pretrained(quantised, tmp_path / "a"), prompts)


def shortfalls(model: Any, ids: list[int], answer: list[int]) -> float:
    """How far the answer's tokens are at most behind the model's likeliest ones, in logits."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].float()
    chosen = logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    return float((logits.max(-1).values - chosen).max())


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "bloom"])
def test_bfloat16_answers_are_pefts_but_for_rounding(model_type: str, tmp_path: Path) -> None:
    folder = make(tmp_path, model_type, **TYPES[model_type])
    add_adapter(folder, tmp_path / "a", rank=4)
    base = load_base_model(folder, dtype="bfloat16")
    # An attention of its own, as bloom has, takes keys and values as they are.
    assert base.kv_dtype == (None if model_type == "bloom" else torch.float32)
    prompts = [list(range(3, 3 + count)) for count in (2, 30, 19)]
    engine = TransformersEngine(base, str)
    try:
        mix = [engine.load_adapter("a", tmp_path / "a")]
        answers = answer_together(engine, [(ids, mix) for ids in prompts])
    finally:
        engine.close()

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    reference = PeftModel.from_pretrained(plain, tmp_path / "a").eval()
    # Logits of up to 16 have steps of 1/16 in bfloat16; sums of rounded numbers are a few off.
    behind = [shortfalls(reference, *pair) for pair in zip(prompts, answers, strict=True)]
    assert max(behind) < 0.25
