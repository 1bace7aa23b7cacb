"""Rows → a batch of tensors."""

import numpy as np
import numpy.typing as npt
import torch

from llm_trainer.data.examples import IGNORED, Examples

Batch = dict[str, torch.Tensor]


def collate(examples: Examples, rows: npt.NDArray[np.int64], pad_id: int) -> Batch:
    """The rows as input_ids, labels and attention_mask, each (rows, longest row), padded right.

    Lengths say what is padding, never the pad token's id: a tokenizer that pads with its EOS keeps
    every EOS that is trained. Positions are left to the model: with padding on the right they are
    0, 1, 2, … for every row. Without rows the batch is one pad token that is not trained, for a
    rank that has nothing to add to a step but must take part in it.
    """
    taken = [examples.row(int(i)) for i in rows]
    width = max((len(ids) for ids, _ in taken), default=1)
    shape = (max(1, len(taken)), width)
    ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    mask = np.zeros(shape, np.int64)
    mask[0, 0] = 1
    for i, (row, trained) in enumerate(taken):
        length = len(row)
        ids[i, :length] = row
        labels[i, :length][trained] = row[trained]
        mask[i, :length] = 1
    return {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "attention_mask": torch.from_numpy(mask),
    }
