"""One blob out of a registry: its bytes as they come, going on where a connection broke."""

from collections.abc import Generator
from contextlib import closing

import requests

from peftjob.errors import RegistryError
from peftjob.oci.connection import Connection
from peftjob.oci.manifest import Descriptor
from peftjob.oci.transport import Attempts, TransientError, reason_of

READ_BYTES = 512 << 10
"""At a time. provider.oci goes on, after a kill, with what came before the last of these."""


def blob_chunks(
    connection: Connection, blob: Descriptor, *, start: int = 0, end: int | None = None
) -> Generator[bytes]:
    """The bytes of the blob from `start` up to `end` or all, exactly as many as it has; their
    digest is not checked here.

    Raises:
        RegistryError: the registry refused, or sends more than the blob has.
        RegistryUnavailableError: it did not answer as it should, after bounded retries.
    """
    what = f"pull {blob.digest} from {connection.place}"
    attempts = Attempts(what, connection.sleep)
    position, end = start, blob.size_bytes if end is None else end
    while position < end:
        try:
            with closing(_between(connection, blob, position, end, what)) as chunks:
                for chunk in chunks:
                    if position + len(chunk) > blob.size_bytes:
                        raise wrong_bytes(what)
                    if position == end:
                        break  # a registry that knows no ranges sends what follows as well
                    wanted = chunk[: end - position]
                    position += len(wanted)
                    attempts.reached(position)
                    yield wanted
            if position < end:
                raise TransientError(f"it ended after {position} of {blob.size_bytes} bytes")
        except TransientError as err:
            attempts.failed(err)


def wrong_bytes(what: str) -> RegistryError:
    """The one line for content that is not what its digest says."""
    return RegistryError(
        f"can't {what}: the registry sent other bytes than that digest; don't trust it"
    )


def _between(
    connection: Connection, blob: Descriptor, start: int, end: int, what: str
) -> Generator[bytes]:
    """What one answer gives: from `start` on, and up to `end` where the registry knows ranges."""
    whole = not start and end == blob.size_bytes
    headers = {} if whole else {"Range": f"bytes={start}-{end - 1}"}
    url = connection.url(f"blobs/{blob.digest}")
    with connection.send("GET", url, what=what, headers=headers) as response:
        if response.status_code not in (200, 206):
            raise RegistryError(f"can't {what}: the registry lost it; push the image again")
        # A registry that knows no ranges sends all of it again.
        skip = start if response.status_code == 200 else 0
        if skip == 0 and start and not _begins_at(response, start):
            raise TransientError("the registry sent another part than was asked for")
        try:
            for chunk in response.iter_content(READ_BYTES):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:] if skip else chunk
                skip = 0
        except requests.RequestException as err:
            raise TransientError(reason_of(err)) from err


def _begins_at(response: requests.Response, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
