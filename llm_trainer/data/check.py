"""What a training would make of a dataset, without a model: only the tokenizer is needed.

The files, rows and tokens are those that the training itself would read, by the same functions.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_trainer.data import rows
from llm_trainer.data.chat import TrainOn
from llm_trainer.data.encode import Encoded, Encoder
from llm_trainer.data.files import select_path
from llm_trainer.data.read import Problem
from peftjob.errors import DataError
from peftjob.spec import DatasetSource

BINS = 12
LONGEST = 5
SHOWN_DUPLICATES = 3
SHOWN_ROWS = 3


@dataclass(frozen=True)
class Bin:
    """Rows of `first` to `last` tokens."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Run:
    """Text of a row, all of it trained, or none."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Shown:
    """A row as the model sees it."""

    where: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a dataset is to a training."""

    files: tuple[str, ...]
    rows: int
    """Those that are right; the others are counted in `problem_count`."""
    tokens: int
    """Of all rows, each cut at max_length."""
    trained_tokens: int
    max_length: int
    truncated: int
    """Rows that are longer."""
    without_targets: int
    """Rows of which nothing to train is left; a training leaves them out."""
    duplicates: int
    """Rows that are the same as an earlier one in every token that a training sees."""
    duplicate_rows: tuple[tuple[str, str], ...]
    """The first of them, each with the row that it repeats."""
    median: int
    """Tokens of a row, uncut."""
    percentile_95: int
    histogram: tuple[Bin, ...]
    """Of the tokens of rows, uncut."""
    longest: tuple[tuple[str, int], ...]
    """Rows and their tokens, uncut."""
    shown: tuple[Shown, ...]
    """The first rows."""
    problems: tuple[str, ...]
    """The first of them, a line each."""
    problem_count: int

    def check(self) -> None:
        """Do what a training would do.

        Raises:
            RowsError: there are problems.
            DataError: no row has anything to train.
        """
        if self.problem_count:
            total = self.rows + self.problem_count
            raise rows.RowsError(list(self.problems), self.problem_count, total)
        if self.rows == self.without_targets:
            raise DataError(
                f"no row has anything left to train after {self.max_length} tokens; raise "
                "training.max_length, or take a base model with more positions"
            )


def check(
    path: Path,
    source: DatasetSource,
    tokenizer: Any,
    *,
    max_length: int,
    train_on: TrainOn = "completion",
) -> Report:
    """Look at every row of a data file, or of a dataset's folder.

    Raises:
        DataError: there are no rows, or dataset.columns names what is not there.
        ModelError: the tokenizer has no EOS token.
    """
    encoder = Encoder(tokenizer, max_length=max_length, train_on=train_on)
    root, selection = select_path(path, source)
    paths = (*selection.train, *selection.held_out)

    def samples() -> Iterator[rows.Sample | Problem]:
        return rows.samples(paths, root, source, vocab_size=len(tokenizer))

    seen = _Seen()
    for item in encoder.encode(samples()):
        seen.add(item)
    names = tuple(str(file.relative_to(root)) for file in paths)
    repeated = seen.repeated()
    return Report(
        files=names,
        rows=len(seen.lengths),
        tokens=seen.tokens,
        trained_tokens=seen.trained,
        max_length=max_length,
        truncated=seen.truncated,
        without_targets=seen.without_targets,
        duplicates=len(repeated),
        duplicate_rows=_origins(samples(), repeated[:SHOWN_DUPLICATES]),
        median=seen.percentile(50),
        percentile_95=seen.percentile(95),
        histogram=tuple(_histogram(np.frombuffer(seen.lengths, np.int64))),
        longest=tuple(seen.longest),
        shown=tuple(_shown(tokenizer, row) for row in seen.first),
        problems=tuple(seen.problems),
        problem_count=seen.problem_count,
    )


