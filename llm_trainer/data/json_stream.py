"""JSON larger than memory: the values of a stream one by one, each as whole as Python reads it."""

import codecs
import json
import re
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
VALUE_LIMIT = 64 << 20
"""Characters that one row may have. A longer one is no row but a damaged file."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODE = json.JSONDecoder().raw_decode
_LONGEST_WORD = 16
"""At least that of a literal or an escape, which may be cut in two by the end of the buffer."""


class BrokenJsonError(Exception):
    """No value can be read at this place; the text says why, and where in the file."""


class Values:
    """A file's JSON values, read where the caller says that one begins."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._damage = ""
        """Why nothing more can be decoded, to be said when all before it has been read."""
        self._lines = 1
        """Of the first character of the buffer, counted from 1."""
        self._columns = 0
        """Characters of that line before the buffer."""

    def peek(self, count: int = 1) -> str:
        """The next characters that are not blank, fewer at the file's end; they stay unread."""
        while True:
            blank = _SPACE.match(self._buffer, self._at)
            start = self._at = blank.end() if blank else self._at
            if len(self._buffer) - start >= count or not self._refill(start):
                break
        return self._buffer[self._at : self._at + count]

    def take(self, text: str) -> bool:
        """Go past `text` where it is what comes next."""
        found = self.peek(len(text)) == text
        if found:
            self._at += len(text)
        return found

    def value(self) -> Any:
        """Go past the value that comes next.

        Raises:
            BrokenJsonError: none does, or it is longer than VALUE_LIMIT.
            RecursionError: it is nested too deeply.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODE(self._buffer, self._at)
            except json.JSONDecodeError as err:
                if not (self._may_be_cut(err) and self._refill(self._at, at_least_double=True)):
                    raise self._broken(err) from None
            except ValueError as err:
                # A number of more digits than Python converts.
                raise BrokenJsonError(f"holds a number too long to read: {err}") from None
            else:
                if end < len(self._buffer) or not self._refill(self._at):
                    self._at = end
                    return value

    def expected(self, what: str) -> BrokenJsonError:
        """That something else comes next."""
        found = self.peek()
        return self._error(f"expected {what}, not {found!r}" if found else f"expected {what}")

    def _may_be_cut(self, err: json.JSONDecodeError) -> bool:
        """Whether more of the file could mend it: only its end can be wrong then."""
        near = err.pos >= len(self._buffer) - _LONGEST_WORD
        return near or err.msg.startswith("Unterminated string")

    def _refill(self, start: int, *, at_least_double: bool = False) -> bool:
        """Forget what lies before `start` and read on; whether there was more."""
        if self._ended or len(self._buffer) - start > VALUE_LIMIT:
            return False
        size = max(CHUNK_BYTES, len(self._buffer) - start if at_least_double else 0)
        data = self._file.read(size)
        self._ended = not data
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as err:
            more = err.object[: err.start].decode()
            byte = err.object[err.start]
            self._ended = True
            self._damage = f"is not UTF-8 (byte 0x{byte:02x})"
        self._forget(start)
        self._buffer += more
        return bool(more) or not self._ended

    def _forget(self, start: int) -> None:
        lines = self._buffer.count("\n", 0, start)
        if lines:
            self._lines += lines
            self._columns = start - self._buffer.rfind("\n", 0, start) - 1
        else:
            self._columns += start
        self._buffer = self._buffer[start:]
        self._at -= start

    def _broken(self, err: json.JSONDecodeError) -> BrokenJsonError:
        if len(self._buffer) - self._at > VALUE_LIMIT:
            return BrokenJsonError(
                f"is longer than {VALUE_LIMIT} characters: no row is, so the file is damaged"
            )
        at_end = err.pos >= len(self._buffer) - _LONGEST_WORD or "Unterminated" in err.msg
        if self._damage and at_end:
            return BrokenJsonError(f"{self._damage} at {self._place(len(self._buffer))}")
        return self._error(err.msg, err.pos)

    def _error(self, what: str, position: int | None = None) -> BrokenJsonError:
        place = self._place(self._at if position is None else position)
        if self._damage and position is None and not self.peek():
            return BrokenJsonError(f"{self._damage} at {place}")
        return BrokenJsonError(f"is not JSON: {what} at {place}")

    def _place(self, position: int) -> str:
        lines = self._buffer.count("\n", 0, position)
        column = position - self._buffer.rfind("\n", 0, position) - 1 if lines else None
        column = self._columns + position if column is None else column
        return f"line {self._lines + lines} column {column + 1}"
