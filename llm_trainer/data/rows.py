"""Rows → what is trained on, or what is wrong with them, row by row, as a stream.

Six shapes, looked for in this order (a dataset may carry more columns than it needs):
    messages       [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]
    conversations  [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]
    prompt, completion         two strings, or two lists of messages
    instruction, output        two strings, and an optional input
    input_ids                  tokens, with optional labels and masks
    text                       one string
A shape with a column that `dataset.columns` names is looked for first. A file's first readable row
decides its shape; every row of the file must have it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llm_trainer.data.columns import Columns, check_names
from llm_trainer.data.fields import FieldError, required, string
from llm_trainer.data.messages import Message, messages, tools, with_assistant
from llm_trainer.data.read import Problem, Row, read
from llm_trainer.data.tokens import tokens
from peftjob.errors import DataError
from peftjob.spec import DatasetSource

SHOWN_PROBLEMS = 20
_T = TypeVar("_T")


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


@dataclass(frozen=True)
class Tokens:
    """Tokens that are taken as they are, whatever training.train_on says."""

    ids: list[int]
    trained: list[bool]
    where: str


Sample = Conversation | Completion | Instruction | Text | Tokens


class RowsError(DataError):
    """Rows that can't be trained on; `details` has a line each, of the first of them."""

    def __init__(self, problems: list[str], count: int, total: int) -> None:
        shown = problems[:SHOWN_PROBLEMS]
        rest = f", and {count - 1} more" if count > 1 else ""
        super().__init__(f"{count} of {total} rows can't be trained on: {problems[0]}{rest}")
        more = count - len(shown)
        self.details = tuple(shown) + ((f"and {more} more",) if more > 0 else ())


def samples(
    paths: Iterable[Path], root: Path, source: DatasetSource, *, vocab_size: int | None = None
) -> Iterator[Sample | Problem]:
    """What is in the files, in their order; a Problem in the place of each row that is wrong.

    Args:
        root: the dataset's folder; messages name files relative to it.
        vocab_size: that rows of tokens must fit; None looks at their signs only.

    Raises:
        DataError: no file has a row, or dataset.columns names what is not there.
    """
    check_names(source.columns, COLUMNS)
    names = [str(path.relative_to(root)) for path in paths]
    any_row = False
    for name in names:
        for item in _samples(root / name, name, source.columns, vocab_size):
            any_row = True
            yield item
    if not any_row:
        raise DataError(f"{', '.join(names)} has no rows" if names else "there are no files")


def without_problems(items: Iterable[_T | Problem]) -> Iterator[_T]:
    """The items, up to the first problem; from there on, problems are collected.

    Raises:
        RowsError: at the end, if there were any.
    """
    shown: list[str] = []
    count = total = 0
    for item in items:
        total += 1
        if isinstance(item, Problem):
            count += 1
            if len(shown) < SHOWN_PROBLEMS:
                shown.append(item.text)
        elif not count:
            yield item
    if count:
        raise RowsError(shown, count, total)


def _samples(
    path: Path, name: str, mapping: Mapping[str, str], vocab_size: int | None
) -> Iterator[Sample | Problem]:
    columns = Columns(mapping, name)
    make: _Make | None = None
    refused: dict[tuple[str, ...], str] = {}
    for number, row in read(path):
        where = f"{name} row {number}" if number else name
        if isinstance(row, Problem):
            yield replace(row, where=where)
            continue
        renamed = columns.rename(row)
        make = make or _shape(renamed, columns, vocab_size)
        if make is None:
            # The whole advice once for rows of the same columns.
            before = refused.setdefault(tuple(renamed), where)
            what = _unknown(renamed) if before == where else f"has the same columns as {before}"
            yield Problem(what, where=where)
            continue
        try:
            yield make(renamed, where)
        except FieldError as err:
            yield Problem(err.what, err.field, where)
        except RecursionError:
            yield Problem("is nested too deeply", where=where)
    columns.check()


_Make = Callable[[Row, str], Sample]


def _shape(row: Row, columns: Columns, vocab_size: int | None) -> _Make | None:
    # A mapping says which shape is meant where a row has the columns of several.
    ranked = sorted(_SHAPES, key=lambda shape: not set(shape).intersection(columns.mapping))
    for needed in ranked:
        columns.check(needed)
        if all(column in row for column in needed):
            make = _SHAPES[needed]
            return partial(_tokens, vocab_size=vocab_size) if make is None else make
    return None


def _unknown(row: Row) -> str:
    has = ", ".join(map(str, row))[:200] or "nothing"
    why = "from which no training text can be made"
    if "chosen" in row and "rejected" in row:
        why = "pairs of a preference, which this training does not take"
    return (
        f"has the columns {has}, {why}; the shapes that work are: messages (a list of role and "
        "content), conversations (a list of from and value), prompt and completion, instruction "
        "and output (and input), input_ids (and labels), text; name your columns in "
        "dataset.columns (data check: --columns), as in prompt=question"
    )


def _turns(row: Row, where: str, *, column: str) -> Sample:
    found = with_assistant(messages(row, column), column)
    return Conversation(found, where, tools=tools(row))


def _completion(row: Row, where: str) -> Sample:
    if isinstance(required(row, "prompt"), list) or isinstance(required(row, "completion"), list):
        prompt = messages(row, "prompt")
        completion = with_assistant(messages(row, "completion"), "completion")
        return Conversation(prompt + completion, where, len(prompt), tools(row))
    prompt_text = string(row, "prompt", may_be_empty=True)
    return Completion(prompt_text, string(row, "completion"), where)


def _instruction(row: Row, where: str) -> Sample:
    instruction = string(row, "instruction")
    context = string(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    both = f"{instruction}\n\n{context}" if context.strip() else instruction
    return Instruction(both, string(row, "output"), where)


def _tokens(row: Row, where: str, *, vocab_size: int | None) -> Sample:
    return Tokens(*tokens(row, vocab_size), where)


def _text(row: Row, where: str) -> Sample:
    return Text(string(row, "text"), where)


_SHAPES: dict[tuple[str, ...], _Make | None] = {
    ("messages",): partial(_turns, column="messages"),
    ("conversations",): partial(_turns, column="conversations"),
    ("prompt", "completion"): _completion,
    ("instruction", "output"): _instruction,
    ("input_ids",): None,  # The only one that the vocabulary concerns.
    ("text",): _text,
}
_OPTIONAL = ("tools", "input", "labels", "attention_mask", "completion_mask", "assistant_masks")
COLUMNS = (*(column for shape in _SHAPES for column in shape), *_OPTIONAL)
"""All that `dataset.columns` may name, on our side."""
