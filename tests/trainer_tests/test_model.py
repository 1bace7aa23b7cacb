"""The base model, read from its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from llm_trainer.model import load
from llm_trainer.model.adapter import add_adapter
from peftjob.errors import ModelError
from peftjob.method import Lora, QLora
from tests import tiny_models

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_a_cpu_that_multiplies_in_bfloat16_gets_it(
    avx512: bool, amx: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert load.choose_dtype("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((9, 0), torch.bfloat16)]
)
def test_a_gpu_that_only_emulates_bfloat16_gets_float32(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert load.choose_dtype("auto", torch.device("cuda:0")) == expected


def test_a_dtype_that_is_asked_for_is_had_whatever_the_hardware() -> None:
    assert load.choose_dtype("float32", CPU) == torch.float32
    assert load.choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert torch.get_float32_matmul_precision() == "highest"


def test_shards_are_read_together(tmp_path: Path) -> None:
    made = tiny_models.causal("Llama")
    made.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = load.load_base(tmp_path, torch.float32)
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


def test_the_base_model_is_loaded_from_safetensors_only(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"can't be loaded: .*model\.safetensors"):
        load.load_base(tmp_path, torch.float32)


def test_a_damaged_weight_file_is_a_line(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    weights = (model_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"the base model in .* can't be loaded"):
        load.load_base(tmp_path, torch.float32)


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        del weights[name]

    return change


def _smaller(name: str) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        weights[name] = weights[name][:8].clone()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("model.layers.1.mlp.up_proj.weight"), "lacks weights of LlamaForCausalLM"),
        (_without("lm_head.weight"), r"lacks .*: lm_head\.weight; its files are incomplete"),
        (_smaller("model.norm.weight"), "can't be loaded|of another size"),
    ],
)
def test_weights_that_are_missing_or_of_another_size_are_never_drawn_at_random(
    change: Any, message: str, tmp_path: Path
) -> None:
    tiny_models.causal("Llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load.load_base(tmp_path, torch.float32)


def test_a_new_head_is_drawn_and_named(tmp_path: Path) -> None:
    tiny_models.bert("MaskedLM").save_pretrained(tmp_path)
    model = load.load_base(
        tmp_path, torch.float32, model_class=AutoModelForSequenceClassification, num_labels=5
    )
    assert model.classifier.out_features == 5
    assert load.fresh_modules(model) == ["bert.pooler.dense", "classifier"]


def test_a_head_of_other_labels_is_drawn_anew(tmp_path: Path) -> None:
    tiny_models.bert(num_labels=3).save_pretrained(tmp_path)
    model = load.load_base(
        tmp_path, torch.float32, model_class=AutoModelForSequenceClassification, num_labels=5
    )
    assert load.fresh_modules(model) == ["classifier"]


def test_a_head_that_the_files_have_is_kept(tmp_path: Path) -> None:
    made = tiny_models.bert("QuestionAnswering")
    made.save_pretrained(tmp_path)
    model = load.load_base(tmp_path, torch.float32, model_class=AutoModelForQuestionAnswering)
    assert torch.equal(model.qa_outputs.weight, made.qa_outputs.weight)
    assert load.fresh_modules(model) == []


def test_a_quantised_classifier_keeps_its_head_as_it_is(tmp_path: Path) -> None:
    tiny_models.bert("MaskedLM").save_pretrained(tmp_path)
    model = load.load_base(
        tmp_path,
        torch.bfloat16,
        quantisation=QLora(),
        model_class=AutoModelForSequenceClassification,
        num_labels=5,
    )
    adapted = add_adapter(model, QLora(r=2), task_type="SEQ_CLS", heads=load.fresh_modules(model))
    logits = adapted(input_ids=torch.arange(8)[None]).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.dtype == torch.float32 for p in trained.values())
    assert sum("classifier" in n or "pooler" in n for n in trained) == 4


def test_an_evaluation_leaves_4_bit_weights_as_they_are(tmp_path: Path) -> None:
    tiny_models.causal("Llama", hidden_size=64).save_pretrained(tmp_path)
    model = load.load_base(tmp_path, torch.bfloat16, quantisation=QLora()).eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match=r"has no config\.json, but model\.gguf"):
        load.load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    load.check_vocabulary(tiny_models.causal("Llama"), 63)
    with pytest.raises(ModelError, match="makes token 64, but the base model knows 64 tokens"):
        load.check_vocabulary(tiny_models.causal("Llama"), 64)


def test_adapter_weights_are_float32_on_a_bfloat16_base(model_dir: Path) -> None:
    base = load.load_base(model_dir, torch.bfloat16)
    adapted = add_adapter(base, Lora(r=2))
    kinds = {p.requires_grad: p.dtype for p in adapted.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.parametrize("quantisation", [None, QLora(), QLora(bits=8)])
def test_on_a_gpu_weights_go_straight_to_it(quantisation: QLora | None, tmp_path: Path) -> None:
    tiny_models.causal("Llama").save_pretrained(tmp_path)
    device = torch.device("cuda:0")
    model = load.load_base(tmp_path, torch.bfloat16, device=device, quantisation=quantisation)
    adapted = add_adapter(model, quantisation or Lora())
    assert {p.device for p in adapted.parameters()} == {device}
    adapted(input_ids=torch.arange(8, device=device)[None]).logits.float().sum().backward()
