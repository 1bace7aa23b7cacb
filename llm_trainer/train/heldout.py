"""The held-out loss and accuracy, exactly: every row once, sums over units, over all ranks."""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_trainer.objective import Indices, Objective
from llm_trainer.ranks import Ranks
from llm_trainer.train.memory import ran_out
from llm_trainer.train.plan import micro_batches
from peftjob.errors import OutOfMemoryError

log = logging.getLogger("llm_trainer")


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of the held-out rows."""

    loss: float
    """Mean per unit, in nats."""
    accuracy: float | None
    """Share of the units that the model ranks first; None where the task does not tell."""
    is_language: bool = True
    """Whether the units are tokens that a language model tells."""

    @property
    def perplexity(self) -> float | None:
        """exp(loss); None where that is no number, or means nothing to the task."""
        perplexity = math.exp(self.loss) if self.loss < 700 else math.inf
        return perplexity if self.is_language and math.isfinite(perplexity) else None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(kw_only=True)
class _Sums:
    """On the device, in double precision: nothing is waited for between two batches."""

    loss: torch.Tensor
    correct: torch.Tensor
    tells_accuracy: bool = True


def evaluate(
    model: nn.Module,
    objective: Objective,
    *,
    ranks: Ranks,
    micro_batch_tokens: int,
    packed: bool,
    between: Callable[[], None] = lambda: None,
    rounds: Callable[[int], int] | None = None,
) -> Evaluation:
    """Sums over all held-out rows, each once, divided by their units.

    Ranks take batches in turn, and may take different numbers of them.

    Args:
        between: called after each batch; may raise.
        rounds: where the ranks share out the model's weights, how many batches all of them take,
            of how many this one has.

    Raises:
        OutOfMemoryError: with one row at a time too.
    """
    rows = objective.held_out
    assert rows is not None
    everything = np.arange(len(rows), dtype=np.int64)
    batches = micro_batches(rows, everything, micro_batch_tokens, packed=packed)
    mine = batches[ranks.rank :: ranks.world_size]
    if rounds is not None:
        mine += [np.array([], np.int64)] * (rounds(len(mine)) - len(mine))
    zero = torch.zeros((), dtype=torch.float64, device=ranks.device)
    sums = _Sums(loss=zero, correct=zero)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        # The last is taken first, so that halves come next to be tried.
        left = mine[::-1]
        while left:
            indices = left.pop()
            error = _add(sums, model, objective, indices, ranks.device)
            if error is not None:
                left += _halves(objective, indices, error, whole=rounds is not None)
            between()
    model.train(was_training)
    local = [float(sums.loss), float(sums.correct), float(not sums.tells_accuracy)]
    loss, correct, without = ranks.sum(local)
    units = int(rows.targets.sum())
    accuracy = None if without else correct / units
    return Evaluation(loss / units, accuracy, objective.is_language)


def _add(
    sums: _Sums, model: nn.Module, objective: Objective, indices: Indices, device: torch.device
) -> str | None:
    """Add a batch's sums; where memory runs out, say how."""
    assert objective.held_out is not None
    try:
        batch = objective.batch(objective.held_out, indices)
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        score = objective.score(model, moved, accuracy=True)
    except (RuntimeError, MemoryError) as err:
        error = ran_out(err)
        if error is None:
            raise
        return error
    sums.loss = sums.loss + score.loss.double()
    if score.correct is None:
        sums.tells_accuracy = False
    else:
        sums.correct = sums.correct + score.correct.double()
    return None


def _halves(objective: Objective, indices: Indices, error: str, *, whole: bool) -> list[Indices]:
    """The rows of a batch that was too large, as two."""
    rows = objective.held_out
    assert rows is not None
    tokens = int(rows.lengths[indices].sum())
    if whole or len(indices) < 2:
        where = f", {rows.origin(int(indices[0]))}" if len(indices) == 1 else ""
        raise OutOfMemoryError(
            f"out of memory in an evaluation ({len(indices)} held-out rows of {tokens} tokens"
            f"{where}): lower training.micro_batch_tokens or training.max_length, or ask for more "
            f"memory ({error})"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.info("out of memory evaluating %d tokens at once: they are halved (%s)", tokens, error)
    middle = len(indices) // 2
    return [indices[middle:], indices[:middle]]
