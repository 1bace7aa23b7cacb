"""Many adapters in one batch.

    y[row] = base(x)[row] + Σ strength · (x[row] · A[adapter]) · B[adapter]

The sum is over the adapters of the row: none for the base model, several for a blend. A and B hold
the matrices of the adapters in the slots, stacked, those of lower rank filled up with zeros. This
is exact, whatever ranks, scalings and target modules the adapters have, and a row is multiplied
with the adapters that it uses only (lora_products): the matrices of all adapters side by side and a
mask over the ranks cost several times as much, the more the adapters.
Projections that take the same input (query, key and value; gate and up) share the first product:
their A stand side by side. The base model's weights stay as they are.
Legend: B rows of the batch, T tokens, I and O features in and out, N adapters, R the highest rank,
S the ranks of projections that share an input, side by side.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kserve_runtime.adapter_files import AdapterFiles
from kserve_runtime.lora_products import (
    RANKS,
    Products,
    Projection,
    Stack,
    TorchProducts,
    Update,
    choose_products,
)

RowMix = Sequence[tuple[AdapterFiles, float]]
"""The adapters of a row, with their strengths; none is the base model."""


@dataclass(slots=True, eq=False)
class _Use:
    """Which rows use the adapters of a stack. Stacks of the same adapters share one."""

    adapters: tuple[AdapterFiles | None, ...]
    """In the order of the stack; None where one is being replaced."""
    plan: Any = None
    """Of the products; None while no row uses any of the adapters."""
    fixed_plans: dict[int, Any] = field(default_factory=dict)
    """See TorchProducts.plan_fixed."""


@dataclass(slots=True, eq=False)
class _Group:
    """Projections that take the same input, as far as the residents change them."""

    use: _Use
    stack: Stack
    projections: Mapping[str, Projection]
    """By their paths."""
    updates: Mapping[str, Update]

    @property
    def ranks(self) -> Sequence[slice]:
        return [projection.ranks for projection in self.projections.values()]


class LoraMixer:
    """The adapters in the slots of a model. Not thread-safe: call between forward passes only."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        slots: int,
        same_input: Collection[tuple[str, ...]] = (),
        recorded: bool = False,
    ) -> None:
        """
        Args:
            model: whose projections are changed.
            device: that it is on.
            slots: adapters at once.
            same_input: paths of projections that take the same input, in the order of their use
                (see base_model.find_same_inputs).
            recorded: whether steps are; see recorded.
        """
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._device = device
        self._recordable = TorchProducts(device)
        self._products: Products = self._recordable if recorded else choose_products(device)
        self._slots = slots
        self._together = {path: paths for paths in same_input for path in paths}
        self._residents: tuple[AdapterFiles, ...] = ()
        self._recency: dict[AdapterFiles, None] = {}
        """The residents, the least recently used first."""
        self._groups: dict[tuple[str, ...], _Group] = {}
        """By the paths of the projections that the residents change."""
        self._plain: dict[str, Any] = {}
        """By the path of each, the forward that its module had."""
        self._selected: tuple[Sequence[RowMix], bool] = (), False
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
            # Each takes the place of one that goes: the matrices of the others stay where they are.
            rest = iter(missing)
            places = [next(rest, None) if a in gone else a for a in self._residents]
            self._replace([*(adapter for adapter in places if adapter), *rest])
            self.page_ins += len(missing)
        for adapter in wanted:
            self._recency.pop(adapter, None)
            self._recency[adapter] = None

    def retain(self, adapters: set[AdapterFiles]) -> None:
        """Forget all residents but these."""
        if not adapters.issuperset(self._residents):
            self._replace([adapter for adapter in self._residents if adapter in adapters])

    def select(self, rows: Sequence[RowMix], *, fixed: bool = False) -> None:
        """Set what each row of the next forward passes is answered with; all of it is resident.
        `fixed`: for a step that is recorded."""
        if (rows, fixed) == self._selected:
            return
        self._selected = rows, fixed
        wanted: dict[AdapterFiles | None, list[tuple[int, float]]] = {}
        for row, mix in enumerate(rows):
            for adapter, strength in mix:
                wanted.setdefault(adapter, []).append((row, strength))
        for use in self._uses:
            uses = [wanted.get(adapter, []) for adapter in use.adapters]
            if fixed:
                use.plan = self._recordable.plan_fixed(uses, use.fixed_plans)
            else:
                use.plan = self._products.plan(uses, len(rows))

    @property
    def plans(self) -> tuple[Any, ...]:
        """What the next forward passes do. After a fixed select they are the same objects as
        before, if it is the same work."""
        return tuple(use.plan for use in self._uses)

    @property
    def _uses(self) -> Collection[_Use]:
        return {id(group.use): group.use for group in self._groups.values()}.values()

    def _replace(self, residents: Sequence[AdapterFiles]) -> None:
        # Those that go are forgotten first: if memory runs out on the way, what is left is right.
        self._residents = tuple(a for a in self._residents if a in residents)
        self._recency = {a: None for a in self._recency if a in residents}
        self._selected = (), False
        uses: dict[tuple[AdapterFiles, ...], _Use] = {}
        groups: dict[tuple[str, ...], _Group] = {}
        changed: dict[str, _Group] = {}
        for path in dict.fromkeys(path for adapter in residents for path in adapter.pairs):
            if path not in changed:
                together = self._together.get(path, (path,))
                paths = tuple(p for p in together if any(p in a.pairs for a in residents))
                users = tuple(a for a in residents if not a.pairs.keys().isdisjoint(paths))
                groups[paths] = self._group(paths, uses.setdefault(users, _Use(users)))
                changed.update(dict.fromkeys(paths, groups[paths]))
        for path in self._plain.keys() - changed.keys():
            self._modules[path].forward = self._plain.pop(path)
        for path, group in changed.items():
            plain = self._plain.setdefault(path, self._modules[path].forward)
            self._modules[path].forward = self._make_forward(path, plain, group)
        self._groups = groups
        self._residents = tuple(residents)
        self._recency.update(dict.fromkeys(a for a in residents if a not in self._recency))

    def _group(self, paths: tuple[str, ...], use: _Use) -> _Group:
        """The matrices of the adapters of `use`, in the memory of the same group's if they fit."""
        new = [adapter for adapter in use.adapters if adapter]
        old = self._groups.get(paths)
        ranks: list[slice] = []
        end = 0
        for path in paths:
            rank = max(adapter.pairs[path].rank for adapter in new if path in adapter.pairs)
            ranks.append(slice(end, end := end + rank))
        if old is None or old.ranks != ranks:
            group = self._zeros(paths, ranks, use)
            for at, adapter in enumerate(new):
                self._write(group, at, adapter)
        elif len(old.use.adapters) != len(new):
            group = self._zeros(paths, ranks, use)
            for at, adapter in enumerate(new):
                if adapter in old.use.adapters:
                    _copy(group, at, old, old.use.adapters.index(adapter))
                else:
                    self._write(group, at, adapter)
        else:
            stay = [a if a is b else None for a, b in zip(old.use.adapters, new, strict=True)]
            # The old group is in use until all groups are made, and its use shared with others.
            old.use = _Use(tuple(stay))
            for at, adapter in enumerate(new):
                if stay[at] is None:
                    self._write(old, at, adapter)
            group = _Group(use, old.stack, old.projections, old.updates)
        return group

    def _zeros(self, paths: Sequence[str], ranks: Sequence[slice], use: _Use) -> _Group:
        pairs = [
            next(a.pairs[path] for a in use.adapters if a and path in a.pairs) for path in paths
        ]
        count, total = len(use.adapters), ranks[-1].stop
        size = pairs[0].a.shape[1]
        stack = Stack(torch.zeros(count, size, total + -total % RANKS, device=self._device))
        projections = {}
        for path, part, pair in zip(paths, ranks, pairs, strict=True):
            size = pair.b.shape[0]
            b_NRO = torch.zeros(count, part.stop - part.start, size, device=self._device)
            b = self._products.lay_out(b_NRO)
            projections[path] = Projection(stack, part, size, b, last=path == paths[-1])
        updates = {path: self._products.bind(each) for path, each in projections.items()}
        return _Group(use, stack, projections, updates)

    def _write(self, group: _Group, at: int, adapter: AdapterFiles) -> None:
        """An adapter's matrices; zeros where it leaves a projection alone or has lower rank."""
        a_IS = group.stack.a_NIS[at]
        a_IS.zero_()
        for path, projection in group.projections.items():
            first, rank = projection.ranks.start, projection.ranks.stop - projection.ranks.start
            b_1RO = torch.zeros(1, rank, projection.out_features, device=self._device)
            pair = adapter.pairs.get(path)
            if pair:
                a_IS[:, first : first + pair.rank] = pair.a.T
                b_1RO[0, : pair.rank] = pair.b.T
            projection.b[at] = self._products.lay_out(b_1RO)[0]

    def _make_forward(self, path: str, plain: Any, group: _Group) -> Any:
        # In place of the module's own: a hook costs more, for each projection and token.
        update = group.updates[path]

        def forward(x_BTI: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = plain(x_BTI)
            plan = group.use.plan
            if plan is None:
                return out
            if x_BTI.dim() != 3 or x_BTI.shape[0] != len(self._selected[0]):
                # Rows are told apart by the first dimension; here they are mixed (an expert of a
                # mixture takes tokens of many rows), and rows of other requests would be changed.
                raise ValueError(f"{path} does not take (row, token, feature) inputs")
            return update(plan, x_BTI, out)

        return forward


def _copy(group: _Group, at: int, old: _Group, there: int) -> None:
    group.stack.a_NIS[at] = old.stack.a_NIS[there]
    for path, projection in group.projections.items():
        projection.b[at] = old.projections[path].b[there]
