"""The Model Registry: what is entered, by the client that others read it with."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from peftjob import model_registry, oci
from peftjob.cli import main
from peftjob.errors import (
    ConflictError,
    PeftJobError,
    RegistryError,
    RegistryUnavailableError,
    UsageError,
)
from peftjob.model_registry import register
from tests.hub_server import Fault
from tests.model_registry_server import ModelRegistryServer

ANNOTATIONS = oci.annotations_of(
    {
        "spec": {"name": "docs"},
        "base_model": {"source": "hf://org/base", "revision": "abc", "digest": "sha256:1"},
        "dataset": {"source": "s3://bkt/rows", "digest": "sha256:2"},
        "metrics": {"eval_loss_after": 1.25, "steps": 3, "samples": [{}], "nothing": None},
    }
)


@pytest.fixture
def image(adapter: Path, layout: oci.Reference) -> oci.Reference:
    return oci.push(adapter, layout, annotations=ANNOTATIONS)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_registry, "FIRST_PAUSE_S", 0.0)


def read_back(server: ModelRegistryServer, name: str, version: str) -> tuple[Any, Any]:
    """Version and artifact, as Kubeflow's own client finds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from model_registry import ModelRegistry

        client = ModelRegistry(server.url, author="test", user_token="t")
        found = client.get_model_version(name, version)
        return found, client.get_model_artifact(name, version)


def test_an_image_is_found_with_its_lineage_by_kubeflows_own_client(image: oci.Reference) -> None:
    with ModelRegistryServer() as server:
        done = register(image, server.url, env={})
        version, artifact = read_back(server, done.name, done.version)

    assert str(done) == f"docs {str(image.digest)[7:19]}"
    assert artifact.uri == f"oci-layout://{image.path}@{image.digest}"
    assert (artifact.model_format_name, artifact.model_source_name) == ("peft", "org/base")
    assert version.custom_properties == {
        "digest": image.digest,
        "base_model": "hf://org/base",
        "base_model_revision": "abc",
        "base_model_digest": "sha256:1",
        "dataset": "s3://bkt/rows",
        "dataset_digest": "sha256:2",
        "eval_loss_after": 1.25,
        "steps": 3.0,
    }


def test_an_image_of_a_registry_has_an_oci_uri() -> None:
    digest = f"sha256:{'a' * 64}"
    ref = oci.Reference.parse(f"host.io/team/docs:v1@{digest}")
    entry = model_registry.entry_of(oci.Image(ref, {}, 1, ()), name=None, version="v1")
    assert (entry.name, entry.version) == ("docs", "v1")
    assert entry.uri == f"oci://host.io/team/docs@{digest}"


def test_the_same_image_again_changes_nothing(image: oci.Reference) -> None:
    with ModelRegistryServer() as server:
        register(image, server.url, env={})
        before = json.dumps(server.things)
        register(image, server.url, env={})
        register(oci.tag(image, "stable"), server.url, env={})
        assert json.dumps(server.things) == before


@pytest.mark.parametrize("path", ["/registered_models", "/model_versions", "/artifacts"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 0}])
def test_what_breaks_off_is_completed(
    path: str, fault: dict[str, Any], image: oci.Reference
) -> None:
    with ModelRegistryServer() as server:
        server.faults = [Fault(path, times=1, method="POST", **fault)]
        register(image, server.url, env={})
        assert [len(kind) for kind in server.things.values()] == [1, 1, 1]


def test_a_model_that_somebody_else_makes_at_the_same_time_is_taken(image: oci.Reference) -> None:
    with ModelRegistryServer() as server:
        server.faults = [Fault("/registered_models", times=1, method="POST", status=409)]
        register(image, server.url, env={})
        assert [len(kind) for kind in server.things.values()] == [1, 1, 1]


def test_a_second_image_is_a_second_version_of_the_model(
    image: oci.Reference, adapter: Path, layout: oci.Reference
) -> None:
    (adapter / "README.md").write_text("another")
    other = oci.push(adapter, layout.with_tag("v2"), annotations=ANNOTATIONS)
    with ModelRegistryServer() as server:
        register(image, server.url, env={})
        register(other, server.url, env={})
        assert [len(kind) for kind in server.things.values()] == [1, 2, 2]
        register(image, server.url, version="v1", env={})
        with pytest.raises(
            ConflictError, match=r"has docs v1 already, as .*; give another version"
        ):
            register(other, server.url, version="v1", env={})


def test_a_token_comes_from_the_environment_or_a_file(image: oci.Reference, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    with ModelRegistryServer(token="secret") as server:
        register(image, server.url, env={"KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "token")})
        register(image, server.url, env={"MODEL_REGISTRY_TOKEN": "secret"})
        with pytest.raises(RegistryError, match="a token that may write") as caught:
            register(image, server.url, env={"MODEL_REGISTRY_TOKEN": "wrong-one"})
    assert "wrong-one" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("registry:8080", UsageError, r"'registry:8080' is no address of a Model Registry; give h"),
        ("http://me:hunter2@h:80", UsageError, "the token in MODEL_REGISTRY_TOKEN"),
        ("http://127.0.0.1:1", RegistryUnavailableError, r"no answer \(4 attempts\); see that the"),
        ("{url}/elsewhere", RegistryError, r"has not the API of this client \(status 404\)"),
    ],
)
def test_an_address_that_is_none_is_one_line(
    address: str, error: type[PeftJobError], message: str, image: oci.Reference
) -> None:
    with ModelRegistryServer() as server, pytest.raises(error, match=message) as caught:
        register(image, address.format(url=server.url), env={})
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"items": 3}', b"\xff"])
def test_what_is_no_model_registry_is_one_line(body: bytes, image: oci.Reference) -> None:
    with ModelRegistryServer() as server:
        headers = {"Content-Type": "application/json"}
        server.faults = [Fault("", status=200, body=body, headers=headers, method="*")]
        with pytest.raises(RegistryError, match="does not answer as a Model Registry"):
            register(image, server.url, env={})


def test_certificates_that_can_not_be_read_are_one_line(image: oci.Reference) -> None:
    with pytest.raises(RegistryError, match="the certificates in REQUESTS_CA_BUNDLE can't be read"):
        register(image, "https://127.0.0.1:1", env={"REQUESTS_CA_BUNDLE": "/nowhere"})


def test_the_command_enters_an_image(
    image: oci.Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    with ModelRegistryServer() as server, pytest.raises(SystemExit) as ended:
        main(["adapter", "register", str(image), "--server", server.url, "--version", "v1"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "docs v1\n")
