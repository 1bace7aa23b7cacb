"""Files → numbered rows: the same from every format, in memory that does not grow with the file."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trainer.data import json_stream
from llm_trainer.data.read import Problem, read

ROW = {"prompt": "a, “b”\n", "completion": "c"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]], *, stream: bool) -> Path:
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
    return path


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that `name` stands for."""
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name == "stream.arrow" or name == "file.arrow":
        return write_arrow(path, rows, stream=name == "stream.arrow")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    content = {
        "lines.jsonl": lines,
        "bom.jsonl": "\ufeff" + lines.replace("\n", "\r\n"),
        "lines.json": lines,
        "list.json": json.dumps(rows),
        "indented.json": json.dumps(rows, indent=2),
        "wrapped.json": json.dumps({"data": rows}),
        "indented-wrapped.json": json.dumps({"rows": rows}, indent=2),
        "objects.json": "".join(json.dumps(row, indent=1) for row in rows),
        "bom.csv": "\ufeffprompt,completion\r\n" + '"a, “b”\n",c\r\n' * len(rows),
        "plain.csv": "prompt,completion\n" + '"a, “b”\n",c\n' * len(rows),
        "UPPER.CSV": "prompt,completion\n" + '"a, “b”\n",c\n' * len(rows),
    }
    return write(path, content[name])


@pytest.mark.parametrize(
    "name",
    [
        *("lines.jsonl", "bom.jsonl", "lines.json", "list.json", "indented.json", "wrapped.json"),
        *("indented-wrapped.json", "objects.json", "bom.csv", "plain.csv", "UPPER.CSV"),
        *("a.parquet", "stream.arrow", "file.arrow"),
    ],
)
def test_every_format_gives_the_same_rows_with_their_numbers(tmp_path: Path, name: str) -> None:
    assert list(read(written(tmp_path, name, [ROW] * 3))) == [(1, ROW), (2, ROW), (3, ROW)]


def test_blank_lines_count_and_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\n{"text": "x"}\n  \n{"text": "y"}')
    assert [number for number, _ in read(path)] == [2, 4]


@pytest.mark.parametrize(
    "content",
    [
        '{"messages": [{"role": "user"}]}',
        '{"turns": [{"a": 1}], "id": 3}',
        '{"turns": [{"a": 1}]}\n{"turns": [{"a": 1}]}',
        '{"tags": ["x"]}',
        '{\n"text": "x"\n}',
    ],
)
def test_an_object_that_is_a_row_is_not_taken_for_a_list_of_rows(
    tmp_path: Path, content: str
) -> None:
    rows = [row for _, row in read(write(tmp_path / "a.json", content))]
    assert rows[0] == json.loads(content.split("\n{")[0] if "\n{" in content else content)


def test_one_bad_line_does_not_hide_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": \n{"text": "\xff"}\n{"text": "x"}\n[]\n')
    problems = {n: row.what for n, row in read(path) if isinstance(row, Problem)}
    assert [number for number, _ in read(path)] == [1, 2, 3, 4]
    assert problems[1] == "is not JSON: Expecting value at column 11"
    assert problems[2] == "is not UTF-8 (byte 10 of the line is 0xff)"
    assert problems[4] == "is a list, not an object"


