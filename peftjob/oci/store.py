"""What the two places of images, a registry and a layout folder, have in common."""

from collections.abc import Callable, Generator
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

    def read_blob(self, blob: Descriptor) -> Generator[bytes]:
        """The bytes of the blob, chunk by chunk.

        Digest and size are checked at the end: a reader that has not come to the end of the
        chunks must not let anything of them out.

        Raises:
            RegistryError: at the end, that the bytes are not those of the digest.
        """

    def put_blob(self, blob: Descriptor, source: BinaryIO) -> None:
        """Store the file `source`, from its beginning; the blob is either whole or not there."""

    def put_unnamed(self, chunks: Generator[bytes], digest: Callable[[], str]) -> bool:
        """Store a blob whose digest is known when its chunks have been read; whether it did.

        Where it did not, nothing has happened, and the blob has to be put.
        """

    def get_manifest(self, version: str) -> bytes:
        """The manifest of a tag or a digest; of a digest, it has been checked.

        Raises:
            NotFoundError: there is none.
        """

    def put_manifest(self, body: bytes, *, version: str) -> None:
        """Store the manifest and, where `version` is a tag and no digest, let it point there.

        That is one step; the manifest's blobs come first.
        """

    def tags(self) -> list[str]:
        """All tags, sorted.

        Raises:
            NotFoundError: there is no such place.
        """

    def lists_referrers(self, digest: str) -> bool:
        """Whether the store itself finds the manifests that have the image as their subject."""

    def close(self) -> None:
        """Give connections back."""
