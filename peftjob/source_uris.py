"""The URI of a model or a dataset: that it is one, and holds no login. Pure.

`holds_login` is asked of every other address that a user gives, too.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

_SOURCES = "write for example hf://org/name, https://host/file.jsonl or file:///absolute/path"


def _uri(value: str) -> str:
    if any(holds_login(uri) for uri in value.split()):
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


def holds_login(uri: str) -> bool:
    """Whether user:password@ is before the host; for the web, user@ too, which is a token.

    A password may have a slash in it, as keys of S3 have: what is after the colon is no port then.
    """
    scheme, _, rest = uri.partition("://")
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = head.rpartition("@")
    if at:
        return ":" in user or scheme.lower() in ("http", "https")
    name, colon, port = head.rpartition(":")
    return bool(colon) and "@" in rest and not (port.isdecimal() or name.startswith("["))


SourceUri = Annotated[str, AfterValidator(_uri)]
