"""One range of a file: its bytes gathered over as many connections as it takes.

May import peftjob.errors and provider.{base,part,retry}.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftjob.errors import PeftJobError, SourceError
from provider.base import Body, FileRecord, RemoteFile, Unavailable
from provider.part import FILE_MODE, Part, Span
from provider.retry import Attempts

PROGRESS_BYTES = 1024 * 1024
"""A source that breaks off again and again is asked again as long as this much came in between."""

STALLED_S = 120.0
"""The longest that one chunk may take. A connection that is silent for provider.http's read timeout
ends by itself; this ends one that goes on a byte at a time, and a provider that hangs."""


class Stopped(Exception):  # noqa: N818  (no error: another file's is being raised)
    """The fetch is over: another connection has failed."""


@dataclass(slots=True)
class Connection:
    """What one thread of a fetch is reading; another thread may end it."""

    stopping: threading.Event
    """Set when the fetch is over."""
    since: float | None = None
    """When it began to wait for what it waits for now; None: for nothing of a source's."""
    _chunks: Any = field(default=None, repr=False)

    def reading(self, chunks: Any) -> None:
        """Wait for the chunks' next."""
        self._chunks, self.since = chunks, time.monotonic()

    def idle(self) -> None:
        """Wait for nothing."""
        self._chunks = self.since = None

    @property
    def stalled(self) -> bool:
        since = self.since
        return since is not None and time.monotonic() - since > STALLED_S

    def interrupt(self) -> None:
        """End the read under way, from another thread, where the source can do that."""
        shut = getattr(self._chunks, "interrupt", None)
        if shut is not None:
            shut()


def fill(
    part: Part,
    span: Span,
    file: RemoteFile,
    *,
    source: str,
    connection: Connection,
    on_bytes: Callable[[], None],
) -> None:
    """Read a span of the part to its end, connecting again when a connection breaks.

    Raises:
        SourceError: the file is not what its source announced.
        Unavailable: the source broke off, after bounded retries.
        OSError: of the disk.
    """
    attempts = Attempts()
    # Of all attempts: who always begins at the start is not further on for having been behind.
    furthest = span.reached
    while not span.full:
        if connection.stopping.is_set():
            raise Stopped
        try:
            _read_on(part, span, file, source, connection, on_bytes)
            return
        except Unavailable as err:
            connection.idle()
            if span.reached - furthest >= PROGRESS_BYTES:
                furthest = span.reached
                attempts.progressed()
            if not connection.stopping.is_set():
                attempts.failed(err)


def record_of(path: str, file: Path) -> FileRecord:
    """Measure, open up to readers and sync a file that is on this disk already."""
    with file.open("rb") as handle:
        os.fchmod(handle.fileno(), FILE_MODE)
        sha256 = hashlib.file_digest(handle, "sha256")
        os.fsync(handle.fileno())
        return FileRecord(path, handle.tell(), sha256.hexdigest())


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


def _read_on(
    part: Part,
    span: Span,
    file: RemoteFile,
    source: str,
    connection: Connection,
    on_bytes: Callable[[], None],
) -> None:
    """Add what one connection gives."""
    if not part.known and span.reached:
        part.restart()
    connection.reading(None)
    with provider_errors(source):
        body = _open(file, span)
    if body.start not in (0, span.reached):
        raise SourceError(f"the provider of {source} began in the wrong place")
    skipped = span.reached - body.start
    if skipped and len(part.spans) == 1:
        part.restart()
        skipped = 0
    try:
        for chunk in _chunks(body, source, connection):
            if connection.stopping.is_set():
                raise Stopped
            fresh = chunk[skipped:]
            skipped -= len(chunk) - len(fresh)
            if span.end is not None and span.reached + len(fresh) > span.end:
                if span.end == file.size:
                    raise SourceError(
                        f"{file.path} of {source} is longer than the {file.size} bytes announced; "
                        "check the source"
                    )
                fresh = fresh[: span.end - span.reached]
            if fresh:
                part.write(span, fresh)
                on_bytes()
            if span.full and span.end != file.size:
                break
    finally:
        connection.idle()
        close = getattr(body.chunks, "close", None)
        if close is not None:
            close()
    if span.end is None:
        span.end = span.reached
    elif not span.full:
        raise Unavailable(
            f"{file.path} of {source} broke off after {part.size} of {file.size} bytes"
        )


def _open(file: RemoteFile, span: Span) -> Body:
    if file.open_range is not None and span.end is not None:
        return file.open_range(span.reached, span.end)
    return file.open(span.reached)


def _chunks(body: Body, source: str, connection: Connection) -> Iterator[bytes]:
    with provider_errors(source):
        iterator = iter(body.chunks)
    while True:
        connection.reading(body.chunks)
        with provider_errors(source):
            chunk = next(iterator, None)
        if chunk is None:
            return
        connection.since = None  # the disk's time is not the source's
        yield chunk
