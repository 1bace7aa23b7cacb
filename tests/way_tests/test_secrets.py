"""Secrets: named in a job, found in its pods, and nowhere else."""

import base64
from pathlib import Path
from typing import Any

import pytest

from peftjob import EnvVar, S3Keys, SecretKey, Secrets, TrainerParams
from peftjob.errors import SpecError
from peftjob.local.api import KINDS
from peftjob.local.store import Store
from peftjob.manifest import render
from tests.hub_server import HubServer
from tests.local_tests.conftest import Cluster
from tests.trainer_tests.conftest import chats, write_jsonl
from tests.way_tests.conftest import QUICK

CANARY = "hf_canary0123456789"


def _secret(cluster: Cluster, name: str, **data: str) -> None:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    body = {"metadata": {"name": name}, "data": encoded}
    cluster.client.core_api.create_namespaced_secret("default", body)


def _arguments(**more: Any) -> dict[str, Any]:
    return {
        "name": "docs",
        "model_provider_parameters": "hf://org/model",
        "dataset_provider_parameters": "https://example.org/train.jsonl",
        **more,
    }


def test_secrets_that_are_not_there_are_told_all_at_once_before_anything_is_made(
    cluster: Cluster,
) -> None:
    _secret(cluster, "s3", AWS_ACCESS_KEY_ID="a")
    secrets = Secrets(
        hub_token=SecretKey(name="hub", key="token"), s3=S3Keys(name="s3"), registry_login="reg"
    )
    with pytest.raises(SpecError) as caught:
        cluster.client.train(**_arguments(secrets=secrets))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "secrets.hub_token",
        "secrets.s3",
        "secrets.registry_login",
    ]
    assert "has no key 'AWS_SECRET_ACCESS_KEY'; it has AWS_ACCESS_KEY_ID" in str(caught.value)
    assert cluster.client.list_jobs(namespace="default") == []


def test_a_secret_that_a_variable_names_must_be_there(cluster: Cluster) -> None:
    reference = {"secretKeyRef": {"name": "wandb", "key": "key"}}
    variable = EnvVar(name="WANDB_API_KEY", value_from=reference)
    with pytest.raises(SpecError, match=r"env\.WANDB_API_KEY: there is no Secret 'wandb'"):
        cluster.client.train(**_arguments(env_vars=[variable]))


@pytest.mark.slow
def test_a_tokens_value_is_in_no_object_log_or_file(
    cluster: Cluster, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _secret(cluster, "hub", token=CANARY)
    model = tmp_path / "hub/models/org/toy"
    model.mkdir(parents=True)
    for file in model_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    write_jsonl(tmp_path / "hub/datasets/org/rows/train.jsonl", chats(8))
    with HubServer(tmp_path / "hub", token=CANARY) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        job = cluster.client.train(
            name="docs",
            model_provider_parameters="hf://org/toy",
            dataset_provider_parameters="hf://org/rows",
            trainer_parameters=QUICK,
            secrets=Secrets(hub_token=SecretKey(name="hub", key="token")),
        ).wait(timeout_s=120)
    cluster.client.core_api.delete_namespaced_secret("hub", "default")
    store = Store(cluster.local.root / "cluster.db")
    kinds = [plural for plurals in KINDS.values() for plural in plurals]
    objects = [body for plural in kinds for body in store.all(plural)]
    assert len(objects) > 5
    assert CANARY not in str(objects) + str(render(job.spec)) + repr(job) + job._repr_html_()
    held = [
        path
        for path in cluster.local.root.rglob("*")
        if path.is_file()
        and not path.name.startswith("cluster.db")
        and CANARY.encode() in path.read_bytes()
    ]
    assert held == []


def test_trainer_params_hold_no_secret() -> None:
    assert "secret" not in str(TrainerParams.model_json_schema()).lower()
