"""TrainingClient.train: what it creates, and what it refuses before anything is created."""

import contextlib
import copy
from typing import Any

import pytest
from kubernetes.client import ApiException, V1EnvVar, V1ResourceRequirements
from urllib3.exceptions import MaxRetryError

from peftjob import Images, PeftJobSpec, Storage, TrainerParams, TrainingClient, preflight
from peftjob.errors import (
    ClusterUnavailableError,
    ConflictError,
    JobError,
    JobTimeoutError,
    NotFoundError,
    SpecError,
    UsageError,
)
from peftjob.objects import Objects
from peftjob.patience import Patience
from tests.local_tests.conftest import Cluster

ARGUMENTS: dict[str, Any] = {
    "name": "docs",
    "model_provider_parameters": "hf://org/model",
    "dataset_provider_parameters": "file:///nowhere/train.jsonl",
}


def _claims(cluster: Cluster) -> list[str]:
    items = cluster.client.core_api.list_namespaced_persistent_volume_claim("default").items
    return [claim.metadata.name for claim in items]


def test_dry_run_returns_the_objects_and_creates_none(cluster: Cluster) -> None:
    objects = cluster.client.train(**ARGUMENTS, num_workers=2, dry_run=True)
    assert [o["kind"] for o in objects] == ["PersistentVolumeClaim"] * 2 + ["PyTorchJob"]
    assert cluster.client.list_jobs() == []
    assert _claims(cluster) == []


def test_all_mistakes_are_told_at_once_and_nothing_is_created(cluster: Cluster) -> None:
    with pytest.raises(SpecError) as caught:
        cluster.client.train(
            **{**ARGUMENTS, "name": "No_name", "dataset_provider_parameters": "train.jsonl"},
            num_workers=0,
        )
    assert len(caught.value.problems) == 3
    assert cluster.client.list_jobs() == []
    assert _claims(cluster) == []


def test_a_resource_that_kubernetes_has_not_is_refused(cluster: Cluster) -> None:
    with pytest.raises(SpecError, match=r"resources\.requests\.gpus: no resource; known are cpu"):
        cluster.client.train(**ARGUMENTS, resources_per_worker={"gpus": 1}, dry_run=True)


def test_without_a_kubeconfig_the_local_cluster_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    with pytest.raises(UsageError, match=r"set KUBECONFIG, or .*cluster=LocalCluster\(\)"):
        TrainingClient()


def test_the_stock_arguments_reach_the_manifest(cluster: Cluster) -> None:
    secret = {"secretKeyRef": {"name": "hub", "key": "token"}}
    *claims, job = cluster.client.train(
        **ARGUMENTS,
        labels={"team": "a"},
        annotations={"note": "b"},
        num_procs_per_worker=2,
        resources_per_worker={"CPU": 2, "gpu": 1},
        init_env_vars=[V1EnvVar(name="HF_TOKEN", value_from=secret)],
        env_vars={"A": "1"},
        storage_config={"size": "5Gi", "storage_class": "fast"},
        dry_run=True,
    )
    assert job["metadata"]["labels"]["team"] == "a"
    assert job["metadata"]["annotations"] == {"note": "b"}
    assert job["spec"]["nprocPerNode"] == "2"
    assert claims[0]["spec"]["storageClassName"] == "fast"
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "2", "nvidia.com/gpu": "1"}
    assert {"name": "A", "value": "1"} in pod["containers"][0]["env"]
    assert {"name": "HF_TOKEN", "valueFrom": secret} in pod["initContainers"][0]["env"]


def test_what_the_caller_gives_stays_as_it_was(cluster: Cluster) -> None:
    given: dict[str, Any] = {
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "resources_per_worker": {"gpu": 1, "Memory": "8Gi", "shared_memory": "1Gi"},
        "init_env_vars": {"A": "1"},
        "env_vars": [{"name": "B", "value": "2"}],
        "storage_config": {"size": "5Gi", "access_modes": ["ReadWriteMany"]},
        "volumes": [{"name": "v", "mount_path": "/v", "source": {"emptyDir": {}}}],
    }
    before = copy.deepcopy(given)
    cluster.client.train(**ARGUMENTS, **given, num_workers=2, dry_run=True)
    assert given == before


