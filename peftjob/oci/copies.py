"""Images, copied from one place to another, to the byte the same and with their signatures."""

import tempfile
from dataclasses import dataclass

from peftjob.errors import RegistryError, UsageError
from peftjob.oci.images import current
from peftjob.oci.manifest import (
    Descriptor,
    Manifest,
    digest_of,
    images_in,
    media_type_of,
)
from peftjob.oci.places import disk_errors, opened
from peftjob.oci.reference import Reference
from peftjob.oci.registry import Registry
from peftjob.oci.signature import copy_signatures
from peftjob.oci.store import Store

_MAX_DEPTH = 4
"""Of indexes in indexes; there is hardly ever one in another."""


def copy(
    ref: Reference, to: Reference, *, insecure_from: bool = False, insecure_to: bool = False
) -> Reference:
    """Copy what `ref` names and let the tag of `to` point to it.

    An index is copied whole, with all its images: it keeps its digest, and what was signed stays
    signed. Within one registry blobs are mounted and not sent. Signatures that are at `to` stay,
    those that are at `ref` come to them, and then the tag moves.

    Args:
        insecure_from: speak plain HTTP to the registry of `ref`.
        insecure_to: speak plain HTTP to the registry of `to`.

    Returns:
        `to` with the digest.

    Raises:
        UsageError: `to` has no tag.
        NotFoundError, RegistryError, RegistryUnavailableError: as inspect and push do.
    """
    if to.tag is None:
        raise UsageError(f"can't copy to {to}: give a tag, as in name:v1")
    with (
        opened(ref, insecure=insecure_from) as source,
        opened(to, insecure=insecure_to) as target,
        disk_errors(f"copy {ref} to {to}"),
    ):
        body = source.get_manifest(ref.version)
        _Copying(source, target, ref, to).put(body)
        if current(target, to.tag) != body:
            target.put_manifest(body, version=to.tag)
    return to.with_digest(digest_of(body))


@dataclass(frozen=True, slots=True)
class _Copying:
    source: Store
    target: Store
    ref: Reference
    to: Reference

    def put(self, body: bytes, depth: int = 0) -> None:
        """The manifest, what it lists before it and its signatures after it; no tag."""
        digest = digest_of(body)
        where = str(self.ref.with_digest(digest))
        images = images_in(body, where=where)
        if images is None:
            manifest = Manifest.parse(body, where=where)
            for blob in (*manifest.layers, manifest.config):
                self._put_blob(blob)
        elif depth == _MAX_DEPTH:
            raise RegistryError(f"{self.ref} has indexes in indexes; copy one of its images")
        for image in images or ():
            self.put(self.source.get_manifest(image.digest), depth + 1)
        if current(self.target, digest) is None:
            self.target.put_manifest(body, version=digest)
        subject = Descriptor(media_type_of(body), digest, len(body))
        copy_signatures(self.source, self.target, subject)

    def _put_blob(self, blob: Descriptor) -> None:
        if self.target.has_blob(blob) or self._mounted(blob):
            return
        with tempfile.TemporaryFile() as file:
            for chunk in self.source.read_blob(blob):
                file.write(chunk)
            self.target.put_blob(blob, file)

    def _mounted(self, blob: Descriptor) -> bool:
        same = self.ref.host is not None and self.ref.host == self.to.host
        target = self.target
        return same and isinstance(target, Registry) and target.mount_blob(blob, self.ref.path)
