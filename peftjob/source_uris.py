"""The URI of a model or a dataset: that it is one, and holds no login. Pure."""

import re
from typing import Annotated

from pydantic import AfterValidator

_SOURCES = "write for example hf://org/name, https://host/file.jsonl or file:///absolute/path"


def _uri(value: str) -> str:
    if any(_holds_login(uri) for uri in value.split()):
        # Not repeated: the spec, and what is said of it, is seen by many.
        raise ValueError(
            "a login stands in it, which would be plain text in the job; put S3 keys or a hub "
            "token into a Secret (secrets), and for the web take a signed URL, or a pvc:// claim"
        )
    scheme, separator, rest = value.partition("://")
    if not separator:
        raise ValueError(f"{value!r} has no scheme; {_SOURCES}")
    if not re.fullmatch(r"[A-Za-z][-+.A-Za-z0-9]*", scheme) or not rest:
        raise ValueError(f"{value!r} names nothing; {_SOURCES}")
    return value


def _holds_login(uri: str) -> bool:
    """Whether user:password@ is before the host; for the web, user@ too, which is a token."""
    scheme, _, rest = uri.partition("://")
    user, at, _ = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    return bool(at) and (":" in user or scheme.lower() in ("http", "https"))


SourceUri = Annotated[str, AfterValidator(_uri)]
