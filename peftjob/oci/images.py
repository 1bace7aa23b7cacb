"""Images by name: look at them, list their tags, name them anew."""

from collections.abc import Mapping
from dataclasses import dataclass

from peftjob.errors import NotFoundError
from peftjob.oci.manifest import Descriptor, digest_of
from peftjob.oci.places import opened, read_manifest
from peftjob.oci.reference import Reference
from peftjob.oci.store import Store


@dataclass(frozen=True, slots=True)
class Image:
    """What a manifest says of an image."""

    reference: Reference
    """With the digest."""
    annotations: Mapping[str, str]
    size_bytes: int
    """Of all blobs, compressed."""
    layers: tuple[Descriptor, ...]


def inspect(ref: Reference, *, insecure: bool = False) -> Image:
    """Read an image's manifest; no blob is fetched.

    Raises:
        NotFoundError: no such image.
        RegistryError: what is there is no image, or not what its digest says.
        RegistryUnavailableError: the registry did not answer as it should.
    """
    with opened(ref, insecure=insecure) as store:
        found, manifest = read_manifest(store, ref)
    size_bytes = sum(blob.size_bytes for blob in (manifest.config, *manifest.layers))
    return Image(found, manifest.annotations, size_bytes, manifest.layers)


def resolve(ref: Reference, *, insecure: bool = False) -> Reference:
    """`ref` with the digest that its tag points to now. Raises as inspect does."""
    with opened(ref, insecure=insecure) as store:
        return ref.with_digest(digest_of(store.get_manifest(ref.version)))


def list_tags(ref: Reference, *, insecure: bool = False) -> list[str]:
    """All tags of the repository or layout folder that `ref` names; its own tag is not looked at.

    Raises as inspect does.
    """
    with opened(ref, insecure=insecure) as store:
        return store.tags()


def tag(ref: Reference, name: str, *, insecure: bool = False) -> Reference:
    """Let another tag of the same place point to the image. Raises as inspect does.

    Returns:
        The new tag, with the digest.
    """
    to = ref.with_tag(name)
    with opened(ref, insecure=insecure) as store:
        body = store.get_manifest(ref.version)
        if current(store, name) != body:
            store.put_manifest(body, version=name)
    return to.with_digest(digest_of(body))


def current(store: Store, version: str) -> bytes | None:
    """The manifest that a tag points to; None where there is no such tag."""
    try:
        return store.get_manifest(version)
    except NotFoundError:
        return None
