"""Calls of tools in an answer's text, as chat templates of the Hermes kind have models write them.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bern"}}
    </tool_call>

Qwen and Hermes models write so. What other models write stays text.
"""

import json
from dataclasses import dataclass
from uuid import uuid4

from kserve_runtime.detokenizer import StopTexts

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function and its arguments."""

    id: str
    name: str
    arguments: str
    """JSON, as the protocol has it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, and the calls that followed it."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallReader:
    """Takes an answer's text as it comes, and gives it out without the calls, and the calls."""

    def __init__(self) -> None:
        self._outside = StopTexts([OPEN])
        self._inside: str | None = None
        """What came after an opening tag so far."""
        self.found = False
        """Whether there was a call."""

    def push(self, text: str) -> Piece:
        """Take text; an opening tag, also half of one, and what follows it are held back."""
        shown = ""
        calls: list[ToolCall] = []
        while True:
            if self._inside is None:
                shown += self._outside.push(text)
                if not self._outside.found:
                    return Piece(shown, tuple(calls))
                text = self._outside.rest
                self._inside, self._outside = "", StopTexts([OPEN])
            self._inside += text
            body, closed, text = self._inside.partition(CLOSE)
            if not closed:
                return Piece(shown, tuple(calls))
            self._inside = None
            call = _parse(body)
            if call is None:
                shown += OPEN + body + CLOSE
            else:
                calls.append(call)
                self.found = True

    def finish(self) -> Piece:
        """What was held back: the start of a call that never ended may be a call all the same."""
        if self._inside is None:
            return Piece(self._outside.finish())
        body, self._inside = self._inside, None
        call = _parse(body)
        if call is None:
            return Piece(OPEN + body)
        self.found = True
        return Piece(calls=(call,))


def _parse(body: str) -> ToolCall | None:
    try:
        call = json.loads(body)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return ToolCall(f"call_{uuid4().hex[:24]}", call["name"], arguments)
