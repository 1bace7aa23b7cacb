"""What the headers of an answer say. May import requests, peftjob.errors and provider.base."""

import time
from collections.abc import Mapping
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests

from peftjob.errors import SourceError
from provider.base import shown


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which may also hold a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def differ(before: object, now: object) -> bool:
    """Whether two facts contradict each other; what is not known contradicts nothing."""
    return before is not None and now is not None and before != now


def file_name_of(response: requests.Response) -> str | None:
    """The file name of a Content-Disposition header."""
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    return message.get_filename()


def version_of(response: requests.Response) -> str | None:
    """What changes when the content does."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def total_of(response: requests.Response) -> int | None:
    """The size of the whole file, of a Content-Range header."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def first_of(response: requests.Response) -> int | None:
    """The offset of the first byte, of a Content-Range header."""
    span = response.headers.get("Content-Range", "").partition(" ")[2]
    first = span.partition("-")[0]
    return int(first) if first.isdecimal() else None


def check_encoding(response: requests.Response) -> None:
    """See that the bytes come as they are.

    Raises:
        SourceError: they are packed in a way that was not asked for.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    # A .gz file that is labelled as such is stored as it is; anything else would be unreadable.
    if encoding != "identity" and not urlsplit(response.url).path.endswith(".gz"):
        raise SourceError(
            f"{shown(response.url)} is sent with the encoding {encoding!r} although none was asked "
            "for; serve it as it is"
        )
