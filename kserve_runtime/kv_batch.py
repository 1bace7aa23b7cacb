"""The keys and values of the rows that are being generated: rows join, step and leave.

Rows of different lengths lie right-aligned in buffers with room to grow, so that a step writes one
column in place, copies nothing, and is the same column for all rows; the attention mask hides what
lies before a row's first token. A row's keys and values are its own; nothing is shared between
rows. Legend: B rows, H heads, T tokens, D head size.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import sys
import weakref
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
        # Whose buffers go at once when it does: a cycle would keep them until Python looks for one.
        self._batch: KVBatch = weakref.proxy(batch)
        self.end = 0
        """The column that the next step writes; the rows end before it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the column of this step; returns all columns in use, that one included."""
        column = self._batch.column
        if column is not None:
            self.keys.index_copy_(2, column, key_states.to(self.keys.dtype))
            self.values.index_copy_(2, column, value_states.to(self.values.dtype))
            return self.keys, self.values
        rows, end = len(self._batch.lengths), self.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        used = slice(end - self._batch.width, end + 1)
        return self.keys[:rows, :, used], self.values[:rows, :, used]

    def get_seq_length(self) -> int:
        return self._batch.width

    def put(self, row: int, keys_HTD: torch.Tensor, values_HTD: torch.Tensor) -> None:
        """Write a whole row."""
        begin = self.end - keys_HTD.shape[1]
        for mine, theirs in ((self.keys, keys_HTD), (self.values, values_HTD)):
            # What the mask hides is multiplied with 0: a NaN of who was here before would survive.
            mine[row, :, :begin] = 0
            mine[row, :, begin : self.end] = theirs

    def move(self, rows: int, columns: int, end: int) -> None:
        """Into buffers of this size, in which the rows end at the column `end`."""
        here, width = len(self._batch.lengths), self._batch.width

        def moved(states_BHTD: torch.Tensor) -> torch.Tensor:
            _, heads, _, size = states_BHTD.shape
            # Nothing is read before it is written, but where steps go over all there is.
            make = states_BHTD.new_zeros if self._batch.fixed else states_BHTD.new_empty
            moved_BHTD = make(rows, heads, columns, size)
            moved_BHTD[:here, :, : end - width] = 0
            moved_BHTD[:here, :, end - width : end] = states_BHTD[
                :here, :, self.end - width : self.end
            ]
            return moved_BHTD

        keys, values = moved(self.keys), moved(self.values)
        self.keys, self.values, self.end = keys, values, end


class KVBatch:
    """Keys and values of every layer, and who sees what."""

    def __init__(
        self,
        first: DynamicCache,
        length: int,
        *,
        most: int,
        dtype: torch.dtype | None = None,
        limit: int = sys.maxsize,
        fixed: bool = False,
    ) -> None:
        """Begin with one row, as it was read.

        Args:
            first: what was read.
            length: tokens of it.
            most: tokens that the row may come to have.
            dtype: what rows are kept in; None is as they are read.
            limit: tokens that the buffers are to have places for at most. They have more only
                where that is too little for the rows.
            fixed: steps go over all places of the buffers; see recorded.
        """
        self.fixed = fixed
        self.column: torch.Tensor | None = None
        """Where the next step writes; set for steps over all places."""
        self.recording: Any = None
        """Of a step on the buffers as they are."""
        self._read_dtype = first.layers[0].keys.dtype
        self._limit = limit
        self.lengths: list[int] = []
        """Tokens that each row has."""
        self._most: list[int] = []
        """Tokens that each row may come to have."""
        self.width = 0
        """Tokens of the longest row."""
        self._room = 0
        """Columns that are left for steps."""
        self._even = True
        """Whether all layers have buffers of the same size, as steps over all places need them: a
        move that failed leaves others."""
        self._layers = [
            _Layer(self, layer.keys[:0].to(dtype), layer.values[:0].to(dtype))
            for layer in first.layers
        ]
        self.cache = Cache(layers=self._layers)
        self.join(first, length, most=most)

    @property
    def places(self) -> int:
        """Tokens that the buffers have places for, whether in use or not."""
        rows, _, columns, _ = self._layers[0].keys.shape
        return int(rows * columns)

    @property
    def places_for_rows(self) -> int:
        """Rows of the buffers, whether in use or not."""
        return self._rows

    @property
    def end(self) -> int:
        """The column that the next step writes."""
        return self._layers[0].end

    def attention_mask(self, device: torch.device) -> torch.Tensor:
        """(batch, width + 1): 1 where the next token may look, itself included."""
        starts_B1 = torch.tensor([[self.width - length] for length in self.lengths], device=device)
        return (torch.arange(self.width + 1, device=device) >= starts_B1).long()

    def positions(self, device: torch.device) -> torch.Tensor:
        """(batch, 1): position of each row's next token."""
        return torch.tensor([[length] for length in self.lengths], device=device)

    def make_room(self, *, beside: int = 0) -> None:
        """See that there is a column for the next step; `beside` places are not to be taken."""
        if not self._room or (self.fixed and not self._even):
            self._move(len(self.lengths), self._rows, self.width, beside=beside)

    def grew(self) -> None:
        """Note that a step has added one token to each row."""
        self.lengths = [length + 1 for length in self.lengths]
        self.width += 1
        self._room -= 1
        for layer in self._layers:
            layer.end += 1

    def join(self, read: DynamicCache, length: int, *, most: int) -> None:
        """Append a row that was read alone: `length` tokens of it, which may become `most`.

        Where this fails, out of memory say, the rows are as they were.
        """
        row = len(self.lengths)
        if row == self._rows or any(length > layer.end for layer in self._layers):
            wanted, end = max(self._rows, 2 * row), max(self.width, length)
            self._move(row + 1, wanted, end, beside=length, joining=most)
        for mine, theirs in zip(self._layers, read.layers, strict=True):
            mine.put(row, theirs.keys[0, :, :length], theirs.values[0, :, :length])
        self.lengths.append(length)
        self._most.append(most)
        self.width = max(self.width, length)

    def copy(self, row: int) -> Layers:
        """The keys and values of a row, as they were read."""
        length = self.lengths[row]

        def copied(states_BHTD: torch.Tensor, end: int) -> torch.Tensor:
            row_BHTD = states_BHTD[row : row + 1, :, end - length : end]
            return row_BHTD.to(self._read_dtype, copy=True)

        return [
            (copied(layer.keys, layer.end), copied(layer.values, layer.end))
            for layer in self._layers
        ]

    def copy_bytes(self, row: int) -> int:
        """What `copy` takes."""
        states = [each for layer in self._layers for each in (layer.keys, layer.values)]
        numbers = sum(each.shape[1] * each.shape[3] for each in states)
        return int(self.lengths[row] * numbers * self._read_dtype.itemsize)

    def drop(self, gone: Sequence[int]) -> list[int]:
        """Take rows out; the last ones move into their places.

        Returns:
            Where each row that is left was before.
        """
        order = list(range(len(self.lengths)))
        for row in sorted(gone, reverse=True):
            last = len(order) - 1
            if row < last:
                for layer in self._layers:
                    columns = slice(layer.end - self.lengths[last], layer.end)
                    layer.put(row, layer.keys[last, :, columns], layer.values[last, :, columns])
                for each in (order, self.lengths, self._most):
                    each[row] = each[last]
            for each in (order, self.lengths, self._most):
                each.pop()
        self.width = max(self.lengths, default=0)
        if 4 * len(order) <= self._rows:
            self._move(len(order), 2 * len(order), self.width)
        return order

    def spare(self, tokens: int) -> None:
        """Leave `tokens` places to others, where the rows can do without."""
        if self.places + tokens > self._limit:
            self._move(len(self.lengths), self._rows, self.width, beside=tokens)

    @property
    def _rows(self) -> int:
        """Places for rows, in each layer."""
        return min(layer.keys.shape[0] for layer in self._layers)

    def _move(
        self, least: int, wanted: int, end: int, *, beside: int = 0, joining: int = 0
    ) -> None:
        """Into buffers for `wanted` rows, for no less than `least` where memory is short.

        They end at the column `end`, and there is half as much to grow, but no more than the rows,
        and one of `joining` tokens beside them, can come to. `beside`: see make_room.
        """
        columns = min(end + max(SPARE_TOKENS, end // 2), max([*self._most, joining]))
        rows = max(least, min(wanted, (self._limit - beside) // columns))
        self.recording, self._even = None, False
        try:
            # One layer after the other: both sizes of all of them would be twice the memory.
            for layer in self._layers:
                layer.move(rows, columns, end)
            self._even = True
        finally:
            self._room = min(layer.keys.shape[2] - layer.end for layer in self._layers)
