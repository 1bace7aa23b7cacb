"""file:// and folders on this machine: a file, or a folder with what lies in it.

May import peftjob.errors and provider.base.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from peftjob.errors import SourceError, SourceUnavailableError
from provider.base import Body, Listing, RemoteFile, Request

CHUNK_BYTES = 1024 * 1024


def find(request: Request) -> Listing:
    """The file, or the files of the folder, at the path of the URI.

    Raises:
        SourceError: not an absolute path of this machine, or nothing usable there.
    """
    if request.revision is not None:
        raise SourceError(
            f"{request.uri} can't have the revision {request.revision!r}: only hf:// has any"
        )
    path = _path(request.uri)
    try:
        if path.is_dir():
            return Listing(list_folder(path, source=request.uri), folder=True)
        return Listing([_remote(path, path.name)])
    except FileNotFoundError as err:
        raise SourceError(
            f"{request.uri} does not exist here; file:// names a path on the machine (or in the "
            "container) that fetches it"
        ) from err
    except OSError as err:
        raise SourceError(f"{request.uri} can't be read: {err.strerror} ({err.filename})") from err


def list_folder(folder: Path, *, source: str) -> list[RemoteFile]:
    """Every regular file under `folder`, sorted by path. Hidden folders are left out.

    A symbolic link to a file is followed as long as it stays within the folder; links to folders
    are not.

    Raises:
        SourceError: a link leads out of the folder or nowhere, or a file is no regular one.
        OSError: the folder can't be read.
    """
    root = folder.resolve(strict=True)
    found = []
    for top, folders, names in os.walk(root, onerror=_reraise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(top, name)
            relative = path.relative_to(root).as_posix()
            if path.is_symlink() and not _stays_within(path, root):
                raise SourceError(
                    f"{source} holds the link {relative!r}, which leads out of the folder or "
                    "nowhere; make a copy with the links resolved (cp -rL)"
                )
            found.append(_remote(path, relative))
        for name in folders:
            if Path(top, name).is_symlink():
                raise SourceError(
                    f"{source} holds {name!r}, a link to a folder; make a copy with the links "
                    "resolved (cp -rL)"
                )
    return sorted(found, key=lambda file: file.path)


def _path(uri: str) -> Path:
    rest = uri.partition("://")[2]
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise SourceError(
            f"{uri} names the host {host!r}; a path of this machine has three slashes: "
            "file:///absolute/path"
        )
    text = unquote(slash + path)
    if "\0" in text:
        raise SourceError(f"{uri!r} has a null byte in its path")
    return Path(text)


def _stays_within(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # dangling, or going round in circles
        return False


def _remote(path: Path, name: str) -> RemoteFile:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise SourceError(f"{path} is no regular file")

    def open_at(start: int) -> Body:
        return Body(_read(path, start, facts), start)

    return RemoteFile(
        path=name,
        open=open_at,
        size=facts.st_size,
        version=f"{facts.st_mtime_ns}-{facts.st_ino}",
    )


def _read(path: Path, start: int, listed: os.stat_result) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                # Not by the inode: some network file systems number them anew now and then.
                now = os.fstat(file.fileno())
                if (now.st_mtime_ns, now.st_size) != (listed.st_mtime_ns, listed.st_size):
                    raise SourceUnavailableError(
                        f"{path} changed while it was being fetched; start again"
                    )
                yield chunk
    except PermissionError as err:
        raise SourceError(f"{path} can't be read: {err.strerror}") from err


def _reraise(err: OSError) -> None:
    raise err
