"""Which modules are adapted: chosen for every architecture, or checked where they are named."""

import tempfile
from typing import Any

import pytest
import torch
from peft import PeftModel

from llm_trainer.model import targets
from llm_trainer.model.adapter import adapted_names, add_adapter
from peftjob.errors import ModelError
from peftjob.method import Lora
from tests import tiny_models

LLAMA = "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"
GPT_NEOX = "dense dense_4h_to_h dense_h_to_4h query_key_value"
ATTENTION = "k_proj o_proj q_proj v_proj"
LATENT = "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj"
EXPECTED = {
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"), LLAMA),
    **dict.fromkeys(("Gemma3Text", "StableLm", "Olmo2", "Granite", "Cohere"), LLAMA),
    "Phi": "dense fc1 fc2 k_proj q_proj v_proj",
    "Phi3": "down_proj gate_up_proj o_proj qkv_proj",
    **dict.fromkeys(("GPTNeoX", "Falcon", "Bloom"), GPT_NEOX),
    "GPT2": "c_attn c_fc c_proj",
    "OPT": "fc1 fc2 k_proj out_proj q_proj v_proj",
    **dict.fromkeys(("Mixtral", "Qwen3Moe"), ATTENTION),
    "Qwen2Moe": LLAMA,
    **dict.fromkeys(("DeepseekV2", "DeepseekV3"), LATENT),
    "Mamba": "dt_proj in_proj x_proj",
}


def _adapted(model: Any) -> list[str]:
    """Full names of what has an adapter."""
    names = (n for n, p in model.named_parameters() if p.requires_grad)
    return sorted({n.partition(".lora_")[0].removeprefix("base_model.model.") for n in names})


def test_every_architecture_is_expected_to_have_something_adapted() -> None:
    assert EXPECTED.keys() == tiny_models.CONFIGS.keys()


@pytest.mark.parametrize("architecture", EXPECTED)
def test_the_projections_of_all_blocks_are_adapted_and_no_head_embedding_or_router(
    architecture: str,
) -> None:
    model = add_adapter(tiny_models.causal(architecture), Lora(r=2))
    assert adapted_names(model) == EXPECTED[architecture].split()
    assert all(any(part.isdigit() for part in name.split(".")) for name in _adapted(model))
    assert not any("shared_expert_gate" in name for name in _adapted(model))


@pytest.mark.parametrize("architecture", ["Qwen2Moe", "DeepseekV3", "Mixtral", "GPT2", "Falcon"])
def test_what_is_chosen_loads_again_through_peft(architecture: str) -> None:
    model = add_adapter(tiny_models.causal(architecture), Lora(r=2)).eval()
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.arange(3, 12)[None]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(tiny_models.causal(architecture), folder).eval()
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_bert_is_adapted_in_its_layers_and_not_in_its_pooler() -> None:
    model = add_adapter(tiny_models.bert(), Lora(r=2), task_type="SEQ_CLS")
    names = [name for name in _adapted(model) if not name.startswith("classifier")]
    assert {n.split(".layer.")[1][2:] for n in names} == {
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    }
    assert not any("pooler" in name for name in names)


def test_an_image_classifier_is_adapted_in_its_layers() -> None:
    model = add_adapter(tiny_models.vit(), Lora(r=2), task_type=None, heads=["classifier"])
    assert set(adapted_names(model)) == {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}


@pytest.mark.parametrize("make", [tiny_models.llava, tiny_models.qwen2_vl])
@pytest.mark.parametrize("named", [None, ("q_proj", "v_proj")])
def test_a_vision_tower_and_its_projector_are_left_alone(make: Any, named: Any) -> None:
    names = _adapted(add_adapter(make(), Lora(r=2, target_modules=named)))
    assert names
    assert all(name.startswith("model.language_model.layers.") for name in names)


def test_a_module_outside_of_the_blocks_of_the_same_name_is_excluded() -> None:
    model = tiny_models.causal("Llama")
    model.model.q_proj = torch.nn.Linear(2, 2)
    assert targets.choose(model, None).exclude == r"(?:model\.q_proj)(?:\..*)?"
    assert "model.q_proj" not in _adapted(add_adapter(model, Lora(r=2)))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (("q_proj",), ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        (("layers.1.self_attn.q_proj",), ["model.layers.1.self_attn.q_proj"]),
        (r".*\.1\..*(q|v)_proj", ["model.layers.1.self_attn." + n for n in ("q_proj", "v_proj")]),
        (("lm_head",), ["lm_head"]),
    ],
)
def test_named_modules_are_those_that_peft_means(named: Any, expected: list[str]) -> None:
    model = add_adapter(tiny_models.causal("Llama"), Lora(r=2, target_modules=named))
    assert _adapted(model) == expected


def test_all_linear_is_the_default() -> None:
    model = tiny_models.causal("Llama")
    assert targets.choose(model, "all-linear") == targets.choose(model, None)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["v_proj", "qproj"], r"LlamaForCausalLM has no module 'qproj'; did you mean q_proj"),
        (["self_attn.qproj"], r"no module 'self_attn.qproj'; did you mean q_proj"),
        (["zzz"], r"no module 'zzz'; there are down_proj, gate_proj"),
        ([], "names nothing; leave it out"),
        ("q_proj", r"'q_proj' matches no full name .* such as model.layers.0.self_attn.q_proj;"),
        ("(", r"'\(' is no regular expression"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_names(named: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        targets.choose(tiny_models.causal("Llama"), named)


def test_experts_are_adapted_where_they_are_named() -> None:
    method = Lora(r=2, options={"target_parameters": ["experts.down_proj"]})
    model = add_adapter(tiny_models.causal("Qwen3Moe"), method)
    assert "model.layers.0.mlp.experts" in _adapted(model)


def test_a_parameter_that_is_not_there_is_refused_with_the_nearest_names() -> None:
    method = Lora(r=2, options={"target_parameters": ["experts.downproj"]})
    with pytest.raises(ModelError, match=r"no parameter 'experts.downproj' .* experts.down_proj"):
        add_adapter(tiny_models.causal("Qwen3Moe"), method)


def test_an_excluded_module_stays_so_beside_what_is_excluded_anyway() -> None:
    method = Lora(r=2, options={"exclude_modules": ["layers.0.self_attn.q_proj"]})
    names = _adapted(add_adapter(tiny_models.llava(), method))
    assert "model.language_model.layers.0.self_attn.q_proj" not in names
    assert "model.language_model.layers.1.self_attn.q_proj" in names
    assert not any("vision" in name for name in names)


def test_a_model_without_blocks_says_so() -> None:
    with pytest.raises(ModelError, match="Linear has no linear projections in its blocks"):
        targets.choose(torch.nn.Linear(2, 2), None)
