"""From a listing to a folder: files downloaded beside it, and the folder put in place at once.

May import peftjob.errors and provider.{base,download,files,paths,packed,progress,staging,work}.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peftjob.errors import PermanentError
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

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BLOCK_BYTES = 512
"""Of st_blocks, whatever the file system's own are."""


def transfer(
    listing: Listing,
    *,
    request: Request,
    staging: Staging,
    choose: Choose,
    on_progress: OnProgress | None,
) -> Fetched:
    """Bring the chosen files to the staging's destination, which is replaced as a whole.

    What is there when a source goes away, or this process, is left for the next fetch to go on
    from; what the next fetch would fail on as well is removed.

    Raises:
        SourceError: a file is not what its source says it is, or has an unsafe name.
        PermanentError: the destination can't be written, or has no space.
        SourceUnavailableError: the source went away, after bounded retries.
    """
    files, names = _chosen(listing, request, choose)
    with local_errors(staging.dest):
        try:
            staging.begin(request, listing, files)
            done = staging.done()
            _check_space(files, names, done, request, staging)
            progress = Progress(request.shown, files, on_progress)
            records = Work(files, names, request.shown, staging, progress).run(done)
            if listing.unpack is None:
                staging.publish()
            else:
                records = _publish_unpacked(listing.unpack, request, staging, choose)
        except (PermanentError, OSError):
            staging.discard()
            raise
    return Fetched(
        uri=request.shown, revision=listing.revision, digest=digest_of(records), files=records
    )


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
    unpack: Callable[[Path, Path], Path], request: Request, staging: Staging, choose: Choose
) -> tuple[FileRecord, ...]:
    """Put what the fetched files hold in the destination's place.

    The fetched files stay until that is done: after a kill they are unpacked again.
    """
    folder = unpack(staging.tree, staging.fresh("inside"))
    inside = list_folder(folder, source=request.shown)
    files, names = _chosen(Listing(inside, folder=True), request, choose)
    tree = staging.fresh("chosen")
    records = []
    for file, name in zip(files, names, strict=True):
        path = folder / file.path
        if name == file.path:
            record = record_of(name, path)
        else:
            path, record = unpack_file(path, file.path, name, source=request.shown)
        place(path, tree, name)
        records.append(record)
    staging.publish(tree)
    return tuple(sorted(records, key=lambda record: record.path))


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
        if err.errno in _NO_SPACE:
            raise PermanentError(
                f"no space left for {dest} ({err.strerror}); ask for a bigger volume in "
                "storage.size"
            ) from err
        raise PermanentError(
            f"{dest} can't be written: {err.strerror or err} ({err.filename or dest}); check the "
            "volume's mount and its permissions"
        ) from err


def _check_space(
    files: Sequence[RemoteFile],
    names: Sequence[str],
    done: dict[str, FileRecord],
    request: Request,
    staging: Staging,
) -> None:
    """Bytes, and inodes where the file system has a number of them."""
    needed_bytes, needed_files = 0, 0
    for index, (file, name) in enumerate(zip(files, names, strict=True)):
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
    raise PermanentError(
        f"no space for {request.shown}: {needed} and {staging.dest.parent} has {free} free; ask "
        "for a bigger volume in storage.size"
    )
