"""Many adapters in one batch: stack, gather, scatter.

    y[row] = base(x)[row] + Σ strength · (x[row] · A[adapter]) · B[adapter]

The sum is over the adapters of the row: none for the base model, several for a blend. A and B hold
the matrices of the adapters in the slots, stacked, those of lower rank filled up with zeros. The
rows of each adapter are gathered, all of them go through two batched products, and what comes out
is added to the rows that it is for. This is exact, whatever ranks, scalings and target modules the
adapters have, and a row is multiplied with the adapters that it uses only: on one CPU thread, with
16 rows of 8 adapters, it costs half of what the matrices of all adapters side by side and a mask
over the ranks do, whose cost grows with the adapters. The base model's modules and weights stay as
they are; a forward hook adds the rest.
Legend: B rows of the batch, T tokens, I and O features in and out, N adapters, K rows of each of
them, R the highest rank.
"""

# ruff: noqa: N806, N815  (names of tensors end with their shape)

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kserve_runtime.adapter_files import AdapterFiles

RowMix = Sequence[tuple[AdapterFiles, float]]
"""The adapters of a row, with their strengths; none is the base model."""


@dataclass(slots=True, eq=False)
class _Use:
    """Which rows use the adapters of a stack. Stacks of the same adapters share one."""

    adapters: tuple[AdapterFiles, ...]
    part: slice | None = None
    """The part of the stack that is used, from the first to the last; None while none is."""
    each: int = 0
    """K."""
    rows: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """K rows of each adapter in that part, (N · K). An adapter with fewer has row 0, with strength
    0, in the other places."""
    strengths_NK11: torch.Tensor | None = None
    """None where all are 1."""


@dataclass(frozen=True, slots=True)
class _Stack:
    a_NIR: torch.Tensor
    b_NRO: torch.Tensor
    use: _Use


