"""Adapters from where the command line says they are."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kserve_runtime.sources import AdapterSource, fetch_adapter, fingerprint
from peftjob import oci
from peftjob.errors import NotFoundError, RegistryError, SourceError, UsageError
from tests.oci_tests.conftest import PASSWORD, running
from tests.openssl_keys import make_keys
from tests.provider_tests.stores import KEYS, moto, s3


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_an_adapter_comes_from_an_image_by_its_digest(world: Any, tmp_path: Path) -> None:
    layout = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:v1")
    pushed = oci.push(world.adapters["small"], layout, annotations={})
    assert pushed.digest is not None
    source = f"oci-layout://{tmp_path}/registry@{pushed.digest}"

    fetched = fetch_adapter(AdapterSource("a", source), tmp_path / "fetched", insecure=False)

    assert weights(fetched.folder) == weights(world.adapters["small"])
    assert (fetched.root, fetched.digest) == (source, pushed.digest)


def test_an_adapter_in_a_folder_has_a_digest_too(world: Any, tmp_path: Path) -> None:
    source = AdapterSource("a", world.adapters["small"].as_uri())

    fetched = fetch_adapter(source, tmp_path / "fetched", insecure=False)

    assert weights(fetched.folder) == weights(world.adapters["small"])
    assert fetched.digest.startswith("sha256:")


def test_an_adapter_comes_from_a_bucket(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto() as url:
        bucket = s3(url)
        bucket.create_bucket(Bucket="team")
        for path in world.adapters["small"].iterdir():
            bucket.upload_file(str(path), "team", f"adapters/small/{path.name}")
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        source = AdapterSource("a", "s3://team/adapters/small")

        fetched = fetch_adapter(source, tmp_path / "fetched", insecure=False)
        mark = fingerprint(source, tmp_path, insecure=False)

    assert weights(fetched.folder) == weights(world.adapters["small"])
    assert mark


def test_an_adapter_comes_from_a_claim_that_is_mounted(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.adapters["small"], tmp_path / "claims/team/small")
    monkeypatch.setenv("PEFTJOB_PVC_DIR", str(tmp_path / "claims"))
    source = AdapterSource("a", "pvc://team/small")

    fetched = fetch_adapter(source, tmp_path / "fetched", insecure=False)

    assert weights(fetched.folder) == weights(world.adapters["small"])


def test_an_adapter_comes_from_a_registry_with_the_login_of_the_pull_secret(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "registry", login=True) as registry:
        login = base64.b64encode(f"tuner:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {registry.host: {"auth": login}}})
        )
        source = AdapterSource("a", f"oci://{registry.host}/team/small:v1")
        with pytest.raises(RegistryError):
            fetch_adapter(source, tmp_path / "refused", insecure=False)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        oci.push(world.adapters["small"], oci.Reference.parse(source.source), annotations={})

        fetched = fetch_adapter(source, tmp_path / "fetched", insecure=False)

    assert weights(fetched.folder) == weights(world.adapters["small"])


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("file:///nowhere/at/all", SourceError),
        ("oci-layout:///nowhere@sha256:" + "0" * 64, NotFoundError),
        ("oci://no host/name", UsageError),
        ("gopher://host/name", (SourceError, UsageError)),
    ],
)
def test_a_source_that_gives_nothing_is_an_error(
    source: str, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        fetch_adapter(AdapterSource("a", source), tmp_path / "fetched", insecure=False)

    assert "\n" not in str(caught.value)


def test_with_keys_only_a_signed_image_is_loaded_and_by_the_digest_that_was_signed(
    world: Any, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path)
    layout = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:v1")
    pushed = oci.push(world.adapters["small"], layout, annotations={})
    source = AdapterSource("a", str(layout))

    with pytest.raises(RegistryError, match="is not signed by"):
        fetch_adapter(source, tmp_path / "refused", insecure=False, signed_by=[public])
    oci.sign(pushed, private)
    fetched = fetch_adapter(source, tmp_path / "fetched", insecure=False, signed_by=[public])

    assert fetched.digest == pushed.digest
    assert not (tmp_path / "refused").exists()


def test_with_keys_what_is_no_image_is_refused(world: Any, tmp_path: Path) -> None:
    source = AdapterSource("a", world.adapters["small"].as_uri())

    with pytest.raises(UsageError, match="only images are signed"):
        fetch_adapter(source, tmp_path / "out", insecure=False, signed_by=[make_keys(tmp_path)[1]])
