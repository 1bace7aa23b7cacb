"""Tokens → text, one token at a time: whole characters only, and never past a stop text."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

CONTEXT_TOKENS = 5
"""Of a prompt, which decide how the first token of a continuation is spelt."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 8
"""A character has at most 4 bytes; a longer run of undecodable bytes is no unfinished character
and is let out, or a model that babbles bytes would never be heard."""


class Detokenizer:
    """Turns a growing list of tokens into text without decoding it anew each time.

    Decoders are not concatenative (a leading space may depend on the token before), so each new
    piece is the difference between two decodings that begin at the same token.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        """`context`: tokens that came before, whose text is not given out again."""
        self._decode = decode
        self._ids = list(context)
        self._begin = 0
        self._read = len(self._ids)

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now, often empty."""
        self._ids.append(token)
        known = self._decode(self._ids[self._begin : self._read])
        text = self._decode(self._ids[self._begin :])
        if len(text) <= len(known):
            return ""
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._read < _MAX_HELD_TOKENS:
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def finish(self) -> str:
        """What was held back, without the character that was cut in two."""
        known = self._decode(self._ids[self._begin : self._read])
        text = self._decode(self._ids[self._begin :])
        return text[len(known) :].rstrip(_INCOMPLETE)


class StopTexts:
    """Holds back text that may be the beginning of a stop text, and ends at the first whole one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        self.rest = ""
        """What came after the stop text, in the same piece."""

    def push(self, text: str) -> str:
        """Take text; return what may be shown. Sets `found` where a stop text is complete."""
        if not self._stops or self.found:
            return "" if self.found else text
        self._held += text
        places = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            at, stop = min(places)
            self.found = True
            shown, self.rest, self._held = self._held[:at], self._held[at + len(stop) :], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back in vain."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
