"""Rows of varying length in flat files: written in bounded memory, opened without being read.

A folder a store, and in it a file a column:
    tokens    a value for each token of each row, the rows one after the other
    rows      a value for each row
    offsets   where each row's tokens begin, and where the last one's end
    manifest.json   dtypes, sizes and sha256 of the files, and what else is to be known (`facts`)
It is written beside, every file fsynced, and renamed last: what bears the name is whole, whenever
a process is killed. A column is mapped into memory, and the kernel reads what is looked at.
"""

import contextlib
import errno
import glob
import hashlib
import json
import mmap
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from peftjob.errors import PermanentError

Array = npt.NDArray[Any]

MANIFEST = "manifest.json"
OFFSETS = "offsets"
FORMAT = 1
BUFFER_BYTES = 1 << 20
"""Of each file, before it is written."""
FORGET_ROWS = 64
"""Rows looked at before the mapped pages are given up. What is mapped counts as the process's
memory although the kernel could take it back, and a look at a row maps some hundred KiB around it.
The pages stay in the kernel's cache: to map one again takes a microsecond."""


class DamagedError(Exception):
    """A store that is not there as a whole, or not as it was written; the text says what is."""


class Writer:
    """Appends rows to a new store, which is there once `finish` has returned.

    Use it in a `with` statement: without `finish`, what was written goes away.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokens: Mapping[str, npt.DTypeLike],
        rows: Mapping[str, npt.DTypeLike] | None = None,
    ) -> None:
        """Begin a store.

        Args:
            folder: of the whole store; one that is there by the end stays, and this one goes away.
            tokens: name → dtype of the columns with a value a token.
            rows: name → dtype of the columns with a value a row.

        Raises:
            PermanentError: the disk does not take it, also from `add` and `finish`.
        """
        self.folder = folder
        self._beside = folder.with_name(f"{_unfinished_prefix(folder)}{uuid.uuid4().hex}")
        self._tokens = {name: np.dtype(dtype) for name, dtype in tokens.items()}
        self._rows = {name: np.dtype(dtype) for name, dtype in (rows or {}).items()}
        self._end = 0
        self._count = 0
        self._files: dict[str, _File] = {}
        with _Disk(self):
            self._beside.mkdir(parents=True)
            for name in (*self._tokens, *self._rows, OFFSETS):
                self._files[name] = _File(self._beside / name)
            self._files[OFFSETS].write(np.zeros(1, np.int64))

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Written so far."""
        return sum(file.size for file in self._files.values())

    def add(self, lengths: npt.ArrayLike, /, **columns: npt.ArrayLike) -> None:
        """Append rows.

        Args:
            lengths: (rows,): tokens of each.
            columns: every column: (tokens of these rows,) or (rows,).
        """
        counts = np.asarray(lengths, np.int64)
        ends = self._end + np.cumsum(counts)
        total = int(counts.sum())
        if columns.keys() != {*self._tokens, *self._rows}:
            raise ValueError(f"columns are {[*self._tokens, *self._rows]}, not {list(columns)}")
        values = {}
        for name, column in columns.items():
            dtype, expected = (
                (self._tokens[name], total)
                if name in self._tokens
                else (self._rows[name], len(counts))
            )
            values[name] = np.asarray(column, dtype)
            if values[name].shape != (expected,):
                raise ValueError(f"{name} has the shape {values[name].shape}, not ({expected},)")
        with _Disk(self):
            for name, column in values.items():
                self._files[name].write(column)
            self._files[OFFSETS].write(ends)
        self._end += total
        self._count += len(counts)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Put the store in its place; `facts` are kept with it, as JSON."""
        with _Disk(self):
            manifest = {
                "format": FORMAT,
                "tokens": {name: dtype.str for name, dtype in self._tokens.items()},
                "rows": {name: dtype.str for name, dtype in self._rows.items()},
                "files": {name: file.finish() for name, file in self._files.items()},
                "facts": dict(facts or {}),
            }
            text = _File(self._beside / MANIFEST)
            text.write(np.frombuffer(json.dumps(manifest, indent=1).encode(), np.uint8))
            text.finish()
            _sync(self._beside)
            with _unless_there():
                self._beside.rename(self.folder)
            _sync(self.folder.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._beside, ignore_errors=True)


class Store:
    """Columns of rows, in files or in memory."""

    def __init__(
        self,
        offsets: npt.NDArray[np.int64],
        *,
        tokens: Mapping[str, Array],
        rows: Mapping[str, Array] | None = None,
        facts: Mapping[str, Any] | None = None,
        maps: tuple[mmap.mmap, ...] = (),
    ) -> None:
        """Of columns that are there; `maps` are those that they lie in."""
        self.offsets = offsets
        """(rows + 1,): where each row's tokens begin."""
        self.tokens = tokens
        self.rows = rows or {}
        """name → (rows,)"""
        self.facts = facts or {}
        self._maps = maps
        self._looks = 0

    @classmethod
    def of(
        cls, lengths: npt.ArrayLike, /, *, tokens: Mapping[str, Array], **rows: Array
    ) -> "Store":
        """In memory."""
        offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
        return cls(offsets, tokens=tokens, rows=rows)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Store":
        """Map the store that a Writer has made.

        Args:
            verify: read all of it once, to know that it is what was written. Else sizes must do.

        Raises:
            DamagedError: it is not whole.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            if manifest["format"] != FORMAT:
                raise DamagedError(f"format {manifest['format']} is not {FORMAT}")
            for name, expected in manifest["files"].items():
                _check(folder / name, expected, verify=verify)
            dtypes = {**manifest["tokens"], **manifest["rows"], OFFSETS: "<i8"}
            mapped = {name: _map(folder / name, dtype) for name, dtype in dtypes.items()}
        except FileNotFoundError as err:
            raise DamagedError(f"{Path(err.filename).name} is not there") from err
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise DamagedError(f"{type(err).__name__}: {err}") from err
        return cls(
            mapped[OFFSETS][0],
            tokens={name: mapped[name][0] for name in manifest["tokens"]},
            rows={name: mapped[name][0] for name in manifest["rows"]},
            facts=manifest["facts"],
            maps=tuple(held for _, held in mapped.values() if held is not None),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int, *names: str) -> tuple[Array, ...]:
        """A row's part of the named columns of tokens, as views."""
        self._looks += 1
        if self._looks % FORGET_ROWS == 0:
            self.forget()
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        return tuple(self.tokens[name][start:end] for name in names)

    def forget(self) -> None:
        """Give up the mapped pages; views stay good, and are read again when looked at."""
        for held in self._maps:
            held.madvise(mmap.MADV_DONTNEED)


