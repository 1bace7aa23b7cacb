"""Rows → what is trained on, or what is wrong with them, row by row.

Four shapes, looked for in this order (a dataset may carry more columns than it needs):
    messages       [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]
    conversations  [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]
    prompt, completion         two strings, or two lists of messages
    instruction, output        two strings, and an optional input
    text                       one string
A file's first readable row decides its shape; every row of the file must have it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_trainer.data.read import Problem, Row, read
from peftjob.errors import DataError

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHOWN_PROBLEMS = 20
_FROM = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the assistant's are trained."""

    messages: tuple[Message, ...]
    where: str
    trained_from: int = 0
    """Assistant turns before this index are given, not trained."""
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A prompt, and the text that is trained."""

    prompt: str
    completion: str
    where: str


@dataclass(frozen=True)
class Instruction:
    """An instruction and the answer that is trained: a chat where the model has a template."""

    instruction: str
    output: str
    where: str


@dataclass(frozen=True)
class Text:
    """Text that is trained whole."""

    text: str
    where: str


Sample = Conversation | Completion | Instruction | Text


class RowsError(DataError):
    """Rows that can't be trained on; `details` has a line each, of the first of them."""

    def __init__(self, problems: list[str], count: int, total: int) -> None:
        shown = problems[:SHOWN_PROBLEMS]
        rest = f", and {count - 1} more" if count > 1 else ""
        super().__init__(f"{count} of {total} rows can't be trained on: {problems[0]}{rest}")
        more = count - len(shown)
        self.details = tuple(shown) + ((f"and {more} more",) if more > 0 else ())


class _Wrong(Exception):  # noqa: N818 - a message on its way up, never shown as an error itself
    """What is wrong with a row: `field` and what."""


def load(paths: Iterable[Path], root: Path) -> list[Sample]:
    """All samples of the files.

    Raises:
        RowsError: with every row that can't be trained on.
        DataError: a file has no rows.
    """
    samples: list[Sample] = []
    problems: list[str] = []
    count = total = 0
    for path in paths:
        name = str(path.relative_to(root))
        before = total
        for sample in _samples(path, name):
            total += 1
            if isinstance(sample, Problem):
                count += 1
                if len(problems) < SHOWN_PROBLEMS:
                    problems.append(sample.text)
            else:
                samples.append(sample)
        if total == before:
            raise DataError(f"{name} has no rows")
    if count:
        raise RowsError(problems, count, total)
    return samples


def _samples(path: Path, name: str) -> Iterator[Sample | Problem]:
    make: Callable[[Row, str], Sample] | None = None
    for number, row in read(path):
        where = f"{name} row {number}"
        if isinstance(row, Problem):
            yield Problem(f"{where} {row.text}")
            continue
        try:
            make = make or _shape(row)
            yield make(row, where)
        except _Wrong as err:
            yield Problem(f"{where}: {err}")


def _shape(row: Row) -> Callable[[Row, str], Sample]:
    for columns, make in _SHAPES:
        if all(column in row for column in columns):
            return make
    has = ", ".join(map(str, row)) or "nothing"
    raise _Wrong(
        f"has the columns {has}, from which no training text can be made; the shapes that work "
        "are: messages (a list of role and content), conversations (a list of from and value), "
        "prompt and completion, instruction and output (and input), text"
    )


def _conversation(row: Row, where: str) -> Sample:
    messages = _messages(row, "messages")
    _needs_assistant(messages, "messages", 0)
    return Conversation(messages, where, tools=_tools(row))


def _shared_conversation(row: Row, where: str) -> Sample:
    turns = _objects(row, "conversations")
    messages = []
    for i, turn in enumerate(turns):
        if "role" in turn:  # Some name the column so and follow the other convention.
            return _conversation({**row, "messages": turns}, where)
        speaker = turn.get("from")
        if speaker not in _FROM:
            raise _Wrong(
                f"conversations[{i}].from is {_show(speaker)}; valid are {', '.join(_FROM)}"
            )
        messages.append({"role": _FROM[speaker], "content": turn.get("value")})
    checked = _messages({"conversations": messages}, "conversations", content="value")
    _needs_assistant(checked, "conversations", 0)
    return Conversation(checked, where, tools=_tools(row))


