"""Rows that can't be trained on, each with one thing wrong."""

from collections.abc import Iterator
from typing import Any

USER = {"role": "user", "content": "red?"}
ANSWER = {"role": "assistant", "content": "blue"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
DEEP = 100_000
"""Levels: far more than Python's own."""


def wrong_rows() -> Iterator[tuple[dict[str, Any], str]]:
    """The rows, and part of what is to be said of each."""
    yield from _wrong_columns()
    for message, says in _wrong_messages():
        yield {"messages": [USER, message]}, f"messages[1]{says}"
    for call, says in _wrong_calls():
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        yield {"messages": [USER, turn]}, f"messages[1].tool_calls[0]{says}"
    turn = {**ANSWER, "tool_calls": [{"name": "add", "arguments": "[" * DEEP}]}
    yield {"messages": [USER, turn]}, "is nested too deeply"
    yield from _wrong_tokens()


def _wrong_columns() -> Iterator[tuple[dict[str, Any], str]]:
    for column in ("text", "completion", "output", "instruction"):
        others = {"completion": {"prompt": "x"}, "output": {"instruction": "x"}}.get(column, {})
        others = {"output": "x"} if column == "instruction" else others
        for value, says in (
            (None, "is null, not a string"),
            ("", "is empty"),
            (" \n", "is empty"),
            (7, "is 7, not a string"),
            (1.5, "is 1.5, not a string"),
            (True, "is true, not a string"),
            ({"a": 1}, 'is {"a": 1}, not a string'),
            ("x\ud83d", "has a lone surrogate, half of a character, at 1"),
        ):
            yield {**others, column: value}, f"{column}: {says}"
        yield {**others, column: ["x"]}, "prompt: " if column == "completion" else f"{column}: "
    yield {"prompt": "x", "completion": [ANSWER]}, "prompt: is 'x', not a list of objects"
    yield {"prompt": [USER], "completion": [USER]}, "no message of the role assistant"
    yield {"prompt": None, "completion": "x"}, "prompt: is null, not a string"
    yield {"instruction": "x", "input": 3, "output": "y"}, "input: is 3, not a string"
    yield {"question": "x", "answer": "y"}, "has the columns question, answer, from which no"
    yield {"prompt": "x"}, "has the columns prompt, from which no training text can be made"
    yield {"prompt": "x", "chosen": "y", "rejected": "z"}, "pairs of a preference"
    yield {"": "x"}, "the shapes that work are: messages"
    yield {"Text": "x"}, "the shapes that work are"
    yield {"bad\nname\x1b[31m": "x"}, "bad\\nname\\x1b[31m"
    yield {"messages": [USER]}, "no message of the role assistant, so nothing to train"
    for column in ("messages", "conversations"):
        yield {column: None}, f"{column}: is null, not a list of objects"
        yield {column: []}, f"{column}: is empty"
        yield {column: "hello"}, f"{column}: is 'hello', not a list of objects"
        yield {column: "[" * 900 + "]" * 900}, f"{column}[0]: is "
        yield {column: "[" * DEEP}, "is nested too deeply"
        yield {column: {"role": "user"}}, "not a list of objects"
        yield {column: [3]}, f"{column}[0]: is 3, not an object"
        yield {column: [None]}, f"{column}[0]: is null, not an object"
        yield {column: [{}]}, f"{column}[0].role: is missing"
    yield (
        {"conversations": [{"from": "nobody", "value": "x"}]},
        "conversations[0].from: is 'nobody'",
    )
    yield {"conversations": [{"from": "human", "value": 3}]}, "conversations[0].value: is 3"
    yield {"conversations": [{"from": "gpt", "value": " "}]}, "conversations[0].value: is empty"
    for value, says in (
        (3, "tools: is 3, not a list of objects"),
        ([3], "tools[0]: is 3, not an object"),
        ("{", "tools: is '{', not a list of objects"),
        ([{"name": float("nan")}], "tools[0].name: is nan, which is no number in JSON"),
    ):
        yield {"messages": [USER, ANSWER], "tools": value}, says


def _wrong_messages() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"content": "x"}, ".role: is missing; valid are system, developer, user, assistant"
    yield {"role": "robot", "content": "x"}, ".role: is 'robot'; valid are"
    yield {"role": 3, "content": "x"}, ".role: is 3; valid are"
    yield {"role": ["user"], "content": "x"}, '.role: is ["user"]; valid are'
    yield {"role": "assistant"}, ".content: is missing"
    yield {"role": "assistant", "content": ""}, ".content: is empty"
    yield {"role": "assistant", "content": 7}, ".content: is 7, not a string"
    yield {"role": "assistant", "content": {"text": "x"}}, '.content: is {"text": "x"}'
    yield {"role": "assistant", "content": [{"type": "image"}]}, ".content[0]: is 'image'; only"
    yield {"role": "assistant", "content": "\udc00"}, ".content: has a lone surrogate"
    yield {"role": "user", "content": "x", "tool_calls": [CALL]}, ".tool_calls: is not for the role"
    yield {**ANSWER, "score": float("inf")}, ".score: is inf, which is no number in JSON"
    yield {**ANSWER, "tool_calls": 3}, ".tool_calls: is 3, not a list of objects"
    yield {**ANSWER, "tool_calls": ["x"]}, ".tool_calls[0]: is 'x', not an object"


