"""Tokenised rows with labels, batches of them, and what a task's `read` returns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import nn

from llm_trainer.objective import Batch, Indices, Score
from llm_trainer.options import Job
from llm_trainer.tasks.labels import NONE, some
from llm_trainer.tasks.texts import pad_id
from peftjob.errors import DataError

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Tokenised rows, each with labels."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Any]
    """What a task makes of them: one a row, or one a token."""
    origins: Sequence[str]
    targets: Integers
    """Units of loss of each row."""
    types: Sequence[Sequence[int]] | None = None
    """Which of two texts a token belongs to, for models that want to know."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Integers:
        """Tokens of each row."""
        return np.array([len(row) for row in self.ids], np.int64)

    def origin(self, row: int) -> str:
        """Where a row comes from."""
        return self.origins[row]

    def padded(self, indices: Indices, pad_id: int) -> Batch:
        """input_ids and attention_mask (and token_type_ids), (rows, longest).

        Without `indices`, one row of a pad token: a model needs something to compute on.
        """
        rows = [self.ids[int(i)] for i in indices] or [[pad_id]]
        batch = {
            "input_ids": pad(rows, pad_id),
            "attention_mask": pad([[1] * len(row) for row in rows], 0),
        }
        if self.types is not None:
            batch["token_type_ids"] = pad([self.types[int(i)] for i in indices] or [[0]], 0)
        return batch


@dataclass(frozen=True)
class Tokenised:
    """Rows, and what became of those that did not go as they were."""

    rows: LabelledRows
    cut: int = 0
    """Rows that were longer than a row may be and lost their end."""
    divided: int = 0
    """Rows that were longer and became several."""
    left_out: int = 0
    """Rows of which nothing was left to train."""

    def notes(self, name: str, limit: str) -> Iterator[str]:
        """What was lost, a line each; `limit` is the length of a row."""
        if self.cut:
            yield f"warning: {self.cut} {name} rows were longer than {limit} and lost their end"
        if self.divided:
            yield f"{self.divided} {name} rows were longer than {limit}: each is several rows now"
        if self.left_out:
            yield (
                f"warning: {self.left_out} {name} rows were left out: nothing to train was left of "
                f"them after {limit}"
            )


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Training rows, held-out rows (there may be none) and what the labels mean."""

    train: Tokenised
    held_out: Tokenised
    tokenizer: Any
    files: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Of the labels; empty where they are no classes."""
    limit: str
    """The length of a row and where it comes from."""

    def __post_init__(self) -> None:
        """Refuse to train on nothing.

        Raises:
            DataError: there is no row.
        """
        if not len(self.train.rows):
            raise DataError(
                f"no row has anything left to train after {self.limit}; raise training.max_length"
            )

    @property
    def held_out_rows(self) -> LabelledRows | None:
        """As an objective has them."""
        return self.held_out.rows if len(self.held_out.rows) else None

    def notes(self) -> Iterator[str]:
        """What a user should know about it, a line each."""
        named = f", {len(self.names)} labels: {some(self.names)}" if self.names else ""
        yield f"training on {len(self.train.rows)} rows{named}, from {some(self.files)}"
        if self.held_out_rows is not None:
            yield f"{len(self.held_out_rows)} rows held out"
        yield from self.train.notes("training", self.limit)
        yield from self.held_out.notes("held-out", self.limit)


@dataclass(frozen=True, kw_only=True)
class LabelledObjective:
    """What the losses of labelled rows have in common."""

    train: LabelledRows
    held_out: LabelledRows | None
    pad_id: int
    label_smoothing: float
    is_language: ClassVar[bool] = False

    @classmethod
    def of(cls, job: Job, data: LabelledData, **more: Any) -> Self:
        """Of a job's rows; `more` are the fields of a task's own."""
        return cls(
            train=data.train.rows,
            held_out=data.held_out_rows,
            pad_id=pad_id(data.tokenizer),
            label_smoothing=job.spec.training.label_smoothing_factor,
            **more,
        )


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(rows, longest), int64."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def score_tokens(
    model: nn.Module, batch: Batch, *, smoothing: float = 0.0, accuracy: bool = False
) -> Score:
    """The cross entropies of the tokens that have a label, summed."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    has_label = batch["labels"] != NONE
    logits, wanted = model(**inputs).logits[has_label].float(), batch["labels"][has_label]
    loss = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
    return Score(loss, (logits.argmax(-1) == wanted).sum() if accuracy else None)
