"""Layers, extracted by code of our own.

tarfile only parses here. Its extraction is not used: the data filter can be passed in some
releases (CVE-2025-4517) and is missing in others. Extraction writes regular files and in-image
hard links into a fresh folder in which no symbolic link ever exists, so that a checked path can't
lead elsewhere.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

from peftjob.errors import RegistryError
from peftjob.oci.files import sync_folder
from peftjob.oci.tar import DAMAGED, TarReader, tar_of

MODELS = "models"
"""Where KServe looks for the files of an image."""
DATA = "data"
"""Where KAITO looks for them."""

_ROOT_WHITEOUTS = frozenset({f".wh.{MODELS}", f".wh.{DATA}", ".wh..wh..opq"})
"""What deletes one of them, or everything, that a layer below has."""

MAX_BYTES = 64 << 30
"""Default bound of an image's uncompressed bytes: far above any adapter. Who pulls a base model
gives more."""
MAX_FILES = 100_000
_MAX_DEPTH = 32
_SYNC_BYTES = 64 << 20


class Extraction:
    """Takes the models/ and data/ of an image's layers, lowest first, into a fresh folder."""

    def __init__(self, staging: Path, *, max_bytes: int, max_files: int, where: str) -> None:
        self._staging = staging
        self._bytes_left = max_bytes
        self._files_left = max_files
        self._where = where

    def add_layer(self, blob: Iterator[bytes], *, media_type: str) -> None:
        """Extract one layer. The chunks are read to their end.

        Their digest is the caller's to check. The layer's diff_id, which the config lists, is not
        looked at: it says again what the layer's digest says, and a quarter of the time went there.

        Raises:
            RegistryError: it holds something that an adapter image has no business to hold, or
                more than the bounds allow, or is no tar.
        """
        raw = tar_of(blob, media_type)
        if raw is None:
            raise RegistryError(
                f"{self._where} has a layer of type {media_type!r}; only tar, tar+gzip "
                "and tar+zstd can be pulled, so push it again as an image with such a layer"
            )
        try:
            reader = TarReader(raw, self._bytes_left)
            self._take_all(reader)
            self._bytes_left -= reader.position
        except DAMAGED as err:
            # Bytes that are not those of the digest are the better reason, and show at the end.
            _drain(blob)
            raise self._refusal(f"a layer that is no whole tar ({err})") from err
        except (EOFError, ValueError, OverflowError, RecursionError) as err:
            _drain(blob)
            raise self._refusal("a layer that is no whole tar") from err
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as err:
            raise self._refusal("a path that is both a file and a folder") from err

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

    def _take_all(self, reader: TarReader) -> None:
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

    def _take(self, member: tarfile.TarInfo, reader: TarReader) -> None:
        self._files_left -= 1
        if self._files_left < 0:
            raise self._refusal("more files than allowed")
        parts = self._parts(member.name)
        if parts and parts[0] in _ROOT_WHITEOUTS:
            raise self._whiteout(member)
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
            raise self._whiteout(member)
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

    def _write(self, member: tarfile.TarInfo, target: Path, reader: TarReader) -> None:
        reader.seek(member.offset_data)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with (
            open(os.open(target, flags, 0o600), "wb") as file,
            ThreadPoolExecutor(1, "peftjob-sync") as syncer,
        ):
            left = synced = member.size
            syncs = []
            while left > 0:
                chunk = reader.part(left)
                if not chunk:
                    raise EOFError
                file.write(chunk)
                left -= len(chunk)
                if synced - left >= _SYNC_BYTES:
                    # The disk writes while the network brings the rest, and not all at the end.
                    synced = left
                    syncs.append(syncer.submit(os.fdatasync, file.fileno()))
            for sync in syncs:
                sync.result()  # an error of the disk is told once, to whoever syncs first
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())

    def _whiteout(self, member: tarfile.TarInfo) -> RegistryError:
        return self._refusal(f"{member.name!r}, which deletes files of another layer")

    def _refusal(self, what: str) -> RegistryError:
        return RegistryError(f"{self._where} holds {what}; nothing of it was kept, don't trust it")


def _drain(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass
