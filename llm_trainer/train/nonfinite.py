"""Which rows it was that gave a loss of NaN or infinity."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from llm_trainer.objective import Indices, Objective
from llm_trainer.ranks import Ranks

SHOWN_ROWS = 5


def where(
    parts: Sequence[tuple[Indices, torch.Tensor]],
    model: nn.Module,
    objective: Objective,
    ranks: Ranks,
    rounds: Callable[[int], int] | None,
) -> str:
    """The rows of a step that are to blame, on all ranks. Called by all of them together.

    Args:
        parts: this rank's micro-batches, with their losses.
        rounds: as Accumulator has it.
    """
    bad = [int(row) for rows, loss in parts if not torch.isfinite(loss) for row in rows]
    culprits = _culprits(bad, model, objective, ranks.device, rounds)
    named = ranks.gather([objective.train.origin(row) for row in culprits])
    more = f" and {len(named) - SHOWN_ROWS} more" if len(named) > SHOWN_ROWS else ""
    return "; ".join(named[:SHOWN_ROWS]) + more or "no row by itself: the gradient overflowed"


def _culprits(
    rows: list[int],
    model: nn.Module,
    objective: Objective,
    device: torch.device,
    rounds: Callable[[int], int] | None,
) -> list[int]:
    """Those of `rows` whose loss is not finite by themselves, else all of them."""
    alone = []
    with torch.no_grad():
        for i in range(len(rows) if rounds is None else rounds(len(rows))):
            row = rows[i : i + 1]
            batch = objective.batch(objective.train, np.array(row, np.int64))
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            if not torch.isfinite(objective.score(model, moved).loss):
                alone += row
    return alone or rows
