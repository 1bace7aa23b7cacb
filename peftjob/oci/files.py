"""Files and folders that are whole or absent, also after a power cut or a kill.

What a killed process left half-written is removed by the next one that writes the same: whoever
works on a temporary holds a lock on it, which a kill releases.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".peftjob-part-"
"""How the names of temporaries begin, and nothing of the user's."""


@contextmanager
def written_beside(target: Path) -> Iterator[BinaryIO]:
    """A file that becomes `target` when the block ends well, and never exists otherwise."""
    _sweep(target, stat.S_IFREG)
    handle, name = _locked(lambda: tempfile.mkstemp(dir=target.parent, prefix=_prefix(target)))
    try:
        with open(handle, "wb") as file:
            yield file
            os.fchmod(handle, 0o644)
            file.flush()
            os.fsync(handle)
            os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A folder for what becomes `target`; it is removed in the end, with what is left in it."""
    _sweep(target, stat.S_IFDIR)

    def make() -> tuple[int, str]:
        name = tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target))
        return os.open(name, os.O_RDONLY), name

    handle, name = _locked(make)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in `folder` last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(make: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Make a temporary and lock it; again where another process swept it before it was locked."""
    while True:
        handle, name = make()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks: then nothing is swept either.
            return handle, name
        if os.path.lexists(name):
            return handle, name
        os.close(handle)


def _prefix(target: Path) -> str:
    return f"{TEMPORARY}{target.name}."


def _sweep(target: Path, kind: int) -> None:
    """Remove temporaries for `target` that nobody works on: of this kind, and of this user."""
    # As tempfile ends names; anything else there is the user's.
    ours = re.compile(re.escape(_prefix(target)) + "[a-z0-9_]{8}")
    for left in target.parent.iterdir():
        if not ours.fullmatch(left.name):
            continue
        try:
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            found = os.fstat(handle)
            if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid():
                continue
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            if kind == stat.S_IFDIR:
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        finally:
            os.close(handle)