def _wrong_calls() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"function": 3}, ".function: is 3, not an object"
    yield {"function": {"arguments": "{}"}}, ".function.name: is missing"
    yield {"function": {"name": " "}}, ".function.name: is ' ', not a function's name"
    yield {"function": {"name": 3}}, ".function.name: is 3, not a function's name"
    yield {"function": {"name": "add", "arguments": "{"}}, ".function.arguments: is '{', not an obj"
    yield {"function": {"name": "add", "arguments": [1]}}, ".function.arguments: is [1], not an obj"
    yield {"name": "add", "arguments": {"a": float("nan")}}, ".arguments.a: is nan"


def _wrong_tokens() -> Iterator[tuple[dict[str, Any], str]]:
    for ids, says in (
        ([], ": is empty"),
        (None, ": is null, not a list of integers"),
        ("1 2", ": is '1 2', not a list of integers"),
        ([1, "2"], "[1]: is '2', not an integer"),
        ([1, None], "[1]: is null, not an integer"),
        ([1.0], "[0]: is 1.0, not an integer"),
        ([True], "[0]: is true, not an integer"),
        ([[1]], "[0]: is [1], not an integer"),
        ([1, -1], "[1]: is -1; the vocabulary has 0 to"),
        ([2**31], "[0]: is 2147483648; the vocabulary has 0 to"),
        ([2**70], "[0]: is 1180591620717411303424; the vocabulary has"),
    ):
        yield {"input_ids": ids}, f"input_ids{says}"
    for column, value, says in (
        ("labels", [5], "labels: has 1 items, input_ids 2"),
        ("labels", [5, 7], "labels[1]: is 7, neither -100 (not trained) nor the token there"),
        ("labels", [-100, -100], "labels: leave no token to train"),
        ("labels", "5 6", "labels: is '5 6', not a list of integers"),
        ("attention_mask", [1], "attention_mask: has 1 items, input_ids 2"),
        ("attention_mask", [1, 2], "attention_mask[1]: is 2, neither 0 nor 1"),
        ("attention_mask", [0, 0], "attention_mask: leave no token to train"),
        ("completion_mask", 1, "completion_mask: is 1, not a list of 0 and 1"),
        ("assistant_masks", [0, None], "assistant_masks[1]: is null, neither 0 nor 1"),
    ):
        yield {"input_ids": [5, 6], column: value}, says
    masked = {"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}
    yield masked, "attention_mask[1]: is 0 between ones"
