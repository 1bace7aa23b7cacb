"""What the stock client passes, as a spec."""

import dataclasses
import json

import pytest

from peftjob import lora_config, stock
from peftjob.errors import SpecError
from peftjob.method import Lora
from peftjob.training import Training


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
        (
            {"transformer_type": "AutoModelForSeq2SeqLM"},
            "AutoModelForSeq2SeqLM can't be tuned; Auto",
        ),
        ({"num_labels": "3"}, "num_labels: a model for causal-lm has none"),
        ({"lora_config": '{"init_lora_weights": "eva"}'}, "init_lora_weights: 'eva' can't be used"),
        ({"lora_config": '{"kasa_config": {"beta": 1}}'}, "lora_config.kasa_config: can't be used"),
        ({"lora_config": '{"rankpattern": 8}'}, "lora_config.rankpattern: .* mean rank_pattern"),
        ({"lora_config": '{"peft_type": "LOHA"}'}, "peft_type: 'LOHA' can't be had"),
        ({"lora_config": "{"}, "--lora_config: not JSON"),
        ({"lora_config": "[]"}, "an object is wanted"),
        (
            {"training_parameters": '{"fp16": true}'},
            "training_parameters.fp16: True can't be had: f",
        ),
        (
            {"training_parameters": '{"learnin_rate": 1}'},
            "learnin_rate: .* did you mean learning_r",
        ),
    ],
)
def test_what_a_spec_can_not_say_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        stock.spec_from_trainer_args(_argv(**fields))


def test_problems_of_all_arguments_are_reported_together() -> None:
    with pytest.raises(SpecError) as caught:
        stock.spec_from_trainer_args(
            _argv(
                transformer_type="AutoModel",
                lora_config='{"use_qalora": true}',
                training_parameters='{"deepspeed": "zero3.json", "push_to_hub": true}',
            )
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "transformer_type",
        "lora_config.use_qalora",
        "training_parameters.deepspeed",
        "training_parameters.push_to_hub",
    ]


@pytest.mark.parametrize(("kind", "task"), stock.TASKS.items())
def test_the_kind_of_transformer_is_the_task(kind: str, task: str) -> None:
    assert stock.spec_from_trainer_args(_argv(transformer_type=kind)).task == task


def test_labels_of_a_classification_are_counted_as_told() -> None:
    argv = _argv(transformer_type="AutoModelForSequenceClassification", num_labels="5")
    assert stock.spec_from_trainer_args(argv).num_labels == 5


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


def test_every_field_of_the_installed_lora_config_is_mapped_or_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    fields = {field.name: field for field in dataclasses.fields(peft.LoraConfig)}
    tables = [lora_config.FIELDS, lora_config.DECIDED_HERE, lora_config.OPTIONS]
    known = [name for table in (*tables, lora_config.REFUSED) for name in table]
    assert sorted(known) == sorted(fields)


def test_the_defaults_of_the_table_are_those_of_the_installed_lora_config() -> None:
    peft = pytest.importorskip("peft")
    installed = peft.LoraConfig().to_dict()
    assert {name: installed[name] for name in lora_config.DEFAULTS} == lora_config.DEFAULTS


def test_a_lora_config_with_everything_set_is_a_method() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=3,
        target_modules=["v_proj", "q_proj"],
        modules_to_save=["lm_head"],
        init_lora_weights="pissa",
        use_dora=True,
        rank_pattern={"q_proj": 5},
        layers_to_transform=0,
        exclude_modules=["b", "a"],
    )
    fields = stock.lora_from_stock(config.to_dict())
    assert fields["target_modules"] == ["q_proj", "v_proj"]
    assert fields["options"] == {
        "rank_pattern": {"q_proj": 5},
        "layers_to_transform": 0,
        "exclude_modules": ["a", "b"],
    }
    assert Lora(**fields).init_lora_weights == "pissa"


def test_the_stock_clients_own_defaults_pass() -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(output_dir="x").to_dict()
    config = json.loads(json.dumps(peft.LoraConfig(r=3).to_dict(), default=list))
    assert "options" not in stock.lora_from_stock(config)
    training = Training(**stock.training_from_stock(arguments))
    assert training.learning_rate == 5e-5
    assert (training.warmup_ratio, training.lr_scheduler_type) == (0.0, "linear")
    assert (training.eval_steps, training.save_steps, training.report_to) == (None, None, ())


S3 = {
    "endpoint_url": "https://s3.example.org",
    "bucket_name": "corpora",
    "file_key": "docs/v1",
    "region_name": "eu",
    "access_key": None,
    "secret_key": None,
}


def test_s3_parameters_are_a_source_and_two_variables() -> None:
    assert stock.dataset_from_stock(S3) == {"source": "s3://corpora/docs/v1"}
    assert stock.s3_env(S3) == {"AWS_ENDPOINT_URL": "https://s3.example.org", "AWS_REGION": "eu"}
    assert stock.s3_env({"repo_id": "org/data"}) == {}


def test_keys_in_s3_parameters_are_refused_without_repeating_them() -> None:
    with pytest.raises(SpecError, match="secret_key: would stand in the job") as caught:
        stock.dataset_from_stock({**S3, "secret_key": "canary"})
    assert "canary" not in str(caught.value)
