"""Tokenised rows in three flat arrays: no Python object a row, ready to be memory-mapped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of a token that is not trained, as torch's cross entropy has it."""


@dataclass(frozen=True)
class Examples:
    """Rows of token ids, each token marked as trained or not."""

    ids: npt.NDArray[np.int32]
    """(tokens of all rows,)"""
    trained: npt.NDArray[np.bool_]
    """(tokens of all rows,): whether the model should say this token."""
    offsets: npt.NDArray[np.int64]
    """(rows + 1,): where each row begins in the other two."""
    origins: tuple[str, ...] = ()
    """Where each row comes from, for messages; empty where nobody asks."""

    @classmethod
    def of(cls, rows: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> "Examples":
        """From rows of ids and marks of the same length."""
        rows = list(rows)
        lengths = np.fromiter((len(ids) for ids, _ in rows), np.int64, len(rows))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        total = int(offsets[-1])
        ids = np.fromiter((i for row, _ in rows for i in row), np.int32, total)
        trained = np.fromiter((t for _, row in rows for t in row), np.bool_, total)
        # A row's first token follows nothing: no position predicts it.
        trained[offsets[:-1][lengths > 0]] = False
        return cls(ids, trained, offsets)

    def origin(self, row: int) -> str:
        """Where a row comes from."""
        return self.origins[row] if self.origins else f"row {row + 1}"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Trained tokens of each row."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.trained, dtype=np.int64)])
        return np.diff(sums[self.offsets])

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Ids and marks of a row, as views."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.ids[start:end], self.trained[start:end]

    def to_dataset(self) -> "Dataset":
        """As a `datasets.Dataset` of input_ids and labels that shares memory with this."""
        import pyarrow as pa
        from datasets import Dataset
        from datasets.table import InMemoryTable

        labels = np.where(self.trained, self.ids, np.int32(IGNORED))
        columns = {
            name: pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(values))
            for name, values in (("input_ids", self.ids), ("labels", labels))
        }
        return Dataset(InMemoryTable(pa.table(columns)))
