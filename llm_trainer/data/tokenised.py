"""Rows of tokens → a store of them, with where each comes from."""

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_trainer.data.encode import Encoded
from llm_trainer.data.examples import ROWS, TOKENS
from llm_trainer.data.read import Problem
from llm_trainer.data.rows import without_problems
from llm_trainer.data.store import Writer

log = logging.getLogger("llm_trainer")

BATCH_ROWS = 512
SAY_EVERY_S = 15.0


def write(folder: Path, encoded: Iterable[Encoded | Problem]) -> None:
    """Write a store of Examples' columns.

    A row of which nothing to train is left is kept without its tokens: rows are counted and chosen
    as the files have them, and what was left out can be named.

    Raises:
        RowsError: there are problems; then all rows are looked at, and no store is made.
        PermanentError: the disk does not take it.
    """
    written = _Written()
    with Writer(folder, tokens=TOKENS, rows=ROWS) as writer:
        good = without_problems(encoded)
        said = time.monotonic()
        while batch := list(islice(good, BATCH_ROWS)):
            written.add(writer, batch)
            if time.monotonic() > said + SAY_EVERY_S:
                said = time.monotonic()
                log.info("%d rows tokenised, %d MB", len(writer), writer.size_bytes // 10**6)
        writer.finish(asdict(written))


@dataclass
class _Written:
    """The facts of a store, while it grows."""

    files: list[str] = field(default_factory=list)
    highest_id: int = 0
    without_targets: int = 0

    def add(self, writer: Writer, batch: list[Encoded]) -> None:
        """Append rows."""
        targets = np.array([np.count_nonzero(row.trained) for row in batch], np.int32)
        kept = [row for row, count in zip(batch, targets, strict=True) if count]
        lengths = np.array([len(row.ids) for row in batch], np.int32) * (targets > 0)
        ids = _joined([row.ids for row in kept], np.int32)
        origins = [self._origin(row.where) for row in batch]
        writer.add(
            lengths,
            ids=ids,
            trained=_joined([row.trained for row in kept], np.bool_),
            lengths=lengths,
            targets=targets,
            full_lengths=np.array([row.full_length for row in batch], np.int32),
            files=np.array([file for file, _ in origins], np.int32),
            numbers=np.array([number for _, number in origins], np.int64),
        )
        self.highest_id = max(self.highest_id, int(ids.max(initial=0)))
        self.without_targets += len(batch) - len(kept)

    def _origin(self, where: str) -> tuple[int, int]:
        """`train.jsonl row 7` as the index of the file and 7."""
        name, _, number = where.rpartition(" row ")
        # Rows come file by file.
        if not self.files or self.files[-1] != name:
            self.files.append(name)
        return len(self.files) - 1, int(number)


def _joined(arrays: list[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)
