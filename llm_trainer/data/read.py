"""A data file → its rows, each with its number, whatever its format.

A row that can't be read is yielded as a Problem in its place, so that all of a file's problems
come out together. JSON and CSV are read by hand, for the row's number in every message.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CSV_FIELD_LIMIT = 1 << 30
"""The csv module stops at 128 KiB a field, less than a long document."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, or with the file from that row on."""

    text: str


Row = dict[str, Any]


def read(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    """The rows of a file with their numbers, counted from 1 (lines in a .jsonl file)."""
    reader = _READERS[path.suffix]
    number = 0
    try:
        for number, row in reader(path):
            yield number, row
    except UnicodeDecodeError as err:
        yield (
            number + 1,
            Problem(f"is not UTF-8 (byte {err.start} is 0x{err.object[err.start]:02x})"),
        )
    except (csv.Error, pa.ArrowException) as err:
        yield number + 1, Problem(f"can't be read: {' '.join(str(err).split())[:200]}")
    except RecursionError:
        yield number + 1, Problem("is nested too deeply")


def _read_json(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    # Many .json files hold one object a line: then the first line is an object by itself.
    if first.lstrip().startswith("{") and isinstance(_parse(first), dict):
        with path.open(encoding="utf-8-sig") as file:
            rest = sum(1 for line in file if line.strip())
        if rest > 1 or not _list_field(_parse(first)):
            yield from _read_jsonl(path)
            return
    data = _parse(path.read_text(encoding="utf-8-sig"))
    if isinstance(data, dict):
        data = _list_field(data) or [data]
    if not isinstance(data, list):
        yield 1, data if isinstance(data, Problem) else Problem("is no list of objects")
        return
    yield from enumerate(map(_as_row, data), start=1)


def _list_field(data: Any) -> list[Any] | None:
    """The list in {"data": [{…}, …]}, where the object is no row itself."""
    if not isinstance(data, dict) or len(data) != 1:
        return None
    (name, value), *_ = data.items()
    is_row = name in ("messages", "conversations")
    rows = isinstance(value, list) and value and isinstance(value[0], dict)
    return value if rows and not is_row else None


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _as_row(_parse(line))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        at = f"line {err.lineno} column {err.colno}" if err.lineno > 1 else f"column {err.colno}"
        return Problem(f"is not JSON: {err.msg} at {at}")


def _as_row(value: Any) -> Row | Problem:
    if isinstance(value, dict | Problem):
        return value
    return Problem(f"is {_kind(value)}, not an object")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _read_csv(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            yield 1, Problem(f"names the column {twice!r} twice in its header")
            return
        for number, values in enumerate(reader, start=1):
            if not values:
                continue
            if len(values) == len(header):
                yield number, dict(zip(header, values, strict=True))
            else:
                yield number, Problem(f"has {len(values)} fields, the header {len(header)}")


def _read_parquet(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    number = 0
    with pq.ParquetFile(path, memory_map=True) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _read_arrow(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    number = 0
    with pa.memory_map(str(path)) as source:
        # `datasets` writes streams, others write files, with a magic number at the start.
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield number, row


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
