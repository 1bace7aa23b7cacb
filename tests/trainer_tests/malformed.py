"""Datasets that can't be trained on, and what is to be said of each: made, not collected.

A row that is wrong is written in every format that can hold it, for each has a reader of its own.
"""

import bz2
import csv
import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.trainer_tests.malformed_rows import DEEP, wrong_rows

GOOD = {"prompt": "red?", "completion": "blue"}


@dataclass(frozen=True)
class Case:
    """A dataset's folder."""

    name: str
    files: Mapping[str, bytes]
    says: str
    """Part of what is to be said."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Fields of DatasetSource."""


def cases() -> Iterator[Case]:
    """All of them; names are unique."""
    for number, (row, says) in enumerate(wrong_rows()):
        for suffix, write in WRITERS.items():
            # CSV has text only: numbers and lists in it are another matter.
            if suffix == "csv" and not all(isinstance(value, str) for value in row.values()):
                continue
            try:
                content = write([row])
            except (pa.ArrowException, UnicodeEncodeError, OverflowError):
                continue  # This format can't hold it.
            yield Case(f"row {number} {suffix}", {f"a.{suffix}": content}, says)
    for number, (name, content, says) in enumerate(wrong_bytes()):
        yield Case(f"bytes {number} {name}", {name: content}, says)
    for suffix, content in whole().items():
        for part in range(1, 8):
            at = len(content) * part // 8 + 1
            name = f"a.{suffix.split('-')[-1]}"
            yield Case(f"cut {suffix} {part}/8", {name: content[:at]}, name)
    yield from wrong_tables()
    yield from wrong_folders()


