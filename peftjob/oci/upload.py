"""One blob into a registry: in one request, and where that breaks off, in chunks.

A single request is the fastest, and the only one that every registry takes (Google's takes no
chunks). Chunks make way over a line that never holds for the whole blob: after a failure the
registry is asked how much it has, and the upload goes on there. A session that the registry has
lost is begun anew.
"""

import io
import re
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, cast
from urllib.parse import quote, urlsplit

import requests

from peftjob.errors import RegistryError
from peftjob.oci.ahead import ahead
from peftjob.oci.connection import Connection
from peftjob.oci.manifest import Descriptor
from peftjob.oci.transport import Attempts, TransientError

UPLOAD_BYTES = 32 << 20
"""Of one chunk. Object stores want 5 MiB at least; more costs more to send again."""

_OCTETS = {"Content-Type": "application/octet-stream"}
_NO_CHUNKS = frozenset({400, 404, 405, 411, 415, 416, 501})
"""What registries without chunked uploads answer to the first one."""


@dataclass(slots=True)
class _Session:
    place: str
    """Where the next request of this upload goes; each answer names another."""
    offset: int = 0
    """Bytes that the registry has."""


class Upload:
    """The upload of one file as one blob."""

    def __init__(self, connection: Connection, blob: Descriptor, source: BinaryIO) -> None:
        self._connection = connection
        self._blob = blob
        self._source = source
        self._what = f"push {blob.digest} to {connection.place}"
        self._session: _Session | None = None
        self._in_chunks = False
        self._takes_chunks = True
        self._attempts = Attempts(self._what, connection.sleep)

    def run(self) -> None:
        """Send the blob, with bounded retries.

        Raises:
            RegistryError: the registry refused.
            RegistryUnavailableError: it did not answer as it should.
        """
        while True:
            try:
                if self._in_chunks:
                    self._send_chunks()
                else:
                    self._finish(self._begin(), _Part(self._source, 0, self._blob.size_bytes))
                return
            except TransientError as err:
                self._attempts.failed(err)
                self._in_chunks = self._takes_chunks and self._blob.size_bytes > UPLOAD_BYTES

    def _send_chunks(self) -> None:
        session = self._resume() if self._session else None
        session = self._session = session or _Session(self._begin())
        while session.offset < self._blob.size_bytes:
            size = min(UPLOAD_BYTES, self._blob.size_bytes - session.offset)
            span = f"{session.offset}-{session.offset + size - 1}"
            with self._connection.send(
                "PATCH",
                session.place,
                what=self._what,
                headers=_OCTETS | {"Content-Range": span},
                body=cast(BinaryIO, _Part(self._source, session.offset, size)),
            ) as response:
                if response.status_code != 202:
                    self._chunk_refused(response, first=session.offset == 0)
                session.place = self._connection.next_url(response, self._what)
                sent = session.offset + size
                session.offset = _received(response) or sent
            self._attempts.reached(session.offset)
            if session.offset != sent:
                # Asked again how much it has, and no more often than other failures are.
                raise TransientError(f"the registry has {session.offset} of {sent} bytes sent")
        self._finish(session.place, b"")

    def _chunk_refused(self, response: requests.Response, *, first: bool) -> None:
        if response.status_code not in _NO_CHUNKS:
            raise self._connection.refusal(self._what, response)
        self._session = None
        self._takes_chunks = not first
        raise TransientError(f"the registry lost the upload (status {response.status_code})")

    def _begin(self) -> str:
        """Open an upload; where its bytes go."""
        url = self._connection.url("blobs/uploads/")
        with self._connection.send("POST", url, what=self._what) as response:
            if response.status_code != 202:
                raise self._connection.refusal(self._what, response)
            return self._connection.next_url(response, self._what)

    def _resume(self) -> _Session | None:
        """Ask how much of the upload has arrived; None where the registry knows nothing of it."""
        session, self._session = self._session, None
        if session is None:
            return None
        with self._connection.send("GET", session.place, what=self._what) as response:
            received = _received(response)
            if response.status_code not in (202, 204) or received is None:
                return None
            if received > self._blob.size_bytes:
                return None
            place = session.place
            if "Location" in response.headers:
                place = self._connection.next_url(response, self._what)
            return _Session(place, received)

    def _finish(self, place: str, body: "bytes | _Part") -> None:
        # The place may have a query of the registry's own, which has to stay.
        place += (
            f"{'&' if urlsplit(place).query else '?'}digest={quote(self._blob.digest, safe='')}"
        )
        with self._connection.send(
            "PUT", place, what=self._what, headers=_OCTETS, body=cast("bytes | BinaryIO", body)
        ) as response:
            if response.status_code == 404:
                self._session = None
                raise TransientError("the registry lost the upload (status 404)")
            if response.status_code != 201:
                raise self._connection.refusal(self._what, response)


def send_unnamed(
    connection: Connection, chunks: Generator[bytes], digest: Callable[[], str]
) -> bool:
    """Send a blob whose digest is known when its chunks have been read; whether that went well.

    One try: chunks can't be sent again. A registry that takes no chunked upload, a broken line, a
    token that ended: the caller puts the blob as usual then, and learns what is wrong.
    """
    what = f"push a layer to {connection.place}"
    try:
        with connection.send("POST", connection.url("blobs/uploads/"), what=what) as response:
            if response.status_code != 202:
                return False
            place = connection.next_url(response, what)
        # Closed here and by nobody else: threads read ahead and digest, and the garbage collector,
        # which may come while a lock is held that they want, would wait for them for ever.
        with (
            closing(chunks),
            closing(ahead(chunks)) as body,
            connection.send("PATCH", place, what=what, headers=_OCTETS, body=body) as response,
        ):
            if response.status_code != 202:
                return False
            place = connection.next_url(response, what)
        place += f"{'&' if urlsplit(place).query else '?'}digest={quote(digest(), safe='')}"
        with connection.send("PUT", place, what=what, headers=_OCTETS, body=b"") as response:
            return response.status_code == 201
    except (TransientError, RegistryError):
        return False


class _Part(io.RawIOBase):
    """Some bytes of a file as a file of its own, which is read and never held."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._position
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        if not data and left > 0:
            raise RegistryError("the file became shorter while it was pushed; push again")
        return data


def _received(response: requests.Response) -> int | None:
    """How many bytes the registry says it has: `Range: 0-99` are 100, `0-0` are none."""
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", "").strip())
    if found is None:
        return None
    return int(found[1]) + 1 if int(found[1]) else 0
