"""Trained characters of a text → trained tokens of it.

By the tokenizer's own character offsets; a tokenizer without offsets is asked for every prefix,
which must then be a prefix of the whole.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_trainer.data.chat import Span
from peftjob.errors import DataError


def by_offsets(
    ids: Sequence[int], encoding: Any, spans: Sequence[Span], special_ids: Container[int]
) -> npt.NDArray[np.bool_]:
    """Mark the tokens that reach into a span.

    A token that begins before the span and ends in it is trained, or the first word would be lost
    where a tokenizer joins it with the blank before; unless it is a special token that swallows
    blanks after it, which no model says there.

    Args:
        encoding: of tokenizers; its tokens are in the order of the text, so that the bounds of a
            span are searched for, and the offsets of all other tokens need not become objects.
    """
    trained = np.zeros(len(ids), np.bool_)
    tokens = range(len(ids))
    for start, end in spans:
        first = bisect_right(tokens, start, key=lambda i: encoding.token_to_chars(i)[1])
        last = bisect_left(tokens, end, lo=first, key=lambda i: encoding.token_to_chars(i)[0])
        trained[first:last] = True
        while first < last and encoding.token_to_chars(first)[0] < start:
            trained[first] = ids[first] not in special_ids
            first += 1
    return trained


def by_prefix(
    ids: Sequence[int], text: str, spans: Sequence[Span], tokenizer: Any
) -> npt.NDArray[np.bool_]:
    """Mark what comes with each span.

    Raises:
        DataError: tokens change with what follows them.
    """
    trained = np.zeros(len(ids), np.bool_)
    for start, end in spans:
        first, last = (_prefix_length(ids, text[:at], tokenizer) for at in (start, end))
        trained[first:last] = True
    return trained


def _prefix_length(ids: Sequence[int], text: str, tokenizer: Any) -> int:
    prefix = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    if list(ids[: len(prefix)]) != prefix:
        raise DataError(
            "the base model's tokenizer gives no character offsets, and the tokens of "
            f"{text[-40:]!r} change with what follows, so that trained tokens can't be told "
            "from the prompt's; use a model with a tokenizer.json"
        )
    return len(prefix)