def unfinished(folder: Path) -> list[Path]:
    """Folders in which this machine writes the store `folder`, or did until it was killed."""
    return list(folder.parent.glob(f"{glob.escape(_unfinished_prefix(folder))}*"))


def _unfinished_prefix(folder: Path) -> str:
    # Machines may share a volume whose locks are each machine's own.
    return f".unfinished-{folder.name}.{platform.node()}."


@contextlib.contextmanager
def _unless_there() -> Iterator[None]:
    """A folder is not renamed onto another: whoever was quicker may have it mapped already."""
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


class _Disk:
    """Around writing: what the disk refuses is one line, and nothing is left of it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            size = self._writer.size_bytes / 1e6
            self._writer.__exit__(None, None, None)
            raise PermanentError(
                f"the tokenised rows can't be kept in {self._writer.folder.parent}: "
                f"{(error.strerror or str(error)).lower()} after {size:.0f} MB; make room there, "
                "or raise the size of its volume"
            ) from error


class _File:
    """A file that is hashed on its way to the disk."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb", buffering=BUFFER_BYTES)
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, values: Array) -> None:
        data = np.ascontiguousarray(values).view(np.uint8).data
        self._sha256.update(data)
        self._file.write(data)
        self.size += len(data)

    def finish(self) -> dict[str, Any]:
        """What the manifest says of it, once it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"size": self.size, "sha256": self._sha256.hexdigest()}

    def close(self) -> None:
        # It writes what is left, on a disk that may have refused it already.
        with contextlib.suppress(OSError):
            self._file.close()


def _check(path: Path, expected: Mapping[str, Any], *, verify: bool) -> None:
    size = path.stat().st_size
    if size != expected["size"]:
        raise DamagedError(f"{path.name} has {size} bytes, not {expected['size']}")
    if not verify:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected["sha256"]:
        raise DamagedError(f"{path.name} has the sha256 {digest}, not {expected['sha256']}")


def _map(path: Path, dtype: str) -> tuple[Array, mmap.mmap | None]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, dtype), None  # Nothing can't be mapped.
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(held, dtype), held


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
