"""The keys and values of the rows that are being generated: rows join, step and leave.

Rows of different lengths lie right-aligned in buffers with room to grow, so that a step writes one
column in place, copies nothing, and is the same column for all rows; the attention mask hides what
lies before a row's first token. A row's keys and values are its own; nothing is shared between
rows. Legend: B rows, H heads, T tokens, D head size.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (1, heads, tokens, head size)."""

SPARE_TOKENS = 64
"""Columns that new buffers have at least beside those in use."""


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's buffers, (rows, heads, columns, head size), as transformers wants to see them."""

    def __init__(self, batch: "KVBatch", keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._batch = batch

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the column of this step; returns all columns in use, that one included."""
        rows, end = len(self._batch.lengths), self._batch.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        used = slice(end - self._batch.width, end + 1)
        return self.keys[:rows, :, used], self.values[:rows, :, used]

    def get_seq_length(self) -> int:
        return self._batch.width


class KVBatch:
    """Keys and values of every layer, and who sees what."""

    def __init__(
        self, first: DynamicCache, length: int, *, dtype: torch.dtype | None = None
    ) -> None:
        """Begin with one row, as it was read. It is kept in `dtype`; None is as it was read."""
        self._read_dtype = first.layers[0].keys.dtype
        self.lengths: list[int] = []
        """Tokens that each row has."""
        self.width = 0
        """Tokens of the longest row."""
        self.end = 0
        """The column that the next step writes; the rows end before it."""
        self._layers = [
            _Layer(self, layer.keys[:0].to(dtype), layer.values[:0].to(dtype))
            for layer in first.layers
        ]
        self.cache = Cache(layers=self._layers)
        self.join(first, length)

    def attention_mask(self, device: torch.device) -> torch.Tensor:
        """(batch, width + 1): 1 where the next token may look, itself included."""
        starts_B1 = torch.tensor([[self.width - length] for length in self.lengths], device=device)
        return (torch.arange(self.width + 1, device=device) >= starts_B1).long()

    def positions(self, device: torch.device) -> torch.Tensor:
        """(batch, 1): position of each row's next token."""
        return torch.tensor([[length] for length in self.lengths], device=device)

    def make_room(self) -> None:
        """See that there is a column for the next step."""
        if self.end == self._columns:
            self._move(len(self._layers[0].keys), self.width)

    def grew(self) -> None:
        """Note that a step has added one token to each row."""
        self.lengths = [length + 1 for length in self.lengths]
        self.width += 1
        self.end += 1

    def join(self, read: DynamicCache, length: int) -> None:
        """Append a row that was read alone; `length` tokens of it."""
        row, rows = len(self.lengths), len(self._layers[0].keys)
        if row == rows or length > self.end:
            self._move(max(rows, 2 * row, 1), max(self.width, length))
        for mine, theirs in zip(self._layers, read.layers, strict=True):
            mine.keys[row, :, self.end - length : self.end] = theirs.keys[0, :, :length]
            mine.values[row, :, self.end - length : self.end] = theirs.values[0, :, :length]
        self.lengths.append(length)
        self.width = max(self.width, length)

    def copy(self, row: int) -> Layers:
        """The keys and values of a row, as they were read."""
        columns = slice(self.end - self.lengths[row], self.end)

        def copied(states_BHTD: torch.Tensor) -> torch.Tensor:
            return states_BHTD[row : row + 1, :, columns].to(self._read_dtype, copy=True)

        return [(copied(layer.keys), copied(layer.values)) for layer in self._layers]

    def drop(self, gone: Sequence[int]) -> list[int]:
        """Take rows out; the last ones move into their places.

        Returns:
            Where each row that is left was before.
        """
        order = list(range(len(self.lengths)))
        for row in sorted(gone, reverse=True):
            last = len(order) - 1
            if row < last:
                columns = slice(self.end - self.lengths[last], self.end)
                for layer in self._layers:
                    layer.keys[row, :, columns] = layer.keys[last, :, columns]
                    layer.values[row, :, columns] = layer.values[last, :, columns]
                order[row], self.lengths[row] = order[last], self.lengths[last]
            order.pop()
            self.lengths.pop()
        self.width = max(self.lengths, default=0)
        if 4 * len(order) <= len(self._layers[0].keys):
            self._move(2 * len(order), self.width)
        return order

    @property
    def _columns(self) -> int:
        return int(self._layers[0].keys.shape[2])

    def _move(self, rows: int, end: int) -> None:
        """Into buffers for `rows` rows, which end at the column `end`, and half as much to grow."""
        here = len(self.lengths)
        columns = end + max(SPARE_TOKENS, end // 2)
        for layer in self._layers:
            layer.keys = self._moved(layer.keys[:here], rows, columns, end)
            layer.values = self._moved(layer.values[:here], rows, columns, end)
        self.end = end

    def _moved(self, states_BHTD: torch.Tensor, rows: int, columns: int, end: int) -> torch.Tensor:
        here, heads, _, size = states_BHTD.shape
        # Zeros: what the mask hides is multiplied with 0, which only a finite number survives.
        moved_BHTD = states_BHTD.new_zeros(rows, heads, columns, size)
        old, new = slice(self.end - self.width, self.end), slice(end - self.width, end)
        moved_BHTD[:here, :, new] = states_BHTD[:, :, old]
        return moved_BHTD
