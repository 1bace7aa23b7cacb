"""Rows → a batch of tensors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from llm_trainer.data.examples import IGNORED, Examples
from llm_trainer.objective import Batch, Indices

Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]


def collate(
    examples: Examples, indices: Indices, pad_id: int, *, packed: bool = False, multiple: int = 1
) -> Batch:
    """The rows one after the other, or one below the other.

    Lengths say what is padding, never the pad token's id: a tokenizer that pads with its EOS keeps
    every EOS that is trained. Without rows the batch is one pad token that is not trained, for a
    rank that has nothing to add to a step but must take part in it.

    Returns:
        packed: input_ids, labels, position_ids, each (1, tokens), which is a multiple of
        `multiple`, and bounds, (rows + 1,) int32: where each row begins, and where the last ends.
        Else: input_ids, labels and attention_mask, each (rows, longest row), padded right.
    """
    rows = [examples.row(int(i)) for i in indices]
    return _packed(rows, pad_id, multiple) if packed else _padded(rows, pad_id)


def _packed(rows: Sequence[Row], pad_id: int, multiple: int) -> Batch:
    lengths = [len(ids) for ids, _ in rows]
    total = sum(lengths)
    filled = -(-max(total, 1) // multiple) * multiple
    if filled > total:
        # What fills up is a row by itself: nobody sees it, and it is not trained.
        lengths.append(filled - total)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.full(filled, pad_id, np.int64)
    labels = np.full(filled, IGNORED, np.int64)
    for (row, trained), start in zip(rows, bounds, strict=False):
        ids[start : start + len(row)] = row
        # A row's first token is predicted by nothing, least of all by the row before.
        labels[start + 1 : start + len(row)][trained[1:]] = row[1:][trained[1:]]
    positions = np.arange(filled) - np.repeat(bounds[:-1], lengths)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "bounds": torch.from_numpy(bounds.astype(np.int32)),
    }


def _padded(rows: Sequence[Row], pad_id: int) -> Batch:
    width = max((len(ids) for ids, _ in rows), default=1)
    shape = (max(1, len(rows)), width)
    ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    mask = np.zeros(shape, np.int64)
    mask[0, 0] = 1
    for i, (row, trained) in enumerate(rows):
        length = len(row)
        ids[i, :length] = row
        labels[i, :length][trained] = row[trained]
        mask[i, :length] = 1
    return {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "attention_mask": torch.from_numpy(mask),
    }
