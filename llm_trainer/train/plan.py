"""Which rows each rank takes at each step, known to every rank in full. Pure.

The optimiser's batches depend on the seed, the epoch and the size of a step only, never on how
many processes share them or how much memory they have: N processes train what one would. Every
row is taken exactly once an epoch: nobody repeats rows to even out the last step.

A step's rows are divided among the ranks so that each gets about as many tokens, and a rank's
share is cut into micro-batches that fit its memory.
"""

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_trainer.objective import Indices, Rows
from peftjob.errors import SpecError

Order = npt.NDArray[np.integer[Any]]
"""All rows, in the order of an epoch."""


@dataclass(kw_only=True)
class Plan:
    """How the rows of a dataset are divided into steps and among ranks."""

    rows: Rows
    rows_per_step: int
    """On all ranks."""
    tokens_per_step: int | None = None
    """In place of rows_per_step: rows are taken until about so many tokens are reached."""
    world_size: int
    seed: int
    shuffle: bool = True
    _last: tuple[int, Order, npt.NDArray[np.int64]] | None = field(
        init=False, repr=False, default=None
    )
    """The epoch at hand: an order is as long as the dataset, and used for many steps."""

    def __post_init__(self) -> None:
        longest = int(self.rows.lengths.max())
        if self.tokens_per_step is not None and self.tokens_per_step < longest:
            raise SpecError(
                [
                    f"training.tokens_per_step: {self.tokens_per_step} is less than the longest "
                    f"row's {longest} tokens ({self.rows.origin(int(self.rows.lengths.argmax()))});"
                    " raise it, or lower training.max_length"
                ]
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""
        if self.tokens_per_step is not None:
            return max(1, int(self.rows.lengths.sum()) // self.tokens_per_step)
        return -(-len(self.rows) // self.rows_per_step)

    def total_steps(self, *, epochs: float, max_steps: int) -> int:
        """Of the whole training; `max_steps` wins where it is above 0."""
        return max_steps if max_steps > 0 else max(1, math.ceil(epochs * self.steps_per_epoch))

    def step(self, number: int) -> Indices:
        """The rows of a step, counted from 0 since the start of the training."""
        epoch, within = divmod(number, self.steps_per_epoch)
        order, bounds = self._epoch(epoch)
        return order[bounds[within] : bounds[within + 1]].astype(np.int64)

    def share(self, step_rows: Indices, rank: int) -> Indices:
        """A step's rows that `rank` takes, longest first; it may be none."""
        ordered = _longest_first(self.rows, step_rows)
        if self.world_size == 1:
            return ordered
        loads = [(0, r) for r in range(self.world_size)]
        taken: list[int] = []
        for row in ordered:
            load, lightest = loads[0]
            heapq.heapreplace(loads, (load + int(self.rows.lengths[row]), lightest))
            if lightest == rank:
                taken.append(int(row))
        return np.array(taken, np.int64)

    def tokens(self, step_rows: Indices) -> int:
        """Tokens of a step, on all ranks, padding not counted."""
        return int(self.rows.lengths[step_rows].sum())

    def units(self, step_rows: Indices) -> int:
        """What a step's loss is divided by, on all ranks."""
        return int(self.rows.targets[step_rows].sum())

    def _epoch(self, epoch: int) -> tuple[Order, npt.NDArray[np.int64]]:
        """Order of the rows, and where in it each step begins (and the last one ends)."""
        if self._last is None or self._last[0] != epoch:
            # All that a training holds in memory for each row: four bytes of them.
            small = len(self.rows) <= np.iinfo(np.uint32).max
            order: Order = np.arange(len(self.rows), dtype=np.uint32 if small else np.int64)
            if self.shuffle:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            self._last = epoch, order, self._bounds(order)
        return self._last[1:]

    def _bounds(self, order: Order) -> npt.NDArray[np.int64]:
        count = self.steps_per_epoch
        if self.tokens_per_step is None:
            return np.minimum(np.arange(count + 1) * self.rows_per_step, len(order))
        # Cut where a step's share of the tokens is reached: no step is longer than its share by
        # more than a row, and none is empty, for no row is longer than a share.
        ends = np.cumsum(self.rows.lengths[order], dtype=np.int64)
        cuts = np.searchsorted(ends, np.arange(1, count) * (ends[-1] / count), side="left") + 1
        return np.concatenate([[0], cuts, [len(order)]]).astype(np.int64)


def micro_batches(rows: Rows, share: Indices, tokens: int, *, packed: bool) -> list[Indices]:
    """`share` in as few micro-batches of at most `tokens` tokens as come easily.

    Padding counts where rows are not packed. A row that is longer goes alone.
    """
    ordered = _longest_first(rows, share)
    lengths = rows.lengths[ordered]
    return [ordered[part] for part in (_packed if packed else _padded)(lengths, tokens)]


def _longest_first(rows: Rows, indices: Indices) -> Indices:
    return indices[np.argsort(-rows.lengths[indices].astype(np.int64), kind="stable")]


def _packed(lengths: npt.NDArray[np.int64], tokens: int) -> Sequence[list[int]]:
    """Best fit of lengths in falling order."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    """What is left in each bin, and which it is; the fullest first."""
    for i, length in enumerate(lengths.tolist()):
        at = bisect.bisect_left(room, (length, 0))
        if at == len(room):
            bins.append([i])
            bisect.insort(room, (tokens - length, len(bins) - 1))
        else:
            left, b = room.pop(at)
            bins[b].append(i)
            bisect.insort(room, (left - length, b))
    return bins


def _padded(lengths: npt.NDArray[np.int64], tokens: int) -> Sequence[list[int]]:
    """Neighbours in falling order, as many as fit when padded to the first of them."""
    parts: list[list[int]] = []
    for i in range(len(lengths)):
        if parts and (len(parts[-1]) + 1) * int(lengths[parts[-1][0]]) <= tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts
