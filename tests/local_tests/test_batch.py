"""Batch Jobs and cloned claims, as a Job that fills a claim uses them."""

from typing import Any

import pytest
from kubernetes.client import ApiException

from tests.local_tests.conftest import Cluster
from tests.until import until


def _create(cluster: Cluster, name: str, command: str, **spec: Any) -> None:
    container = {
        "name": "c",
        "image": "any",
        "command": ["bash", "-c", command],
        "volumeMounts": [{"name": "v", "mountPath": "/data"}],
    }
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}
    pod = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"spec": pod}, **spec},
    }
    cluster.client.custom_api.create_namespaced_custom_object(
        "batch", "v1", "default", "jobs", body
    )


def _claim(cluster: Cluster, name: str, *, source: str | None = None) -> None:
    spec = {"dataSource": {"kind": "PersistentVolumeClaim", "name": source}} if source else {}
    body = {"metadata": {"name": name}, "spec": spec}
    cluster.client.core_api.create_namespaced_persistent_volume_claim("default", body)


def _status(cluster: Cluster, name: str) -> dict[str, Any]:
    api = cluster.client.custom_api
    job = api.get_namespaced_custom_object("batch", "v1", "default", "jobs", name)
    return job.get("status") or {}


def _ended(cluster: Cluster, name: str) -> dict[str, Any]:
    """The condition that a Job ends with."""
    until(lambda: _status(cluster, name).get("conditions"))
    condition: dict[str, Any] = _status(cluster, name)["conditions"][0]
    return condition


def test_a_job_is_complete_when_its_pod_has_succeeded(cluster: Cluster) -> None:
    _claim(cluster, "data")
    _create(cluster, "fill", "echo 1 > /data/a")
    assert _ended(cluster, "fill")["type"] == "Complete"
    assert _status(cluster, "fill")["succeeded"] == 1
    assert (cluster.local.claim_folder("default", "data") / "a").read_text() == "1\n"
    until(lambda: cluster.local.supervised() == [])


def test_a_failed_pod_is_made_anew_until_the_limit(cluster: Cluster) -> None:
    _claim(cluster, "data")
    _create(cluster, "twice", "mkdir /data/first && exit 130 || echo ok", backoffLimit=1)
    assert _ended(cluster, "twice")["type"] == "Complete"
    assert _status(cluster, "twice")["failed"] == 1
    _create(cluster, "never", "exit 130", backoffLimit=1)
    assert _ended(cluster, "never")["reason"] == "BackoffLimitExceeded"
    assert _status(cluster, "never")["failed"] == 2


def test_a_rule_for_exit_codes_fails_the_job_at_once(cluster: Cluster) -> None:
    _claim(cluster, "data")
    codes = {"containerName": "c", "operator": "In", "values": [10]}
    rules = {"rules": [{"action": "FailJob", "onExitCodes": codes}]}
    _create(cluster, "fill", "exit 10", podFailurePolicy=rules)
    assert _ended(cluster, "fill")["reason"] == "PodFailurePolicy"
    assert _status(cluster, "fill")["failed"] == 1


def test_a_clone_has_what_lay_on_its_source_and_outlives_it(cluster: Cluster) -> None:
    _claim(cluster, "data")
    folder = cluster.local.claim_folder("default", "data")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a").write_text("1")
    _claim(cluster, "clone", source="data")
    cluster.client.core_api.delete_namespaced_persistent_volume_claim("data", "default")
    assert (cluster.local.claim_folder("default", "clone") / "sub/a").read_text() == "1"


def test_a_clone_of_nothing_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ApiException, match="dataSource") as caught:
        _claim(cluster, "clone", source="data")
    assert caught.value.status == 422
