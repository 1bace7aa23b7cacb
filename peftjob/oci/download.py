"""One blob out of a registry: its bytes as they come, going on where a connection broke."""

from collections.abc import Generator
from contextlib import closing

from peftjob.errors import RegistryError
from peftjob.oci.connection import Connection
from peftjob.oci.manifest import Descriptor
from peftjob.oci.transport import Attempts, TransientError, chunks_of

READ_BYTES = 512 << 10
"""At a time. provider.oci goes on, after a kill, with what came before the last of these."""


def blob_chunks(connection: Connection, blob: Descriptor) -> Generator[bytes]:
    """The bytes of the blob, exactly as many as it has; their digest is not checked here.

    Raises:
        RegistryError: the registry refused, or sends more than the blob has.
        RegistryUnavailableError: it did not answer as it should, after bounded retries.
    """
    what = _what(connection, blob)
    attempts = Attempts(what, connection.sleep)
    position, end = 0, blob.size_bytes
    while position < end:
        try:
            with closing(one_answer(connection, blob, position, end)) as chunks:
                for chunk in chunks:
                    position += len(chunk)
                    if position > end:
                        raise wrong_bytes(what)
                    attempts.reached(position)
                    yield chunk
            if position < end:
                raise TransientError(f"it ended after {position} of {end} bytes")
        except TransientError as err:
            attempts.failed(err)


def wrong_bytes(what: str) -> RegistryError:
    """The one line for content that is not what its digest says."""
    return RegistryError(
        f"can't {what}: the registry sent other bytes than that digest; don't trust it"
    )


def one_answer(connection: Connection, blob: Descriptor, start: int, end: int) -> Generator[bytes]:
    """What one answer gives: from `start` on, and up to `end` where the registry knows ranges.

    Raises:
        TransientError: the registry did not answer as it should; it is not asked again.
        RegistryError: it refused.
    """
    what = _what(connection, blob)
    whole = not start and end == blob.size_bytes
    headers = {} if whole else {"Range": f"bytes={start}-{end - 1}"}
    url = connection.url(f"blobs/{blob.digest}")
    with connection.send("GET", url, what=what, headers=headers) as response:
        if response.status_code not in (200, 206):
            raise RegistryError(f"can't {what}: the registry lost it; push the image again")
        # A registry that knows no ranges sends all of it again.
        skip = start if response.status_code == 200 else 0
        begins = response.headers.get("Content-Range", "")
        if skip == 0 and start and not begins.startswith(f"bytes {start}-"):
            raise TransientError("the registry sent another part than was asked for")
        for chunk in chunks_of(response, READ_BYTES):
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            yield chunk[skip:] if skip else chunk
            skip = 0


def _what(connection: Connection, blob: Descriptor) -> str:
    return f"pull {blob.digest} from {connection.place}"