def _completion(row: Row, where: str) -> Sample:
    if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        prompt, completion = _messages(row, "prompt"), _messages(row, "completion")
        _needs_assistant(completion, "completion", 0)
        return Conversation(prompt + completion, where, len(prompt), _tools(row))
    prompt_text = _string(row, "prompt", may_be_empty=True)
    return Completion(prompt_text, _string(row, "completion"), where)


def _instruction(row: Row, where: str) -> Sample:
    instruction = _string(row, "instruction")
    context = _string(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    both = f"{instruction}\n\n{context}" if context.strip() else instruction
    return Instruction(both, _string(row, "output"), where)


def _text(row: Row, where: str) -> Sample:
    return Text(_string(row, "text"), where)


_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Row, str], Sample]], ...] = (
    (("messages",), _conversation),
    (("conversations",), _shared_conversation),
    (("prompt", "completion"), _completion),
    (("instruction", "output"), _instruction),
    (("text",), _text),
)


def _string(row: Row, column: str, *, may_be_empty: bool = False) -> str:
    value = row.get(column)
    if column not in row:
        raise _Wrong(f"{column} is missing")
    if not isinstance(value, str):
        raise _Wrong(f"{column} is {_show(value)}, not a string")
    if not may_be_empty and not value.strip():
        raise _Wrong(f"{column} is empty")
    return _encodable(value, column)


def _encodable(text: str, path: str) -> str:
    # JSON may carry half of a surrogate pair ("\ud83d"), which no tokenizer takes.
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise _Wrong(f"{path} has a lone surrogate, half of a character")
    return text


def _objects(row: Row, column: str) -> list[dict[str, Any]]:
    value = row.get(column)
    if column not in row:
        raise _Wrong(f"{column} is missing")
    if isinstance(value, str):  # A CSV file has no lists but as text.
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise _Wrong(f"{column} is {_show(value)}, not a list of objects") from None
    if not isinstance(value, list):
        raise _Wrong(f"{column} is {_show(value)}, not a list of objects")
    if not value:
        raise _Wrong(f"{column} is empty")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise _Wrong(f"{column}[{i}] is {_show(item)}, not an object")
    return value


def _messages(row: Row, column: str, *, content: str = "content") -> tuple[Message, ...]:
    return tuple(
        _message(item, f"{column}[{i}]", content) for i, item in enumerate(_objects(row, column))
    )


def _message(item: Mapping[str, Any], path: str, content: str) -> Message:
    # Parquet gives every message the union of all fields; templates take absent, not null.
    message = {key: value for key, value in item.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        raise _Wrong(f"{path}.role is {_show(role)}; valid are {', '.join(ROLES)}")
    text = message.get("content")
    if isinstance(text, list):
        text = _parts(text, f"{path}.{content}")
    if text is None and role == "assistant" and message.get("tool_calls"):
        return message
    if not isinstance(text, str):
        wrong = "missing" if text is None else f"{_show(text)}, not a string"
        raise _Wrong(f"{path}.{content} is {wrong}")
    if role == "assistant" and not text.strip() and not message.get("tool_calls"):
        raise _Wrong(f"{path}.{content} is empty")
    return {**message, "content": _encodable(text, f"{path}.{content}")}


def _parts(parts: list[Any], path: str) -> str:
    texts = []
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise _Wrong(f"{path}[{i}] is {_show(kind)}; only parts of type text can be trained")
        texts.append(part["text"])
    return "".join(texts)


def _needs_assistant(messages: tuple[Message, ...], column: str, start: int) -> None:
    if not any(message["role"] == "assistant" for message in messages[start:]):
        raise _Wrong(f"{column} has no message of the role assistant, so nothing to train")


def _tools(row: Row) -> tuple[Any, ...] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError:
            raise _Wrong(f"tools is {_show(tools)}, not a list of objects") from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise _Wrong(f"tools is {_show(tools)}, not a list of objects")
    return tuple(tools)


def _show(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "…" + text[0]
