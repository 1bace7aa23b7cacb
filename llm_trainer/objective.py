"""What a task is to the loop: rows of known sizes, batches of them, and a summed loss."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Batch = dict[str, torch.Tensor]
Indices = npt.NDArray[np.int64]


class Rows(Protocol):
    """Tokenised rows."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        ...

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Units of loss of each row: trained tokens, or 1 where a row has one answer."""
        ...

    def origin(self, row: int) -> str:
        """Where it comes from, for messages: `train.jsonl row 7`."""
        ...


@dataclass(frozen=True)
class Score:
    """What a model makes of a batch."""

    loss: torch.Tensor
    """Summed over the batch's units, in nats; a float32 scalar with its graph."""
    correct: torch.Tensor | None = None
    """Units that the model ranks first, where that was asked for."""


class Objective(Protocol):
    """A task on a dataset."""

    @property
    def train(self) -> Rows:
        """What is trained on."""
        ...

    @property
    def held_out(self) -> Rows | None:
        """What is evaluated on."""
        ...

    @property
    def is_language(self) -> bool:
        """Whether its units are tokens that a language model tells: exp(loss) is a perplexity."""
        ...

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """The rows as tensors on the CPU; without `indices`, a batch that has no unit of loss."""
        ...

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """The loss of `batch`, which lies on the model's device."""
        ...
