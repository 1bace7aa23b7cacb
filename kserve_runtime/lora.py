"""Many adapters in one batch: stack, gather, scatter.

    y[row] = base(x)[row] + Σ strength · (x[row] · A[adapter]) · B[adapter]

The sum is over the adapters of the row: none for the base model, several for a blend. A and B hold
the matrices of the adapters in the slots, stacked, those of lower rank filled up with zeros. The
rows of each adapter are gathered, all of them go through two batched products, and what comes out
is added to the rows that it is for. This is exact, whatever ranks, scalings and target modules the
adapters have, and a row is multiplied with the adapters that it uses only: the matrices of all
adapters side by side and a mask over the ranks cost several times as much, the more the adapters.
Projections that take the same input (query, key and value; gate and up) share the first product:
their A stand side by side. The base model's modules and weights stay as they are; a forward hook
adds the rest.
Legend: B rows of the batch, T tokens, I and O features in and out, N adapters, K rows of each of
them, R the highest rank, S the ranks of projections that share an input, side by side.
"""

# ruff: noqa: N803, N806, N815  (names of tensors end with their shape)

from collections.abc import Collection, Mapping, Sequence
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
    rows: torch.Tensor | None = None
    """K rows of each adapter in that part, (N · K). An adapter with fewer has row 0, with strength
    0, in the other places. None where they are all rows of the batch, in order."""
    strengths_NK11: torch.Tensor | None = None
    """None where all are 1."""


