"""KAITO's six sections: its default configurations, and every mistake that its webhook refuses."""

from typing import Any

import pytest

from peftjob.errors import SpecError
from peftjob.kaito_config import training_config
from peftjob.spec import PeftJobSpec

LORA: dict[str, Any] = {
    "ModelConfig": {"torch_dtype": "bfloat16", "local_files_only": True, "device_map": "auto"},
    "QuantizationConfig": {"load_in_4bit": False},
    "LoraConfig": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "TrainingArguments": {
        "output_dir": "/mnt/results",
        "ddp_find_unused_parameters": False,
        "save_strategy": "no",
        "per_device_train_batch_size": 1,
    },
    "DataCollator": {"mlm": True},
    "DatasetConfig": {"shuffle_dataset": True, "train_test_split": 1, "shuffle_seed": 42},
}
QLORA: dict[str, Any] = {
    **LORA,
    "QuantizationConfig": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_use_double_quant": True,
    },
}


def _parts(section: str, fields: Any, *, method: str = "lora") -> dict[str, dict[str, Any]]:
    """The default configuration with one section in place of its own."""
    config = LORA if method == "lora" else QLORA
    return training_config({"training_config": {**config, section: fields}}, method=method)


def _problems(section: str, fields: Any, *, method: str = "lora") -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        _parts(section, fields, method=method)
    return caught.value.problems


def test_the_default_lora_configuration_is_a_spec() -> None:
    parts = training_config({"training_config": LORA}, method="lora")
    assert parts == {
        "base_model": {},
        "dataset": {"shuffle": True},
        "method": {"type": "lora", "r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
        "training": {"dtype": "bfloat16", "per_device_train_batch_size": 1, "seed": 42},
    }
    parts["base_model"]["source"] = parts["dataset"]["source"] = "hf://org/x"
    assert PeftJobSpec.parse({"name": "a", **parts}).training.per_device_train_batch_size == 1


def test_the_default_qlora_configuration_quantises_as_it_says() -> None:
    method = training_config({"training_config": QLORA}, method="QLoRA")["method"]
    assert (method["type"], method["bits"]) == ("qlora", 4)
    assert (method["quant_type"], method["double_quant"]) == ("nf4", True)


def test_an_empty_configuration_has_the_specs_defaults() -> None:
    parts = training_config({"training_config": {}}, method="lora")
    assert parts == {"base_model": {}, "dataset": {}, "method": {"type": "lora"}, "training": {}}


@pytest.mark.parametrize(
    ("section", "fields", "part", "expected"),
    [
        ("ModelConfig", {"revision": "v1"}, "base_model", {"revision": "v1"}),
        ("ModelConfig", {"revision": "main"}, "base_model", {}),
        (
            "ModelConfig",
            {"chat_template": "{% for m in messages %}\\n{% endfor %}"},
            "base_model",
            {"chat_template": "{% for m in messages %}\n{% endfor %}"},
        ),
        ("ModelConfig", {"chat_template": "/t.jinja"}, "base_model", {"chat_template": "/t.jinja"}),
        ("DatasetConfig", {"train_test_split": 0.8}, "dataset", {"eval_fraction": 0.2}),
        ("DatasetConfig", {"shuffle_dataset": False}, "dataset", {"shuffle": False}),
        ("DatasetConfig", {"response_column": "body"}, "dataset", {"columns": {"text": "body"}}),
        (
            "DatasetConfig",
            {"context_column": "q", "response_column": "a"},
            "dataset",
            {"columns": {"prompt": "q", "completion": "a"}},
        ),
        ("DatasetConfig", {"messages_column": "c"}, "dataset", {"columns": {"messages": "c"}}),
        ("DatasetConfig", {"dataset_path": "/data/a.csv"}, "dataset", {"files": ["a.csv"]}),
        ("DatasetConfig", {"dataset_path": "data/x/a.csv"}, "dataset", {"files": ["x/a.csv"]}),
        ("DatasetConfig", {"dataset_extension": "json"}, "dataset", {"files": ["*.json*"]}),
        (
            "LoraConfig",
            {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}},
            "method",
            {
                "type": "lora",
                "target_modules": ["q_proj"],
                "options": {"rank_pattern": {"q_proj": 4}},
            },
        ),
        ("LoraConfig", None, "method", {"type": "lora"}),
    ],
)
def test_a_field_becomes_what_a_spec_calls_it(
    section: str, fields: Any, part: str, expected: Any
) -> None:
    assert _parts(section, fields)[part] == expected


