"""Parquet and Arrow files → rows, in memory that does not grow with the file."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
"""Read of a column at once; without it a row group would be in memory as a whole."""


@dataclass(frozen=True)
class Unreadable:
    """In the place of a row: a column of it that is damaged, or that Python has no value for."""

    column: str
    what: str


class DamagedTableError(Exception):
    """The file can't be read on; the text says why."""


def rows(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    """The rows of a .parquet or .arrow file.

    Raises:
        DamagedTableError: the file is damaged, or names a column twice.
        OSError: it can't be read.
    """
    try:
        yield from _rows(_parquet(path) if path.suffix.lower() == ".parquet" else _arrow(path))
    except OSError:
        raise
    except Exception as err:
        # pyarrow meets damage wherever it lies, with whatever exception is raised there.
        reason = " ".join(str(err).split())[:200]
        # A damaged file may ask for any amount of memory.
        raise DamagedTableError(reason or "it asks for more memory than there is") from err


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any] | Unreadable]:
    for batch in batches:
        names = batch.schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DamagedTableError(f"it names the column {twice[0]!r} twice")
        nested = [field.name for field in batch.schema if _has_struct(field.type)]
        for start in range(0, len(batch), BATCH_ROWS):
            for row in _plain(batch.slice(start, BATCH_ROWS)):
                if isinstance(row, dict):
                    row.update((name, _without_nulls(row[name])) for name in nested)
                yield row


def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow(path: Path) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as opened:
        # Not closed by hand: an array that is still about keeps the pages, the last one frees them.
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    source = pa.BufferReader(pa.py_buffer(pages))
    # `datasets` writes streams, others write files, with a magic number at the start.
    if pages[:6] == b"ARROW1":
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(source))
    for batch in batches:
        yield batch
        # What has been read counts as this process's memory until it is given back.
        pages.madvise(mmap.MADV_DONTNEED)


def _plain(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Unreadable]:
    try:
        # Arrow reads where a damaged file's offsets lead, into memory of others too.
        batch.validate(full=True)
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for i in range(len(batch)):
            yield _plain_row(batch.slice(i, 1))
    else:
        yield from rows


def _plain_row(batch: pa.RecordBatch) -> dict[str, Any] | Unreadable:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
            row[name] = column[0].as_py()
        except (ValueError, OverflowError) as err:
            reason = " ".join(str(err).split())
            what = "is not UTF-8" if "UTF8" in reason else f"can't be read: {reason}"
            return Unreadable(name, what)
    return row


def _has_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return True
    return any(_has_struct(kind.field(i).type) for i in range(kind.num_fields))


def _without_nulls(value: Any) -> Any:
    # A column gives every object the fields of all others, null where it has none itself.
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