def test_a_broken_list_gives_the_rows_before_and_the_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"text": "x"},\n{"text": "y" "z"}]')
    (one, row), (two, problem) = read(path)
    assert (one, row, two) == (1, {"text": "x"}, 2)
    assert isinstance(problem, Problem)
    assert problem.what.startswith("is not JSON: Expecting ',' delimiter at line 3 column 14;")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_a_list_is_read_alike_however_its_bytes_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    rows = [{"é": "🦙\n\\u00e9", "n": [-1.5e3, None, True]}, {}, {"x": "\ud83e\udd99"}] * 3
    path = write(tmp_path / "a.json", " \n" + json.dumps(rows) + "\n ")
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    assert [row for _, row in read(path)] == json.loads(path.read_text())


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_byte_that_is_not_utf8_ends_a_list_at_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    path = write(tmp_path / "a.json", b'[{"text": "x"},\n {"text": "y\xff"}]')
    (_, row), (number, problem) = read(path)
    assert (row, number) == ({"text": "x"}, 2)
    assert isinstance(problem, Problem)
    assert problem.what.startswith("is not UTF-8 (byte 0xff) at line 2 column 13")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_row_without_end_is_given_up_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("json_stream", "read"):
        monkeypatch.setattr(f"llm_trainer.data.{module}.VALUE_LIMIT", 3000)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 512)
    start = 'text\n"' if name == "a.csv" else '[{"text": "' if name == "a.json" else '{"text": "'
    (_, problem), *rest = read(write(tmp_path / name, start + "x" * 100_000))
    assert isinstance(problem, Problem)
    assert "longer than 3000" in problem.what
    assert not rest


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl", "a.parquet", "stream.arrow"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"text": os.urandom(5_000).hex()} for _ in range(8000)]
    path = written(tmp_path, name, rows)
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    tracemalloc.start()
    for _ in read(path):
        most = max(most, pool.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 80 MB of text, of which a chunk or a batch of 256 rows is there at a time.
    assert peak + most < 35e6


def test_every_field_that_other_rows_have_is_not_null_in_a_column(tmp_path: Path) -> None:
    rows = [{"c": {"a": 1, "d": [{"x": 1}]}}, {"c": {"b": 2, "d": [{"y": 1}]}}]
    path = written(tmp_path, "a.parquet", rows)
    assert [row for _, row in read(path)] == rows


def test_text_of_a_column_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    bad = pa.array([b"x", b"\xff", b"y"]).view(pa.binary()).cast(pa.binary())
    column = pa.StringArray.from_buffers(3, bad.buffers()[1], bad.buffers()[2])
    pq.write_table(pa.table({"id": [1, 2, 3], "text": column}), tmp_path / "a.parquet")
    rows = dict(read(tmp_path / "a.parquet"))
    assert rows[1] == {"id": 1, "text": "x"}
    assert rows[2] == Problem("is not UTF-8", "text")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"\x1f\x8b\x08\x00", "is compressed (gzip); unpack it first"),
        ("a.json", b"\x28\xb5\x2f\xfd\x00", "is compressed (zstd)"),
        ("a.csv", b"PK\x03\x04\x00", "is a zip archive or a workbook"),
        ("a.csv", b"\xff\xfet\x00e\x00", "is UTF-16; save it as UTF-8"),
        ("a.jsonl", b"PAR1\x00", "is a Parquet file; its name must end in .parquet"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.json", b"<!doctype HTML><html>", "is a web page, not data"),
        ("a.parquet", b'{"text": "x"}', "is no Parquet file: it begins with b'{\"te'"),
        ("a.parquet", b"PAR1nonsense", "can't be read: "),
        ("a.arrow", b"ARROW1nonsense", "can't be read: "),
        ("a.arrow", b"nonsense", "can't be read: "),
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"a,b,a\n1,2,3\n", "names the column 'a' twice in its header"),
    ],
)
def test_a_file_that_is_something_else_is_said_once(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    ((number, problem),) = read(write(tmp_path / name, content))
    assert isinstance(problem, Problem)
    assert (number, problem.what[: len(says)]) == (0, says)


@pytest.mark.parametrize("column", ["PAR1", "par1", "BZh", "sqlite format 3"])
def test_a_column_may_be_called_like_a_format(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "a.csv", f"{column},text\nx,y\n")
    assert list(read(path)) == [(1, {column: "x", "text": "y"})]


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        (b"text,id\nx\n", "", "has 1 fields, the header 2"),
        (b"text,id\nx,y,z\n", "", "has 3 fields, the header 2"),
        (b"text\nx\xe9\n", "text", "is not UTF-8 (byte 0xe9 at 1)"),
        (b"text\nx\0y\n", "text", "has a NUL byte at 1"),
        (b'text\n"x', "", "is not CSV: unexpected end of data"),
        (b'text\n"x"y\n', "", "is not CSV: ',' expected after '\"'"),
    ],
)
def test_a_bad_row_of_csv_is_numbered(
    tmp_path: Path, content: bytes, field: str, says: str
) -> None:
    ((number, problem),) = read(write(tmp_path / "a.csv", content))
    assert isinstance(problem, Problem)
    assert (number, problem.field) == (1, field)
    assert problem.what.startswith(says)


def test_a_file_that_is_cut_gives_the_rows_before(tmp_path: Path) -> None:
    path = written(tmp_path, "stream.arrow", [{"text": "x" * 100}] * 5000)
    path.write_bytes(path.read_bytes()[:-300_000])
    *_, (number, problem) = read(path)
    assert isinstance(problem, Problem)
    assert problem.what.startswith("can't be read: ")
    assert number <= 5000