def test_training_arguments_pass_through() -> None:
    fields = {"num_train_epochs": 2, "learning_rate": "1e-4", "bf16": True, "seed": 7}
    training = _parts("TrainingArguments", fields)["training"]
    assert training == {
        "num_train_epochs": 2,
        "learning_rate": "1e-4",
        "dtype": "bfloat16",
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("section", "fields", "problem"),
    [
        ("ModelConfg", {}, "training_config.ModelConfg: no such section; did you mean ModelConfig"),
        ("ModelConfig", ["a"], "training_config.ModelConfig: must hold fields, not ['a']"),
        ("ModelConfig", {"torch_type": 1}, "ModelConfig.torch_type: no such field; did you mean t"),
        ("ModelConfig", {"torch_dtype": "float16"}, "torch_dtype: 'float16' can't be had; valid"),
        ("ModelConfig", {"trust_remote_code": True}, "trust_remote_code: True can't be had: code"),
        ("ModelConfig", {"load_in_4bit": True}, "load_in_4bit: True can't be had: use Quant"),
        ("ModelConfig", {"chat_template": 5}, "chat_template: 5 is neither a path nor a template"),
        ("QuantizationConfig", {"load_in_4bit": True}, "load_in_4bit: method lora quantises not"),
        ("QuantizationConfig", {"load_in_8bit": "true"}, "load_in_8bit: method lora quantises n"),
        ("QuantizationConfig", {"quant_method": "gptq"}, "quant_method: 'gptq' can't be had"),
        ("LoraConfig", {"r": 0}, "LoraConfig.r: Input should be greater than 0 (got 0)"),
        ("LoraConfig", {"rr": 3}, "LoraConfig.rr: is no field of LoraConfig; did you mean r?"),
        ("LoraConfig", {"init_lora_weights": "eva"}, "LoraConfig: init_lora_weights: 'eva' can't"),
        ("TrainingArguments", {"output_dir": "/mnt"}, "output_dir: '/mnt' is no folder below /mnt"),
        ("TrainingArguments", {"output_dir": "/tmp/x"}, "'/tmp/x' is no folder below /mnt"),
        ("TrainingArguments", {"output_dir": "/mnt/../x"}, "'/mnt/../x' is no folder below /mnt"),
        ("TrainingArguments", {"output_dir": 5}, "output_dir: 5 is no folder below /mnt"),
        ("TrainingArguments", {"learning_rate": -1}, "TrainingArguments.learning_rate: Input sh"),
        ("TrainingArguments", {"lerning_rate": 1}, "lerning_rate: is no field of TrainingArgum"),
        ("TrainingArguments", {"fp16": True}, "TrainingArguments.fp16: True can't be had"),
        ("DataCollator", {"mlm_probability": 0.3}, "mlm_probability: 0.3 can't be had: nothing"),
        ("DataCollator", {"mln": True}, "DataCollator.mln: no such field; did you mean mlm"),
        ("DatasetConfig", {"train_test_split": 0}, "train_test_split: 0 is no share above 0"),
        ("DatasetConfig", {"train_test_split": 1.5}, "train_test_split: 1.5 is no share above 0"),
        ("DatasetConfig", {"dataset_path": "/etc/x"}, "dataset_path: '/etc/x' is not in /data"),
        ("DatasetConfig", {"dataset_path": "data/../x"}, "'data/../x' is not in /data"),
        ("DatasetConfig", {"dataset_extension": "webdataset"}, "'webdataset' can't be read; vali"),
    ],
)
def test_a_mistake_is_refused_with_its_path(section: str, fields: Any, problem: str) -> None:
    (only,) = _problems(section, fields)
    assert only.startswith("training_config.")
    assert problem in only
    assert "\n" not in only


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "exactly one of load_in_4bit and load_in_8bit, but neither is true"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit, but both are true"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "bnb_4bit_quant_type: Input should"),
        ({"load_in_8bit": True, "bnb_4bit_compute_dtype": "float32"}, "the same as ModelConfig.to"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": ["a"]}, "llm_int8_skip_modules: ['a']"),
    ],
)
def test_a_mistake_in_quantising_is_refused_with_its_path(fields: Any, problem: str) -> None:
    (only,) = _problems("QuantizationConfig", fields, method="qlora")
    assert only.startswith("training_config.QuantizationConfig")
    assert problem in only


def test_two_sections_that_say_different_dtypes_are_refused() -> None:
    config = {**LORA, "ModelConfig": {"torch_dtype": "float32"}}
    config["TrainingArguments"] = {"bf16": True}
    with pytest.raises(
        SpecError, match=r"TrainingArguments\.bf16: ModelConfig\.torch_dtype says o"
    ):
        training_config({"training_config": config}, method="lora")


@pytest.mark.parametrize("data", [None, [], {}, {"config": {}}, {"training_config": 5}])
def test_a_file_of_another_shape_is_refused(data: Any) -> None:
    with pytest.raises(SpecError, match="training_config"):
        training_config(data, method="lora")


def test_a_method_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"tuning\.method: 'dora' is not known; valid are lora, qlo"
    ):
        training_config({"training_config": {}}, method="dora")


def test_all_problems_are_reported_at_once() -> None:
    config = {
        "ModelConfig": {"torch_dtype": "int8"},
        "QuantizationConfig": {"load_in_4bit": True},
        "LoraConfig": {"r": -1, "alora_invocation_tokens": [1]},
        "TrainingArguments": {"output_dir": "/", "max_steps": "many"},
        "DatasetConfig": {"column": "x"},
        "Extra": {},
    }
    with pytest.raises(SpecError) as caught:
        training_config({"training_config": config}, method="lora")
    paths = {problem.partition(": ")[0] for problem in caught.value.problems}
    assert paths == {
        f"training_config.{path}"
        for path in (
            "Extra",
            "ModelConfig.torch_dtype",
            "QuantizationConfig.load_in_4bit",
            "LoraConfig.r",
            "LoraConfig.alora_invocation_tokens",
            "TrainingArguments.output_dir",
            "TrainingArguments.max_steps",
            "DatasetConfig.column",
        )
    }