def test_typed_resources_are_taken_as_they_are(cluster: Cluster) -> None:
    resources = V1ResourceRequirements(requests={"cpu": "1"}, limits={"cpu": "2"})
    objects = cluster.client.train(**ARGUMENTS, resources_per_worker=resources, dry_run=True)
    pod = objects[-1]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}


def test_a_scheme_that_is_not_known_here_is_warned_of(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.client.train(**{**ARGUMENTS, "model_provider_parameters": "gs://a/b"}, dry_run=True)
    assert "base_model.source: is there a provider of gs:// in the image?" in caplog.text


class _Remote(Objects):
    """The objects of a cluster that is not this machine."""

    are_local = False


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ({}, False),
        ({"registry": {"ref": "oci-layout:///output/image"}}, False),
        ({"registry": {"ref": "oci-layout:///models/image"}}, True),
        ({"registry": {"ref": "registry.example.org/docs"}}, True),
        ({"upload": "s3://bucket/docs"}, True),
    ],
)
def test_a_job_that_deletes_itself_has_to_leave_its_adapter(
    cluster: Cluster, output: dict, kept: bool
) -> None:
    volume = {"name": "models", "mount_path": "/models", "source": {"csi": {"driver": "nfs"}}}
    spec = PeftJobSpec.parse(
        {
            "name": "docs",
            "base_model": {"source": "hf://org/model"},
            "dataset": {"source": "hf://org/data"},
            "run_policy": {"ttl_after_finished_s": 60},
            "volumes": [volume | {"read_only": False}],
            "output": output,
        }
    )
    preflight.check(spec, Objects(cluster.client, "default"))
    with contextlib.nullcontext() if kept else pytest.raises(SpecError, match="the only copy"):
        preflight.check(spec, _Remote(cluster.client, "default"))


def test_what_one_machine_has_no_use_for_is_left_out(cluster: Cluster) -> None:
    images = Images(pull_secrets=("login",))
    job = cluster.client.train(**ARGUMENTS, queue_name="team", images=images)
    assert job.spec.queue_name is None
    assert "imagePullSecrets" not in str(job.object())


def test_a_queue_that_is_not_there_is_refused(cluster: Cluster) -> None:
    spec = PeftJobSpec.parse(
        {
            "name": "docs",
            "base_model": {"source": "hf://org/model"},
            "dataset": {"source": "hf://org/data"},
            "queue_name": "team",
        }
    )
    with pytest.raises(SpecError, match="queue_name: there is no LocalQueue 'team'"):
        preflight.check(spec, Objects(cluster.client, "default"))


def test_a_job_owns_its_claims(cluster: Cluster) -> None:
    job = cluster.client.train(**ARGUMENTS)
    uid = job.object()["metadata"]["uid"]
    claims = cluster.client.core_api.list_namespaced_persistent_volume_claim("default").items
    assert {c.metadata.name for c in claims} == {"docs", "docs-output"}
    assert {c.metadata.owner_references[0].uid for c in claims} == {uid}


def test_a_name_that_is_taken_is_a_conflict_and_changes_nothing(cluster: Cluster) -> None:
    first = cluster.client.train(**ARGUMENTS)
    with pytest.raises(ConflictError, match="already"):
        cluster.client.train(**{**ARGUMENTS, "model_provider_parameters": "hf://org/other"})
    assert (
        cluster.client.job("docs").object()["metadata"]["uid"]
        == (first.object()["metadata"]["uid"])
    )


def test_a_claim_of_somebody_else_is_not_used(cluster: Cluster) -> None:
    body = {"metadata": {"name": "docs"}, "spec": {}}
    cluster.client.core_api.create_namespaced_persistent_volume_claim("default", body)
    with pytest.raises(ConflictError, match="was not made for these inputs"):
        cluster.client.train(**ARGUMENTS)
    assert cluster.client.list_jobs() == []


def test_an_existing_claim_is_used_where_it_is_asked_for(cluster: Cluster) -> None:
    objects = cluster.client.train(
        **ARGUMENTS, storage=Storage(mode="existing", claim="filled"), dry_run=True
    )
    assert [o["metadata"]["name"] for o in objects] == ["docs-output", "docs"]


