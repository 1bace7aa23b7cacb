"""TrainingClient.train on a job that can't fit: refused before anything is created."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from peftjob import TrainerParams
from peftjob.errors import OutOfMemoryError
from tests.local_tests.conftest import Cluster

LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
QLORA = TrainerParams.parse({"method": {"type": "qlora"}})


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A base model of which nothing but its config.json is here."""
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache, with the config.json of org/llama."""
    repository = tmp_path / "hub" / "models--org--llama"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((llama / "config.json").read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def train(cluster: Cluster, model: str, memory: str | None, **fields: Any) -> Any:
    return cluster.client.train(
        name="docs",
        model_provider_parameters=model,
        dataset_provider_parameters="file:///nowhere/train.jsonl",
        resources_per_worker={"gpu_memory": memory} if memory else None,
        **fields,
    )


def assert_nothing_is_there(cluster: Cluster) -> None:
    claims = cluster.client.core_api.list_namespaced_persistent_volume_claim("default").items
    assert (cluster.client.list_jobs(), claims) == ([], [])


def test_a_job_that_can_not_fit_is_refused_and_nothing_is_created(
    cluster: Cluster, llama: Path
) -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"more than the GPU with 16\.0 GiB.*qlora"
    ) as caught:
        train(cluster, llama.as_uri(), "16Gi")
    assert "\n" not in str(caught.value)
    assert_nothing_is_there(cluster)


@pytest.mark.usefixtures("hub_cache")
def test_a_model_of_the_hub_is_looked_at_where_its_config_is_cached(cluster: Cluster) -> None:
    with pytest.raises(OutOfMemoryError, match=r"more than the GPU with 16\.0 GiB"):
        train(cluster, "hf://org/llama", "16Gi")
    assert_nothing_is_there(cluster)


def test_a_job_that_fits_is_created(
    cluster: Cluster, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(cluster, llama.as_uri(), "16Gi", trainer_parameters=QLORA)
    assert [job.metadata.name for job in cluster.client.list_jobs()] == ["docs"]
    assert caplog.records == []


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("hf://org/other", "it is not on this machine"),
        ("file:///workspace/model", "does not exist here"),
    ],
)
def test_what_can_not_be_looked_at_is_created_and_that_is_said(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, model: str, reason: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="peftjob"):
        train(cluster, model, "16Gi")
    assert len(cluster.client.list_jobs()) == 1
    assert f"docs: whether {model} fits into the memory is seen when the job starts" in caplog.text
    assert reason in caplog.text


def test_nothing_is_said_where_no_memory_is_named(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    train(cluster, "hf://org/other", None)
    assert caplog.records == []
