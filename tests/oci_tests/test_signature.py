"""Signatures: made and verified by us, and verified by another implementation."""

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import RegistryError, UsageError
from peftjob.oci import Reference, list_tags, push, resolve, sign, verify
from peftjob.oci.manifest import digest_of
from peftjob.oci.places import opened
from tests.oci_tests.faulty import Fault, Proxy
from tests.openssl_keys import make_keys


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Makes a private and a public key."""
    return lambda name: make_keys(tmp_path, name)


def test_an_image_is_verified_by_each_key_that_signed_it_and_by_no_other(
    adapter: Path, docker_registry: Any, keys: Any
) -> None:
    pushed = push(adapter, Reference.parse(f"{docker_registry().host}/a:v1"), annotations={})
    (ours, our_public), (theirs, their_public), (_, strange) = keys("a"), keys("b"), keys("c")

    sign(pushed, ours)
    sign(pushed, theirs)

    unpinned = pushed.with_tag("v1")
    assert verify(unpinned, [our_public]) == verify(unpinned, [strange, their_public]) == pushed
    with pytest.raises(RegistryError, match=r"is not signed by .*c\.pub"):
        verify(unpinned, [strange])


def test_the_signature_is_where_cosign_looks_for_it_and_where_referrers_are_listed(
    adapter: Path, docker_registry: Any, keys: Any
) -> None:
    pushed = push(adapter, Reference.parse(f"{docker_registry().host}/a:v1"), annotations={})
    sign(pushed, keys("a")[0])

    name = str(pushed.digest).replace(":", "-")
    assert list_tags(pushed) == [name, f"{name}.sig", "v1"]
    with opened(pushed, insecure=False) as store:
        body = store.get_manifest(f"{name}.sig")
        (listed,) = json.loads(store.get_manifest(name))["manifests"]
    assert listed["digest"] == digest_of(body)
    assert json.loads(body)["subject"]["digest"] == pushed.digest


def test_a_registry_that_lists_referrers_itself_gets_no_list_of_them(
    adapter: Path, docker_registry: Any, keys: Any
) -> None:
    private, public = keys("a")
    with Proxy(docker_registry().host) as proxy:
        proxy.faults = [Fault("GET", "/referrers/", times=1000, status=200)]
        ref = Reference.parse(f"{proxy.host}/a:v1")

        pushed = push(adapter, ref, annotations={}, key=private)

        assert list_tags(pushed) == [f"{pushed.digest}.sig".replace(":", "-"), "v1"]
        assert verify(ref, [public]) == pushed


def test_openssl_verifies_what_was_signed(
    adapter: Path, layout: Reference, keys: Any, tmp_path: Path
) -> None:
    private, public = keys("a")
    pushed = push(adapter, layout, annotations={})
    sign(pushed, private)
    with opened(pushed, insecure=False) as store:
        body = store.get_manifest(f"{str(pushed.digest).replace(':', '-')}.sig")
    layer = json.loads(body)["layers"][0]
    signature = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    (tmp_path / "signature").write_bytes(signature)
    payload = Path(layout.path, "blobs", "sha256", layer["digest"][7:])

    check = ("-verify", public, "-signature", tmp_path / "signature", payload)
    subprocess.run(["openssl", "dgst", "-sha256", *check], check=True, capture_output=True)

    critical = json.loads(payload.read_bytes())["critical"]
    assert critical["image"]["docker-manifest-digest"] == pushed.digest


def test_a_signature_of_another_image_is_none(adapter: Path, layout: Reference, keys: Any) -> None:
    private, public = keys("a")
    signed = sign(push(adapter, layout, annotations={}), private)
    other = push(adapter, layout.with_tag("v2"), annotations={"a": "b"})
    with opened(signed, insecure=False) as store:
        body = store.get_manifest(f"{str(signed.digest).replace(':', '-')}.sig")
        store.put_manifest(body, version=f"{str(other.digest).replace(':', '-')}.sig")

    with pytest.raises(RegistryError, match="is not signed"):
        verify(other, [public])


def test_signing_again_with_the_same_key_adds_nothing(
    adapter: Path, layout: Reference, keys: Any
) -> None:
    private, _ = keys("a")
    pushed = push(adapter, layout, annotations={})
    sign(pushed, private)
    before = Path(layout.path, "index.json").read_bytes()

    sign(pushed, private)

    assert Path(layout.path, "index.json").read_bytes() == before


def test_an_unsigned_image_is_not_verified(adapter: Path, layout: Reference, keys: Any) -> None:
    push(adapter, layout, annotations={})

    with pytest.raises(RegistryError, match="is not signed by"):
        verify(layout, [keys("a")[1]])


def test_an_encrypted_key_needs_its_password(
    adapter: Path, layout: Reference, keys: Any, tmp_path: Path
) -> None:
    private, public = keys("a")
    locked = tmp_path / "locked.pem"
    convert = ("pkcs8", "-topk8", "-in", private, "-passout", "pass:secret", "-out", locked)
    subprocess.run(["openssl", *convert], check=True, capture_output=True)
    pushed = push(adapter, layout, annotations={})

    with pytest.raises(UsageError, match="is encrypted; set COSIGN_PASSWORD"):
        sign(pushed, locked, env={})
    with pytest.raises(UsageError, match="is not its password"):
        sign(pushed, locked, env={"COSIGN_PASSWORD": "wrong"})
    assert sign(pushed, locked, env={"COSIGN_PASSWORD": "secret"}) == verify(pushed, [public])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no key", "holds no private key in PEM"),
        ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----", "only cosign reads"),
        (None, "can't read the key"),
    ],
)
def test_what_is_no_key_is_one_line(
    adapter: Path, layout: Reference, tmp_path: Path, text: str | None, message: str
) -> None:
    if text:
        (tmp_path / "key").write_text(text)

    with pytest.raises(UsageError, match=message) as caught:
        sign(push(adapter, layout, annotations={}), tmp_path / "key")

    assert "openssl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_push_with_a_key_that_is_none_leaves_the_tag(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    first = push(adapter, layout, annotations={})

    with pytest.raises(UsageError, match="can't read the key"):
        push(adapter, layout, annotations={"a": "b"}, key=tmp_path / "none.pem")

    assert resolve(layout) == first


def test_a_tag_moves_to_an_image_when_that_is_signed(
    adapter: Path, docker_registry: Any, keys: Any
) -> None:
    registry = docker_registry()
    private, public = keys("a")

    pushed = push(adapter, Reference.parse(f"{registry.host}/a:v1"), annotations={}, key=private)

    name = str(pushed.digest).replace(":", "-")
    puts = [line for line in registry.requests() if line.startswith("PUT /v2/a/manifests/")]
    order = [line.rpartition("/")[2] for line in puts]
    assert order == [pushed.digest, f"{name}.sig", name, "v1"]
    assert verify(pushed.with_tag("v1"), [public]) == pushed
