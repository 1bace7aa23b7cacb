"""What a provider is: it says which files a URI stands for and streams their bytes. Nothing else.

Everything that all sources share lives once in provider.transfer: safe names, writing beside and
renaming, resuming, digests, permissions, progress, disk space, retries. A provider of your own is
a module (or an object) with one function, registered in the entry point group peftjob.providers
under the scheme it serves:

    def find(request: Request) -> Listing:
        name = request.uri.removeprefix("memo://")
        data = lookup(name)
        return Listing([RemoteFile(path=name, size=len(data), open=lambda start: Body([data]))])

Errors: raise SourceError for what trying again won't change, Unavailable for what it may.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from peftjob.errors import SourceUnavailableError
from peftjob.source_uris import holds_login
from provider.checksums import Checksum, git_blob, sha256

Kind = Literal["model", "dataset"]


class Unavailable(SourceUnavailableError):  # noqa: N818  (reads as what it is: raise Unavailable)
    """The source did not answer as it should just now; the caller tries again, bounded."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """`retry_after_s` is what the source asked for; None leaves the wait to the caller."""
        self.retry_after_s = retry_after_s
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a provider."""

    uri: str
    kind: Kind
    revision: str | None = None
    """Branch, tag or commit; None is the source's default."""
    files: tuple[str, ...] = ()
    """Globs of the files wanted; provider.fetch applies them to the listing."""
    allow_private: frozenset[str] = frozenset()
    """Hosts that may be reached although their addresses are not public."""
    env: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """Where a provider finds its settings and credentials."""
    scratch: Path
    """A folder on the destination's volume for the provider's own files, made by the provider if
    it needs one and removed by the caller."""

    @property
    def shown(self) -> str:
        """The URI as it may be logged: see shown()."""
        return shown(self.uri)


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of one file, as they come."""

    chunks: Iterable[bytes]
    """Closed by the reader when it has a close(), as generators have."""
    start: int = 0
    """Offset of the first byte of `chunks`: 0 where the source can't begin in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a source, and what is known about it beforehand."""

    path: str
    """Relative, with '/' between its parts."""
    open: Callable[[int], Body]
    """Open for reading, if possible at the given offset."""
    open_range: Callable[[int, int], Body] | None = None
    """Open from an offset up to another one; where it is given, several connections read a big
    file at once."""
    size: int | None = None
    """Bytes."""
    sha256: str | None = None
    """Expected digest, in hex."""
    git_oid: str | None = None
    """Expected git blob id (SHA-1 over a header and the content), in hex."""
    ask_checksum: Callable[[], Checksum | None] | None = None
    """Asks the source for a checksum of another kind, when the file is about to be read."""
    version: str | None = None
    """Changes when the content does (ETag, modification time); who opens the file sees to it that
    it has not. A file with neither digest nor version is never resumed nor read by ranges, because
    what is there already may be of another content."""
    take: Path | None = None
    """A regular file under Request.scratch to be moved into place instead of being read."""

    @property
    def checksums(self) -> list[Checksum]:
        """The checksums that are known beforehand."""
        known = [sha256(self.sha256)] if self.sha256 else []
        if self.git_oid and self.size is not None:
            known.append(git_blob(self.git_oid, self.size))
        return known


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that a URI stands for."""

    files: Sequence[RemoteFile]
    revision: str | None = None
    """The commit that the requested revision stood for; None where there are no commits."""
    folder: bool = False
    """True for a folder or repository, of which only what a model or a dataset needs is fetched
    (provider.selection) when the request names no files. False fetches all that is listed."""
    unpack: Callable[[Path, Path], Path] | None = None
    """For files that hold others, as an image's layers do: they are all fetched, and this takes the
    folder that they are in and a path for a folder, fills that one, and returns where in it the
    files are that the URI stands for. Of these is chosen."""
    unpacked_bytes: int = 0
    """What `unpack` writes, as far as that can be told: at least so much."""
    peek: Callable[[str], bytes | None] | None = None
    """For files that hold others: the content of a small one of these by its name, as far as that
    can be had without fetching the rest, and not checked."""


class Provider(Protocol):
    """A module or an object that serves one scheme."""

    def find(self, request: Request) -> Listing:
        """List what is behind `request.uri`, without fetching content."""
        ...


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A fetched file."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """What provider.fetch has put into a folder."""

    uri: str
    """Without what may be secret in it: see shown()."""
    revision: str | None
    """Commit, where the source has commits."""
    digest: str
    """sha256:… over the sorted lines `sha256  size  path` of the files."""
    files: tuple[FileRecord, ...]
    """Sorted by path."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far a fetch is."""

    uri: str
    path: str
    """Of the file that moved on; others may be under way at the same time."""
    file_bytes: int
    """Of this file, resumed bytes included."""
    file_total_bytes: int | None
    """None where its size is unknown beforehand."""
    file_bytes_per_s: float
    """Of this file, over the last seconds."""
    done_bytes: int
    """Of all files, resumed bytes included."""
    total_bytes: int | None
    """Of all files; None where a size is unknown beforehand."""
    done_files: int
    total_files: int
    bytes_per_s: float
    """Of all files, over the last seconds."""

    @property
    def eta_s(self) -> float | None:
        """Seconds until all files are there at this rate; None where that can't be told."""
        return _eta_s(self.done_bytes, self.total_bytes, self.bytes_per_s)

    @property
    def file_eta_s(self) -> float | None:
        """Seconds until this file is there at its rate; None where that can't be told."""
        return _eta_s(self.file_bytes, self.file_total_bytes, self.file_bytes_per_s)


def _eta_s(done: int, total: int | None, bytes_per_s: float) -> float | None:
    if total is None or (total > done and bytes_per_s <= 0):
        return None
    return (total - done) / bytes_per_s if total > done else 0.0


def shown(uri: str) -> str:
    """The URI without user, password, query and fragment: these may hold keys and signatures."""
    if uri.startswith(("http://", "https://")):
        return " ".join(_shown(one) for one in uri.split())
    return _shown(uri)


def _shown(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("?")[0].partition("#")[0].rpartition("@")[2]
    if holds_login(uri):
        # The password may hold what else ends a host, so where it ends is a guess.
        _, at, rest = uri.partition("?")[0].partition("#")[0].rpartition("@")
        return f"{parts.scheme}://{rest if at else ''}"
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
