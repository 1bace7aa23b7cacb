"""Which rows each rank takes at each step, known to every rank in full. Pure.

The optimiser's batches depend on seed, epoch and the effective batch size only, never on how many
processes share them: N processes train what one would. Every row is taken exactly once an epoch:
no rank repeats rows to even out the last batch, it takes an empty one.

Rows of like length go together, so that little is padded: the shuffled rows are cut into windows
of WINDOW batches, sorted by length within each, cut into batches, and the batches shuffled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WINDOW = 16
"""Batches whose rows are sorted together. Larger pads less and mixes less."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the rows of a dataset are divided."""

    lengths: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    """Tokens and trained tokens of each row."""
    micro_batch: int
    """Rows a process takes at once."""
    accumulation: int
    """Micro-batches a process takes for a step."""
    world_size: int
    seed: int

    @property
    def batch(self) -> int:
        """Rows of a step, on all ranks."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""
        return -(-len(self.lengths) // self.batch)

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches of each rank; the last step may take fewer than the others."""
        last = len(self.lengths) - (self.steps_per_epoch - 1) * self.batch
        return (self.steps_per_epoch - 1) * self.accumulation + self._micro_batches(last)

    def _micro_batches(self, rows: int) -> int:
        return -(-rows // (self.micro_batch * self.world_size))

    def steps(self, epoch: int) -> Iterator[Indices]:
        """The rows of each step of an epoch, longest first."""
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(len(self.lengths))
        window = self.batch * WINDOW
        batches = []
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch] for i in range(0, len(part), self.batch)]
        # The last one may be smaller. It stays last: steps_per_epoch counts on it.
        *full, last = batches
        for i in rng.permutation(len(full)):
            yield full[i]
        yield last

    def micro_batches(self, step_rows: Indices, rank: int) -> list[Indices]:
        """A step's rows that `rank` takes, one array for each micro-batch; an array may be empty.

        Neighbours in length go to the same micro-batch of different ranks, so that ranks wait
        little for each other.
        """
        count = self._micro_batches(len(step_rows))
        slots = np.array_split(step_rows, count * self.world_size)
        return slots[rank :: self.world_size]

    def tokens(self, step_rows: Indices) -> int:
        """Tokens of a step, on all ranks, padding not counted."""
        return int(self.lengths[step_rows].sum())

    def trained_tokens(self, step_rows: Indices) -> int:
        """Trained tokens of a step, on all ranks."""
        return int(self.targets[step_rows].sum())
