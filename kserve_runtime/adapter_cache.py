"""The folder that a server fetches adapters to: its own, and gone with it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from peftjob.errors import UsageError

PREFIX = ".peftjob-adapters-"
LOCK_FILE = "lock"
"""Locked while its server lives; a folder without one is nobody's to remove."""
ADAPTERS = "adapters"


@contextmanager
def adapter_cache(parent: Path | None) -> Iterator[Path]:
    """A new folder in `parent`, or where temporary files lie; removed afterwards.

    What servers that were killed have left in `parent` is removed before.

    Raises:
        UsageError: there can be none.
    """
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(parent)
        folder = Path(mkdtemp(prefix=PREFIX, dir=parent))
        (folder / ADAPTERS).mkdir()
        lock = _lock(folder)
    except OSError as err:
        where = "a temporary folder" if parent is None else f"--adapter_dir {parent}"
        raise UsageError(f"{where} can't be made: {err.strerror}") from err
    try:
        yield folder / ADAPTERS
    finally:
        _remove(folder)
        os.close(lock)


def _lock(folder: Path) -> int:
    """Mark the folder as this process's, for as long as it lives."""
    # Under its name there never is one that is not locked yet: another server would take it.
    new = folder / f"{LOCK_FILE}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT)
    with suppress(OSError):  # a file system without locks, where nobody can take it either
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / LOCK_FILE)
    return lock


def _remove_left_behind(parent: Path) -> None:
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), (left / LOCK_FILE).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / ADAPTERS, ignore_errors=True)
    # What is still being fetched at a server's end writes on until its process is gone. The lock
    # stays beside it then, for the next server to find.
    if not (folder / ADAPTERS).exists():
        shutil.rmtree(folder, ignore_errors=True)
