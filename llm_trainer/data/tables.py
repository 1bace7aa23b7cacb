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
class NotText:
    """In the place of a row: a column of text that is not UTF-8."""

    column: str


def rows(path: Path) -> Iterator[dict[str, Any] | NotText]:
    """The rows of a .parquet or .arrow file.

    Raises:
        pyarrow.ArrowException: the file is damaged.
        OSError: it is, or can't be read.
    """
    batches = _parquet(path) if path.suffix.lower() == ".parquet" else _arrow(path)
    for batch in batches:
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


def _plain(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | NotText]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(len(batch)):
            yield _plain_row(batch.slice(i, 1))


def _plain_row(batch: pa.RecordBatch) -> dict[str, Any] | NotText:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except UnicodeDecodeError:
            return NotText(name)
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
