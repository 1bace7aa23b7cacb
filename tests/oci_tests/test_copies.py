"""Copies: whole indexes, with signatures, each side spoken to as it wants."""

import json
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import RegistryError
from peftjob.oci import Reference, copy, pull, push, resolve, sign, verify
from peftjob.oci.manifest import INDEX, MANIFEST, Descriptor, digest_of, to_json_bytes
from peftjob.oci.places import opened
from tests.openssl_keys import make_keys


def index_of(ref: Reference, *images: Reference) -> Reference:
    """Let `ref` point to an index of images for machines that there are none of."""
    with opened(ref, insecure=False) as store:
        bodies = [store.get_manifest(image.version) for image in images]
        items = [
            Descriptor(MANIFEST, digest_of(body), len(body)).to_json()
            | {"platform": {"os": "linux", "architecture": f"of-a-test-{number}"}}
            for number, body in enumerate(bodies)
        ]
        body = to_json_bytes({"schemaVersion": 2, "mediaType": INDEX, "manifests": items})
        store.put_manifest(body, version=str(ref.tag))
    return ref.with_digest(digest_of(body))


def test_a_copy_is_verified_with_the_signatures_that_come_along(
    adapter: Path, layout: Reference, docker_registry: Any, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path)
    signed = push(adapter, layout, annotations={}, key=private)
    there = Reference.parse(f"{docker_registry().host}/b:v1")

    assert copy(layout, there).digest == signed.digest

    assert verify(there, [public]).digest == signed.digest


def test_signatures_that_are_at_the_target_stay(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    (ours, our_public), (theirs, their_public) = make_keys(tmp_path), make_keys(tmp_path, "b")
    there = Reference.parse(f"oci-layout://{tmp_path / 'there'}:v1")
    push(adapter, layout, annotations={}, key=ours)
    sign(copy(layout, there), theirs)
    push(adapter, layout, annotations={}, key=ours)

    copy(layout, there)
    before = Path(there.path, "index.json").read_bytes()
    copy(layout, there)

    assert verify(there, [our_public]) == verify(there, [their_public]) == resolve(there)
    assert Path(there.path, "index.json").read_bytes() == before


def test_what_others_list_as_referring_to_an_image_stays(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    pushed = push(adapter, layout, annotations={})
    tag = str(pushed.digest).replace(":", "-")
    other = {"mediaType": MANIFEST, "digest": f"sha256:{1:064x}", "size": 1}
    with opened(layout, insecure=False) as store:
        store.put_manifest(to_json_bytes({"mediaType": INDEX, "manifests": [other]}), version=tag)

    sign(pushed, make_keys(tmp_path, "a")[0])
    sign(pushed, make_keys(tmp_path, "b")[0])

    with opened(layout, insecure=False) as store:
        listed = json.loads(store.get_manifest(tag))["manifests"]
        signatures = digest_of(store.get_manifest(f"{tag}.sig"))
    assert [item["digest"] for item in listed] == [other["digest"], signatures]


def test_an_index_is_copied_whole_and_stays_signed(
    adapter: Path, layout: Reference, docker_registry: Any, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path)
    images = [push(adapter, layout, annotations={"a": number}) for number in "12"]
    index = sign(index_of(layout.with_tag("both"), *images), private)
    there = Reference.parse(f"{docker_registry().host}/b:v1")

    copied = copy(layout.with_tag("both"), there)

    assert copied.digest == verify(there, [public]).digest == index.digest
    for number, image in enumerate(images):
        pull(there.with_digest(str(image.digest)), tmp_path / f"out{number}")


def test_plain_http_is_spoken_to_the_side_that_it_was_asked_for(
    adapter: Path, layout: Reference, empty_registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    pushed = push(adapter, layout, annotations={})
    # Not known as a loopback by this spelling, so that it gets TLS.
    there = Reference.parse(f"{empty_registry.host.replace('127.0.0.1', 'LOCALHOST')}/b:v1")

    with pytest.raises(RegistryError, match="TLS failed"):
        copy(layout, there, insecure_from=True)

    assert copy(layout, there, insecure_to=True).digest == pushed.digest
