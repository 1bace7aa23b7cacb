"""The layer of an adapter image: written reproducibly, extracted by code of our own.

tarfile only parses here. Its extraction is not used: the data filter can be passed in some
releases (CVE-2025-4517) and is missing in others. Extraction writes regular files and in-image
hard links into a fresh folder in which no symbolic link ever exists, so that a checked path can't
lead elsewhere.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from peftjob.errors import RegistryError
from peftjob.oci.files import sync_folder
from peftjob.oci.store import CHUNK_BYTES

MODELS = "models"
"""Where KServe looks for the files of an image."""
DATA = "data"
"""Where KAITO looks for them."""

GZIP_LEVEL = 1
"""Higher levels are ten times slower on weights and save nothing."""

MAX_BYTES = 64 << 30
"""Default bound of an image's uncompressed bytes: far above any adapter. Who pulls a base model
gives more."""
MAX_FILES = 100_000
_MAX_DEPTH = 32
_MAX_HEADER_BYTES = 1 << 20
"""A longer extended header would be read into memory at once; honest ones have a few hundred."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was built."""

    digest: str
    size_bytes: int
    diff_id: str
    """Digest of the tar before compression, as the image's config lists it."""


def build_layer(folder: Path, names: Sequence[str], target: Path) -> Layer:
    """Write the files `names` of `folder` as a layer to `target`.

    The layer holds models/<name>, sorted, and then data/<name> as hard links to them, so that a
    file is in it once. Times, owners and modes are fixed: the same files give the same bytes.
    """
    names = sorted(names)
    folders = sorted({str(p) for name in names for p in Path(name).parents} - {"."})
    with target.open("wb") as file:
        outer = _Digesting(file)
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=outer.as_file(), mtime=0
        ) as zipped:
            inner = _Digesting(cast(BinaryIO, zipped))
            with tarfile.open(fileobj=inner.as_file(), mode="w", format=tarfile.PAX_FORMAT) as tar:
                for root in (MODELS, DATA):
                    tar.addfile(_entry(root, tarfile.DIRTYPE))
                    for name in sorted([*names, *folders]):
                        entry = f"{root}/{name}"
                        if name in folders:
                            tar.addfile(_entry(entry, tarfile.DIRTYPE))
                        elif root == MODELS:
                            _add_file(tar, entry, folder / name)
                        else:
                            link = _entry(entry, tarfile.LNKTYPE)
                            link.linkname = f"{MODELS}/{name}"
                            tar.addfile(link)
    return Layer(outer.digest, outer.size_bytes, inner.digest)


def _entry(name: str, kind: bytes) -> tarfile.TarInfo:
    """A member with time, user and group 0, which is what TarInfo begins with."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    # 0644 whatever the file has: safetensors writes 0600, and the server is another user.
    entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return entry


def _add_file(tar: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as file:
        entry = _entry(name, tarfile.REGTYPE)
        entry.size = os.fstat(file.fileno()).st_size
        tar.addfile(entry, file)


class _Digesting(io.RawIOBase):
    """Passes what is written on, and knows its digest and size."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def as_file(self) -> IO[bytes]:
        return cast(IO[bytes], self)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size_bytes

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._target.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)
        return len(data)


