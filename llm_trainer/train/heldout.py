"""The held-out loss: mean nats per trained token, exactly, over all ranks."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from llm_trainer.data.examples import Examples
from llm_trainer.ranks import Ranks
from llm_trainer.train.collate import Batch, collate

SumLoss = Callable[[nn.Module, Batch], torch.Tensor]


def evaluate(
    model: nn.Module,
    loss: SumLoss,
    examples: Examples,
    *,
    ranks: Ranks,
    batch_rows: int,
    pad_id: int,
) -> float:
    """The sum of losses over the count of trained tokens; every row is evaluated once.

    Ranks take batches of rows of like length in turn, and may take different numbers of them:
    `model` is the bare model, whose forward has no collective calls.
    """
    order = np.argsort(-examples.lengths, kind="stable")
    batches = [order[i : i + batch_rows] for i in range(0, len(order), batch_rows)]
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for rows in batches[ranks.rank :: ranks.world_size]:
            batch = collate(examples, rows, pad_id)
            batch = {name: tensor.to(ranks.device) for name, tensor in batch.items()}
            total += loss(model, batch)
    model.train(was_training)
    (summed,) = ranks.sum([float(total)])
    return summed / int(examples.targets.sum())
