"""What a field of a row may be: text that a tokenizer takes, and values that JSON has."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_SHOWN_CHARACTERS = 40
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


class FieldError(Exception):
    """A field of a row is wrong. It becomes the row's Problem, and is never shown itself."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


def string(row: Mapping[str, Any], column: str, *, may_be_empty: bool = False) -> str:
    """The column's text.

    Raises:
        FieldError: there is none.
    """
    value = required(row, column)
    if not isinstance(value, str):
        raise FieldError(column, f"is {show(value)}, not a string")
    if not may_be_empty and not value.strip():
        raise FieldError(column, "is empty")
    return encodable(value, column)


def required(row: Mapping[str, Any], column: str) -> Any:
    """The column's value.

    Raises:
        FieldError: the row has no such column.
    """
    if column not in row:
        raise FieldError(column, "is missing")
    return row[column]


def encodable(text: str, field: str) -> str:
    """`text`, if it has an encoding: JSON may carry half of a surrogate pair, like "\\ud83d"."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise FieldError(
                field, f"has a lone surrogate, half of a character, at {err.start}"
            ) from None
    return text


def plain(value: Any, field: str) -> Any:
    """`value`, if a template can print it as JSON: no NaN, no lone surrogate, no bytes.

    Raises:
        FieldError: it holds something else; names where.
    """
    if isinstance(value, str):
        return encodable(value, field)
    if isinstance(value, dict):
        for key, item in value.items():
            plain(encodable(str(key), field), field)
            plain(item, f"{field}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            plain(item, f"{field}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(field, f"is {value}, which is no number in JSON")
    elif not isinstance(value, int | float | None):
        raise FieldError(field, f"is {show(value)}, which has no form in JSON")
    return value


def objects(value: Any, field: str) -> list[dict[str, Any]]:
    """`value` as a list of objects, or the one that its text holds: CSV has no lists.

    Raises:
        FieldError: it is none, or an empty one.
    """
    value = parsed(value, field, "a list of objects")
    if not isinstance(value, list):
        raise FieldError(field, f"is {show(value)}, not a list of objects")
    if not value:
        raise FieldError(field, "is empty")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise FieldError(f"{field}[{i}]", f"is {show(item)}, not an object")
    return value


def parsed(value: Any, field: str, expected: str) -> Any:
    """`value`, or what its text holds as JSON.

    Raises:
        FieldError: the text is not JSON; it says that `expected` is.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise FieldError(field, f"is {show(value)}, not {expected}") from None


def show(value: Any) -> str:
    """A value in a message, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[: _SHOWN_CHARACTERS - 3] + "…" + text[0]
    return text


def one_line(text: str) -> str:
    """`text` without what breaks a line, or can't be printed: names of columns hold anything."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