class Extraction:
    """Takes the models/ and data/ of an image's layers, lowest first, into a fresh folder."""

    def __init__(self, staging: Path, *, max_bytes: int, max_files: int, where: str) -> None:
        self._staging = staging
        self._bytes_left = max_bytes
        self._files_left = max_files
        self._where = where

    def add_layer(self, blob: BinaryIO, *, media_type: str) -> str:
        """Extract one layer and return its diff_id.

        Raises:
            RegistryError: it holds something that an adapter image has no business to hold, or
                more than the bounds allow, or is no tar.
        """
        if media_type.endswith(("+gzip", ".gzip")):
            raw = cast(BinaryIO, gzip.GzipFile(fileobj=blob, mode="rb"))
        elif media_type.endswith(".tar"):
            raw = blob
        else:
            raise RegistryError(
                f"{self._where} has a layer of type {media_type!r}; only tar and tar+gzip can be "
                "pulled, so push it again as an image with such a layer"
            )
        reader = _TarReader(raw, self._bytes_left)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else they add up in memory
                    self._take(member, reader)
                    if not reader.skip_padding(tar.offset):
                        break
                else:
                    # tarfile takes a damaged header for the end.
                    if reader.last_read.strip(b"\0"):
                        raise tarfile.ReadError("a header is damaged")
            reader.skip_rest()
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error) as err:
            raise self._refusal(f"a layer that is no whole tar ({err})") from err
        except (EOFError, ValueError, OverflowError, RecursionError) as err:
            raise self._refusal("a layer that is no whole tar") from err
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as err:
            raise self._refusal("a path that is both a file and a folder") from err
        self._bytes_left -= reader.position
        return reader.digest

    def finish(self) -> Path:
        """The folder with the image's files: its models/, or its data/ where only that is there."""
        for root in (MODELS, DATA):
            tree = self._staging / root
            if any(files for _, _, files in os.walk(tree)):
                for folder, _, _ in os.walk(tree):
                    os.chmod(folder, 0o755)
                    sync_folder(Path(folder))
                return tree
        raise RegistryError(
            f"{self._where} holds no files under {MODELS}/ or {DATA}/; it is no adapter image"
        )

    def _take(self, member: tarfile.TarInfo, reader: "_TarReader") -> None:
        self._files_left -= 1
        if self._files_left < 0:
            raise self._refusal("more files than allowed")
        parts = self._parts(member.name)
        if not parts or parts[0] not in (MODELS, DATA):
            return
        if len(parts) > _MAX_DEPTH or not member.name.isprintable():
            raise self._refusal(f"the path {member.name[:200]!r}, which is no sensible one")
        target = self._staging.joinpath(*parts)
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            return
        if len(parts) == 1 or not (member.islnk() or (member.isreg() and not member.issparse())):
            raise self._refusal(f"{member.name!r}, which is no regular file")
        if parts[-1].startswith(".wh."):
            raise self._refusal(f"{member.name!r}, which deletes files of another layer")
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.islnk():
            self._link(member, target)
        else:
            target.unlink(missing_ok=True)
            self._write(member, target, reader)

    def _parts(self, name: str) -> tuple[str, ...]:
        """The path in the image, part by part; compared by part, `models-x` is not `models`."""
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts:
            raise self._refusal(f"the path {name[:200]!r}, which leads outside")
        return parts

    def _link(self, member: tarfile.TarInfo, target: Path) -> None:
        parts = self._parts(member.linkname)
        source = self._staging.joinpath(*parts)
        if not parts or parts[0] not in (MODELS, DATA) or not source.is_file():
            raise self._refusal(
                f"{member.name!r}, a link to {member.linkname!r}, which is no file of it"
            )
        if source == target:
            return
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            # Some network file systems have no hard links.
            self._bytes_left -= source.stat().st_size
            if self._bytes_left < 0:
                raise self._refusal("more bytes than allowed") from None
            shutil.copy(source, target)

    def _write(self, member: tarfile.TarInfo, target: Path, reader: "_TarReader") -> None:
        reader.seek(member.offset_data)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(target, flags, 0o600), "wb") as file:
            left = member.size
            while left > 0:
                chunk = reader.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise EOFError
                file.write(chunk)
                left -= len(chunk)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())

    def _refusal(self, what: str) -> RegistryError:
        return RegistryError(f"{self._where} holds {what}; nothing of it was kept, don't trust it")


class _TarReader:
    """The uncompressed tar, forward only: counted, digested and bounded."""

    def __init__(self, raw: BinaryIO, max_bytes: int) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._max_bytes = max_bytes
        self.position = 0
        self.last_read = b""

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= max(_MAX_HEADER_BYTES, CHUNK_BYTES):
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._raw.read(size)
        self._hash.update(data)
        self.position += len(data)
        if self.position > self._max_bytes:
            raise tarfile.ReadError("more bytes than allowed")
        self.last_read = data
        return data

    def seek(self, position: int) -> None:
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
        while self.read(CHUNK_BYTES):
            pass
