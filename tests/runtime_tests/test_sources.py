"""Adapters from where the command line says they are."""

from pathlib import Path
from typing import Any

import pytest

from kserve_runtime.sources import AdapterSource, fetch_adapter
from peftjob import oci
from peftjob.errors import NotFoundError, RegistryError, SourceError, UsageError
from tests.openssl_keys import make_keys


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
