"""The rows that are being generated, and their keys and values: rows join, step and leave.

Rows of different lengths lie right-aligned: the cache is padded at its left, and the attention
mask hides the padding. A row's keys and values are its own; nothing is shared between rows.
Legend: B rows, H heads, T tokens, D head size.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import torch
from transformers import DynamicCache


class KVBatch:
    """Keys and values (batch, heads, tokens, head size) of every layer, and who sees what."""

    def __init__(self, cache: DynamicCache, lengths: list[int]) -> None:
        """`lengths`: tokens that each row has in the cache."""
        self.cache = cache
        self.lengths = lengths

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    def attention_mask(self, device: torch.device) -> torch.Tensor:
        """(batch, width + 1): 1 where the next token may look, itself included."""
        starts_B1 = torch.tensor([[self.width - length] for length in self.lengths], device=device)
        return (torch.arange(self.width + 1, device=device) >= starts_B1).long()

    def positions(self, device: torch.device) -> torch.Tensor:
        """(batch, 1): position of each row's next token."""
        return torch.tensor([[length] for length in self.lengths], device=device)

    def grew(self) -> None:
        """Note that a step has added one token to each row."""
        self.lengths = [length + 1 for length in self.lengths]

    def join(self, other: "KVBatch") -> None:
        """Append the rows of `other`."""
        width = max(self.width, other.width)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_widen(mine.keys, width), _widen(theirs.keys, width)])
            mine.values = torch.cat([_widen(mine.values, width), _widen(theirs.values, width)])
        self.lengths = self.lengths + other.lengths

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these, and the padding that none of them needs."""
        self.lengths = [self.lengths[row] for row in rows]
        width = self.width
        for layer in self.cache.layers:
            index = torch.tensor(rows, device=layer.keys.device)
            layer.keys = layer.keys[:, :, -width:].index_select(0, index)
            layer.values = layer.values[:, :, -width:].index_select(0, index)


def _widen(states_BHTD: torch.Tensor, width: int) -> torch.Tensor:
    """Pad at the left to `width` tokens."""
    missing = width - states_BHTD.shape[2]
    return torch.nn.functional.pad(states_BHTD, (0, 0, missing, 0)) if missing else states_BHTD
