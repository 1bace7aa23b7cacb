"""The folder that a server fetches adapters to: its own, and gone with it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from peftjob.errors import UsageError

PREFIX = "adapters-"


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
        # What is still being fetched at the end writes on until the process is gone.
        temporary = TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True)
    except OSError as err:
        where = "a temporary folder" if parent is None else f"--adapter_dir {parent}"
        raise UsageError(f"{where} can't be made: {err.strerror}") from err
    with temporary as made, _held(Path(made)):
        yield Path(made)


def _remove_left_behind(parent: Path) -> None:
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), _held(left) as nobodys:
            if nobodys:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether no other process holds the folder; if so, this one does, for as long as it lives."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)
