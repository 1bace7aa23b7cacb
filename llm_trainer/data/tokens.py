"""Rows that are tokens already: ids, and which of them are trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_trainer.data.examples import IGNORED
from llm_trainer.data.fields import FieldError, required, show

_LARGEST_ID = 2**31 - 1
_MASKS = ("completion_mask", "assistant_masks")


def tokens(row: Mapping[str, Any], vocab_size: int | None) -> tuple[list[int], list[bool]]:
    """The row's ids and marks, without padding.

    Without labels and masks every token is trained; with several of them, what all say is.

    Raises:
        FieldError: they are no tokens of the vocabulary, or don't fit each other.
    """
    highest = _LARGEST_ID if vocab_size is None else vocab_size - 1
    ids = _numbers(row, "input_ids")
    if not ids:
        raise FieldError("input_ids", "is empty")
    _check_range(ids, "input_ids", highest)
    attended = _mask(row, "attention_mask", len(ids))
    marks = [True] * len(ids)
    for column in _MASKS:
        marks = [a and b for a, b in zip(marks, _mask(row, column, len(ids)), strict=True)]
    if row.get("labels") is not None:
        marks = [a and b for a, b in zip(marks, _labelled(row, ids), strict=True)]
    start = attended.index(True) if True in attended else len(ids)
    stop = len(ids) - (attended[::-1].index(True) if True in attended else 0)
    if not all(attended[start:stop]):
        at = start + attended[start:].index(False)
        raise FieldError(
            f"attention_mask[{at}]", "is 0 between ones; only padding at either end can be left out"
        )
    if not any(marks[start:stop]):
        columns = [name for name in ("labels", "attention_mask", *_MASKS) if row.get(name)]
        raise FieldError(" and ".join(columns), "leave no token to train")
    return ids[start:stop], marks[start:stop]


def _numbers(row: Mapping[str, Any], column: str) -> list[int]:
    value = required(row, column)
    if not isinstance(value, list):
        raise FieldError(column, f"is {show(value)}, not a list of integers")
    for i, number in enumerate(value):
        # A boolean is an int to Python.
        if type(number) is not int:
            raise FieldError(f"{column}[{i}]", f"is {show(number)}, not an integer")
    return value


def _check_range(ids: Sequence[int], column: str, highest: int) -> None:
    if min(ids) < 0 or max(ids) > highest:
        at = next(i for i, token in enumerate(ids) if not 0 <= token <= highest)
        raise FieldError(
            f"{column}[{at}]", f"is {show(ids[at])}; the vocabulary has 0 to {highest}"
        )


def _labelled(row: Mapping[str, Any], ids: Sequence[int]) -> list[bool]:
    labels = _numbers(row, "labels")
    _same_length("labels", labels, len(ids))
    for i, (label, token) in enumerate(zip(labels, ids, strict=True)):
        if label not in (IGNORED, token):
            raise FieldError(
                f"labels[{i}]",
                f"is {show(label)}, neither {IGNORED} (not trained) nor the token there, "
                f"{token}; labels are not shifted",
            )
    return [label != IGNORED for label in labels]


def _mask(row: Mapping[str, Any], column: str, length: int) -> list[bool]:
    if row.get(column) is None:
        return [True] * length
    value = row[column]
    if not isinstance(value, list):
        raise FieldError(column, f"is {show(value)}, not a list of 0 and 1")
    _same_length(column, value, length)
    for i, mark in enumerate(value):
        if not isinstance(mark, int) or mark not in (0, 1):
            raise FieldError(f"{column}[{i}]", f"is {show(mark)}, neither 0 nor 1")
    return [bool(mark) for mark in value]


def _same_length(column: str, values: Sequence[Any], length: int) -> None:
    if len(values) != length:
        raise FieldError(column, f"has {len(values)} items, input_ids {length}")
