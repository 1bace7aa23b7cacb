"""The name of an image: in a registry or in a layout folder, by tag or by digest."""

import ipaddress
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from peftjob.errors import UsageError
from peftjob.source_uris import holds_login

FORMS = "write [oci://]host[:port]/name[:tag][@sha256:…] or oci-layout:///folder[:tag][@sha256:…]"
LAYOUT_SCHEME = "oci-layout://"
DEFAULT_TAG = "latest"

# The grammars of the distribution specification.
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?")
_WORD = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_WORD}(/{_WORD})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is and which one it is. `str` gives a text that `parse` takes."""

    host: str | None
    """`host[:port]` of a registry; None for a layout folder."""
    path: str
    """The repository's name in the registry, or the absolute path of the layout folder."""
    tag: str | None = DEFAULT_TAG
    digest: str | None = None
    """`sha256:` and 64 hex digits. Where it is there, it decides, and the tag is a comment."""

    def __post_init__(self) -> None:
        if self.host is None:
            folder = Path(self.path)
            if not folder.is_absolute() or folder == Path("/") or not self.path.isprintable():
                raise UsageError(f"{self.path!r} is no absolute path of a layout folder; {FORMS}")
        elif not _is_host(self.host):
            raise UsageError(
                f"{self.host!r} is no host of a registry (a dot, a port or localhost tells it from "
                f"a name); {FORMS}"
            )
        elif not _NAME.fullmatch(self.path) or len(self.path) > 255:
            raise UsageError(
                f"{self.path!r} is no name in a registry: lower-case letters and digits, joined by "
                f"'.', '_', '-' and '/'; {FORMS}"
            )
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise UsageError(
                f"{self.tag!r} is no tag: up to 128 letters, digits, '.', '_' and '-', not "
                f"beginning with '.' or '-'; {FORMS}"
            )
        if self.digest is not None and not is_digest(self.digest):
            raise UsageError(f"{self.digest!r} is no digest: sha256: and 64 hex digits; {FORMS}")
        if self.tag is None and self.digest is None:
            raise UsageError(f"an image in {self.path!r} needs a tag or a digest; {FORMS}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference.

        Without tag and digest the tag is `latest`. A host is never guessed: `org/name` is an
        error, not an image of Docker Hub.

        Raises:
            UsageError: `text` is none, with the valid forms.
        """
        rest, at, hex_digits = text.rpartition("@sha256:")
        if not at:
            rest = text
        digest = f"sha256:{hex_digits}" if at else None
        default_tag = None if digest else DEFAULT_TAG

        if rest.startswith(LAYOUT_SCHEME):
            folder, tag = _split_tag(rest.removeprefix(LAYOUT_SCHEME))
            return cls(None, folder.rstrip("/") or "/", tag or default_tag, digest)
        rest = rest.removeprefix("oci://")
        address = rest if "://" in rest else f"oci://{rest}"
        if holds_login(address) or "@" in rest.partition("/")[0]:
            # The value may be a password, so it is not repeated.
            raise UsageError(f"a reference holds no login; use `docker login` and {FORMS}")
        if "://" in rest or "/" not in rest:
            raise UsageError(f"{text!r} is no reference of an image; {FORMS}")
        host, _, name = rest.partition("/")
        name, tag = _split_tag(name)
        return cls(host, name, tag or default_tag, digest)

    def __str__(self) -> str:
        place = f"{LAYOUT_SCHEME}{self.path}" if self.host is None else f"{self.host}/{self.path}"
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return place + tag + digest

    @property
    def version(self) -> str:
        """What a store looks the image up by: the digest, or else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP can't be overheard."""
        if self.host is None:
            return False
        name = self.host[1:].partition("]")[0] if self.host[0] == "[" else self.host.split(":")[0]
        if name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def with_digest(self, digest: str) -> Self:
        """The same name, pinned to `digest`."""
        return replace(self, digest=digest)

    def with_tag(self, tag: str) -> Self:
        """The same place with another tag, and unpinned, as that tag may be another image."""
        return replace(self, tag=tag, digest=None)


def is_digest(text: str) -> bool:
    """Whether `text` is a sha256 digest as OCI writes it."""
    return _DIGEST.fullmatch(text) is not None


def _is_host(text: str) -> bool:
    named = "." in text or ":" in text or text == "localhost"
    found = _HOST.fullmatch(text)
    return named and found is not None and int((found[3] or ":1")[1:]) < 1 << 16


def _split_tag(path: str) -> tuple[str, str | None]:
    """Cut the tag off: what follows the colon in the last part of the path."""
    folder, slash, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    return folder + slash + last, tag if colon else None
