"""Images by name: look at them, list their tags, name them anew, copy them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from peftjob.errors import NotFoundError, UsageError
from peftjob.oci.manifest import Descriptor, digest_of
from peftjob.oci.places import disk_errors, opened, read_manifest
from peftjob.oci.reference import Reference
from peftjob.oci.registry import Registry
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
    with opened(ref, insecure=insecure) as store:
        body = store.get_manifest(ref.version)
        if current(store, name) != body:
            store.put_manifest(body, version=name)
    return ref.with_tag(name).with_digest(digest_of(body))


def copy(ref: Reference, to: Reference, *, insecure: bool = False) -> Reference:
    """Copy an image, to the byte the same, and let the tag of `to` point to it.

    Within one registry its blobs are mounted and not sent. Its signatures are
    images of their own: see copy_signatures.

    Returns:
        `to` with the digest.

    Raises:
        UsageError: `to` has no tag.
        NotFoundError, RegistryError, RegistryUnavailableError: as inspect and push do.
    """
    if to.tag is None:
        raise UsageError(f"can't copy to {to}: give a tag, as in name:v1")
    with (
        opened(ref, insecure=insecure) as source,
        opened(to, insecure=insecure) as target,
        disk_errors(f"copy {ref} to {to}"),
    ):
        found, manifest = read_manifest(source, ref)
        for blob in (*manifest.layers, manifest.config):
            if target.has_blob(blob) or _mounted(target, blob, ref, to):
                continue
            with tempfile.TemporaryFile() as file:
                for chunk in source.read_blob(blob):
                    file.write(chunk)
                target.put_blob(blob, file)
        body = source.get_manifest(str(found.digest))
        if current(target, to.tag) != body:
            target.put_manifest(body, version=to.tag)
    return to.with_digest(digest_of(body))


def current(store: Store, version: str) -> bytes | None:
    """The manifest that a tag points to; None where there is no such tag."""
    try:
        return store.get_manifest(version)
    except NotFoundError:
        return None


def _mounted(target: Store, blob: Descriptor, ref: Reference, to: Reference) -> bool:
    same = ref.host is not None and ref.host == to.host
    return same and isinstance(target, Registry) and target.mount_blob(blob, ref.path)
