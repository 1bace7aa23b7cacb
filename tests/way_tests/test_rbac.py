"""The Role in deploy/ allows what the client asks of the API."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from peftjob import (
    DatasetSource,
    Output,
    S3Keys,
    SecretKey,
    Secrets,
    Storage,
)
from peftjob.errors import SpecError
from peftjob.local.api import LocalApiClient
from tests.local_tests.conftest import Cluster
from tests.until import until

DEPLOY = Path(__file__).parents[2] / "deploy"
VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
NOT_ASKED_HERE = {
    # Of claims that jobs share: two fills at a time, a submit that fails after the first object.
    ("batch", "jobs", "delete"),
    ("batch", "jobs", "patch"),
    ("", "persistentvolumeclaims", "delete"),
    # On a cluster with Kueue.
    ("kueue.x-k8s.io", "localqueues", "get"),
    # Methods of Kubeflow's client that ours leaves as they are.
    ("kubeflow.org", "pytorchjobs", "watch"),
    ("", "pods", "get"),
    ("", "pods", "watch"),
}
Asked = set[tuple[str, str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """(API group, resource, verb) of every request from now on."""
    seen: Asked = set()
    original: Callable[..., Any] = LocalApiClient.request

    def request(self: Any, method: str, url: str, query_params: Any = None, **more: Any) -> Any:
        *_, _last = (parts := urlsplit(url).path.strip("/").split("/"))
        start = 2 if parts[0] == "api" else 3
        group = "" if parts[0] == "api" else parts[1]
        rest = parts[start:]
        rest = rest[2:] if rest[0] == "namespaces" else rest
        resource = "/".join([rest[0], *rest[2:3]])
        watches = ("watch", "true") in [(k, str(v).lower()) for k, v in query_params or ()]
        read = "watch" if watches else "get" if len(rest) > 1 else "list"
        seen.add((group, resource, VERBS.get(method, read)))
        return original(self, method, url, query_params=query_params, **more)

    monkeypatch.setattr(LocalApiClient, "request", request)
    return seen


def _allowed() -> Asked:
    role = yaml.safe_load((DEPLOY / "role.yaml").read_text())
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_what_the_client_asks_for_is_allowed(
    cluster: Cluster, dataset: DatasetSource, tmp_path: Path, asked: Asked
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"")
    client = cluster.client
    arguments: dict[str, Any] = {
        "model_provider_parameters": (tmp_path / "model").as_uri(),
        "dataset_provider_parameters": dataset,
    }
    for name in ("one", "two"):
        job = client.train(name=name, storage=Storage(mode="read-only-many"), **arguments)
        until(lambda job=job: "being filled" not in (job.advance() and job.describe()))
    until(lambda: job.status == "Failed", timeout_s=300)  # A model without weights.
    list(job.follow())
    assert job.failure()
    job.history()
    job.delete()
    client.list_jobs()
    with pytest.raises(SpecError):
        client.train(name="three", output=Output(claim="no"), **arguments)
    service = client.serve("s", (tmp_path / "model").as_uri(), {})
    assert [each.name for each in client.services()] == ["s"]
    service.stop()
    named = {ask for ask in asked if ask[1] != "secrets"}
    assert named - _allowed() == set()
    assert _allowed() - named == NOT_ASKED_HERE


def test_secrets_are_the_one_thing_that_it_looks_at_and_need_not_see(
    cluster: Cluster, dataset: DatasetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.client import ApiException

    def deny(*_: Any, **__: Any) -> None:
        raise ApiException(status=403, reason="Forbidden")

    monkeypatch.setattr(cluster.client.core_api, "read_namespaced_secret", deny)
    secrets = Secrets(s3=S3Keys(name="s3"), hub_token=SecretKey(name="hub", key="token"))
    job = cluster.client.train(
        name="docs",
        model_provider_parameters=dataset.source,
        dataset_provider_parameters=dataset,
        secrets=secrets,
    )
    assert job.name == "docs"


def test_the_objects_of_deploy_are_valid() -> None:
    for name in ("role", "rolebinding"):
        body = yaml.safe_load((DEPLOY / f"{name}.yaml").read_text())
        kubernetes_validate.validate(body, "1.32", strict=True)
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    files = {path.name for path in DEPLOY.glob("*.yaml")}
    assert {*kustomization["resources"], "kustomization.yaml"} == files
