"""A data file → its rows, each with its number, whatever its format. A row in memory at a time.

A row that can't be read is yielded as a Problem in its place, so that all of a file's problems
come out together. JSON and CSV are read by hand, for the row's number in every message.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llm_trainer.data import tables
from llm_trainer.data.fields import one_line
from llm_trainer.data.json_stream import VALUE_LIMIT, BrokenJsonError, Values
from llm_trainer.data.signature import wrong_kind


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, or with the file from that row on."""

    what: str
    field: str = ""
    where: str = ""
    """File and row, as in "train.jsonl row 7"; empty where the reader of the rows knows."""

    @property
    def text(self) -> str:
        """The line to show: where: field: what is wrong."""
        return one_line(": ".join(part for part in (self.where, self.field, self.what) if part))


Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row | Problem]]

_BOM = b"\xef\xbb\xbf"
# {"data": [{ and the like, unless it is a row itself.
_LIST_IN_OBJECT = re.compile(
    r'\{\s*"(?!(?:messages|conversations|prompt|completion)")[^"\\]*"\s*:\s*\[(?=\s*\{)'
)
_LOOK_AHEAD = 256


def read(path: Path) -> Numbered:
    """The rows of a file with their numbers, counted from 1 (lines in a .jsonl file).

    A Problem with the number 0 concerns the file as a whole.
    """
    number = 0
    try:
        wrong = wrong_kind(path)
        if wrong is not None:
            yield 0, Problem(wrong)
            return
        for number, row in _READERS[path.suffix.lower()](path):
            yield number, row
    except BrokenJsonError as err:
        yield number + 1, Problem(f"{err}; the file was not read on")
    except csv.Error as err:
        yield number + 1, Problem(f"is not CSV: {err}; the file was not read on")
    except RecursionError:
        yield number + 1, Problem("is nested too deeply; the file was not read on")
    except (tables.DamagedTableError, OSError) as err:
        yield number and number + 1, Problem(f"can't be read: {' '.join(str(err).split())}")


def _read_jsonl(path: Path) -> Numbered:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                yield number, _as_row(_parse(line))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    line = file.readline(VALUE_LIMIT + 1).removeprefix(_BOM)
    while line:
        yield line
        if len(line) > VALUE_LIMIT and not line.endswith(b"\n"):
            return  # What follows is no line of its own.
        line = file.readline(VALUE_LIMIT + 1)


def _parse(line: bytes) -> Any:
    if len(line) > VALUE_LIMIT:
        return Problem(f"is longer than {VALUE_LIMIT} bytes, which no row is")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as err:
        return Problem(f"is not UTF-8 (byte {err.start} of the line is 0x{line[err.start]:02x})")
    except json.JSONDecodeError as err:
        if b"\0" in line:
            return Problem(f"is not JSON: byte {line.index(0)} of the line is NUL")
        return Problem(f"is not JSON: {err.msg} at column {err.pos + 1}")
    except ValueError as err:
        # A number of more digits than Python converts.
        return Problem(f"has a number that can't be read: {err}")
    except RecursionError:
        return Problem("is nested too deeply")


def _as_row(value: Any) -> Row | Problem:
    if isinstance(value, dict | Problem):
        return value
    return Problem(f"is {_kind(value)}, not an object")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _read_json(path: Path) -> Numbered:
    if _has_an_object_a_line(path):
        yield from _read_jsonl(path)
        return
    with path.open("rb") as file:
        values = Values(file)
        wrapped = _LIST_IN_OBJECT.match(values.peek(_LOOK_AHEAD))
        if wrapped:
            values.take(wrapped[0])
            rows = _elements(values, after="}")
        elif values.take("["):
            rows = _elements(values, after="")
        else:
            rows = _sequence(values)
        for number, value in enumerate(rows, start=1):
            yield number, _as_row(value)


def _has_an_object_a_line(path: Path) -> bool:
    """As many .json files do: the first line is a row by itself."""
    with path.open("rb") as file:
        # A list may be a line of any length.
        if not file.read(_LOOK_AHEAD).removeprefix(_BOM).lstrip().startswith(b"{"):
            return False
        file.seek(0)
        lines = (line for line in _lines(file) if line.strip())
        first = next(lines, b"")
        if not isinstance(value := _parse(first), dict):
            return False
        wraps = len(value) == 1 and _LIST_IN_OBJECT.match(first.decode().strip())
        return not wraps or next(lines, None) is not None


def _elements(values: Values, *, after: str) -> Iterator[Any]:
    """Of a list whose bracket has been read; `after` its end comes the file's."""
    if not values.take("]"):
        while True:
            yield values.value()
            if values.take("]"):
                break
            if not values.take(","):
                raise values.expected("',' or ']'")
    if not values.take(after):
        raise values.expected(f"{after!r}, for a list of rows has no other field beside it")
    if values.peek():
        raise values.expected("the end")


def _sequence(values: Values) -> Iterator[Any]:
    while values.peek():
        yield values.value()


def _read_csv(path: Path) -> Numbered:
    csv.field_size_limit(VALUE_LIMIT)  # A long document has more than the module's 128 KiB.
    # Bytes that are not UTF-8 become lone surrogates, which then tell their row and column.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_text_lines(file), strict=True)
        header = next(reader, [])
        for name in header:
            if (wrong := _wrong_text(name)) is not None:
                yield 0, Problem(f"{wrong} in its header")
                return
            if header.count(name) > 1:
                yield 0, Problem(f"names the column {name!r} twice in its header")
                return
        for number, values in enumerate(reader, start=1):
            if values:
                yield number, _csv_row(header, values)


def _text_lines(file: Any) -> Iterator[str]:
    while line := file.readline(VALUE_LIMIT + 1):
        if len(line) > VALUE_LIMIT:
            raise csv.Error(f"a line is longer than {VALUE_LIMIT} characters")
        yield line


def _csv_row(header: list[str], values: list[str]) -> Row | Problem:
    if len(values) != len(header):
        return Problem(
            f"has {len(values)} fields, the header {len(header)}; quote a field that has a comma"
        )
    for name, value in zip(header, values, strict=True):
        if (wrong := _wrong_text(value)) is not None:
            return Problem(wrong, name)
    return dict(zip(header, values, strict=True))


def _wrong_text(value: str) -> str | None:
    if "\0" in value:
        return f"has a NUL byte at {value.index(chr(0))}"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as err:
            return f"is not UTF-8 (byte 0x{ord(value[err.start]) & 0xFF:02x} at {err.start})"
    return None


def _read_table(path: Path) -> Numbered:
    for number, row in enumerate(tables.rows(path), start=1):
        yield number, row if isinstance(row, dict) else Problem(row.what, row.column)


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_table,
    ".arrow": _read_table,
}
