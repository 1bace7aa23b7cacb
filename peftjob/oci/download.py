"""One blob out of a registry: its bytes as they come, going on where a connection broke."""

from collections.abc import Generator, Iterator

import requests

from peftjob.errors import RegistryError
from peftjob.oci.connection import Connection
from peftjob.oci.manifest import Descriptor
from peftjob.oci.store import CHUNK_BYTES
from peftjob.oci.transport import Attempts, TransientError, reason_of


def blob_chunks(connection: Connection, blob: Descriptor, *, start: int) -> Generator[bytes]:
    """The bytes of the blob from `start` on, exactly as many as it has; their digest is not
    checked here.

    Raises:
        RegistryError: the registry refused, or sends more than the blob has.
        RegistryUnavailableError: it did not answer as it should, after bounded retries.
    """
    what = f"pull {blob.digest} from {connection.place}"
    attempts = Attempts(what, connection.sleep)
    position = start
    while position < blob.size_bytes:
        try:
            for chunk in _from(connection, blob, position, what):
                position += len(chunk)
                if position > blob.size_bytes:
                    raise wrong_bytes(what)
                attempts.reached(position)
                yield chunk
            if position < blob.size_bytes:
                raise TransientError(f"it ended after {position} of {blob.size_bytes} bytes")
        except TransientError as err:
            attempts.failed(err)


def wrong_bytes(what: str) -> RegistryError:
    """The one line for content that is not what its digest says."""
    return RegistryError(
        f"can't {what}: the registry sent other bytes than that digest; don't trust it"
    )


def _from(connection: Connection, blob: Descriptor, start: int, what: str) -> Iterator[bytes]:
    headers = {"Range": f"bytes={start}-"} if start else {}
    url = connection.url(f"blobs/{blob.digest}")
    with connection.send("GET", url, what=what, headers=headers) as response:
        if response.status_code not in (200, 206):
            raise RegistryError(f"can't {what}: the registry lost it; push the image again")
        # A registry that knows no ranges sends all of it again.
        skip = start if response.status_code == 200 else 0
        if skip == 0 and start and not _begins_at(response, start):
            raise TransientError("the registry sent another part than was asked for")
        try:
            for chunk in response.iter_content(CHUNK_BYTES):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:] if skip else chunk
                skip = 0
        except requests.RequestException as err:
            raise TransientError(reason_of(err)) from err


def _begins_at(response: requests.Response, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
