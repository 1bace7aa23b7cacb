"""Tokenised rows for training: a store of them, or a choice of its rows.

No Python object a row, and no array but the choice itself: what is looked at is read.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llm_trainer.data.store import Store

IGNORED = -100
"""The label of a token that is not trained, as torch's cross entropy has it."""

TOKENS = {"ids": np.int32, "trained": np.bool_}
"""Token ids, and whether the model should say them."""
ROWS = {
    "lengths": np.int32,
    "targets": np.int32,
    "full_lengths": np.int32,
    "files": np.int32,
    "numbers": np.int64,
}
"""Tokens, trained tokens, tokens before the row was cut; which file it comes from (an index of the
fact `files`), and its number there."""

Integers = npt.NDArray[np.signedinteger[Any]]


class Examples:
    """Rows of token ids, each token marked as trained or not."""

    def __init__(self, store: Store, chosen: npt.NDArray[np.int64] | None = None) -> None:
        """The rows of `store` that are `chosen`, in that order; None is all of them."""
        self._store = store
        self._chosen = chosen

    @classmethod
    def of(cls, rows: Iterable[tuple[npt.ArrayLike, npt.ArrayLike]]) -> Self:
        """In memory, from rows of ids and marks of the same length."""
        ids, trained = [np.empty(0, np.int32)], [np.empty(0, np.bool_)]
        for row, marks in rows:
            ids.append(np.array(row, np.int32))
            trained.append(np.array(marks, np.bool_))
            trained[-1][:1] = False  # The first token follows nothing: no position predicts it.
        lengths = np.array([len(row) for row in ids[1:]], np.int32)
        return cls(
            Store.of(
                lengths,
                tokens={"ids": np.concatenate(ids), "trained": np.concatenate(trained)},
                lengths=lengths,
                full_lengths=lengths,
                targets=np.array([marks.sum() for marks in trained[1:]], np.int32),
                files=np.zeros(len(lengths), np.int32),
                numbers=np.arange(1, len(lengths) + 1),
            )
        )

    def __len__(self) -> int:
        return len(self._store) if self._chosen is None else len(self._chosen)

    @cached_property
    def lengths(self) -> Integers:
        """Tokens of each row."""
        return self._column("lengths")

    @cached_property
    def targets(self) -> Integers:
        """Trained tokens of each row."""
        return self._column("targets")

    def origin(self, row: int) -> str:
        """Where a row comes from: `train.jsonl row 7`."""
        at = self._at(row)
        files = self._store.facts.get("files", [])
        number = int(self._store.rows["numbers"][at])
        return f"{files[self._store.rows['files'][at]]} row {number}" if files else f"row {number}"

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Ids and marks of a row, as views."""
        ids, trained = self._store.row(self._at(index), *TOKENS)
        return ids, trained

    def _at(self, row: int) -> int:
        return row if self._chosen is None else int(self._chosen[row])

    def _column(self, name: str) -> npt.NDArray[Any]:
        column = self._store.rows[name]
        return column if self._chosen is None else column[self._chosen]
