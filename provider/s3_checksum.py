"""What S3 knows of an object's content, cheapest to check first.

An object has the checksum that its uploader chose, of the whole or of the parts in which it came,
and an ETag, which is an MD5 unless it was encrypted with a key of KMS or of the customer. What was
uploaded without one has a CRC64NVME of Amazon's own making.

May import provider.{base,checksums,http}.
"""

import base64
import binascii
import re
from collections.abc import Mapping

from peftjob.errors import SourceUnavailableError
from provider.base import Unavailable, shown
from provider.checksums import Algorithm, Checksum
from provider.http import Client

_STORED: tuple[tuple[str, Algorithm], ...] = (
    ("x-amz-checksum-sha256", "sha256"),
    ("x-amz-checksum-crc64nvme", "crc64nvme"),
    ("x-amz-checksum-crc32c", "crc32c"),
    ("x-amz-checksum-crc32", "crc32"),
    ("x-amz-checksum-sha1", "sha1"),
)
_MD5 = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?")
_MOST_PARTS_ASKED = 100


def ask(client: Client, url: str, *, size: int, etag: str) -> Checksum | None:
    """A checksum of the object; None where the store has none that can be checked here.

    Raises:
        SourceUnavailableError: the object is another one by now.
    """
    headers = client.head(url, {"x-amz-checksum-mode": "ENABLED"})
    if headers.get("ETag", etag) != etag:
        raise SourceUnavailableError(f"{shown(url)} changed while it was being fetched")
    in_parts = "-" in etag
    for name, algorithm in _STORED:
        digest, count = _digest(headers.get(name, ""))
        if in_parts and not count and headers.get("x-amz-checksum-type") != "FULL_OBJECT":
            continue  # it does not say of what this is the checksum
        if digest and (found := _checksum(client, url, name, algorithm, digest, count, size)):
            return found
    if headers.get("x-amz-server-side-encryption", "AES256") != "AES256":
        return None
    if "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    match = _MD5.fullmatch(etag.strip('"'))
    if match is None:
        return None
    digest, count = bytes.fromhex(match[1]), int(match[2] or 0)
    return _checksum(client, url, "ETag", "md5", digest, count, size)


def _digest(value: str) -> tuple[bytes, int]:
    """Digest and count of parts of a header like `<base64>` or `<base64>-3`; 0: no parts."""
    text, dash, count = value.partition("-")
    try:
        return base64.b64decode(text, validate=True), int(count) if dash else 0
    except (binascii.Error, ValueError):
        return b"", 0


def _checksum(
    client: Client, url: str, name: str, algorithm: Algorithm, digest: bytes, count: int, size: int
) -> Checksum | None:
    parts = _parts(client, url, count, size) if count else ()
    if parts is None:
        return None
    return Checksum(name=name, algorithm=algorithm, digest=digest, parts=parts)


def _parts(client: Client, url: str, count: int, size: int) -> tuple[int, ...] | None:
    """The sizes of the parts in which the object came; None where they can't be told."""
    first = _part_size(client, url, 1)
    if first <= 0 or count == 1:
        return (size,) if count == 1 else None
    last = size - first * (count - 1)
    if 0 < last <= first and _part_size(client, url, count) == last:
        return (*([first] * (count - 1)), last)
    if count > _MOST_PARTS_ASKED:
        return None
    sizes = tuple(_part_size(client, url, number) for number in range(1, count + 1))
    return sizes if sum(sizes) == size else None


def _part_size(client: Client, url: str, number: int) -> int:
    headers: Mapping[str, str] = client.head(f"{url}?partNumber={number}")
    length = headers.get("Content-Length", "")
    if not length.isdecimal():
        raise Unavailable(f"the store names no size of a part of {shown(url)}")
    return int(length)
