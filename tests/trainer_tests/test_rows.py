"""Files → rows: every format and shape, and a clear line for whatever can't be trained on."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trainer.data.files import select
from llm_trainer.data.rows import Completion, Conversation, Instruction, RowsError, Text, load
from peftjob.errors import DataError
from peftjob.spec import DatasetSource

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def load_one(path: Path) -> Any:
    (sample,) = load([path], path.parent)
    return sample


def problems_of(path: Path) -> list[str]:
    with pytest.raises(RowsError) as caught:
        load([path], path.parent)
    assert "\n" not in str(caught.value)
    return list(caught.value.details)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, Conversation((USER, ANSWER), "a.jsonl row 1")),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            Conversation((USER, ANSWER), "a.jsonl row 1"),
        ),
        ({"conversations": [USER, ANSWER]}, Conversation((USER, ANSWER), "a.jsonl row 1")),
        ({"prompt": "Hi ", "completion": "Hello"}, Completion("Hi ", "Hello", "a.jsonl row 1")),
        (
            {"prompt": [USER], "completion": [ANSWER]},
            Conversation((USER, ANSWER), "a.jsonl row 1", 1),
        ),
        ({"instruction": "Add", "output": "3"}, Instruction("Add", "3", "a.jsonl row 1")),
        (
            {"instruction": "Add", "input": "1, 2", "output": "3"},
            Instruction("Add\n\n1, 2", "3", "a.jsonl row 1"),
        ),
        ({"text": "Hello", "id": 7}, Text("Hello", "a.jsonl row 1")),
        (
            {"messages": [{**USER, "tool_calls": None}, ANSWER], "text": "x"},
            Conversation((USER, ANSWER), "a.jsonl row 1"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]},
            Conversation((USER, ANSWER), "a.jsonl row 1"),
        ),
    ],
)
def test_each_shape_is_found_by_its_columns(
    tmp_path: Path, row: dict[str, Any], expected: Any
) -> None:
    assert load_one(write(tmp_path / "a.jsonl", json.dumps(row))) == expected


def test_the_same_row_is_read_from_every_format(tmp_path: Path) -> None:
    rows = [{"prompt": "a, “b”\n", "completion": "c"}]
    write(tmp_path / "a.jsonl", json.dumps(rows[0]) + "\n\n")
    write(tmp_path / "b.json", json.dumps(rows, indent=1))
    write(tmp_path / "c.json", json.dumps({"data": rows}))
    write(tmp_path / "d.json", json.dumps(rows[0]) + "\n" + json.dumps(rows[0]))
    write(tmp_path / "e.csv", '\ufeffprompt,completion\n"a, “b”\n",c\n')
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "f.parquet")
    with (
        pa.OSFile(str(tmp_path / "g.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as w,
    ):
        w.write_table(table)
    with (
        pa.OSFile(str(tmp_path / "h.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as w,
    ):
        w.write_table(table)

    samples = load(sorted(tmp_path.iterdir()), tmp_path)

    assert [s.where for s in samples] == [
        *(f"{name} row 1" for name in ("a.jsonl", "b.json", "c.json", "d.json")),
        "d.json row 2",
        *(f"{name} row 1" for name in ("e.csv", "f.parquet", "g.arrow", "h.arrow")),
    ]
    assert {(s.prompt, s.completion) for s in samples if isinstance(s, Completion)} == {
        ("a, “b”\n", "c")
    }


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a list, not an object"),
        ('"x"', "is a string, not an object"),
        ("null", "is null, not an object"),
        ({"body": "x"}, "has the columns body"),
        ({"text": ""}, "text is empty"),
        ({"text": 3}, "text is 3, not a string"),
        ({"text": None}, "text is null, not a string"),
        ({"text": "\ud83d"}, "text has a lone surrogate"),
        ({"prompt": "x", "completion": "  "}, "completion is empty"),
        ({"instruction": "x", "output": ["y"]}, 'output is ["y"], not a string'),
        ({"instruction": "x", "input": 1, "output": "y"}, "input is 1, not a string"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages is 'hello', not a list of objects"),
        ({"messages": [USER, "x"]}, "messages[1] is 'x', not an object"),
        ({"messages": [USER]}, "no message of the role assistant"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role is 'bot'; valid are"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content is missing"),
        ({"messages": [USER, {**ANSWER, "content": ""}]}, "messages[1].content is empty"),
        ({"messages": [USER, {**ANSWER, "content": 5}]}, "messages[1].content is 5, not a string"),
        (
            {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]},
            "messages[0].content[0] is 'image'; only parts of type text",
        ),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "conversations[0].from is 'alien'"),
        (
            {"conversations": [{"from": "gpt", "value": None}]},
            "conversations[0].value is missing",
        ),
        ({"prompt": [USER], "completion": "x"}, "completion is 'x', not a list of objects"),
        ({"messages": [USER, ANSWER], "tools": "x"}, "tools is 'x', not a list of objects"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named_with_its_place(
    tmp_path: Path, row: Any, says: str
) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    (problem,) = problems_of(write(tmp_path / "a.jsonl", "\n" + text))
    assert problem.startswith("a.jsonl row 2")
    assert says in problem


def test_a_row_of_another_shape_than_the_first_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n{"prompt": "x", "completion": "y"}')
    assert problems_of(path) == ["a.jsonl row 2: text is missing"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "\xff"}', "is not UTF-8"),
        ("a.json", b'[{"text": "x"}', "is not JSON"),
        ("a.json", b"3", "is no list of objects"),
        ("a.json", b"[" * 100_000, "is nested too deeply"),
        ("a.csv", b"text,id\nx\n", "has 1 fields, the header 2"),
        ("a.csv", b"text,text\nx,y\n", "names the column 'text' twice"),
        ("a.csv", b'text\n"x', "can't be read: unexpected end of data"),
        ("a.parquet", b"PAR1nonsense", "can't be read"),
        ("a.arrow", b"ARROW1nonsense", "can't be read"),
        ("a.arrow", b"nonsense", "can't be read"),
    ],
)
def test_a_broken_file_is_a_line_and_no_traceback(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load([write(tmp_path / name, content)], tmp_path)
    assert name in str(caught.value)


def test_twenty_problems_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n' + '{"text": 1}\n' * 25)
    with pytest.raises(
        RowsError, match=r"25 of 26 rows can't be trained on: a\.jsonl row 2"
    ) as err:
        load([path], tmp_path)
    assert len(err.value.details) == 21
    assert err.value.details[-1] == "and 5 more"


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.json.* has no rows|is not JSON"):
        load([write(tmp_path / "a.json", content)], tmp_path)


class TestFiles:
    """Which files are trained on."""

    def names(self, root: Path, **source: Any) -> tuple[list[str], list[str]]:
        chosen = select(root, DatasetSource(source="file:///x", **source))
        return [p.name for p in chosen.train], [p.name for p in chosen.held_out]

    def make(self, root: Path, *names: str) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write(root / name, '{"text": "x"}')

    def test_all_data_files_but_the_held_out_are_trained_on(self, tmp_path: Path) -> None:
        self.make(tmp_path, "a.jsonl", "sub/b.json", "eval.jsonl", "README.md", ".x/c.json")
        assert self.names(tmp_path, eval_files=["eval*"]) == (["a.jsonl", "b.json"], ["eval.jsonl"])

    def test_globs_name_files_relative_to_the_folder(self, tmp_path: Path) -> None:
        self.make(tmp_path, "a/x.jsonl", "b/x.jsonl")
        assert self.names(tmp_path, files=["b/*.jsonl"]) == (["x.jsonl"], [])
        chosen = select(tmp_path, DatasetSource(source="file:///x", files=("b/*.jsonl",)))
        assert chosen.train == (tmp_path / "b/x.jsonl",)

    def test_a_glob_without_a_match_lists_what_is_there(self, tmp_path: Path) -> None:
        self.make(tmp_path, "a.jsonl")
        with pytest.raises(DataError, match=r"dataset.eval_files: 'b\*' matches no .* a\.jsonl"):
            self.names(tmp_path, eval_files=["b*"])

    def test_a_folder_without_data_lists_what_is_there(self, tmp_path: Path) -> None:
        write(tmp_path / "notes.txt", "x")
        with pytest.raises(DataError, match=r"holds notes.txt; what can be read are .*\.csv"):
            self.names(tmp_path)

    def test_a_split_takes_the_files_that_bear_its_name(self, tmp_path: Path) -> None:
        self.make(tmp_path, "data/train-0.jsonl", "data/test-0.jsonl")
        assert self.names(tmp_path, split="test") == (["test-0.jsonl"], [])

    def test_a_split_may_have_a_range(self, tmp_path: Path) -> None:
        self.make(tmp_path, "a.jsonl")
        chosen = select(tmp_path, DatasetSource(source="file:///x", split="train[10%:30]"))
        assert chosen.bounds(100) == slice(10, 30)

    def test_a_dataset_dict_trains_its_train_split_and_holds_out_its_other(
        self, tmp_path: Path
    ) -> None:
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_list([{"text": "x"}])
        DatasetDict({"test": rows, "train": rows}).save_to_disk(str(tmp_path / "d"))
        chosen = select(tmp_path / "d", DatasetSource(source="file:///x"))
        assert [p.parent.name for p in (*chosen.train, *chosen.held_out)] == ["train", "test"]
        assert isinstance(load(chosen.train, tmp_path)[0], Text)
