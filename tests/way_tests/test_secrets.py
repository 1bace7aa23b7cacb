"""Secrets: named in a job, found in its pods, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest

from peftjob import EnvVar, S3Keys, SecretKey, Secrets, TrainerParams
from peftjob.errors import JobError, NotFoundError, SpecError, UsageError
from peftjob.manifest import render
from tests.local_tests.conftest import Cluster
from tests.way_tests.guarded import (
    BUCKET,
    HUB_TOKEN,
    Guarded,
    guarded,
    holders,
    objects,
    put_secrets,
)
from tests.way_tests.test_cli import run


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
    put_secrets(cluster, {"s3": {"AWS_ACCESS_KEY_ID": "a"}})
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


def test_a_server_whose_secret_is_not_there_is_refused_before_it_is_made(
    cluster: Cluster, tmp_path: Path
) -> None:
    hub = SecretKey(name="hub", key="token")
    for secret in ({"keys": "support-keys"}, {"registry_login": "login"}, {"hub_token": hub}):
        with pytest.raises(UsageError, match=r"there is no Secret .(support-keys|login|hub)."):
            cluster.client.serve("docs", tmp_path.as_uri(), {}, **secret)
    with pytest.raises(NotFoundError):
        cluster.client.service("docs")


@pytest.mark.slow
def test_the_values_of_secrets_stand_in_no_object_output_log_or_file(
    cluster: Cluster, model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with guarded(tmp_path / "stores", model_dir) as stores:
        put_secrets(cluster, stores.secrets())
        job = cluster.client.train(**stores.arguments("docs"), wait=True)
        service = cluster.client.serve(
            "docs", model_dir.as_uri(), {"docs": job.adapter}, registry_login="login"
        )
        service.wait(timeout_s=600)
        service.stop()
    shown = str(render(job.spec)) + repr(job) + job.page() + "".join(capfd.readouterr())
    for verb in ("get", "logs"):
        shown += str(run(verb, "docs", "--home", str(cluster.local.root)))
    assert "Succeeded" in shown
    for canary in stores.canaries:
        assert canary not in shown + objects(cluster)
    assert holders(cluster.local.root, *stores.canaries) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("secret", "wrong"),
    [
        ("hub", {"token": "hf_wrong0123456789"}),
        ("s3", {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "hf_wrong0123456789"}),
    ],
)
def test_a_value_that_is_refused_is_not_repeated(
    cluster: Cluster, model_dir: Path, tmp_path: Path, secret: str, wrong: dict[str, str]
) -> None:
    with guarded(tmp_path / "stores", model_dir) as stores:
        put_secrets(cluster, {**stores.secrets(), secret: wrong})
        with pytest.raises(JobError) as caught:
            cluster.client.train(**stores.arguments("docs")).wait(timeout_s=600)
    for canary in (*stores.canaries, "hf_wrong"):
        assert canary not in str(caught.value) + objects(cluster)
    assert holders(cluster.local.root, *stores.canaries, "hf_wrong") == []


def _stock_arguments(stores: Guarded) -> dict[str, Any]:
    """Of the stock train(), with the keys where its parameter classes want them."""
    from kubeflow.storage_initializer import hugging_face
    from kubeflow.storage_initializer.s3 import S3DatasetParams
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainingArguments

    model = hugging_face.HuggingFaceModelParams("hf://org/toy", AutoModelForCausalLM, HUB_TOKEN)
    keys = {"access_key": stores.access_key_id, "secret_key": stores.secret_access_key}
    arguments = TrainingArguments(output_dir="x", max_steps=2)
    return {
        "num_procs_per_worker": 1,
        "model_provider_parameters": model,
        "dataset_provider_parameters": S3DatasetParams(stores.s3, BUCKET, "rows", **keys),
        "trainer_parameters": hugging_face.HuggingFaceTrainerParams(arguments, LoraConfig(r=2)),
    }


@pytest.mark.slow
def test_the_stock_clients_keys_are_used_and_stand_in_its_own_arguments_alone(
    cluster: Cluster, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(tmp_path / "stores", model_dir) as stores:
        monkeypatch.setenv("HF_ENDPOINT", stores.hub)
        client = cluster.stock_client()
        client.train(name="stock", **_stock_arguments(stores))
        client.wait_for_job_conditions("stock", wait_timeout=600, polling_interval=1)
    volume = cluster.local.claim_folder("default", "stock")
    assert len(list((volume / "dataset").rglob("train.jsonl"))) == 1
    assert "training on 8 rows" in cluster.log("stock")
    assert holders(cluster.local.root, *stores.canaries) == []


def test_trainer_params_hold_no_secret() -> None:
    assert "secret" not in str(TrainerParams.model_json_schema()).lower()
