"""Where in a rendered conversation one message's own words are: by rendering it with others.

What a message says, and what its tool calls say, is replaced by two different marks of the same
kind. The two renderings agree up to the first of its words and again after the last one. Where the
true text agrees with both there, that is where its own words begin and end.
"""

from typing import Any

from llm_trainer.data.messages import Message

# Private-use characters at both ends, and digits, none in the same place of both.
_WORDS = ("\ue000peftjob\ue001", "\ue002peftjob\ue003")
_NUMBERS = (1704, 2805)
_FRACTIONS = (1.5, 2.7)
_PRINTED = tuple((_WORDS[k], str(_NUMBERS[k]), str(_FRACTIONS[k])) for k in (0, 1))


def variants(message: Message) -> tuple[Message, Message]:
    """The message with other words, twice."""
    return _replaced(message, 0), _replaced(message, 1)


def span(text: str, one: str, other: str) -> tuple[int, int] | None:
    """Start and end of the words in `text`, given what the variants look like in its place.

    None where it can't be proven: the template says something else around other words.
    """
    head = _shared(one, other)
    # The ends may not overlap the beginnings, as they might in a text that repeats itself.
    tail = min(_shared(one[::-1], other[::-1]), min(len(one), len(other)) - head)
    start, end = head, len(text) - tail
    begins = one.startswith(_PRINTED[0], head) and other.startswith(_PRINTED[1], head)
    ends = one.endswith(_PRINTED[0], head, len(one) - tail) and other.endswith(
        _PRINTED[1], head, len(other) - tail
    )
    same = text[:start] == one[:head] and text[end:] == one[len(one) - tail :]
    return (start, end) if begins and ends and same and start < end else None


def _replaced(message: Message, k: int) -> Message:
    out = dict(message)
    if message.get("content"):
        out["content"] = _WORDS[k]
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {**call, "function": _called(call["function"], k)} for call in message["tool_calls"]
        ]
    return out


def _called(function: dict[str, Any], k: int) -> dict[str, Any]:
    arguments = _other(function["arguments"], k)
    return {**function, "name": _WORDS[k], "arguments": arguments}


def _other(value: Any, k: int) -> Any:
    """Another value of the same kind, since templates print each kind in its own way."""
    if isinstance(value, dict):
        return {key: _other(item, k) for key, item in value.items()}
    if isinstance(value, list):
        return [_other(item, k) for item in value]
    if isinstance(value, str) and value:
        return _WORDS[k]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value  # Too few of its kind; it counts as what the template says around the rest.
    return _FRACTIONS[k] if isinstance(value, float) else _NUMBERS[k]


def _shared(one: str, other: str) -> int:
    """Characters that both begin with. Halving compares slices, a hundred times as fast as a loop
    over characters."""
    same, longest = 0, min(len(one), len(other))
    while same < longest:
        middle = (same + longest + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            longest = middle - 1
    return same
