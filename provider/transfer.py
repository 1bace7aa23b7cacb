"""From a listing to a folder: files downloaded beside it, and the folder put in place at once.

May import peftjob.errors and provider.{base,download,files,paths,packed,progress,staging,work}.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peftjob.errors import PermanentError, SourceError
from provider.base import Fetched, FileRecord, Listing, RemoteFile, Request
from provider.download import record_of
from provider.files import list_folder
from provider.packed import unpack as unpack_file
from provider.packed import unpacked_name
from provider.paths import check_names
from provider.progress import OnProgress, Progress
from provider.staging import Staging, place
from provider.work import Work

Choose = Callable[[Sequence[str]], list[str]]
"""Paths → those of them that are wanted."""
Record = Callable[[Fetched], object]
"""Writes down what was fetched."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BLOCK_BYTES = 512
"""Of st_blocks, whatever the file system's own are."""
_MOST_BYTES = 2**63 - 1
"""Of a file, on any file system."""


class _NoSpaceError(PermanentError):
    """The volume is too small."""


def transfer(
    listing: Listing,
    *,
    request: Request,
    staging: Staging,
    choose: Choose,
    on_progress: OnProgress | None,
    record: Record | None = None,
) -> Fetched:
    """Bring the chosen files to the staging's destination, which is replaced as a whole.

    What is there when a source goes away, or this process, is left for the next fetch to go on
    from; what the next fetch would fail on as well is removed. An image whose layers are there, and
    which there is no space to unpack, only needs a bigger volume: the layers stay.

    Args:
        record: called when the destination is in place, and before it is forgotten how it came.

    Raises:
        SourceError: a file is not what its source says it is, or has an unsafe name.
        PermanentError: the destination can't be written, or has no space.
        SourceUnavailableError: the source went away, after bounded retries.
    """
    files, names = _chosen(listing, request, choose)
    with local_errors(staging.dest):
        try:
            staging.begin(request, listing, files)
            records = staging.published()
            if records is None:
                done = staging.done(names)
                staging.discard_unpacked()
                _check_space(files, names, done, request, staging, listing.unpacked_bytes)
                progress = Progress(request.shown, files, on_progress)
                records = Work(files, names, request.shown, staging, progress).run(done)
                if listing.unpack is None:
                    staging.publish(records, staging.tree)
                else:
                    folder = listing.unpack(staging.tree, staging.inside)
                    records = _publish_unpacked(folder, request, staging, choose)
            fetched = Fetched(
                uri=request.shown,
                revision=listing.revision,
                digest=digest_of(records),
                files=records,
            )
            if record is not None:
                record(fetched)
            staging.discard()
        except (PermanentError, OSError) as err:
            if listing.unpack is not None and _is_full(err) and staging.has(names):
                staging.discard_unpacked()
            else:
                staging.discard()
            raise
    return fetched


def _chosen(
    listing: Listing, request: Request, choose: Choose
) -> tuple[Sequence[RemoteFile], list[str]]:
    """The files to fetch, and the names that they will have."""
    if listing.unpack is not None:
        files = listing.files
    else:
        wanted = set(choose([file.path for file in listing.files]))
        files = [file for file in listing.files if file.path in wanted]
    check_names((file.path for file in files), source=request.shown)
    names = [
        file.path if listing.unpack else unpacked_name(file.path, kind=request.kind)
        for file in files
    ]
    check_names(names, source=request.shown)
    return files, names


def _publish_unpacked(
    folder: Path, request: Request, staging: Staging, choose: Choose
) -> tuple[FileRecord, ...]:
    """Put what was in the fetched files, and is in `folder` now, in the destination's place.

    The fetched files stay until that is done: after a kill they are unpacked again.
    """
    inside = list_folder(folder, source=request.shown)
    files, names = _chosen(Listing(inside, folder=True), request, choose)
    records = []
    for file, name in zip(files, names, strict=True):
        path = folder / file.path
        if name == file.path:
            record = record_of(name, path)
        else:
            packed = path
            path, record = unpack_file(packed, file.path, name, source=request.shown)
            packed.unlink()
        place(path, staging.chosen, name)
        records.append(record)
    records.sort(key=lambda record: record.path)
    staging.publish(records, staging.chosen)
    return tuple(records)


def digest_of(records: Sequence[FileRecord]) -> str:
    """The digest of a set of files: of the sorted lines `sha256  size  path`."""
    lines = sorted(f"{record.sha256}  {record.size}  {record.path}\n" for record in records)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def local_errors(dest: Path) -> Iterator[None]:
    """Turn what the disk at `dest` raises into one line."""
    try:
        yield
    except OSError as err:
        if _is_full(err):
            raise _NoSpaceError(
                f"no space left for {dest} ({err.strerror}); ask for a bigger volume in "
                "storage.size"
            ) from err
        raise PermanentError(
            f"{dest} can't be written: {err.strerror or err} ({err.filename or dest}); check the "
            "volume's mount and its permissions"
        ) from err


def _is_full(err: Exception) -> bool:
    return isinstance(err, _NoSpaceError) or (isinstance(err, OSError) and err.errno in _NO_SPACE)


def _check_space(
    files: Sequence[RemoteFile],
    names: Sequence[str],
    done: dict[str, FileRecord],
    request: Request,
    staging: Staging,
    unpacked_bytes: int,
) -> None:
    """Bytes, and inodes where the file system has a number of them."""
    needed_bytes, needed_files = unpacked_bytes, 0
    for index, (file, name) in enumerate(zip(files, names, strict=True)):
        if file.size is not None and not 0 <= file.size <= _MOST_BYTES:
            raise SourceError(
                f"{file.path} of {request.shown} is listed with a size that no file has; check the "
                "source"
            )
        if name not in done and file.take is None:
            part = staging.part(index)
            there = part.stat().st_blocks * _BLOCK_BYTES if part.exists() else 0
            needed_bytes += max(0, (file.size or 0) - there)
            needed_files += 1
    needed_files += len({parent for name in names for parent in Path(name).parents})
    system = os.statvfs(staging.folder)
    free_bytes = system.f_bavail * system.f_frsize
    if needed_bytes > free_bytes:
        needed = f"{needed_bytes / 1e9:.1f} GB are to come"
        free = f"{free_bytes / 1e9:.1f} GB"
    elif system.f_files and needed_files > system.f_favail:
        needed = f"{needed_files} files and folders are to come"
        free = f"{system.f_favail} inodes"
    else:
        return
    raise _NoSpaceError(
        f"no space for {request.shown}: {needed} and {staging.dest.parent} has {free} free; ask "
        "for a bigger volume in storage.size"
    )
