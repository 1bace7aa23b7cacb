"""A file that is being gathered: ranges of it fill up at once, and its checksums follow.

    parts/<n>            the bytes, each at its place: a file with holes until it is complete
    parts/<n>.reached    16 bytes for each range: how far it is, and a CRC of what is there;
                         removed when the file is known to lie elsewhere

A range moves on in steps of a chunk, bytes first and the mark after them, so what a kill costs is
the chunk under way on every connection. A file whose source names a checksum is held against that
at the end; of any other file, the CRC tells what a crash of the machine has spoilt.

May import provider.{base,checksums}.
"""

import os
import struct
import threading
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from provider.base import RemoteFile
from provider.checksums import Checksum, Running

FILE_MODE = 0o644
"""Another user reads what is fetched: workers mount it, whatever their uid."""

RANGE_BYTES = 64 * 1024 * 1024
"""What one request asks for. Bigger asks the hub less often, smaller spreads a file better."""
KEPT_FROM_BYTES = 1024 * 1024
"""Files up to this size are fetched again rather than gone on with."""
REREAD_BYTES = 1024 * 1024

_MARK = struct.Struct("<QQ")


@dataclass(slots=True)
class Span:
    """A range of a file."""

    start: int
    end: int | None
    """None: wherever the file ends."""
    reached: int
    """The next byte's offset."""
    crc: int = 0

    @property
    def full(self) -> bool:
        return self.reached == self.end


def spans_of(file: RemoteFile, *, known: bool) -> list[Span]:
    """The ranges in which a file is read.

    Args:
        known: whether something tells that the ranges are of one content; else there is only one.
    """
    if file.size is None:
        return [Span(0, None, 0)]
    if file.open_range is None or file.size <= RANGE_BYTES or not known:
        return [Span(0, file.size, 0)]
    edges = [*range(0, file.size, RANGE_BYTES), file.size]
    return [Span(start, end, start) for start, end in pairwise(edges)]


class Part:
    """The bytes of one file on this disk. Methods raise OSError as the disk does.

    Different threads may write to different spans.
    """

    def __init__(self, file: RemoteFile, path: Path, checksum: Checksum | None = None) -> None:
        """Go on from what is at `path` if that can be trusted.

        Args:
            checksum: what `file.ask_checksum` answered.
        """
        self.path = path
        self._expected = [*file.checksums, *([checksum] if checksum else [])]
        self.verified = bool(self._expected)
        """Whether problem() compares the content with anything."""
        self.known = self.verified or bool(file.version)
        """Whether something tells that what comes next is of the same content as what is there."""
        self.spans = spans_of(file, known=self.known)
        self._endless = file.size is None
        self._hashing = threading.Lock()
        self._running = Running(self._expected)
        self._marks_path = path.with_name(f"{path.name}.reached")
        big = file.size is None or file.size > KEPT_FROM_BYTES
        self._kept = big and self.known
        self._out = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        os.fchmod(self._out, FILE_MODE)
        self._marks: int | None = None
        if self._kept:
            self._marks = os.open(self._marks_path, os.O_RDWR | os.O_CREAT, FILE_MODE)
            self._resume(self._marks)
        if not self.size:
            os.ftruncate(self._out, 0)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return sum(span.reached - span.start for span in self.spans)

    @property
    def sha256(self) -> str:
        """Of the content, after problem()."""
        return self._running.sha256

    def write(self, span: Span, chunk: bytes) -> None:
        """Put the next bytes of a span in their place."""
        at = span.reached
        _write_all(self._out, chunk, at)
        if not self._expected:
            span.crc = zlib.crc32(chunk, span.crc)
        span.reached = at + len(chunk)
        self._mark(span)
        if self._hashing.acquire(blocking=False):
            try:
                if at == self._running.size:
                    self._running.update(chunk)
                self._follow()
            finally:
                self._hashing.release()

    def restart(self) -> None:
        """Drop what is there."""
        with self._hashing:
            for span in self.spans:
                span.reached, span.crc = span.start, 0
                if self._endless:
                    span.end = None
                self._mark(span)
            os.ftruncate(self._out, 0)
            self._running = Running(self._expected)

    def problem(self) -> str | None:
        """How the content, all of it there, differs from what the source announced."""
        with self._hashing:
            self._follow()
            return self._running.problem()

    def sync(self) -> None:
        """Make the bytes last."""
        os.fsync(self._out)

    def forget(self) -> None:
        """Remove what tells how the bytes came, once it is written down that they are elsewhere."""
        self._marks_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what is there stays."""
        os.close(self._out)
        if self._marks is not None:
            os.close(self._marks)

    def _resume(self, marks: int) -> None:
        wanted = len(self.spans) * _MARK.size
        found = os.pread(marks, wanted + 1, 0)
        if len(found) != wanted:
            os.ftruncate(marks, 0)
            os.ftruncate(marks, wanted)
            return
        there = os.fstat(self._out).st_size
        for span, (done, crc) in zip(self.spans, _MARK.iter_unpack(found), strict=True):
            reached = span.start + done
            fits = reached <= (there if span.end is None else min(there, span.end))
            if fits and (self._expected or crc == self._crc(span, done)):
                span.reached, span.crc = reached, crc

    def _crc(self, span: Span, size: int) -> int:
        crc = 0
        at, end = span.start, span.start + size
        while at < end and (chunk := os.pread(self._out, min(REREAD_BYTES, end - at), at)):
            crc = zlib.crc32(chunk, crc)
            at += len(chunk)
        return crc

    def _mark(self, span: Span) -> None:
        if self._marks is not None:
            mark = _MARK.pack(span.reached - span.start, span.crc)
            os.pwrite(self._marks, mark, (span.start // RANGE_BYTES) * _MARK.size)

    def _follow(self) -> None:
        """Count what is there without a gap after what was counted."""
        for span in self.spans[self._running.size // RANGE_BYTES if len(self.spans) > 1 else 0 :]:
            while (left := span.reached - self._running.size) > 0:
                chunk = os.pread(self._out, min(REREAD_BYTES, left), self._running.size)
                if not chunk:
                    return  # cut short by somebody else: the checksum will tell
                self._running.update(chunk)
            if not span.full:
                return


def _write_all(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