class LoraMixer:
    """The adapters in the slots of a model. Not thread-safe: call between forward passes only."""

    def __init__(self, model: nn.Module, device: torch.device, *, slots: int) -> None:
        self._modules = dict(model.named_modules())
        self._device = device
        self._slots = slots
        self._residents: tuple[AdapterFiles, ...] = ()
        self._recency: dict[AdapterFiles, None] = {}
        """The residents, the least recently used first."""
        self._changed: dict[str, _Stack] = {}
        self._hooks: dict[str, Any] = {}
        self._uses: list[_Use] = []
        self._selected: Sequence[RowMix] = ()
        self.page_ins = 0
        """How often an adapter was brought in."""

    @property
    def residents(self) -> Sequence[AdapterFiles]:
        """The adapters in the slots."""
        return self._residents

    def has_room(self, wanted: Collection[AdapterFiles], in_use: set[AdapterFiles]) -> bool:
        """Whether `wanted` can be in the slots together with what is in use."""
        return len(in_use.union(wanted)) <= self._slots

    def bring_in(self, wanted: Collection[AdapterFiles], in_use: set[AdapterFiles]) -> None:
        """See that `wanted` are resident, in place of the least recently used that may go.

        What is in use stays, even where that makes more residents than slots: see has_room.
        """
        missing = [adapter for adapter in wanted if adapter not in self._recency]
        if missing:
            keep = in_use.union(wanted)
            idle = [adapter for adapter in self._recency if adapter not in keep]
            surplus = len(self._residents) + len(missing) - self._slots
            gone = set(idle[: max(0, surplus)])
            self._replace([*(a for a in self._residents if a not in gone), *missing])
            self.page_ins += len(missing)
        for adapter in wanted:
            self._recency.pop(adapter, None)
            self._recency[adapter] = None

    def retain(self, adapters: set[AdapterFiles]) -> None:
        """Forget all residents but these."""
        if not adapters.issuperset(self._residents):
            self._replace([adapter for adapter in self._residents if adapter in adapters])

    def select(self, rows: Sequence[RowMix]) -> None:
        """Set what each row of the next forward passes is answered with; all of it is resident."""
        if rows == self._selected:
            return
        self._selected = rows
        wanted: dict[AdapterFiles, list[tuple[int, float]]] = {}
        for row, mix in enumerate(rows):
            for adapter, strength in mix:
                wanted.setdefault(adapter, []).append((row, strength))
        for use in self._uses:
            self._set(use, [wanted.get(adapter, []) for adapter in use.adapters])

    def _set(self, use: _Use, wanted: list[list[tuple[int, float]]]) -> None:
        used = [at for at, pairs in enumerate(wanted) if pairs]
        use.part = slice(used[0], used[-1] + 1) if used else None
        if use.part is None:
            return
        use.each = max(len(pairs) for pairs in wanted)
        full = [pairs + [(0, 0.0)] * (use.each - len(pairs)) for pairs in wanted[use.part]]
        use.rows = torch.tensor([row for pairs in full for row, _ in pairs], device=self._device)
        strengths = [[[[strength]] for _, strength in pairs] for pairs in full]
        plain = all(strength == 1 for pairs in full for _, strength in pairs)
        use.strengths_NK11 = None if plain else torch.tensor(strengths, device=self._device)

    def _replace(self, residents: Sequence[AdapterFiles]) -> None:
        uses: dict[tuple[AdapterFiles, ...], _Use] = {}
        changed = {}
        for path in dict.fromkeys(path for adapter in residents for path in adapter.pairs):
            adapters = tuple(adapter for adapter in residents if path in adapter.pairs)
            use = uses.setdefault(adapters, _Use(adapters))
            changed[path] = self._stack(path, use)
        for path in self._hooks.keys() - changed.keys():
            self._hooks.pop(path).remove()
        for path in changed.keys() - self._hooks.keys():
            self._hooks[path] = self._modules[path].register_forward_hook(self._make_hook(path))
        self._residents, self._changed = tuple(residents), changed
        self._recency = {
            **{adapter: None for adapter in self._recency if adapter in residents},
            **{adapter: None for adapter in residents if adapter not in self._recency},
        }
        self._uses, self._selected = list(uses.values()), ()

    def _stack(self, path: str, use: _Use) -> _Stack:
        old = self._changed.get(path)
        if old is not None and old.use.adapters == use.adapters:
            return _Stack(old.a_NIR, old.b_NRO, use)
        pairs = [adapter.pairs[path] for adapter in use.adapters]
        count, rank = len(pairs), max(pair.rank for pair in pairs)
        a_NIR = torch.zeros(count, pairs[0].a.shape[1], rank, device=self._device)
        b_NRO = torch.zeros(count, rank, pairs[0].b.shape[0], device=self._device)
        for at, (adapter, pair) in enumerate(zip(use.adapters, pairs, strict=True)):
            if old is not None and adapter in old.use.adapters:
                # On the device already; only the new ones travel to it.
                there = old.use.adapters.index(adapter)
                a_NIR[at, :, : pair.rank] = old.a_NIR[there, :, : pair.rank]
                b_NRO[at, : pair.rank] = old.b_NRO[there, : pair.rank]
            else:
                a_NIR[at, :, : pair.rank] = pair.a.T.to(self._device)
                b_NRO[at, : pair.rank] = pair.b.T.to(self._device)
        return _Stack(a_NIR, b_NRO, use)

    def _make_hook(self, path: str) -> Any:
        def add_update(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            stack = self._changed[path]
            use = stack.use
            if use.part is None:
                return None
            x_BTI = args[0].to(stack.a_NIR.dtype)
            if x_BTI.dim() != 3 or x_BTI.shape[0] != len(self._selected):
                # Rows are told apart by the first dimension; here they are mixed (an expert of a
                # mixture takes tokens of many rows), and rows of other requests would be changed.
                raise ValueError(f"{path} does not take (row, token, feature) inputs")
            a_NIR, b_NRO = stack.a_NIR[use.part], stack.b_NRO[use.part]
            count, each, tokens = len(a_NIR), use.each, x_BTI.shape[1]
            gathered = x_BTI.index_select(0, use.rows).view(count, each * tokens, -1)
            hidden = torch.bmm(gathered, a_NIR)
            if use.strengths_NK11 is not None:
                hidden = hidden.view(count, each, tokens, -1) * use.strengths_NK11
                hidden = hidden.view(count, each * tokens, -1)
            update = torch.bmm(hidden, b_NRO).view(count * each, tokens, -1)
            if output.dtype == update.dtype:
                return output.index_add_(0, use.rows, update)
            return output.to(update.dtype).index_add_(0, use.rows, update).to(output.dtype)

        return add_update
