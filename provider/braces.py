"""{a,b} and {00..07} in an address, as a shell expands them. Pure. May import peftjob.errors."""

import re
from itertools import product

from peftjob.errors import SourceError

MOST = 10_000
"""Files of one address: more is a slip of the pen."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def expanded(text: str) -> list[str]:
    """Every address that `text` stands for, in order; itself where there are no braces in it.

    Raises:
        SourceError: the braces stand for nothing, or for too much.
    """
    pieces = _BRACES.split(text)
    choices = [_choices(piece, text) if at % 2 else [piece] for at, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST:
        raise SourceError(f"the braces of {_plain(text)} stand for {count} files; {MOST} at most")
    return ["".join(one) for one in product(*choices)]


def _choices(inside: str, text: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(inside)
    if numbers:
        first, last = numbers[1], numbers[2]
        if int(last) < int(first) or int(last) - int(first) >= MOST:
            raise SourceError(
                f"{{{inside}}} in {_plain(text)} is no range of at most {MOST}; write {{00..07}}"
            )
        width = len(first) if first.startswith("0") else 0
        return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    if "," not in inside:
        raise SourceError(
            f"{{{inside}}} in {_plain(text)} stands for nothing; write {{a,b}} or {{00..07}}"
        )
    return inside.split(",")


def _plain(text: str) -> str:
    """Without what may be secret."""
    return text.partition("?")[0].partition("#")[0]
