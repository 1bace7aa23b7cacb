"""The folder beside a destination in which a fetch is prepared, and what survives a kill there.

    .<name>.partial/
        source.json     what is being fetched: another source starts from nothing
        done.jsonl      one line a finished file, appended after the file was synced
        parts/<n>       the n-th file of the listing, not finished
        tree/           finished files; renamed to the destination when all are there
        scratch/        the provider's own files

May import provider.base and peftjob.errors.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from peftjob.errors import PermanentError
from provider.base import FileRecord, Listing, RemoteFile, Request

FOLDER_MODE = 0o755
"""Another user reads what is fetched: workers mount it, whatever their uid."""


class Staging:
    """The partial state of one fetch. Raises OSError as the disk does."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.folder = dest.parent / f".{dest.name}.partial"
        self.tree = self.folder / "tree"
        self.scratch = self.folder / "scratch"
        self._done_log = self.folder / "done.jsonl"

    def begin(self, request: Request, listing: Listing, files: Sequence[RemoteFile]) -> None:
        """Keep what a fetch of the very same files left behind, else start from nothing."""
        if os.path.ismount(self.dest):
            raise PermanentError(
                f"{self.dest} is a mount point, which can't be replaced; name a folder in it"
            )
        identity = _identity(request, listing, files)
        source = self.folder / "source.json"
        try:
            known = source.read_text()
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            known = ""
        if known != identity:
            # The scratch folder stays: the provider may just have filled it.
            for path in (source, self._done_log, self.tree, self.folder / "parts"):
                remove(path)
        for folder in (self.folder, self.tree, self.folder / "parts"):
            make_folder(folder)
        if known != identity:
            source.write_text(identity)

    def clear_scratch(self) -> None:
        """Remove the provider's own files, and the folder if nothing else is in it."""
        remove(self.scratch)
        with suppress(OSError):
            self.folder.rmdir()

    def done(self) -> dict[str, FileRecord]:
        """The finished files by path; a line that a kill cut off does not count."""
        try:
            lines = self._done_log.read_text().splitlines()
        except FileNotFoundError:
            return {}
        found = {}
        for line in lines:
            try:
                record = FileRecord(**json.loads(line))
                if (self.tree / record.path).stat().st_size == record.size:
                    found[record.path] = record
            except (ValueError, TypeError, FileNotFoundError):
                continue
        return found

    def part(self, index: int) -> Path:
        """Where the bytes of the file at `index` of the listing are gathered."""
        return self.folder / "parts" / str(index)

    def finish(self, part: Path, record: FileRecord) -> None:
        """Put a synced file at its place in the tree and remember it."""
        place(part, self.tree, record.path)
        with self._done_log.open("a") as log:
            log.write(
                json.dumps({"path": record.path, "size": record.size, "sha256": record.sha256})
                + "\n"
            )

    def fresh(self, name: str) -> Path:
        """A path in which nothing is, for a folder of that name."""
        path = self.folder / name
        remove(path)
        return path

    def publish(self, tree: Path | None = None) -> None:
        """Put the tree, or another one, in the destination's place, whatever was there before."""
        tree = tree or self.tree
        for top, _, _ in os.walk(tree):
            sync_folder(Path(top))
        if os.path.lexists(self.dest):
            old = self.folder / "old"
            remove(old)
            self.dest.replace(old)
        tree.replace(self.dest)
        sync_folder(self.dest.parent)
        self.discard()

    def discard(self) -> None:
        """Remove everything but the destination."""
        remove(self.folder)


def make_folder(path: Path) -> None:
    """Make a folder that others can read, whatever the umask."""
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(FOLDER_MODE)


def place(file: Path, tree: Path, name: str) -> None:
    """Move a file to its place in a tree, whose folders are made as needed."""
    target = tree / name
    for parent in reversed(target.relative_to(tree).parents):
        make_folder(tree / parent)
    file.replace(target)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last through a power failure."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _identity(request: Request, listing: Listing, files: Sequence[RemoteFile]) -> str:
    facts = [
        [file.path, file.size, file.sha256, file.git_oid, file.version, file.take is not None]
        for file in files
    ]
    text = json.dumps([request.uri, request.kind, listing.revision, facts])
    # Only a digest is kept, because a URI may hold a signature.
    return hashlib.sha256(text.encode()).hexdigest()
