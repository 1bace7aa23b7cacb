"""What the stock client passes, as a spec."""

import json

import pytest

from peftjob import stock
from peftjob.errors import SpecError


def _argv(**fields: object) -> list[str]:
    given = {
        "model_uri": "hf://org/model",
        "transformer_type": "AutoModelForCausalLM",
        "num_labels": "None",
        "model_dir": "/workspace/model",
        "dataset_dir": "/workspace/dataset",
        "lora_config": json.dumps({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}),
        "training_parameters": json.dumps({"learning_rate": 1e-3, "seed": 7, "output_dir": "x"}),
        **fields,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_the_trainers_arguments_become_a_spec() -> None:
    spec = stock.spec_from_trainer_args(_argv(), pod_name="bert-master-0")
    assert spec.name == "bert"
    assert spec.base_model.source == "hf://org/model"
    assert spec.method.r == 4
    assert spec.method.target_modules == ("q_proj",)
    assert spec.training.learning_rate == 1e-3
    assert spec.training.seed == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transformer_type": "AutoModelForMaskedLM"}, "AutoModelForMaskedLM can't be tuned"),
        ({"lora_config": '{"init_lora_weights": "pissa"}'}, "init_lora_weights: 'pissa'"),
        ({"lora_config": "{"}, "--lora_config: not JSON"),
        ({"lora_config": "[]"}, "an object is wanted"),
        ({"training_parameters": '{"optim": "sgd"}'}, "training_parameters.optim: 'sgd'"),
        ({"training_parameters": '{"warmup_steps": 10}'}, "warmup_steps: 10"),
    ],
)
def test_what_a_spec_can_not_say_is_refused_by_name(fields: dict, message: str) -> None:
    defaults = {"optim": "adamw_torch_fused", "warmup_steps": 0}
    with pytest.raises(SpecError) as caught:
        stock.spec_from_trainer_args(_argv(**fields), training_defaults=defaults)
    assert message in str(caught.value)


def test_a_share_of_the_steps_is_a_warmup_ratio() -> None:
    fields = stock.training_from_stock({"warmup_steps": 0.1}, {"warmup_steps": 0})
    assert fields["warmup_ratio"] == 0.1


def test_a_token_in_the_parameters_is_refused_without_showing_it() -> None:
    payload = {"model_uri": "org/model", "access_token": "hf_canary"}
    with pytest.raises(SpecError) as caught:
        stock.model_from_stock(payload)
    assert "hf_canary" not in str(caught.value)
    assert "Secret" in str(caught.value)


def test_a_bare_repository_is_one_of_the_hub() -> None:
    assert stock.dataset_from_stock({"repo_id": "org/data", "split": "train"}) == {
        "source": "hf://org/data",
        "split": "train",
    }


def test_the_stock_clients_own_defaults_pass() -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(output_dir="x").to_dict()
    config = json.loads(json.dumps(peft.LoraConfig(r=3).to_dict(), default=list))
    assert stock.lora_from_stock(config)["r"] == 3
    assert stock.training_from_stock(arguments, arguments)["num_train_epochs"] == 3.0
