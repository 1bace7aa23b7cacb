"""The folder beside a destination in which a fetch is prepared, and what survives a kill there.

    .<name>.partial/
        source.json     what is being fetched: another source starts from nothing
        parts/<n>       the n-th file of the listing, not finished
        tree/           finished files; renamed to the destination when all are there
        done.jsonl      one line a finished file, appended when the file is in the tree
        published.json  what the destination is to hold, with the files' times: whether it does yet
        inside/         what is in an image's layers, while they are unpacked
        chosen/         what is wanted of it; renamed to the destination
        scratch/        the provider's own files

Whatever is removed here is removed after the line is written that says why it is not needed.

May import provider.base and peftjob.errors.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
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
        self.inside = self.folder / "inside"
        self.chosen = self.folder / "chosen"
        self.scratch = self.folder / "scratch"
        self._done_log = self.folder / "done.jsonl"
        self._published = self.folder / "published.json"

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
            for name in ("source.json", "published.json", "done.jsonl", "tree", "parts"):
                remove(self.folder / name)
        for folder in (self.folder, self.tree, self.folder / "parts"):
            make_folder(folder)
        if known != identity:
            source.write_text(identity)

    def clear_scratch(self) -> None:
        """Remove the provider's own files, and the folder if nothing else is in it."""
        remove(self.scratch)
        with suppress(OSError):
            self.folder.rmdir()

    def published(self) -> tuple[FileRecord, ...] | None:
        """What the destination holds, where a kill came after it was put in place."""
        try:
            saved = json.loads(self._published.read_text())
            records = tuple(FileRecord(**record) for record in saved["files"])
            return records if _times(self.dest, records) == saved["times"] else None
        except (ValueError, TypeError, KeyError, FileNotFoundError, NotADirectoryError):
            return None

    def done(self, names: Sequence[str]) -> dict[str, FileRecord]:
        """The finished files by path; a line that a kill cut off does not count.

        A file that has come to its place and not to its line goes back among the parts.

        Args:
            names: of the files of the listing, as they are in the tree.
        """
        found = self._logged()
        for index, name in enumerate(names):
            placed, part = self.tree / name, self.part(index)
            if name not in found and placed.is_file() and not part.exists():
                placed.replace(part)
        return found

    def _logged(self) -> dict[str, FileRecord]:
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
            log.write(json.dumps(asdict(record)) + "\n")

    def has(self, names: Sequence[str]) -> bool:
        """Whether there are files of these names, all finished."""
        return bool(names) and self._logged().keys() >= set(names)

    def discard_unpacked(self) -> None:
        """Remove what was taken out of finished files; these stay."""
        remove(self.inside)
        remove(self.chosen)

    def publish(self, records: Sequence[FileRecord], tree: Path) -> None:
        """Put a tree with these files in the destination's place, whatever was there before."""
        for top, _, _ in os.walk(tree):
            sync_folder(Path(top))
        saved = {"times": _times(tree, records), "files": [asdict(record) for record in records]}
        self._published.write_text(json.dumps(saved))
        if os.path.lexists(self.dest):
            old = self.folder / "old"
            remove(old)
            self.dest.replace(old)
        tree.replace(self.dest)
        sync_folder(self.dest.parent)

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


def _times(tree: Path, records: Sequence[FileRecord]) -> list[list[int]]:
    """Size and time of each file, which a renamed folder keeps."""
    facts = [(tree / record.path).stat() for record in records]
    return [[fact.st_size, fact.st_mtime_ns] for fact in facts]


def _identity(request: Request, listing: Listing, files: Sequence[RemoteFile]) -> str:
    facts = [
        [file.path, file.size, file.sha256, file.git_oid, file.version, file.take is not None]
        for file in files
    ]
    # The globs choose among these files, or among what is in them.
    text = json.dumps([request.uri, request.kind, request.files, listing.revision, facts])
    # Only a digest is kept, because a URI may hold a signature.
    return hashlib.sha256(text.encode()).hexdigest()
