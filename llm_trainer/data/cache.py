"""Tokenised rows that are kept: found again by the digest of all that they depend on.

    <cache>/<digest>/       a store
    <cache>/<digest>.lock   held by the process that writes it, if several begin at once

What is found is verified, and made anew where it is not what was written.
"""

import fcntl
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_trainer.data.store import MANIFEST, DamagedError, Store, unfinished

log = logging.getLogger("llm_trainer")

LIBRARIES = ("tokenizers", "transformers", "jinja2")
"""Their versions are part of a digest: a token more or less is another training."""


def digest(**parts: Any) -> str:
    """Of what tokenised rows depend on, as plain data."""
    libraries = {name: version(name) for name in LIBRARIES}
    text = json.dumps({**parts, "libraries": libraries}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def of_files(
    paths: Sequence[Path], root: Path, known: Mapping[str, tuple[int, str]]
) -> list[tuple[str, str]]:
    """Name and sha256 of each file, in their order.

    Args:
        known: name → size and sha256, of files that need not be read again.
    """
    digests = []
    for path in paths:
        name = str(path.relative_to(root))
        size, sha256 = known.get(name, (-1, ""))
        if path.stat().st_size != size:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        digests.append((name, sha256))
    return digests


def manifest_digests(manifest: Path | None) -> dict[str, tuple[int, str]]:
    """Name → size and sha256 of the files, as the storage initializer has left them.

    Empty where there is no manifest, or none that can be read: the files are then.
    """
    try:
        data = json.loads(manifest.read_bytes()) if manifest is not None else {}
        return {
            record["path"]: (int(record["size"]), str(record["sha256"]))
            for record in data.get("files", ())
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def of_tokenizer(tokenizer: Any) -> str:
    """Of all that decides a tokenizer's tokens, however it was loaded."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    splits = bool(getattr(tokenizer, "split_special_tokens", False))
    parts: list[Any] = [type(tokenizer).__name__, special, splits]
    if tokenizer.is_fast:
        parts.append(tokenizer.backend_tokenizer.to_str())
    else:
        parts.append(sorted(tokenizer.get_vocab().items()))
        folder = Path(str(tokenizer.name_or_path))
        files = [folder / name for name in tokenizer.vocab_files_names.values()]
        parts.append(of_files([file for file in files if file.is_file()], folder, {}))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stored(cache_dir: Path | None, name: str, write: Callable[[Path], None]) -> Store:
    """The store called `name`, written if it is not there.

    Processes that ask at once wait for the one that writes. Where nothing can be kept, the files
    are removed as soon as they are mapped, and are gone with the process.

    Args:
        write: makes the store in the folder it is given.
    """
    if cache_dir is not None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            lock = (cache_dir / f"{name}.lock").open("w")
        except OSError as err:
            log.info("tokenised rows are not kept: %s: %s", cache_dir, err.strerror)
        else:
            with lock:
                return _kept(cache_dir / name, lock, write)
    with tempfile.TemporaryDirectory(prefix="llm-trainer-rows-") as folder:
        write(Path(folder) / name)
        return Store.open(Path(folder) / name, verify=False)


def _kept(folder: Path, lock: Any, write: Callable[[Path], None]) -> Store:
    while True:
        seen = _stamp(folder)
        try:
            # Before the lock: what has its name is whole, and many may verify it at once.
            return Store.open(folder)
        except DamagedError as err:
            if seen is not None:
                log.warning("the tokenised rows in %s are damaged (%s): made anew", folder, err)
        with _held(lock) as alone:
            if _stamp(folder) != seen:
                continue  # Another process has made it meanwhile.
            for left in unfinished(folder) if alone else ():
                shutil.rmtree(left, ignore_errors=True)
            # What is damaged; a whole one is never taken from under those who have mapped it.
            shutil.rmtree(folder, ignore_errors=True)
            write(folder)
            return Store.open(folder, verify=False)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What changes when a store is put in its place; None where there is none."""
    try:
        stat = (folder / MANIFEST).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


@contextmanager
def _held(lock: Any) -> Iterator[bool]:
    """The lock; the kernel gives it back when its holder dies."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        # Network volumes may have no locks. Two writers would each put a whole store in place;
        # the lock only spares them the work.
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
