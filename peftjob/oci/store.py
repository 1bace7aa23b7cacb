"""What the two places of images, a registry and a layout folder, have in common."""

from pathlib import Path
from typing import BinaryIO, Protocol

from peftjob.oci.manifest import Descriptor

CHUNK_BYTES = 1 << 20
"""How much of a blob is in memory at a time."""


class Store(Protocol):
    """Blobs by digest, and manifests by tag or digest.

    All methods raise RegistryError where what is there is wrong or refused, and
    RegistryUnavailableError where a later call may go through.
    """

    def has_blob(self, blob: Descriptor) -> bool:
        """Whether the blob is there and need not be put."""

    def open_blob(self, blob: Descriptor, *, scratch: Path) -> BinaryIO:
        """A file with the blob, at its beginning, after digest and size have been checked.

        Nothing unchecked is ever handed out. `scratch` is a folder that a temporary copy may
        lie in for as long as the file is open.
        """

    def put_blob(self, blob: Descriptor, source: Path) -> None:
        """Store the file `source` as the blob; it is either whole or not there."""

    def get_manifest(self, version: str) -> bytes:
        """The manifest of a tag or a digest; of a digest, it has been checked.

        Raises:
            NotFoundError: there is none.
        """

    def put_manifest(self, body: bytes, *, tag: str) -> None:
        """Store the manifest and let the tag point to it, in one step; its blobs come first."""

    def close(self) -> None:
        """Give connections back."""