@pytest.mark.parametrize("at_dry_run", [True, False])
def test_a_refused_claim_leaves_no_job(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, at_dry_run: bool
) -> None:
    def refuse(_namespace: str, body: dict, dry_run: str | None = None) -> Any:
        if at_dry_run or not dry_run:
            raise ApiException(status=403, reason="Forbidden: quota exceeded")
        return body

    monkeypatch.setattr(
        cluster.client.core_api, "create_namespaced_persistent_volume_claim", refuse
    )
    with pytest.raises(JobError, match=r"refused the PersistentVolumeClaim .*quota exceeded"):
        cluster.client.train(**ARGUMENTS)
    assert cluster.client.list_jobs() == []


def test_a_cluster_that_goes_away_in_the_middle_leaves_no_half_of_a_job(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(*_: Any, dry_run: str | None = None) -> Any:
        if not dry_run:
            raise MaxRetryError(None, "/", "connection refused")  # type: ignore[arg-type]
        return {}

    api = cluster.client.core_api
    monkeypatch.setattr(api, "create_namespaced_persistent_volume_claim", vanish)
    with pytest.raises(ClusterUnavailableError, match=r"can't be reached .*try again"):
        cluster.client.train(**ARGUMENTS)
    assert cluster.client.list_jobs() == []


def test_who_waits_bears_an_api_that_does_not_answer_for_a_while(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.create("long", "sleep 1")
    job = cluster.client.job("long")
    asked = iter([503, 429, 0])
    original = cluster.client.custom_api.get_namespaced_custom_object

    def sometimes(*arguments: Any) -> Any:
        status = next(asked, None)
        if status is not None:
            raise ApiException(status=status, reason="Service Unavailable")
        return original(*arguments)

    monkeypatch.setattr(cluster.client.custom_api, "get_namespaced_custom_object", sometimes)
    assert job.wait(timeout_s=600).status == "Succeeded"


def test_an_api_that_stays_away_is_an_error_to_try_again() -> None:
    patience = Patience(limit_s=0.1)
    error = ClusterUnavailableError("503")
    patience.wait(error)
    with pytest.raises(ClusterUnavailableError):
        patience.wait(error)


def test_a_permanent_failure_of_the_fetch_fails_the_job_with_its_line(cluster: Cluster) -> None:
    job = cluster.client.train(**{**ARGUMENTS, "model_provider_parameters": "file:///no/model"})
    with pytest.raises(JobError, match=r"docs.*failed: .*/no/model") as caught:
        job.wait(timeout_s=600)
    assert "\n" not in str(caught.value)


def test_wait_can_end_before_the_job(cluster: Cluster) -> None:
    cluster.create("long", "sleep 30")
    with pytest.raises(JobTimeoutError, match="it goes on"):
        cluster.client.job("long").wait(timeout_s=0.5)


def test_a_handle_on_nothing_is_refused(cluster: Cluster) -> None:
    with pytest.raises(NotFoundError, match="no job 'nothing'"):
        cluster.client.job("nothing")
    with pytest.raises(NotFoundError, match="no InferenceService 'nothing'"):
        cluster.client.service("nothing")


def test_a_job_that_is_not_done_has_no_adapter(cluster: Cluster) -> None:
    cluster.create("long", "sleep 30")
    with pytest.raises(JobError, match="has no result"):
        _ = cluster.client.job("long").adapter
    assert "long" in repr(cluster.client.job("long"))


def test_stock_parameter_classes_are_understood(cluster: Cluster) -> None:
    pytest.importorskip("peft")
    import transformers
    from kubeflow.storage_initializer.hugging_face import (
        HuggingFaceDatasetParams,
        HuggingFaceModelParams,
        HuggingFaceTrainerParams,
    )
    from peft import LoraConfig

    objects = cluster.client.train(
        name="docs",
        model_provider_parameters=HuggingFaceModelParams(
            "hf://org/model", transformers.AutoModelForCausalLM
        ),
        dataset_provider_parameters=HuggingFaceDatasetParams("org/data"),
        trainer_parameters=HuggingFaceTrainerParams(
            transformers.TrainingArguments(output_dir="x", num_train_epochs=2), LoraConfig(r=3)
        ),
        dry_run=True,
    )
    assert '"r":3' in str(objects[-1])
    assert '"num_train_epochs":2' in str(objects[-1])
    assert TrainerParams().method.r != 3
