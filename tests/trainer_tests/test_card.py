"""The model card: what it says of every method and task, and that nothing breaks out of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_trainer import card, lineage, options
from peftjob.spec import PeftJobSpec

METRICS: dict[str, Any] = {
    "steps": 300,
    "tokens": 1_234_567,
    "rows_per_step": 8,
    "train_loss": 1.5,
    "eval_loss_before": 2.0,
    "eval_loss_after": 1.25,
    "eval_perplexity_before": 7.389,
    "eval_perplexity_after": 3.4903,
    "eval_accuracy_before": 0.5,
    "eval_accuracy_after": 0.755,
}


def job(root: Path, **spec: Any) -> options.Job:
    data = {
        "name": "toy",
        "base_model": {"source": "hf://org/base", "revision": "v1"},
        "dataset": {"source": "https://host/a.jsonl"},
        **spec,
    }
    env = {"PEFTJOB_WORKSPACE": str(root), "PEFTJOB_OUTPUT": str(root / "out")}
    return options.read([], {"PEFTJOB_SPEC": json.dumps(data), **env})


def rendered(root: Path, metrics: dict[str, Any] | None = None, **spec: Any) -> str:
    return card.render(job(root, **spec), METRICS | (metrics or {}), picture="loss.png")


def test_the_metadata_is_what_hubs_read(tmp_path: Path) -> None:
    _, metadata, text = rendered(tmp_path).split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["peftjob", "lora"],
    }
    assert text.startswith("# toy\n")


def test_a_signature_in_a_url_is_not_published(tmp_path: Path) -> None:
    signed = {
        "base_model": {"source": "https://host/model?sig=canary"},
        "dataset": {"source": "https://host/a.jsonl?sig=canary"},
        "init_env": [{"name": "HF_ENDPOINT", "value": "https://canary"}],
    }
    made = lineage.of(job(tmp_path, **signed))
    assert made["spec"]["dataset"]["source"] == "https://host/a.jsonl"
    assert "canary" not in json.dumps(made) + rendered(tmp_path, **signed)


def test_the_weights_of_the_base_model_are_told_by_their_digests(tmp_path: Path) -> None:
    weights = {"path": "model.safetensors", "size": 7, "sha256": "abc"}
    made = job(tmp_path)
    made.state_dir.mkdir()
    files = [{"path": "config.json", "size": 2, "sha256": "def"}, weights]
    (made.state_dir / "model.json").write_text(json.dumps({"files": files}))
    assert lineage.of(made)["base_model"]["weights"] == [weights]


def test_results_are_told_before_and_after_with_the_curve(tmp_path: Path) -> None:
    lines = rendered(tmp_path).splitlines()
    for line in (
        "| Held-out loss | 2.0000 | 1.2500 |",
        "| Held-out perplexity | 7.39 | 3.49 |",
        "| Held-out accuracy | 50.00% | 75.50% |",
        "| Training loss, last | | 1.5000 |",
        "![Training and held-out loss](./loss.png)",
        "| Dataset | `https://host/a.jsonl` |",
        "| Steps | 300 of 8 rows |",
    ):
        assert line in lines


def test_what_was_not_measured_is_not_told(tmp_path: Path) -> None:
    metrics = {name: None for name in METRICS if name.startswith("eval_")} | {"train_loss": None}
    text = card.render(job(tmp_path), METRICS | metrics)
    assert "Held-out" not in text
    assert "loss.png" not in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ({}, "LoRA, r=16, lora_alpha=32"),
        ({"use_dora": True, "target_modules": ["a", "b"]}, "target_modules=a/b, use_dora=True"),
        ({"options": {"rank_pattern": {"q": 8}}}, "options={rank_pattern: {q: 8}}"),
        ({"type": "qlora", "bits": 8}, "QLoRA, r=16, lora_alpha=32, bits=8"),
        ({"type": "ia3"}, "IA3"),
        ({"type": "prefix", "prefix_projection": True}, "num_virtual_tokens=20, prefix_projection"),
        ({"type": "prompt", "init_text": "Hi"}, "Prompt tuning, num_virtual_tokens=20, init_text"),
    ],
)
def test_a_method_is_told_by_what_was_set_of_it(method: dict[str, Any], line: str) -> None:
    source = {"source": "hf://org/a"}
    spec = {"name": "toy", "base_model": source, "dataset": source, "method": method}
    assert line in card.method_line(PeftJobSpec.parse(spec).method)


@pytest.mark.parametrize(
    ("task", "pipeline", "loaded_by"),
    [
        ("causal-lm", "text-generation", "AutoPeftModelForCausalLM"),
        ("sequence-classification", "text-classification", "AutoPeftModelForSequence"),
        ("token-classification", "token-classification", "AutoPeftModelForTokenClass"),
        ("question-answering", "question-answering", "AutoPeftModelForQuestion"),
        ("masked-lm", "fill-mask", "AutoModelForMaskedLM.from_pretrained('org/base')"),
        ("image-classification", "image-classification", "AutoModelForImageClassification"),
    ],
)
def test_every_task_has_its_pipeline_and_a_way_to_load_it(
    tmp_path: Path, task: str, pipeline: str, loaded_by: str
) -> None:
    text = rendered(tmp_path, task=task)
    assert f"pipeline_tag: {pipeline}\n" in text
    assert loaded_by in text
    assert ("perplexity" in text) == (task in ("causal-lm", "masked-lm"))


def test_the_classes_that_a_card_names_exist(tmp_path: Path) -> None:
    import peft
    import transformers

    assert all(hasattr(peft, name) for name in card._LOADED_BY.values())
    assert all(hasattr(transformers, name) for name in card._BASES.values())


def test_answers_are_a_table_that_nothing_breaks_out_of(tmp_path: Path) -> None:
    sample = {"prompt": "What|is\n`this`?", "before": "", "after": "<b>bold</b> & *more*\r\n\n# x"}
    lines = rendered(tmp_path, {"samples": [sample]}).splitlines()
    at = lines.index("| Prompt | Before | After |")
    assert lines[at + 2] == (
        r"| What\|is<br>\`this\`? | *nothing* | &lt;b&gt;bold&lt;/b&gt; &amp; \*more\*<br># x |"
    )
    assert lines[at + 3] == ""


def test_the_step_of_the_best_adapter_is_told(tmp_path: Path) -> None:
    assert "This is the adapter of step 1,200," in rendered(tmp_path, {"best_step": 1200})


def test_a_card_is_the_same_each_time_and_tells_no_speed(tmp_path: Path) -> None:
    text = rendered(tmp_path)
    assert rendered(tmp_path) == text
    assert "tokens/s" not in text
    assert str(tmp_path) not in text
