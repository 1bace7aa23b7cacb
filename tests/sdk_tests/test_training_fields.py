"""TrainingArguments and SFTConfig, field by field."""

import dataclasses
import re
from typing import Any

import pytest

from peftjob import training_arguments
from peftjob.errors import SpecError
from peftjob.spec import PeftJobSpec
from peftjob.training import Training
from peftjob.training_fields import translate


def _installed() -> set[str]:
    transformers, trl = pytest.importorskip("transformers"), pytest.importorskip("trl")
    classes = (transformers.TrainingArguments, trl.SFTConfig)
    return {field.name for kind in classes for field in dataclasses.fields(kind)}


def test_every_field_of_the_installed_classes_is_in_the_table() -> None:
    assert {name for name in _installed() if not training_arguments.is_known(name)} == set()


def test_every_field_that_is_no_field_of_a_spec_says_why() -> None:
    silent = {name for name in _installed() if training_arguments.advice(name) is None}
    assert silent <= set(Training.model_fields)


def test_a_field_has_one_fate() -> None:
    tables = (
        training_arguments.UNCHANGED,
        training_arguments.TRANSLATED,
        training_arguments.DECIDED,
        training_arguments.ELSEWHERE,
        training_arguments.ONLY,
    )
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))


def test_what_keeps_its_name_is_a_field_of_training() -> None:
    names = {*training_arguments.UNCHANGED, *training_arguments.TRANSLATED}
    assert names <= set(Training.model_fields)


@pytest.mark.parametrize("kind", ["transformers.TrainingArguments", "trl.SFTConfig"])
def test_an_instance_that_was_left_alone_passes(kind: str) -> None:
    module, _, name = kind.partition(".")
    made = getattr(pytest.importorskip(module), name)(output_dir="x", use_cpu=True, bf16=False)
    fields, problems = translate(made.to_dict())
    assert problems == {}
    Training(**fields)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"learning_rate": 1e-3, "adam_beta2": 0.95}, {"learning_rate": 1e-3, "adam_beta2": 0.95}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 0, "warmup_ratio": 0.2}, {"warmup_ratio": 0.2}),
        ({"warmup_steps": 10}, {"warmup_steps": 10}),
        ({"bf16": True}, {"dtype": "bfloat16"}),
        ({"bf16": False, "fp16": None}, {}),
        ({"gradient_checkpointing": False, "torch_compile": False}, {}),
        ({"torch_compile": True, "torch_compile_mode": "max-autotune"}, {}),
        ({"activation_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"eval_strategy": "no", "eval_steps": 5}, {}),
        ({"eval_strategy": "steps", "eval_steps": 5}, {"eval_steps": 5}),
        ({"eval_strategy": "steps", "logging_steps": 7}, {"eval_steps": 7, "logging_steps": 7}),
        ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({"save_steps": 100, "save_strategy": "steps"}, {"save_steps": 100}),
        ({"save_steps": 100, "save_strategy": "no"}, {}),
        ({"save_steps": 500}, {}),
        ({"report_to": "none"}, {}),
        ({"report_to": ["wandb", "mlflow"]}, {"report_to": ["wandb", "mlflow"]}),
        ({"fsdp": "full_shard auto_wrap"}, {"parallel": "fsdp"}),
        ({"completion_only_loss": False}, {"train_on": "all"}),
        ({"assistant_only_loss": True}, {"train_on": "completion"}),
        ({"max_length": 4096, "packing": True}, {"max_length": 4096}),
        ({"data_seed": 7, "seed": 7}, {"seed": 7}),
        ({"packing_strategy": "bfd", "metric_for_best_model": "eval_loss"}, {}),
        ({"field_of_a_newer_version": None, "another": False}, {}),
    ],
)
def test_a_field_becomes_what_a_spec_calls_it(given: Any, expected: Any) -> None:
    fields, problems = translate(given)
    assert problems == {}
    assert fields == expected
    Training(**fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fp16": True}, "True can't be had: float16 overflows; use dtype: bfloat16"),
        ({"deepspeed": "zero3.json"}, "DeepSpeed is not used; use parallel: fsdp"),
        ({"dataset_text_field": "body"}, "use dataset.columns"),
        ({"packing_strategy": "wrapped"}, "rows are packed whole"),
        ({"trust_remote_code": True}, "code that comes with a model is never run"),
        ({"metric_for_best_model": "f1"}, "the held-out loss decides"),
        ({"train_sampling_strategy": "sequential"}, "use dataset.shuffle"),
        ({"data_seed": 7, "seed": 8}, "7 can't be had: use seed"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches can't be had"),
        ({"logging_steps": 0.5}, "0.5 is a share of the steps; give a number"),
        ({"eval_strategy": "steps", "eval_steps": 0.1}, "0.1 is a share"),
        ({"eval_strategy": "never"}, "'never' is not known; valid are no, steps, epoch"),
        ({"report_to": ["comet_ml"]}, "comet_ml: not known; valid are tensorboard, mlflow, wandb"),
        ({"max_length": None}, "give the most tokens"),
        ({"warmup_steps": "ten"}, "'ten' is no number"),
        ({"lerning_rate": 1}, "is no field .* did you mean learning_rate"),
    ],
)
def test_what_can_not_be_had_is_refused_by_name_with_the_reason(given: Any, message: str) -> None:
    _, problems = translate(given)
    (name,) = problems
    assert name in given
    assert re.search(message, problems[name])


def test_a_newer_versions_field_that_was_left_alone_asks_for_nothing() -> None:
    assert translate({"newer": "auto"}, lambda: {"newer": "auto"}) == ({}, {})
    _, problems = translate({"newer": "yes"}, lambda: {"newer": "auto"})
    assert list(problems) == ["newer"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("packing", "training.packing: unknown field; leave it out: rows are packed wherever"),
        ("torch_compile", "training.torch_compile: unknown field; leave it out: operations are"),
        ("fp16", "training.fp16: unknown field; float16 overflows; use dtype: bfloat16"),
        ("bf16", "training.bf16: unknown field; use dtype: bfloat16"),
        ("lerning_rate", "training.lerning_rate: unknown field; did you mean learning_rate"),
    ],
)
def test_a_spec_says_what_to_use_in_its_place(name: str, message: str) -> None:
    data = {"source": "hf://org/x"}
    with pytest.raises(SpecError) as caught:
        PeftJobSpec.parse(
            {"name": "a", "base_model": data, "dataset": data, "training": {name: True}}
        )
    assert message in str(caught.value)
