"""From a listing to a folder: files downloaded beside it, and the folder put in place at once.

May import peftjob.errors and provider.{base,download,paths,staging}.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peftjob.errors import PermanentError
from provider.base import Fetched, FileRecord, Listing, RemoteFile, Request, Transfer
from provider.download import download, record_of
from provider.paths import check_names
from provider.staging import Staging

OnProgress = Callable[[Transfer], None]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def transfer(
    listing: Listing,
    files: Sequence[RemoteFile],
    *,
    request: Request,
    staging: Staging,
    on_progress: OnProgress | None,
) -> Fetched:
    """Bring `files` of the listing to the staging's destination, which is replaced as a whole.

    What is there when a source goes away, or this process, is left for the next fetch to go on
    from; what the next fetch would fail on as well is removed.

    Raises:
        SourceError: a file is not what its source says it is, or has an unsafe name.
        PermanentError: the destination can't be written, or has no space.
        SourceUnavailableError: the source went away, after bounded retries.
    """
    check_names((file.path for file in files), source=request.shown)
    with local_errors(staging.dest):
        try:
            staging.begin(request, listing, files)
            records = _download_all(files, request, staging, on_progress)
            staging.publish()
        except (PermanentError, OSError):
            staging.discard()
            raise
    return Fetched(
        uri=request.shown, revision=listing.revision, digest=digest_of(records), files=records
    )


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


def _download_all(
    files: Sequence[RemoteFile],
    request: Request,
    staging: Staging,
    on_progress: OnProgress | None,
) -> tuple[FileRecord, ...]:
    done = staging.done()
    _check_space(files, done, request, staging)
    progress = _Progress(request.shown, files, on_progress)
    records = []
    for index, file in enumerate(files):
        record = done.get(file.path)
        if record is None:
            part = file.take or staging.part(index)
            progress.began(file.path)
            if file.take:
                record = record_of(file, part)
            else:
                record = download(file, part, source=request.shown, on_bytes=progress.reached)
            staging.finish(part, record)
        progress.ended(record)
        records.append(record)
    return tuple(sorted(records, key=lambda record: record.path))


def _check_space(
    files: Sequence[RemoteFile], done: dict[str, FileRecord], request: Request, staging: Staging
) -> None:
    needed = 0
    for index, file in enumerate(files):
        if file.path not in done and file.take is None and file.size is not None:
            part = staging.part(index)
            needed += file.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(staging.folder).free
    if needed > free:
        raise PermanentError(
            f"no space for {request.shown}: {needed / 1e9:.1f} GB are to come and "
            f"{staging.dest.parent} has {free / 1e9:.1f} GB free; ask for a bigger volume in "
            "storage.size"
        )


@dataclass(slots=True)
class _Progress:
    """Counts over all files, and tells whoever asked."""

    uri: str
    files: Sequence[RemoteFile]
    on_progress: OnProgress | None
    path: str = ""
    ended_bytes: int = 0
    ended_files: int = 0

    def began(self, path: str) -> None:
        self.path = path
        self.reached(0)

    def reached(self, file_bytes: int) -> None:
        if self.on_progress is None:
            return
        sizes = [file.size for file in self.files]
        known = [size for size in sizes if size is not None]
        self.on_progress(
            Transfer(
                uri=self.uri,
                path=self.path,
                done_bytes=self.ended_bytes + file_bytes,
                total_bytes=sum(known) if len(known) == len(sizes) else None,
                done_files=self.ended_files,
                total_files=len(sizes),
            )
        )

    def ended(self, record: FileRecord) -> None:
        self.path = record.path
        self.ended_bytes += record.size
        self.ended_files += 1
        self.reached(0)
