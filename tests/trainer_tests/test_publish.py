"""Where the adapter goes, under which annotations, and what configures the training."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_trainer import card, options, publish
from peftjob.errors import UsageError

METRICS = {
    "steps": 3,
    "tokens": 100,
    "rows_per_step": 8,
    "train_loss": 1.5,
    "eval_loss_before": 2.0,
    "eval_loss_after": 1.25,
}


def job(root: Path, env: dict[str, str] | None = None, **spec: Any) -> options.Job:
    data = {
        "name": "toy",
        "namespace": "team",
        "base_model": {"source": "hf://org/base", "revision": "v1"},
        "dataset": {"source": "https://host/a.jsonl"},
        **spec,
    }
    folders = {"PEFTJOB_WORKSPACE": str(root), "PEFTJOB_OUTPUT": str(root / "out")}
    return options.read([], {"PEFTJOB_SPEC": json.dumps(data), **folders, **(env or {})})


def test_the_image_goes_to_the_specs_registry_else_the_embedded_else_the_output(
    tmp_path: Path,
) -> None:
    embedded = {"PEFTJOB_REGISTRY_DIR": str(tmp_path / "reg")}
    named = {"registry": {"ref": "host:5000/toy:v2"}}
    assert publish.destination(job(tmp_path, embedded, output=named)) == "host:5000/toy:v2"
    assert (
        publish.destination(job(tmp_path, embedded))
        == f"oci-layout://{tmp_path}/reg/team/toy:latest"
    )
    assert publish.destination(job(tmp_path)) == f"oci-layout://{tmp_path}/out/registry/toy:latest"


def test_annotations_say_what_the_adapter_is_without_pulling_it(tmp_path: Path) -> None:
    (tmp_path / ".peftjob").mkdir()
    manifest = {"uri": "https://host/a.jsonl", "revision": None, "digest": "sha256:d"}
    (tmp_path / ".peftjob/dataset.json").write_text(json.dumps(manifest))
    made = publish.annotations(job(tmp_path), METRICS)
    assert made["org.opencontainers.image.base.name"] == "org/base"
    assert made["peftjob.org/base-model-revision"] == "v1"
    assert made["peftjob.org/dataset-digest"] == "sha256:d"
    assert "peftjob.org/base-model-digest" not in made
    assert json.loads(made["peftjob.org/metrics"]) == METRICS


def test_the_card_says_what_was_trained_on_what_and_how_well(tmp_path: Path) -> None:
    text = card.render(job(tmp_path), METRICS)
    for part in ("base_model: org/base", "`https://host/a.jsonl`", "r=16", "| 1.2500 |", "at `v1`"):
        assert part in text


def test_what_another_job_left_is_not_published(tmp_path: Path) -> None:
    this = job(tmp_path)
    folder = this.output_dir / publish.ADAPTER_DIR
    folder.mkdir(parents=True)
    (this.output_dir / publish.PENDING_FILE).write_text('{"metrics": {}, "timings": {}}')
    (folder / publish.LINEAGE_FILE).write_text("{}")
    assert publish.pending(this) is None


def test_folders_come_from_the_environment_and_arguments_win(tmp_path: Path) -> None:
    assert job(tmp_path).model_dir == tmp_path / "model"
    env = {"PEFTJOB_SPEC": job(tmp_path).spec.to_json(), "PEFTJOB_WORKSPACE": str(tmp_path)}
    made = options.read(["--dataset_dir", "/d", "--debug"], env)
    assert (made.dataset_dir, made.debug) == (Path("/d"), True)


def test_an_argument_is_never_abbreviated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --deb"):
        options.read(["--deb"], {"PEFTJOB_SPEC": job(tmp_path).spec.to_json()})
