"""The base model, what LoRA adapts in it, and the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from llm_trainer.data.encode import Encoder
from llm_trainer.data.examples import Examples
from llm_trainer.data.rows import Completion
from llm_trainer.fast.loss import TargetLoss
from llm_trainer.model import load as model
from llm_trainer.model import targets
from llm_trainer.ranks import Ranks
from llm_trainer.train.collate import collate
from llm_trainer.train.heldout import evaluate
from peftjob.errors import ModelError
from peftjob.spec import Lora

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def tiny(architecture: str, **options: Any) -> Any:
    torch.manual_seed(0)
    options = options or TINY
    config = getattr(transformers, f"{architecture}Config")(**options)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("architecture", "options", "expected"),
    [
        ("Llama", TINY, LLAMA),
        ("Qwen3", {**TINY, "head_dim": 8}, LLAMA),
        ("Gemma2", {**TINY, "head_dim": 8}, LLAMA),
        ("Phi3", TINY, ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
        (
            "GPTNeoX",
            TINY,
            ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
        ),
        ("Falcon", TINY, ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]),
        ("GPT2", GPT2, ["c_attn", "c_fc", "c_proj"]),
        ("Qwen3Moe", {**TINY, **EXPERTS, "head_dim": 8}, ["k_proj", "o_proj", "q_proj", "v_proj"]),
    ],
)
def test_lora_adapts_every_linear_projection_of_the_blocks_and_no_head_or_router(
    architecture: str, options: dict[str, Any], expected: list[str]
) -> None:
    made = tiny(architecture, **options)
    assert targets.choose(made, None)[0] == expected
    adapted = model.add_adapter(made, Lora(r=2))
    names = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert names
    assert not any("head" in n.split(".layers.")[0] or "embed" in n for n in names)


def test_a_named_module_that_is_not_there_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(
        ModelError, match=r"LlamaForCausalLM has no module 'qproj'; did you mean q_"
    ):
        targets.choose(tiny("Llama"), ["v_proj", "qproj"])
    with pytest.raises(ModelError, match=r"no module 'zzz'; there are down_proj, gate_proj"):
        targets.choose(tiny("Llama"), ["zzz"])


def test_a_module_outside_the_blocks_of_the_same_name_is_excluded() -> None:
    made = tiny("Llama")
    made.model.q_proj = torch.nn.Linear(2, 2)
    assert targets.choose(made, None) == (LLAMA, ["model.q_proj"])


@pytest.fixture
def examples(tokenizer: Any) -> Examples:
    rows = [Completion("The word is", f" {'seven ' * (1 + i)}", f"row {i}") for i in range(5)]
    return Encoder(tokenizer, max_length=50, train_all=False).encode(rows).examples


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("Llama", {}), ("Gemma2", {"head_dim": 8}), ("Cohere", {}), ("Granite", {}), ("GPT2", GPT2)],
)
def test_the_loss_is_the_models_own_summed_over_trained_tokens(
    architecture: str, options: dict[str, Any], examples: Examples
) -> None:
    options = {**options, "vocab_size": 500} if options is GPT2 else {**TINY, **options}
    made = tiny(architecture, **{**options, "vocab_size": 500})
    batch = collate(examples, np.arange(5), 0)
    count = int((batch["labels"] != -100).sum())
    reference = made(**batch).loss * count
    grads = torch.autograd.grad(reference, made.get_output_embeddings().weight)[0]

    ours = TargetLoss(made)(made, batch)
    our_grads = torch.autograd.grad(ours, made.get_output_embeddings().weight)[0]

    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_grads, grads, rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_has_no_loss_and_zero_gradients(examples: Examples) -> None:
    made = tiny("Llama", **{**TINY, "vocab_size": 500})
    loss = TargetLoss(made)(made, collate(examples, np.array([], np.int64), 0))
    loss.backward()
    assert loss.item() == 0
    assert float(made.model.layers[0].mlp.up_proj.weight.grad.abs().sum()) == 0


@pytest.mark.parametrize("batch_rows", [1, 2, 5])
def test_the_held_out_loss_is_the_mean_over_trained_tokens(
    examples: Examples, batch_rows: int
) -> None:
    made = tiny("Llama", **{**TINY, "vocab_size": 500}).train()
    total = count = 0.0
    for i in range(len(examples)):
        ids, trained = examples.row(i)
        with torch.no_grad():
            logits = made.eval()(torch.tensor(ids[None].astype(np.int64))).logits[0]
        chances = logits.double().log_softmax(-1)
        for at in np.flatnonzero(trained):
            total -= float(chances[at - 1, int(ids[at])])
            count += 1
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

    loss = evaluate(
        made.train(), TargetLoss(made), examples, ranks=ranks, batch_rows=batch_rows, pad_id=0
    )

    assert loss == pytest.approx(total / count, rel=1e-6)
    assert made.training


def test_the_base_model_is_loaded_from_safetensors_only(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"can't be loaded: .*model\.safetensors"):
        model.load_base(tmp_path, torch.float32)


def test_a_damaged_weight_file_is_a_line(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    weights = (model_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"the base model in .* can't be loaded"):
        model.load_base(tmp_path, torch.float32)


def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match=r"has no config\.json, but model\.gguf"):
        model.load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model.check_vocabulary(tiny("Llama"), 63)
    with pytest.raises(ModelError, match="makes token 64, but the base model knows 64 tokens"):
        model.check_vocabulary(tiny("Llama"), 64)


def test_adapter_weights_are_float32_on_a_bfloat16_base(model_dir: Path) -> None:
    base = model.load_base(model_dir, torch.bfloat16)
    adapted = model.add_adapter(base, Lora(r=2))
    kinds = {p.requires_grad: p.dtype for p in adapted.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
