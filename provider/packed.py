"""Data files that come compressed: they lie on the volume unpacked, because who reads rows from the
middle of a file needs it so. `rows.jsonl.gz` is `rows.gz.jsonl` there: what it is comes last.

May import zstandard, peftjob.{contract,errors,oci.compression} and provider.{base,part,selection}.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from peftjob.contract import unpacked
from peftjob.errors import SourceError
from peftjob.oci.compression import unzstd
from provider.base import FileRecord, Kind
from provider.part import FILE_MODE
from provider.selection import is_data_file

CHUNK_BYTES = 1024 * 1024


def unpacked_name(path: str, *, kind: Kind) -> str:
    """The name that a file of a source has on the volume."""
    return unpacked(path) if kind == "dataset" and is_data_file(path) else path


class NotPackedError(SourceError):
    """A file is not compressed as its name says: of another kind, or damaged."""


def unpack(part: Path, path: str, name: str, *, source: str) -> tuple[Path, FileRecord]:
    """Unpack the complete part of the file `path`, which stays; where the content is, synced.

    Raises:
        NotPackedError: it is not compressed as its name says.
        OSError: of the disk.
    """
    target = part.with_name(f"{part.name}.unpacked")
    sha256, size = hashlib.sha256(), 0
    kind, chunks = ("gzip", _gzip) if path.lower().endswith(".gz") else ("zstd", _zstd)
    with part.open("rb") as packed, target.open("wb") as out:
        os.fchmod(out.fileno(), FILE_MODE)
        try:
            for chunk in chunks(packed):
                out.write(chunk)
                sha256.update(chunk)
                size += len(chunk)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as err:
            raise NotPackedError(
                f"{path} of {source} can't be unpacked: it is no whole {kind} file ({err}); check "
                "the source"
            ) from err
        out.flush()
        os.fsync(out.fileno())
    return target, FileRecord(name, size, sha256.hexdigest())


def _gzip(packed: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=packed, mode="rb") as rows:
        while chunk := rows.read(CHUNK_BYTES):
            yield chunk


def _zstd(packed: IO[bytes]) -> Iterator[bytes]:
    yield from unzstd(iter(lambda: packed.read(CHUNK_BYTES), b""))