def wrong_bytes() -> Iterator[tuple[str, bytes, str]]:
    """Files that are not what their names say, or not quite."""
    lines = _jsonl([GOOD])
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"):
        yield name, b"", "is empty"
        yield name, gzip.compress(lines), "is compressed (gzip); unpack it first"
        yield name, b"\x28\xb5\x2f\xfd" + lines, "is compressed (zstd); unpack it first"
        yield name, _zip(lines), "is a zip archive or a workbook"
        yield name, b"<!DOCTYPE html><p>Log in", "is a web page, not data"
        yield name, b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"
    for name in ("a.jsonl", "a.json", "a.csv"):
        yield name, bz2.compress(lines), "is compressed (bzip2)"
        yield name, b"SQLite format 3\x00", "is an SQLite database"
        yield name, lines.decode().encode("utf-16"), "is UTF-16; save it as UTF-8"
        yield name, _parquet([GOOD]), "is a Parquet file; its name must end in .parquet"
        yield name, _arrow_file([GOOD]), "is an Arrow file; its name must end in .arrow"
        yield name, b"\n \n\n", "a."
        yield name, b"\xef\xbb\xbf", "a."
        yield name, b"\0" * 1000, "a."
        yield name, random.Random(name).randbytes(5000), "a."
    for name in ("a.jsonl", "a.json"):
        for content, says in (
            (b"null", "is null, not an object"),
            (b"3", "is a number, not an object"),
            (b'"text"', "is a string, not an object"),
            (b"true", "is a boolean, not an object"),
            (b"{", "is not JSON: Expecting property name"),
            (b'{"text"', "is not JSON: Expecting ':' delimiter"),
            (b'{"text": "x', "is not JSON: Unterminated string"),
            (b'{"text": "x"', "is not JSON: Expecting ',' delimiter"),
            (b"{'text': 'x'}", "is not JSON: Expecting property name"),
            (b'{"text": x}', "is not JSON: Expecting value"),
            (b'{"text": "x",}', "is not JSON: "),
            (b'{"text": "\\x"}', "is not JSON: Invalid \\escape"),
            (b'{"text": "\\ud8"}', "is not JSON: Invalid \\uXXXX escape"),
            (b'{"text": "a\tb"}', "is not JSON: Invalid control character"),
            (b'{"text": "a\0b"}', "is not JSON: "),
            (b'{"text": "\xe9"}', "is not UTF-8 (byte "),
            (b'{"text": "\xed\xa0\x80"}', "is not UTF-8 (byte "),
            (b'{"text": "\\ud800"}', "text: has a lone surrogate"),
            (b'{"text": "x", "text": 3}', "text: is 3, not a string"),
            (b'{"text": NaN}', "text: is NaN, not a string"),
            (b'{"text": 1e999}', "text: is Infinity, not a string"),
            (b'{"text": ' + b"9" * 5000 + b"}", "a number "),
            (b'{"text": ' + b"[" * DEEP, "is nested too deeply"),
            (b'{"text": ' + b'{"a":' * DEEP, "is nested too deeply"),
            (b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}", "text: is [[["),
            (lines + b"{", "a." + name[2:] + " row 2: is not JSON"),
            (lines * 3 + b"[]\n" + lines, " row 4: is a list, not an object"),
            (b'{"text": 3}\n' * 100, "100 of 100 rows can't be trained on"),
            (lines + b'{"text": "x"}\n', "row 2: prompt: is missing"),
        ):
            yield name, content, says
    for content, says in (
        (b"[]", "a.json has no rows"),
        (b"[", "is not JSON: Expecting value"),
        (b"[{}", "is not JSON: expected ',' or ']'"),
        (b"[{},]", "is not JSON: "),
        (b"[{}]x", "is not JSON: expected the end, not 'x'"),
        (b"[{}][{}]", "is not JSON: expected the end, not '['"),
        (b"[1, 2]", "row 1: is a number, not an object"),
        (b"[[" + b"[" * DEEP, "is nested too deeply"),
        (b'{"data": [{"text": "x"}], "n": 1}', "data"),
        (b'{"data": []}', "has the columns data"),
        (b'{"data": {"text": ["x", "y"]}}', "has the columns data"),
    ):
        yield "a.json", content, says
    for content, says in (
        (b"text", "a.csv has no rows"),
        (b"text\n", "a.csv has no rows"),
        (b"text,id\nx\n", "row 1: has 1 fields, the header 2"),
        (b"text,id\nx,1,2\n", "row 1: has 3 fields, the header 2"),
        (b"text;id\nx;1\n", "has the columns text;id, from which no"),
        (b"text\tid\nx\t1\n", "has the columns text\\tid, from which no"),
        (b'text\n"x', "row 1: is not CSV: unexpected end of data"),
        (b'text\n"x"y\n', "row 1: is not CSV: ',' expected after '\"'"),
        (b"text\nx\0y\n", "row 1: text: has a NUL byte at 1"),
        (b"te\0xt\nx\n", "in its header"),
        (b"text\nx\xff\n", "row 1: text: is not UTF-8 (byte 0xff at 1)"),
        (b"text,text\nx,y\n", "names the column 'text' twice in its header"),
        (b"1,2\n3,4\n", "has the columns 1, 2, from which no"),
        (b"messages\n\"[{'role': 'user'}]\"\n", "messages: is \"[{'role': 'user'}]\", not"),
        (b"text\n,\n", "row 1: has 2 fields, the header 1"),
        (b"text,id\n,1\n", "row 1: text: is empty"),
        (b"input_ids\n1 2 3\n", "input_ids: is '1 2 3', not a list of integers"),
        (b"text\rx\0\r", "has a NUL byte"),
    ):
        yield "a.csv", content, says
    for name, start in (("a.parquet", b"PAR1"), ("a.arrow", b"ARROW1\0\0")):
        yield name, lines, f"{name}: "
        yield name, start, f"{name}: can't be read: "
        yield name, start + b"\0" * 100 + start, f"{name}: can't be read: "
        yield name, start + random.Random(name).randbytes(5000), f"{name}: can't be read: "
        yield name, start + b"\xff" * 100, f"{name}: can't be read: "
    yield "a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(20), "a.arrow: can't be read: "
    yield "a.txt", lines, "no data files in "
    yield "a.jsonl.gz", gzip.compress(lines), "no data files in "
    yield "a.tsv", b"text\nx\n", "no data files in "
    yield "a\nb.txt", lines, "it holds a\\nb.txt; "
    yield "a\nb.jsonl", b"{", "a\\nb.jsonl row 1: is not JSON"
    yield ".hidden.jsonl", lines, "no data files in "


def whole() -> dict[str, bytes]:
    """Format → a file that is right, of rows that no cut ends well."""
    rows = [{"text": f"red {i} " + "x" * 300} for i in range(40)]
    return {
        "json": json.dumps(rows).encode(),
        "indented-json": json.dumps(rows, indent=1).encode(),
        "wrapped-json": json.dumps({"data": rows}).encode(),
        "csv": b"text\n" + b'"red, or ""blue""' + b"x" * 3000 + b'"\n',
        "jsonl": _jsonl([{"text": "x" * 3000}]),
        "parquet": _parquet(rows),
        "file-arrow": _arrow_file(rows),
        "stream-arrow": _arrow_stream(rows),
    }


def wrong_tables() -> Iterator[Case]:
    """Columns that Parquet and Arrow can hold, and Python or a training can't."""
    bad_text = pa.StringArray.from_buffers(
        2, pa.array([b"x", b"\xff"]).buffers()[1], pa.array([b"x", b"\xff"]).buffers()[2]
    )
    far = pa.array([2**62], pa.int64())
    for name, column, says in (
        ("binary", pa.array([b"x"]), "text: is 1 bytes, not a string"),
        ("null", pa.nulls(1), "text: is null, not a string"),
        ("not utf8", bad_text, "row 2: text: is not UTF-8"),
        ("late", far.cast(pa.timestamp("ms")), "a."),
        ("nanoseconds", far.cast(pa.timestamp("ns")), "a."),
        ("long", far.cast(pa.duration("s")), "a."),
        ("decimal", pa.array([1]).cast(pa.decimal128(30, 2)), "text: is "),
        ("map", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "text: is "),
    ):
        table = pa.table({"text": column})
        written = {"file.arrow": _ipc(table, pa.ipc.new_file)}
        written["stream.arrow"] = _ipc(table, pa.ipc.new_stream)
        written["parquet"] = _as_parquet(table)
        for suffix, content in written.items():
            yield Case(f"table {name} {suffix}", {f"a.{suffix.split('.')[-1]}": content}, says)
    right = struct.pack("<3i", 0, 4, 8)  # Where the texts of a column begin and end.
    for name, offsets in (("beyond", (0, 4, 2**28)), ("backwards", (8, 4, 0)), ("-1", (-1, 4, 8))):
        for suffix, write in (("file", _arrow_file), ("stream", _arrow_stream)):
            content = write([{"text": "red?"}, {"text": "blue"}])
            assert content.count(right) == 1
            content = content.replace(right, struct.pack("<3i", *offsets))
            yield Case(f"table {name} {suffix}", {"a.arrow": content}, "text: can't be read: ")
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    for suffix, content in (
        ("arrow", _ipc(twice, pa.ipc.new_stream)),
        ("parquet", _as_parquet(twice)),
    ):
        says = "names the column 'text' twice"
        yield Case(f"table twice {suffix}", {f"a.{suffix}": content}, says)
    for suffix in ("arrow", "parquet"):
        none = pa.table({"text": pa.array([], pa.string())})
        content = _as_parquet(none) if suffix == "parquet" else _ipc(none, pa.ipc.new_stream)
        yield Case(f"table without rows {suffix}", {f"a.{suffix}": content}, "has no rows")


def wrong_folders() -> Iterator[Case]:
    """Several files, what save_to_disk writes, and specs that do not fit."""
    lines = _jsonl([GOOD])
    two = {"a.jsonl": lines, "b.jsonl": b'{"text": 3}\n'}
    yield Case("second file", two, "b.jsonl row 1: text: is 3")
    yield Case("nothing at all", {}, "it holds nothing")
    yield Case("glob", {"a.jsonl": lines}, "matches no data file", {"files": ["b*"]})
    yield Case("split", {"a.jsonl": lines}, "no data file belongs to", {"split": "test"})
    yield Case("range", {"a.jsonl": lines}, "can't be read; write", {"split": "train[x]"})
    yield Case("empty range", {"a.jsonl": lines}, "leaves no row", {"split": "train[:0]"})
    yield Case("share", {"a.jsonl": lines}, "holds out 0", {"eval_fraction": 0.1})
    yield Case("ours", {"a.jsonl": lines}, "no column of ours", {"columns": {"promt": "prompt"}})
    yield Case("theirs", {"a.jsonl": lines}, "no such column", {"columns": {"text": "body"}})
    held_out = {"a.jsonl": lines, "eval.jsonl": b"{"}
    yield Case("held out", held_out, "eval.jsonl row 1: is not JSON", {"eval_files": ["eval*"]})
    arrow, state = _arrow_stream([GOOD]), {"_data_files": [{"filename": "d.arrow"}]}
    for name, text in (
        ("no JSON", "{"),
        ("empty", ""),
        ("list", "[]"),
        ("number", "3"),
        ("nothing named", "{}"),
        ("number named", '{"_data_files": 3}'),
        ("name missing", '{"_data_files": [{}]}'),
        ("null", '{"_data_files": [null]}'),
        ("elsewhere", '{"_data_files": [{"filename": "../d.arrow"}]}'),
        ("absolute", '{"_data_files": [{"filename": "/etc/passwd"}]}'),
        ("NUL", '{"_data_files": [{"filename": "d\\u0000.arrow"}]}'),
        ("not there", '{"_data_files": [{"filename": "e.arrow"}]}'),
        ("surrogate", '{"_data_files": [{"filename": "\\ud800"}]}'),
        ("long", json.dumps({"_data_files": [{"filename": "x" * 5000}]})),
        ("deep", "[" * DEEP),
        ("not UTF-8", "\xff"),
    ):
        files = {"d.arrow": arrow, "state.json": text.encode("latin-1")}
        no_file = name in ("NUL", "not there", "surrogate", "long")
        says = "is no complete save_to_disk folder: '" if no_file else "state.json"
        yield Case(f"state {name}", files, says)
        inner = {f"train/{file}": content for file, content in files.items()}
        inner["dataset_dict.json"] = b'{"splits": ["train"]}'
        yield Case(f"state of a split {name}", inner, says)
    for name, text, says in (
        ("no JSON", "{", "dataset_dict.json can't be read: Expecting"),
        ("nothing named", "{}", "dataset_dict.json can't be read: it has no splits"),
        ("none", '{"splits": []}', "there is no 'train'; there are none at all"),
        ("number", '{"splits": [3]}', "splits: 3 is no name of a folder"),
        ("elsewhere", '{"splits": ["../x"]}', "splits: '../x' is no name of a folder"),
        ("not there", '{"splits": ["train"]}', "the split 'train' has no state.json"),
        ("surrogate", '{"splits": ["\\ud800"]}', "has no state.json"),
        ("NUL", '{"splits": ["\\u0000"]}', "has no state.json"),
        ("long", json.dumps({"splits": ["x" * 5000]}), "has no state.json"),
        ("deep", '{"splits": ' + "[" * DEEP, "dataset_dict.json can't be read: "),
    ):
        files = {"dataset_dict.json": text.encode(), "d/d.arrow": arrow}
        yield Case(f"splits {name}", files, says)
    damaged = {"d.arrow": arrow[:-60], "state.json": json.dumps(state).encode()}
    yield Case("saved and cut", damaged, "d.arrow: can't be read: ")


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    return file.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    return _as_parquet(pa.Table.from_pylist(rows))


def _as_parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _arrow_file(rows: list[dict[str, Any]]) -> bytes:
    return _ipc(pa.Table.from_pylist(rows), pa.ipc.new_file)


def _arrow_stream(rows: list[dict[str, Any]]) -> bytes:
    return _ipc(pa.Table.from_pylist(rows), pa.ipc.new_stream)


def _ipc(table: pa.Table, new: Callable[..., Any]) -> bytes:
    file = io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", content)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": _jsonl,
    "json": lambda rows: json.dumps(rows).encode(),
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow_stream,
}
