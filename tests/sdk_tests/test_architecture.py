"""A model's shapes from its config.json: its parameters are those of the model itself."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from llm_trainer.model import targets
from peftjob import architecture
from peftjob.errors import ModelError
from peftjob.method import Task

TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 301}
GLU = {**TINY, "intermediate_size": 96, "num_key_value_heads": 2}
EXPERTS = {**GLU, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

# Sizes as the published models have them, written from their config.json.
LLAMA_3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
QWEN2_5_05B = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
PHI_4 = {
    "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352,
}  # fmt: skip
FALCON_40B = {
    "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128, "num_kv_heads": 8,
    "vocab_size": 65024, "new_decoder_architecture": True,
}  # fmt: skip

DECODERS = [
    ("llama", LLAMA_3_8B),
    ("llama", {**GLU, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**GLU, "head_dim": 24}),
    ("mistral", GLU),
    ("qwen2", QWEN2_5_05B),
    ("qwen3", GLU),
    ("smollm3", GLU),
    ("granite", GLU),
    ("gemma", GLU),
    ("gemma2", GLU),
    ("gemma3_text", GLU),
    ("phi3", PHI_4),
    ("glm4", GLU),
    ("olmo", GLU),
    ("olmo2", GLU),
    ("cohere", {**GLU, "use_qk_norm": True}),
    ("stablelm", {**GLU, "use_qkv_bias": True}),
    ("starcoder2", GLU),
    ("phi", GLU),
    ("gpt_neox", {**TINY, "intermediate_size": 256}),
    ("falcon", FALCON_40B),
    ("falcon", {**TINY, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    ("falcon", TINY),
    ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 301}),
    ("gpt_bigcode", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 301}),
    ("gpt_neo", {
        "hidden_size": 64, "num_layers": 4, "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
    }),
    ("gptj", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 301, "rotary_dim": 8}),
    ("opt", {**TINY, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    ("opt", {**TINY, "ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("bloom", {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 301}),
    ("mixtral", {**GLU, "num_local_experts": 4}),
    ("qwen2_moe", {
        **EXPERTS, "num_experts": 6, "shared_expert_intermediate_size": 80, "mlp_only_layers": [1],
    }),
    ("qwen3_moe", {**EXPERTS, "num_experts": 6, "decoder_sparse_step": 2}),
]  # fmt: skip
ENCODERS = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"]
HEADS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
}


def build(model_type: str, fields: dict[str, Any], task: str = "causal-lm") -> torch.nn.Module:
    """The model of transformers, without storage."""
    config = AutoConfig.for_model(model_type, **{"pad_token_id": 0, **fields})
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, HEADS[task]).from_config(config)
    return model


def written(model: Any) -> dict[str, Any]:
    """What save_pretrained writes."""
    return dict(model.config.to_diff_dict())


def numbers(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("model_type", "fields"), DECODERS)
def test_parameters_are_those_of_the_decoder(model_type: str, fields: dict[str, Any]) -> None:
    model = build(model_type, fields)
    assert architecture.read(written(model)).parameters == numbers(model)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma", "mistral"])
def test_parameters_of_a_decoder_with_a_new_head(model_type: str, task: Task) -> None:
    model = build(model_type, {**GLU, "num_labels": 5}, task)
    assert architecture.read(written(model), task=task, labels=5).parameters == numbers(model)


@pytest.mark.parametrize(
    "task",
    ["masked-lm", "sequence-classification", "token-classification", "question-answering"],
)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_parameters_are_those_of_the_encoder(model_type: str, task: Task) -> None:
    labels = 2 if task == "question-answering" else 5
    model = build(model_type, {"num_labels": labels}, task)
    assert architecture.read(written(model), task=task, labels=labels).parameters == numbers(model)


def test_parameters_are_those_of_the_vision_transformer() -> None:
    model = build("vit", {"num_labels": 7, "image_size": 64}, "image-classification")
    found = architecture.read(written(model), task="image-classification", labels=7)
    assert found.parameters == numbers(model)
    assert found.image_tokens == 17


@pytest.mark.parametrize(("model_type", "fields"), [*DECODERS, *((e, {}) for e in ENCODERS)])
def test_projections_are_the_linear_modules_of_the_blocks(
    model_type: str, fields: dict[str, Any]
) -> None:
    model = build(model_type, fields, "causal-lm" if fields else "masked-lm")
    inside = targets.linear_projections(model)
    expected = sum(model.get_submodule(name).weight.numel() for name in inside)
    found = architecture.read(written(model), task="causal-lm" if fields else "masked-lm")
    assert sum(n * p.matrix for n, p in found.projections() if p.adapted) == expected


@pytest.mark.parametrize(
    ("model_type", "fields", "windows"),
    [
        ("mistral", {}, {4096: 3}),
        ("mistral", {"sliding_window": None}, {None: 3}),
        ("qwen2", {}, {None: 3}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, {None: 2, 4096: 1}),
        ("gemma2", {}, {4096: 2, None: 1}),
        ("gemma3_text", {"sliding_window": 512}, {512: 3}),
    ],
)
def test_windows_are_those_of_the_layers(
    model_type: str, fields: dict[str, Any], windows: dict[int | None, int]
) -> None:
    model = build(model_type, {**GLU, **fields})
    found = architecture.read(written(model))
    assert {block.window: block.count for block in found.blocks} == windows


def test_an_expert_is_multiplied_by_those_that_take_the_token_only() -> None:
    found = architecture.read({"model_type": "mixtral", **GLU, "num_local_experts": 4,
                               "num_experts_per_tok": 2})  # fmt: skip
    attention = 64 * (64 + 2 * 32 + 64)
    assert found.multiplied == 3 * (attention + 64 * 4 + 2 * 3 * 64 * 96)
    assert found.quantised == 3 * attention


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "the architecture 'mamba' is not known; known are "),
        ({}, "the architecture '' is not known"),
        ({"model_type": "phi", "qk_layernorm": True}, "'phi' is not known"),
        ({"model_type": "llama"}, "hidden_size must be a positive number, not None"),
        ({"model_type": "llama", **GLU, "vocab_size": -1}, "vocab_size must be a positive"),
        ({"model_type": "vit"}, "a vit has no head for the task 'causal-lm'"),
    ],
)
def test_a_config_that_can_not_be_read_is_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        architecture.read(config)
    assert "\n" not in str(caught.value)
