"""Rows → what is trained on: every shape, and a clear line for whatever can't be trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.data.read import Problem
from llm_trainer.data.rows import (
    Completion,
    Conversation,
    Instruction,
    RowsError,
    Sample,
    Text,
    Tokens,
    samples,
)
from peftjob.errors import DataError
from peftjob.spec import DatasetSource

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def stream(path: Path, *, vocab_size: int | None = None, **columns: str) -> list[Sample | Problem]:
    source = DatasetSource(source="file:///x", columns=columns)
    return list(samples([path], path.parent, source, vocab_size=vocab_size))


def of_row(folder: Path, row: Any, **options: Any) -> Any:
    text = row if isinstance(row, str) else json.dumps(row)
    (sample,) = stream(write(folder / "a.jsonl", text), **options)
    return sample


def write(path: Path, text: str) -> Path:
    path.write_text(text)
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
    assert of_row(tmp_path, row) == expected


def test_a_list_may_be_text_as_in_csv(tmp_path: Path) -> None:
    row = {"messages": json.dumps([USER, ANSWER]), "tools": ""}
    assert of_row(tmp_path, row) == Conversation((USER, ANSWER), "a.jsonl row 1")


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"function": {"name": "add", "arguments": '{"a": 1}'}},
        {"name": "add", "arguments": {"a": 1}},
        {"type": None, "function": {"name": "add", "arguments": '{"a": 1}'}},
    ],
)
def test_a_tool_call_has_one_form_however_it_is_written(
    tmp_path: Path, call: dict[str, Any]
) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    sample = of_row(tmp_path, {"messages": [USER, turn], "tools": tools})
    assert sample.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert sample.tools == tuple(tools)


def test_a_tool_call_may_have_no_arguments(tmp_path: Path) -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "now"}}]}
    sample = of_row(tmp_path, {"messages": [USER, turn]})
    assert sample.messages[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


@pytest.mark.parametrize(
    ("row", "marks"),
    [
        ({"input_ids": [5, 6, 7]}, [True, True, True]),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, [False, True, True]),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1]}, [False, False, True]),
        ({"input_ids": [5, 6, 7], "assistant_masks": [0, 1, 0]}, [False, True, False]),
        (
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "completion_mask": [1, 1, 0]},
            [False, True, False],
        ),
        (
            {"input_ids": [0, 5, 6, 7, 0], "attention_mask": [0, 1, 1, 1, 0], "labels": None},
            [True, True, True],
        ),
    ],
)
def test_tokens_are_taken_as_they_are_without_padding(
    tmp_path: Path, row: dict[str, Any], marks: list[bool]
) -> None:
    assert of_row(tmp_path, row, vocab_size=8) == Tokens([5, 6, 7], marks, "a.jsonl row 1")


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        (
            {"prompt": "question", "completion": "answer"},
            {"question": "Hi ", "answer": "Hello", "text": "other"},
            Completion("Hi ", "Hello", "a.jsonl row 1"),
        ),
        (
            {"prompt": "completion", "completion": "prompt"},
            {"prompt": "Hello", "completion": "Hi"},
            Completion("Hi", "Hello", "a.jsonl row 1"),
        ),
        (
            {"instruction": "q", "input": "ctx", "output": "a"},
            {"q": "Add", "ctx": "1, 2", "a": "3"},
            Instruction("Add\n\n1, 2", "3", "a.jsonl row 1"),
        ),
        ({"text": "body"}, {"messages": [], "body": "x"}, Text("x", "a.jsonl row 1")),
        (
            {"messages": "chat"},
            {"chat": [USER, ANSWER]},
            Conversation((USER, ANSWER), "a.jsonl row 1"),
        ),
        ({"input_ids": "ids"}, {"ids": [1]}, Tokens([1], [True], "a.jsonl row 1")),
    ],
)
def test_columns_are_renamed_to_ours(
    tmp_path: Path, columns: dict[str, str], row: dict[str, Any], expected: Any
) -> None:
    assert of_row(tmp_path, row, **columns) == expected


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"prompt": "qestion", "completion": "answer"},
            "prompt is mapped to 'qestion', but a.jsonl has no such column; did you mean question? "
            "there are question, answer",
        ),
        (
            {"promt": "question"},
            "'promt' is no column of ours (write ours: yours); did you mean prompt?",
        ),
    ],
)
def test_a_mapping_of_what_is_not_there_is_one_error_with_near_names(
    tmp_path: Path, columns: dict[str, str], says: str
) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "x", "answer": "y"}\n' * 3)
    with pytest.raises(DataError) as caught:
        stream(path, **columns)
    assert str(caught.value).startswith(f"dataset.columns: {says}")


def test_an_optional_column_may_be_missing_in_some_rows_but_not_in_all(tmp_path: Path) -> None:
    columns = {"instruction": "q", "output": "a", "input": "ctx"}
    one, other = '{"q": "x", "a": "y"}\n', '{"q": "x", "a": "y", "ctx": "z"}\n'
    assert len(stream(write(tmp_path / "a.jsonl", one + other), **columns)) == 2
    with pytest.raises(DataError, match=r"input is mapped to 'ctx', but b.jsonl has no such"):
        stream(write(tmp_path / "b.jsonl", one + one), **columns)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", ": is not JSON"),
        ("[1]", ": is a list, not an object"),
        ('"x"', ": is a string, not an object"),
        ("null", ": is null, not an object"),
        ({"body": "x"}, ": has the columns body, from which no training text"),
        ({"chosen": "x", "rejected": "y"}, ": has the columns chosen, rejected, pairs of a pref"),
        ({"text": ""}, ": text: is empty"),
        ({"text": 3}, ": text: is 3, not a string"),
        ({"text": None}, ": text: is null, not a string"),
        ('{"text": NaN}', ": text: is NaN, not a string"),
        ({"text": "\ud83d"}, ": text: has a lone surrogate, half of a character, at 0"),
        ({"prompt": "x", "completion": "  "}, ": completion: is empty"),
        ({"prompt": "x"}, ": has the columns prompt, from which no training text"),
        ({"instruction": "x", "output": ["y"]}, ': output: is ["y"], not a string'),
        ({"instruction": "x", "input": 1, "output": "y"}, ": input: is 1, not a string"),
        ({"messages": []}, ": messages: is empty"),
        ({"messages": "hello"}, ": messages: is 'hello', not a list of objects"),
        ({"messages": [USER, "x"]}, ": messages[1]: is 'x', not an object"),
        ({"messages": [USER]}, ": messages: has no message of the role assistant"),
        ({"messages": [{"role": "bot"}]}, ": messages[0].role: is 'bot'; valid are system, dev"),
        ({"messages": [{"role": ["user"]}]}, ': messages[0].role: is ["user"]; valid are'),
        ({"messages": [{"content": "x"}]}, ": messages[0].role: is missing; valid are"),
        ({"messages": [USER, {"role": "assistant"}]}, ": messages[1].content: is missing"),
        ({"messages": [USER, {**ANSWER, "content": ""}]}, ": messages[1].content: is empty"),
        ({"messages": [USER, {**ANSWER, "content": 5}]}, ": messages[1].content: is 5, not a str"),
        (
            {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]},
            ": messages[0].content[0]: is 'image'; only parts of type text",
        ),
        (
            {"messages": [{**USER, "name": "\udc00"}, ANSWER]},
            ": messages[0].name: has a lone surrogate",
        ),
        (
            {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
            ": messages[0].tool_calls: is not for the role user",
        ),
        ({"conversations": [{"from": "alien"}]}, ": conversations[0].from: is 'alien'; valid are"),
        ({"conversations": [{"from": "gpt"}]}, ": conversations[0].value: is missing"),
        ({"prompt": [USER], "completion": "x"}, ": completion: is 'x', not a list of objects"),
        ({"messages": [USER, ANSWER], "tools": "x"}, ": tools: is 'x', not a list of objects"),
        ({"messages": [USER, ANSWER], "tools": [1]}, ": tools[0]: is 1, not an object"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named_with_its_place(
    tmp_path: Path, row: Any, says: str
) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    problem = of_row(tmp_path, "\n" + text)
    assert problem.text.startswith("a.jsonl row 2" + says)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("x", ": is 'x', not an object"),
        ({"function": "add"}, ".function: is 'add', not an object"),
        ({"function": {}}, ".function.name: is missing"),
        ({"name": 7}, ".name: is 7, not a function's name"),
        ({"name": "add", "arguments": "{a}"}, ".arguments: is '{a}', not an object"),
        ({"name": "add", "arguments": "[1]"}, ".arguments: is [1], not an object"),
        ({"name": "add", "arguments": '{"a": NaN}'}, ".arguments.a: is nan, which is no number"),
        ({"name": "add", "arguments": {"a": ["\ud800"]}}, ".arguments.a[0]: has a lone surrogate"),
    ],
)
def test_a_tool_call_that_no_template_could_print_is_named(
    tmp_path: Path, call: Any, says: str
) -> None:
    turn = {"role": "assistant", "tool_calls": [call]}
    problem = of_row(tmp_path, {"messages": [USER, turn]})
    assert problem.text.startswith(f"a.jsonl row 1: messages[1].tool_calls[0]{says}")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input_ids": []}, "input_ids: is empty"),
        ({"input_ids": "1 2"}, "input_ids: is '1 2', not a list of integers"),
        ({"input_ids": [1, 2.5]}, "input_ids[1]: is 2.5, not an integer"),
        ({"input_ids": [True]}, "input_ids[0]: is true, not an integer"),
        ({"input_ids": [1, 8]}, "input_ids[1]: is 8; the vocabulary has 0 to 7"),
        ({"input_ids": [-1]}, "input_ids[0]: is -1; the vocabulary has 0 to 7"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels: has 1 items, input_ids 2"),
        (
            {"input_ids": [1, 2], "labels": [2, 3]},
            "labels[0]: is 2, neither -100 (not trained) nor",
        ),
        ({"input_ids": [1], "labels": [-100]}, "labels: leave no token to train"),
        ({"input_ids": [1], "completion_mask": [2]}, "completion_mask[0]: is 2, neither 0 nor 1"),
        ({"input_ids": [1], "assistant_masks": 1}, "assistant_masks: is 1, not a list of 0 and 1"),
        ({"input_ids": [1], "attention_mask": [0]}, "attention_mask: leave no token to train"),
        (
            {"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]},
            "attention_mask[1]: is 0 between ones",
        ),
    ],
)
def test_tokens_that_do_not_fit_each_other_or_the_vocabulary_are_named(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    problem = of_row(tmp_path, row, vocab_size=8)
    assert problem.text.startswith(f"a.jsonl row 1: {says}")


def test_a_row_of_another_shape_than_the_first_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n{"prompt": "x", "completion": "y"}')
    assert stream(path)[1] == Problem("is missing", "text", "a.jsonl row 2")


def test_the_shapes_that_work_are_shown_once_for_rows_of_the_same_columns(tmp_path: Path) -> None:
    first, second = stream(write(tmp_path / "a.jsonl", '{"body": "x"}\n' * 2))
    assert isinstance(first, Problem)
    assert "the shapes that work are: messages" in first.text
    assert second == Problem("has the same columns as a.jsonl row 1", where="a.jsonl row 2")


def test_files_may_be_of_different_shapes_and_formats(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", '{"text": "x"}'),
        write(tmp_path / "b.csv", "prompt,completion\nx,y\n"),
    ]
    found = list(samples(paths, tmp_path, DatasetSource(source="file:///x")))
    assert found == [Text("x", "a.jsonl row 1"), Completion("x", "y", "b.csv row 1")]


def test_a_message_is_one_line_whatever_a_column_is_called(tmp_path: Path) -> None:
    problem = of_row(tmp_path, {"a\nb\u2028\ud800": 1})
    assert "a\\nb\\u2028\\ud800" in problem.text
    assert problem.text.isprintable()


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "\n\n"), ("a.json", "[]"), ("a.csv", "text\n")]
)
def test_files_without_rows_are_an_error(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=rf"{name} has no rows"):
        stream(write(tmp_path / name, content))


def test_a_file_without_rows_is_no_error_beside_one_with_rows(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.json", "[]"), write(tmp_path / "b.jsonl", '{"text": "x"}')]
    assert len(list(samples(paths, tmp_path, DatasetSource(source="file:///x")))) == 1


def test_twenty_problems_are_shown_and_all_are_counted() -> None:
    error = RowsError([f"a.jsonl row {i}: x" for i in range(2, 22)], 25, 26)
    assert str(error) == "25 of 26 rows can't be trained on: a.jsonl row 2: x, and 24 more"
    assert len(error.details) == 21
    assert error.details[-1] == "and 5 more"
