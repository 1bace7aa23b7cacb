"""A layer's tar: read forward only, by tarfile's parser, counted and bounded."""

import tarfile
import zlib
from collections.abc import Collection, Iterator
from typing import IO, cast

import zstandard

from peftjob.oci.compression import inflated, unzstd
from peftjob.oci.store import CHUNK_BYTES

DAMAGED = (tarfile.TarError, zlib.error, zstandard.ZstdError)
"""What is raised for a layer that is not what its type says."""

_MAX_HEADER_BYTES = 1 << 20
"""A longer extended header would be read into memory at once; honest ones have a few hundred."""


def tar_of(blob: Iterator[bytes], media_type: str) -> Iterator[bytes] | None:
    """The tar in the chunks of a layer; None where its type is none that is known here."""
    if media_type.endswith(("+gzip", ".gzip")):
        return inflated(blob)
    if media_type.endswith("+zstd"):
        return unzstd(blob)
    return blob if media_type.endswith(".tar") else None


def read_member(
    blob: Iterator[bytes], names: Collection[str], *, media_type: str, max_bytes: int
) -> bytes | None:
    """The first file of one of these names in a layer, which is read no further than that.

    So nothing is known of its digest, which is the layer's: it may be looked at, not kept.

    Args:
        max_bytes: of the tar; what comes later is not looked for.

    Returns:
        None where there is none, or the layer is no tar.
    """
    chunks = tar_of(blob, media_type)
    if chunks is None:
        return None
    reader = TarReader(chunks, max_bytes)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else they add up in memory
                if member.isreg() and member.name.removeprefix("./") in names:
                    reader.seek(member.offset_data)
                    return reader.read(member.size)
                if tar.offset > max_bytes or not reader.skip_padding(tar.offset):
                    return None
    except (*DAMAGED, EOFError, ValueError, OverflowError, RecursionError):
        pass  # damaged: who fetches it is told so
    return None


class TarReader:
    """The uncompressed tar, forward only: counted and bounded."""

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._max_bytes = max_bytes
        self.position = 0
        self.last_read = b""

    def tell(self) -> int:
        """For tarfile."""
        return self.position

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer at the end."""
        if not 0 <= size <= max(_MAX_HEADER_BYTES, CHUNK_BYTES):
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts = []
        while size > 0 and (part := self.part(size)):
            parts.append(part)
            size -= len(part)
        self.last_read = b"".join(parts)
        return self.last_read

    def part(self, size: int) -> memoryview:
        """At least one byte and at most so many, not copied; none at the end."""
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._chunk = memoryview(chunk)
        part, self._chunk = self._chunk[:size], self._chunk[size:]
        self.position += len(part)
        if self.position > self._max_bytes:
            raise tarfile.ReadError("more bytes than allowed")
        return part

    def seek(self, position: int) -> None:
        """Forward only, for tarfile."""
        if position < self.position:
            raise tarfile.ReadError("a negative size")
        while self.position < position:
            if not self.read(min(position - self.position, CHUNK_BYTES)):
                raise EOFError

    def skip_padding(self, position: int) -> bool:
        """Go to the next header; False where the tar ends instead.

        umoci leaves out the padding of the last file and the end mark, so that is no damage. A
        file that was cut short was noticed before.
        """
        while self.position < position:
            if not self.read(min(position - self.position, CHUNK_BYTES)):
                if position - self.position >= tarfile.BLOCKSIZE:
                    raise EOFError
                return False
        return True

    def skip_rest(self) -> None:
        """Read to the end, so that the digest covers what follows the last member."""
        while self.part(CHUNK_BYTES):
            pass