class _Seen:
    """What is kept of the rows: some bytes each."""

    def __init__(self) -> None:
        self.lengths = array("q")
        self.tokens = self.trained = self.truncated = self.without_targets = 0
        self.longest: list[tuple[str, int]] = []
        self.first: list[Encoded] = []
        self.problems: list[str] = []
        self.problem_count = 0
        self._digests = array("q")
        self._numbers = array("q")
        """Of the rows among all items, the problems included."""

    def add(self, item: Encoded | Problem) -> None:
        """Take a row into account."""
        if isinstance(item, Problem):
            self.problem_count += 1
            if len(self.problems) < rows.SHOWN_PROBLEMS:
                self.problems.append(item.text)
            return
        trained = int(item.trained.sum())
        self._numbers.append(len(self.lengths) + self.problem_count)
        self._digests.append(_digest(item))
        self.lengths.append(item.full_length)
        self.tokens += len(item.ids)
        self.trained += trained
        self.truncated += item.full_length > len(item.ids)
        self.without_targets += trained == 0
        if len(self.first) < SHOWN_ROWS:
            self.first.append(item)
        if len(self.longest) < LONGEST or item.full_length > self.longest[-1][1]:
            self.longest.append((item.where, item.full_length))
            self.longest.sort(key=lambda row: -row[1])
            del self.longest[LONGEST:]

    def percentile(self, share: int) -> int:
        """Of the lengths."""
        return int(np.percentile(self.lengths, share)) if self.lengths else 0

    def repeated(self) -> list[tuple[int, int]]:
        """Places of rows among all items, each with that of the first row like it."""
        digests = np.frombuffer(self._digests, np.int64)
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        before = first[inverse]
        again = np.flatnonzero(before != np.arange(len(digests)))
        return [(self._numbers[int(i)], self._numbers[int(before[i])]) for i in again]


def _digest(row: Encoded) -> int:
    digest = blake2b(row.ids.tobytes(), digest_size=8)
    digest.update(row.trained.tobytes())
    digest.update(row.full_length.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little", signed=True)


def _origins(
    samples: Iterator[rows.Sample | Problem], pairs: list[tuple[int, int]]
) -> tuple[tuple[str, str], ...]:
    """The rows' names. Nobody asks for those of most rows, so they are read again, not kept."""
    wanted = {number for pair in pairs for number in pair}
    stop = max(wanted, default=-1) + 1
    names = {i: item.where for i, item in enumerate(islice(samples, stop)) if i in wanted}
    return tuple((names[again], names[first]) for again, first in pairs)


def _histogram(lengths: npt.NDArray[np.int64]) -> Iterator[Bin]:
    """Bins of one width, of a round number of tokens; the last has the longest hundredth of the
    rows, which would leave all others in one bin."""
    if not len(lengths):
        return
    low, high = int(lengths.min()), int(np.percentile(lengths, 99))
    width = _round_up(-(-(high - low + 1) // BINS))
    start = low // width * width
    most = (high - start) // width + 1
    counts = np.bincount(np.minimum((lengths - start) // width, most)).tolist()
    for i, count in enumerate(counts):
        last = int(lengths.max()) if i == most else start + (i + 1) * width - 1
        yield Bin(start + i * width, last, count)


def _round_up(width: int) -> int:
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale >= width:
                return int(digit * scale)
        scale *= 10


def _shown(tokenizer: Any, row: Encoded) -> Shown:
    borders = [0, *(np.flatnonzero(np.diff(row.trained)) + 1).tolist(), len(row.ids)]
    runs = []
    before = ""
    for start, end in pairwise(borders):
        # Decoded with all before it: some tokenizers leave out a text's first blank.
        text = tokenizer.decode(row.ids[:end].tolist(), clean_up_tokenization_spaces=False)
        alone = text[len(before) :] if text.startswith(before) else None
        before = text
        if alone is None:
            alone = tokenizer.decode(row.ids[start:end].tolist())
        runs.append(Run(alone, bool(row.trained[start])))
    return Shown(row.where, tuple(runs))
