"""Every method of PEFT: put on a model, trained, and loaded again on the model as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from llm_trainer.model import methods
from llm_trainer.model.adapter import add_adapter, export
from llm_trainer.model.load import load_base
from peftjob.errors import ModelError, SpecError
from peftjob.method import IA3, Lora, Method, PrefixTuning, PromptTuning, QLora
from peftjob.training import Training
from tests import tiny_models

IDS = torch.arange(3, 15)[None]
LORAS = {
    "lora": Lora(r=4),
    "rslora": Lora(r=4, use_rslora=True, lora_dropout=0.1),
    "dora": Lora(r=4, use_dora=True),
    "gaussian": Lora(r=4, init_lora_weights="gaussian"),
    "orthogonal": Lora(r=4, init_lora_weights="orthogonal"),
    "random": Lora(r=4, init_lora_weights=False),
    "mica": Lora(r=4, init_lora_weights="mica"),
    "whole": Lora(r=4, modules_to_save=("lm_head", "embed_tokens")),
    "bias": Lora(r=4, bias="all"),
    "patterns": Lora(r=4, options={"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"up_proj": 5}}),
    "layers": Lora(r=4, options={"layers_to_transform": [1]}),
    "tokens": Lora(r=4, options={"trainable_token_indices": [5, 7]}),
}
MOVED = {
    "pissa": Lora(r=4, init_lora_weights="pissa"),
    "pissa_niter": Lora(r=4, init_lora_weights="pissa_niter_4"),
    "pissa with rslora": Lora(r=4, init_lora_weights="pissa", use_rslora=True),
    "pissa with dora": Lora(r=4, init_lora_weights="pissa", use_dora=True),
    "pissa with ranks": Lora(
        r=4,
        init_lora_weights="pissa",
        options={"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"up_proj": 5}},
    ),
    "olora": Lora(r=4, init_lora_weights="olora"),
}
OTHERS = {
    "ia3": IA3(),
    "prefix": PrefixTuning(num_virtual_tokens=4),
    "prefix projected": PrefixTuning(num_virtual_tokens=4, prefix_projection=True),
    "prompt": PromptTuning(num_virtual_tokens=4),
}
ALL: dict[str, Method] = {**LORAS, **MOVED, **OTHERS}


def _train(model: Any, steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(input_ids=IDS).logits.float()
    # Prompt tuning answers for its virtual tokens too.
    return made[:, -IDS.shape[1] :]


def _published(model: Any, folder: Path, base: Any) -> Any:
    """The adapter, on a base model that never saw the training."""
    exported = export(model)
    save_file(exported.weights, folder / "adapter_model.safetensors")
    model.peft_config["default"].__class__(**exported.config).save_pretrained(folder)
    return PeftModel.from_pretrained(base, folder).eval()


def _made(method: Method, architecture: str = "Llama") -> Any:
    base = tiny_models.causal(architecture)
    torch.manual_seed(1)
    return add_adapter(base, method).train()


@pytest.mark.parametrize("name", ALL)
def test_what_is_published_is_what_was_trained_on_the_base_model_as_it_was(
    name: str, tmp_path: Path
) -> None:
    model = _made(ALL[name])
    _train(model)
    again = _published(model, tmp_path, tiny_models.causal("Llama"))
    assert not torch.allclose(_logits(model), _logits(tiny_models.causal("Llama")), atol=1e-2)
    torch.testing.assert_close(_logits(again), _logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MOVED)
def test_a_published_adapter_that_moved_the_base_is_a_plain_one_of_twice_the_rank(
    name: str,
) -> None:
    config = export(_made(MOVED[name])).config
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert config["init_lora_weights"] is True
    assert config["use_rslora"] is False


@pytest.mark.parametrize("name", ["pissa", "pissa_niter", "olora", "lora", "mica"])
def test_the_same_seed_begins_with_the_same_adapter_and_the_same_base_weights(name: str) -> None:
    first, second = _made(ALL[name]).state_dict(), _made(ALL[name]).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", MOVED)
def test_a_resumed_training_publishes_what_the_uninterrupted_one_does(name: str) -> None:
    model, resumed = _made(MOVED[name]), _made(MOVED[name])
    _train(model)
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n, parameter in resumed.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[n])
    ours, theirs = export(resumed).weights, export(model).weights
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", [n for n in ALL if n != "bias"])
def test_on_a_bfloat16_base_the_adapter_trains_in_float32(name: str, tmp_path: Path) -> None:
    tiny_models.causal("Llama").save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = add_adapter(load_base(tmp_path, torch.bfloat16), ALL[name]).train()
    before = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    _train(model)
    assert set(before.values()) == {torch.float32}
    assert _logits(model).isfinite().all()


def test_biases_of_bfloat16_weights_are_refused(tmp_path: Path) -> None:
    base = tiny_models.causal("Qwen2").to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"method\.bias: 'all' .* set training\.dtype to float32"):
        add_adapter(base, Lora(bias="all"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_a_quantised_base_is_trained_and_its_adapter_fits_the_unquantised_one(
    bits: Any, architecture: str, tmp_path: Path
) -> None:
    tiny_models.causal(architecture).save_pretrained(tmp_path)
    method = QLora(r=4, bits=bits)
    base = load_base(tmp_path, torch.float32, quantisation=method)
    model = add_adapter(base, method).train()
    before = _logits(model)
    _train(model)
    again = _published(model, tmp_path, tiny_models.causal(architecture))
    error = (_logits(tiny_models.causal(architecture)) - before).norm()
    assert (_logits(again) - _logits(model)).norm() < 3 * error < (_logits(model) - before).norm()


def test_in_4_bits_projections_are_quantised_and_norms_embeddings_and_head_keep_their_dtype(
    tmp_path: Path,
) -> None:
    tiny_models.causal("Llama").save_pretrained(tmp_path)
    base = load_base(tmp_path, torch.bfloat16, quantisation=QLora())
    kinds: dict[torch.dtype, set[str]] = {}
    for name, parameter in base.named_parameters():
        kinds.setdefault(parameter.dtype, set()).add(name.split(".")[-2])
    assert kinds[torch.uint8] == {"q_proj", "k_proj", "v_proj", "o_proj"} | {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert kinds.keys() == {torch.uint8, torch.bfloat16}


@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("fp4", False)])
def test_4_bit_weights_are_of_the_kind_that_was_asked_for(
    quant_type: Any, double: bool, tmp_path: Path
) -> None:
    tiny_models.causal("Llama").save_pretrained(tmp_path)
    method = QLora(quant_type=quant_type, double_quant=double)
    state = load_base(tmp_path, torch.bfloat16, quantisation=method).get_submodule(
        "model.layers.0.mlp.up_proj"
    )
    assert state.weight.quant_state.quant_type == quant_type
    assert state.weight.quant_state.nested is double
    assert state.compute_dtype is torch.bfloat16


def test_loftq_begins_nearer_to_the_unquantised_model(tmp_path: Path) -> None:
    tiny_models.causal("Llama").save_pretrained(tmp_path)
    target = _logits(tiny_models.causal("Llama"))
    errors = {}
    for init in (True, "loftq"):
        method = QLora(r=8, init_lora_weights=init)
        base = load_base(tmp_path, torch.float32, quantisation=method)
        errors[init] = float((_logits(add_adapter(base, method).eval()) - target).norm())
    assert errors["loftq"] < 0.9 * errors[True]


def test_lora_plus_trains_the_b_matrices_at_a_rate_of_their_own() -> None:
    method = Lora(r=4, loraplus_lr_ratio=16)
    model = _made(method)
    groups = methods.parameter_groups(model, Training(learning_rate=1e-3), method)
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert set(rates) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n: rate for n, rate in rates.items() if "lora_B" in n} == {
        n: pytest.approx(1.6e-2) for n in rates if "lora_B" in n
    }
    assert {rate for n, rate in rates.items() if "lora_A" in n} == {1e-3}


def test_weights_decay_and_scales_magnitudes_and_biases_do_not() -> None:
    training = Training(weight_decay=0.1)
    for method, kept in ((Lora(use_dora=True), "magnitude"), (IA3(), "ia3_l")):
        model = _made(method)
        names = {id(p): n for n, p in model.named_parameters()}
        for group in methods.parameter_groups(model, training, method):
            stay = {kept in names[id(p)] for p in group["params"]}
            assert stay == {group["weight_decay"] == 0.0}


def test_rows_lie_one_after_the_other_but_for_methods_with_a_prefix() -> None:
    packing = {name: methods.packs(method) for name, method in OTHERS.items()}
    assert packing == {"ia3": True, "prefix": False, "prefix projected": False, "prompt": False}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Llama", {"k_proj", "v_proj", "down_proj"}),
        ("Olmo2", {"k_proj", "v_proj", "down_proj"}),
        ("Phi3", {"qkv_proj", "down_proj"}),
        ("GPTNeoX", {"query_key_value", "dense_4h_to_h"}),
        ("GPT2", {"c_attn", "mlp.c_proj"}),
        ("Mixtral", {"k_proj", "v_proj"}),
    ],
)
def test_ia3_scales_keys_values_and_the_feed_forward(architecture: str, expected: set[str]) -> None:
    config = _made(IA3(), architecture).peft_config["default"]
    assert config.target_modules == expected
    assert config.feedforward_modules == expected & {"down_proj", "dense_4h_to_h", "mlp.c_proj"}


def test_ia3_asks_for_names_where_it_can_not_know_them() -> None:
    with pytest.raises(ModelError, match=r"IA3 should scale is not known; .* there are dt_proj"):
        _made(IA3(), "Mamba")


def test_a_prompt_begins_with_the_text_it_is_given(model_dir: Path) -> None:
    base = load_base(model_dir, torch.float32)
    model = add_adapter(base, PromptTuning(num_virtual_tokens=4, init_text="The word is"))
    embedding = model.prompt_encoder["default"].embedding.weight
    words = base.get_input_embeddings().weight
    assert all(any(torch.equal(row, word) for word in words) for row in embedding)
    assert str(model_dir) not in str(export(model).config)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Lora(modules_to_save=("lmhead",)), "method.modules_to_save: .* did you mean lm_head"),
        (Lora(r=64, init_lora_weights="pissa"), "method.r: 64 is more than the 32 singular"),
        (Lora(r=3, init_lora_weights="orthogonal"), "doesn't fit the base model"),
        (PrefixTuning(), "method prefix can't be had"),
    ],
)
def test_what_does_not_fit_the_model_is_a_line(method: Method, message: str) -> None:
    task = None if isinstance(method, PrefixTuning) else "CAUSAL_LM"
    with pytest.raises(ModelError, match=message) as caught:
        add_adapter(tiny_models.causal("Llama"), method, task_type=task)
    assert "\n" not in str(caught.value)


def test_olora_is_refused_where_weights_are_stored_transposed() -> None:
    with pytest.raises(ModelError, match="'olora' is wrong on GPT2LMHeadModel"):
        add_adapter(tiny_models.causal("GPT2"), Lora(init_lora_weights="olora"))


def test_options_of_wrong_types_are_all_named() -> None:
    options = {"rank_pattern": 8, "layers_to_transform": "first"}
    with pytest.raises(SpecError) as caught:
        add_adapter(tiny_models.causal("Llama"), Lora(options=options))
    first, second = caught.value.problems
    assert first == "method.options.rank_pattern: 8 is no Optional[dict]"
    assert second.startswith("method.options.layers_to_transform: 'first' is no Union[")
