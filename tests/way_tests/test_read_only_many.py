"""Mode read-only-many: filled once, cloned, mounted by every job with the same inputs."""

from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from peftjob import DatasetSource, Images, RunPolicy, Storage
from peftjob.contract import WAITS_ANNOTATION
from peftjob.errors import ConflictError, JobError
from peftjob.job import Job
from tests.local_tests.conftest import Cluster
from tests.until import until
from tests.way_tests.conftest import QUICK

STORAGE = Storage(mode="read-only-many")


def _train(cluster: Cluster, name: str, model: str, dataset: Any, **more: Any) -> Any:
    return cluster.client.train(
        name=name,
        model_provider_parameters=model,
        dataset_provider_parameters=dataset,
        trainer_parameters=QUICK,
        **{"storage": STORAGE, **more},
    )


def _write_model(folder: Path) -> None:
    """What is enough to be fetched."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")


def _claims(cluster: Cluster) -> dict[str, list[str]]:
    """Names of claims, and the jobs that own each."""
    items = cluster.client.core_api.list_namespaced_persistent_volume_claim("default").items
    return {
        claim.metadata.name: sorted(o.name for o in claim.metadata.owner_references or ())
        for claim in items
        if claim.metadata.name.startswith("inputs-")
    }


def _resume(job: Job) -> None:
    """Until the inputs are there and the job is resumed."""
    until(lambda: "being filled" not in (job.advance() and job.describe()), timeout_s=300)


@pytest.mark.slow
def test_two_jobs_with_the_same_inputs_fill_once(
    cluster: Cluster, model_dir: Path, dataset: DatasetSource
) -> None:
    first = _train(cluster, "first", model_dir.as_uri(), dataset)
    assert first.status in ("Pending", "Created", "Suspended")
    assert "is being filled" in first.describe()
    first.wait(timeout_s=600)
    second = _train(cluster, "second", model_dir.as_uri(), dataset, num_workers=2)
    assert "is being filled" not in second.describe()
    second.wait(timeout_s=600)
    assert set(map(tuple, _claims(cluster).values())) == {("first",), ("first", "second")}
    pods = cluster.client.core_api.list_namespaced_pod("default").items
    assert sum("-fill-" in pod.metadata.name for pod in pods) == 1
    first.delete()
    until(lambda: list(_claims(cluster).values()) == [["first", "second"]])
    second.delete()
    until(lambda: not _claims(cluster))


def test_a_fill_that_fails_for_good_is_the_jobs_failure_and_the_next_job_tries_again(
    cluster: Cluster, dataset: DatasetSource, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    job = _train(cluster, "docs", model.as_uri(), dataset)
    with pytest.raises(JobError, match=r"the inputs of job 'docs' can't be had: .*/model"):
        job.wait(timeout_s=600)
    _write_model(model)
    again = _train(cluster, "again", model.as_uri(), dataset)
    _resume(again)
    assert again.object()["spec"]["runPolicy"]["suspend"] is False


def test_kept_inputs_outlive_their_job(
    cluster: Cluster, dataset: DatasetSource, tmp_path: Path
) -> None:
    storage = Storage(mode="read-only-many", reuse=True)
    _write_model(tmp_path / "model")
    model = (tmp_path / "model").as_uri()
    job = _train(cluster, "docs", model, dataset, storage=storage)
    _resume(job)
    job.delete()
    until(lambda: not cluster.client.list_jobs(namespace="default"))
    until(lambda: not cluster.local.supervised())
    assert [owners for owners in _claims(cluster).values()] == [[], []]
    second = _train(cluster, "second", model, dataset, storage=storage)
    assert second.object()["spec"]["runPolicy"]["suspend"] is False


def test_a_claim_of_other_inputs_is_not_taken(cluster: Cluster, dataset: DatasetSource) -> None:
    objects = _train(cluster, "docs", dataset.source, dataset, dry_run=True)
    clone = objects[-1]["metadata"]["annotations"][WAITS_ANNOTATION]
    body = {"metadata": {"name": clone}, "spec": {}}
    cluster.client.core_api.create_namespaced_persistent_volume_claim("default", body)
    with pytest.raises(ConflictError, match="was not made for these inputs; delete it"):
        _train(cluster, "docs", dataset.source, dataset)
    assert cluster.client.list_jobs(namespace="default") == []


def test_a_clone_is_as_large_and_of_the_class_of_what_was_filled(
    cluster: Cluster, dataset: DatasetSource, tmp_path: Path
) -> None:
    _write_model(tmp_path / "model")
    model = (tmp_path / "model").as_uri()
    large = Storage(mode="read-only-many", size="20Gi", storage_class="csi")
    _train(cluster, "large", model, dataset, storage=large)
    small = _train(cluster, "small", model, dataset, storage=STORAGE)
    _resume(small)
    claims = cluster.client.core_api.list_namespaced_persistent_volume_claim("default").items
    (clone,) = [claim for claim in claims if claim.spec.data_source]
    assert clone.spec.resources.requests == {"storage": "20Gi"}
    assert clone.spec.storage_class_name == "csi"


def test_a_job_owns_the_clone_that_another_has_made_before_it_uses_it(
    cluster: Cluster, dataset: DatasetSource, tmp_path: Path
) -> None:
    _write_model(tmp_path / "model")
    model = (tmp_path / "model").as_uri()
    first = _train(cluster, "first", model, dataset)
    second = _train(cluster, "second", model, dataset)
    _resume(first)
    _resume(second)
    assert list(_claims(cluster).values()) == [["first", "second"]] * 2
    first.delete()
    until(lambda: "first" not in str(_claims(cluster)) or not cluster.local.supervised())
    assert second.object()["spec"]["runPolicy"]["suspend"] is False
    assert len(_claims(cluster)) == 2


def test_who_waits_is_told_why_nothing_is_filled(cluster: Cluster, dataset: DatasetSource) -> None:
    images = Images(storage_initializer="registry.example.org/no-such-image")
    job = _train(cluster, "docs", dataset.source, dataset, images=images)
    until(lambda: "ErrImagePull" in job.describe())
    with pytest.raises(JobError, match="the inputs of job 'docs' can't be had"):
        job.wait(timeout_s=600)


def test_a_refused_fill_leaves_nothing(
    cluster: Cluster, dataset: DatasetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = cluster.client.custom_api
    original = api.create_namespaced_custom_object

    def refuse(group: str, *more: Any, **options: Any) -> Any:
        if group == "batch" and not options:
            raise ApiException(status=403, reason="Forbidden: quota exceeded")
        return original(group, *more, **options)

    monkeypatch.setattr(api, "create_namespaced_custom_object", refuse)
    storage = Storage(mode="read-only-many", reuse=True)
    with pytest.raises(JobError, match=r"refused the Job 'inputs-.*quota exceeded"):
        _train(cluster, "docs", dataset.source, dataset, storage=storage)
    assert cluster.client.list_jobs(namespace="default") == []
    assert _claims(cluster) == {}


def test_a_job_that_the_user_suspended_stays_so(
    cluster: Cluster, dataset: DatasetSource, tmp_path: Path
) -> None:
    _write_model(tmp_path / "model")
    model = (tmp_path / "model").as_uri()
    job = _train(cluster, "docs", model, dataset, run_policy=RunPolicy(suspend=True))
    _resume(job)
    assert job.object()["spec"]["runPolicy"]["suspend"] is True
