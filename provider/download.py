"""One file: its bytes gathered over as many connections as it takes, and checked.

May import peftjob.errors and provider.{base,retry}.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from peftjob.errors import PeftJobError, SourceError
from provider.base import Body, FileRecord, RemoteFile, Unavailable
from provider.retry import Attempts

FILE_MODE = 0o644
"""Another user reads what is fetched: workers mount it, whatever their uid."""

REREAD_BYTES = 1024 * 1024
PROGRESS_BYTES = 1024 * 1024
"""A source that breaks off again and again is asked again as long as this much came in between."""

OnBytes = Callable[[int], None]
"""Called with the bytes of this file that are there."""


def download(file: RemoteFile, part: Path, *, source: str, on_bytes: OnBytes) -> FileRecord:
    """Gather `file` in `part`, going on from what is there if that can be trusted; sync it.

    Raises:
        SourceError: the file is not what its source announced.
        Unavailable: the source broke off, after bounded retries.
        OSError: of the disk.
    """
    if not (file.sha256 or file.git_oid or file.version):
        part.unlink(missing_ok=True)
    with part.open("r+b" if part.exists() else "w+b") as out:
        os.fchmod(out.fileno(), FILE_MODE)
        work = _Download(file, out, source=source, on_bytes=on_bytes)
        work.complete()
        problem = work.problem()
        if problem and work.pieced:
            # A piece that came earlier may be what is damaged: once more, from nothing.
            work.restart()
            work.complete()
            problem = work.problem()
        if problem:
            raise SourceError(
                f"{file.path} of {source} is damaged: {problem}; it was not kept, check the source"
            )
        out.flush()
        os.fsync(out.fileno())
        return FileRecord(file.path, work.size, work.sha256.hexdigest())


def record_of(file: RemoteFile, path: Path) -> FileRecord:
    """Measure, open up to readers and sync a file that is on this disk already."""
    with path.open("rb") as handle:
        os.fchmod(handle.fileno(), FILE_MODE)
        sha256 = hashlib.file_digest(handle, "sha256")
        os.fsync(handle.fileno())
        return FileRecord(file.path, handle.tell(), sha256.hexdigest())


@contextmanager
def provider_errors(source: str) -> Iterator[None]:
    """Turn what a provider's code raises into errors of ours.

    An OSError, as connections raise it, may pass; anything else is the provider's mistake.
    """
    try:
        yield
    except PeftJobError:
        raise
    except OSError as err:
        raise Unavailable(f"{source} can't be read: {err}") from err
    except Exception as err:
        raise SourceError(f"the provider of {source} failed: {type(err).__name__}: {err}") from err


class _Download:
    """A file under way: what is written and what it sums up to always agree."""

    def __init__(self, file: RemoteFile, out: BinaryIO, *, source: str, on_bytes: OnBytes) -> None:
        self._file = file
        self._out = out
        self._source = source
        self._on_bytes = on_bytes
        self._reset()
        while chunk := out.read(REREAD_BYTES):
            self._count(chunk)
        self.pieced = self.size > 0
        """Whether the content did not come in one piece."""
        if file.size is not None and self.size > file.size:
            self.restart()

    def restart(self) -> None:
        """Drop what is there."""
        self._out.seek(0)
        self._out.truncate()
        self._reset()

    def complete(self) -> None:
        """Read to the end of the file, connecting again when a connection breaks."""
        attempts = Attempts()
        while self._file.size is None or self.size < self._file.size:
            before = self.size
            try:
                self._read_on()
                return
            except Unavailable as err:
                if self.size - before >= PROGRESS_BYTES:
                    attempts.progressed()
                attempts.failed(err)

    def problem(self) -> str | None:
        """How the content differs from what the source announced."""
        want, got = self._file.sha256, self.sha256.hexdigest()
        if want and want.lower() != got:
            return f"its sha256 is {got} and should be {want}"
        if self._git is not None and self._file.git_oid != self._git.hexdigest():
            return f"its git blob id is {self._git.hexdigest()} and should be {self._file.git_oid}"
        return None

    def _reset(self) -> None:
        self.size = 0
        self.pieced = False
        self.sha256 = hashlib.sha256()
        self._git = None
        if self._file.git_oid and self._file.size is not None:
            # A blob id is no protection, so SHA-1 will do: it is what git has.
            self._git = hashlib.sha1(usedforsecurity=False)
            self._git.update(f"blob {self._file.size}\0".encode())

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.sha256.update(chunk)
        if self._git is not None:
            self._git.update(chunk)

    def _read_on(self) -> None:
        """Append what one connection gives."""
        with provider_errors(self._source):
            body = self._file.open(self.size)
        if body.start not in (0, self.size):
            raise SourceError(f"the provider of {self._source} began in the wrong place")
        if body.start != self.size:
            self.restart()
        self.pieced = self.size > 0
        limit = self._file.size
        with closing(_chunks(body, self._source)) as chunks:
            for chunk in chunks:
                if limit is not None and self.size + len(chunk) > limit:
                    raise SourceError(
                        f"{self._file.path} of {self._source} is longer than the {limit} bytes "
                        "announced; check the source"
                    )
                self._out.write(chunk)
                self._count(chunk)
                self._on_bytes(self.size)
        if limit is not None and self.size < limit:
            raise Unavailable(
                f"{self._file.path} of {self._source} broke off after {self.size} of {limit} bytes"
            )


def _chunks(body: Body, source: str) -> Generator[bytes, None, None]:
    chunks: Iterable[bytes] = body.chunks
    try:
        iterator = iter(chunks)
        while True:
            with provider_errors(source):
                chunk = next(iterator, None)
            if chunk is None:
                return
            yield chunk
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