@dataclass(slots=True, eq=False)
class _Stack:
    """The adapters' matrices for projections that take the same input."""

    use: _Use
    a_NIS: torch.Tensor
    b_NRO: Mapping[str, torch.Tensor]
    """By the path of the projection."""
    ranks: Mapping[str, slice]
    """The part of S of each projection."""
    x_BTI: torch.Tensor | None = None
    """The input that `hidden` was made of, until the last projection has taken it."""
    hidden_NMS: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(x · A) · strength, M = K · T."""

    def take(self, x_BTI: torch.Tensor, path: str) -> torch.Tensor:
        """`hidden` of one projection, (N, K · T, R)."""
        if self.x_BTI is not x_BTI:
            self.x_BTI, self.hidden_NMS = x_BTI, self._multiply(x_BTI)
        hidden_NMR = self.hidden_NMS[:, :, self.ranks[path]]
        if self.ranks[path].stop == self.a_NIS.shape[2]:
            self.x_BTI, self.hidden_NMS = None, torch.empty(0)
        return hidden_NMR

    def _multiply(self, x_BTI: torch.Tensor) -> torch.Tensor:
        use = self.use
        a_NIS = self.a_NIS[use.part]
        count, tokens = len(a_NIS), x_BTI.shape[1]
        x_BTI = x_BTI.to(a_NIS.dtype)
        gathered = x_BTI if use.rows is None else x_BTI.index_select(0, use.rows)
        hidden_NMS = torch.bmm(gathered.reshape(count, use.each * tokens, -1), a_NIS)
        if use.strengths_NK11 is None:
            return hidden_NMS
        split = hidden_NMS.view(count, use.each, tokens, -1) * use.strengths_NK11
        return split.view(hidden_NMS.shape)


class LoraMixer:
    """The adapters in the slots of a model. Not thread-safe: call between forward passes only."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        slots: int,
        same_input: Collection[tuple[str, ...]] = (),
    ) -> None:
        """`same_input`: paths of projections that take the same input, in the order of their use
        (see base_model.find_same_inputs)."""
        self._modules = dict(model.named_modules())
        self._device = device
        self._slots = slots
        self._group = {path: paths for paths in same_input for path in paths}
        self._residents: tuple[AdapterFiles, ...] = ()
        self._recency: dict[AdapterFiles, None] = {}
        """The residents, the least recently used first."""
        self._stacks: dict[str, _Stack] = {}
        """By the paths of the projections that the residents change."""
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
        rows = [row for pairs in full for row, _ in pairs]
        whole = rows == list(range(len(self._selected)))
        use.rows = None if whole else torch.tensor(rows, device=self._device)
        strengths = [[[[strength]] for _, strength in pairs] for pairs in full]
        plain = all(strength == 1 for pairs in full for _, strength in pairs)
        use.strengths_NK11 = None if plain else torch.tensor(strengths, device=self._device)

    def _replace(self, residents: Sequence[AdapterFiles]) -> None:
        uses: dict[tuple[AdapterFiles, ...], _Use] = {}
        stacks: dict[str, _Stack] = {}
        changed = dict.fromkeys(path for adapter in residents for path in adapter.pairs)
        for path in changed:
            if path not in stacks:
                paths = [other for other in self._group.get(path, (path,)) if other in changed]
                users = tuple(a for a in residents if not a.pairs.keys().isdisjoint(paths))
                stack = self._stack(paths, uses.setdefault(users, _Use(users)))
                stacks.update(dict.fromkeys(paths, stack))
        for path in self._hooks.keys() - changed.keys():
            self._hooks.pop(path).remove()
        for path in changed.keys() - self._hooks.keys():
            self._hooks[path] = self._modules[path].register_forward_hook(self._make_hook(path))
        self._residents, self._stacks = tuple(residents), stacks
        self._recency = {
            **{adapter: None for adapter in self._recency if adapter in residents},
            **{adapter: None for adapter in residents if adapter not in self._recency},
        }
        self._uses, self._selected = list(uses.values()), ()

    def _stack(self, paths: Sequence[str], use: _Use) -> _Stack:
        """The matrices of the adapters of `use`; zeros where one leaves a projection alone."""
        ranks: dict[str, slice] = {}
        b_NRO: dict[str, torch.Tensor] = {}
        begin = 0
        for path in paths:
            pairs = [a.pairs[path] for a in use.adapters if path in a.pairs]
            rank = max(pair.rank for pair in pairs)
            ranks[path] = slice(begin, begin := begin + rank)
            b_NRO[path] = self._zeros(len(use.adapters), rank, pairs[0].b.shape[0])
        a_NIS = self._zeros(len(use.adapters), pairs[0].a.shape[1], begin)
        for at, adapter in enumerate(use.adapters):
            for path in adapter.pairs.keys() & ranks.keys():
                a_IR, b_RO = self._matrices(adapter, path)
                first = ranks[path].start
                a_NIS[at, :, first : first + a_IR.shape[1]] = a_IR
                b_NRO[path][at, : len(b_RO)] = b_RO
        return _Stack(use, a_NIS, b_NRO, ranks)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=self._device)

    def _matrices(self, adapter: AdapterFiles, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (in, rank) and B (rank, out), from the stacks where they are on the device already."""
        pair, old = adapter.pairs[path], self._stacks.get(path)
        if old is None or adapter not in old.use.adapters:
            return pair.a.T.to(self._device), pair.b.T.to(self._device)
        there, first = old.use.adapters.index(adapter), old.ranks[path].start
        a_IR = old.a_NIS[there, :, first : first + pair.rank]
        return a_IR, old.b_NRO[path][there, : pair.rank]

    def _make_hook(self, path: str) -> Any:
        def add_update(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            stack = self._stacks[path]
            use = stack.use
            if use.part is None:
                return None
            x_BTI = args[0]
            if x_BTI.dim() != 3 or x_BTI.shape[0] != len(self._selected):
                # Rows are told apart by the first dimension; here they are mixed (an expert of a
                # mixture takes tokens of many rows), and rows of other requests would be changed.
                raise ValueError(f"{path} does not take (row, token, feature) inputs")
            update = torch.bmm(stack.take(x_BTI, path), stack.b_NRO[path][use.part])
            wide = output if output.dtype == update.dtype else output.to(update.dtype)
            if use.rows is None:
                wide += update.view(output.shape)
            else:
                wide.index_add_(0, use.rows, update.view(-1, *output.shape[1:]))
            return wide if wide is output else wide.to(output.dtype)

        return add_update
