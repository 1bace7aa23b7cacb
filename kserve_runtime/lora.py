"""Many adapters in one batch: concatenate and mask.

    y = base(x) + ((x · A_cat) ∘ mask) · B_cat

A_cat and B_cat hold the matrices of all loaded adapters one beside the other, and the mask, (row,
rank), is 1 where a row's adapter is and 0 elsewhere. This is exact, whatever ranks, scalings and
target modules the adapters have, and costs two matrix products a projection however many adapters
a batch mixes. The base model's modules and weights stay as they are; a forward hook adds the rest.
Legend: B rows, T tokens, R ranks of all adapters together.
"""

# ruff: noqa: N806  (names of tensors end with their shape)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kserve_runtime.adapter_files import AdapterFiles

Layout = tuple[tuple[int, int], ...]
"""(slot, rank) of each adapter that changes a module. Modules of one layout share a mask."""


@dataclass(frozen=True, slots=True)
class _Concatenated:
    a: torch.Tensor  # (R, in)
    b: torch.Tensor  # (out, R)
    layout: Layout


class LoraMixer:
    """The adapters of a model. Not thread-safe: call between forward passes only."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._modules = dict(model.named_modules())
        self._device = device
        self._adapters: list[AdapterFiles] = []
        self._slots: dict[str, int] = {}
        self._changed: dict[str, _Concatenated] = {}
        self._hooked: set[str] = set()
        self._masks: dict[Layout, torch.Tensor] = {}

    @property
    def adapters(self) -> Sequence[AdapterFiles]:
        return tuple(self._adapters)

    def add(self, adapter: AdapterFiles) -> None:
        """Take an adapter that read_adapter has checked."""
        self._replace([*self._adapters, adapter])

    def remove(self, name: str) -> None:
        """Forget an adapter that no running row uses."""
        self._replace([adapter for adapter in self._adapters if adapter.name != name])

    def _replace(self, adapters: list[AdapterFiles]) -> None:
        paths = dict.fromkeys(path for adapter in adapters for path in adapter.pairs)
        changed = {path: self._concatenate(path, adapters) for path in paths}
        for path in changed.keys() - self._hooked:
            self._modules[path].register_forward_hook(self._make_hook(path))
            self._hooked.add(path)
        self._adapters, self._changed, self._masks = adapters, changed, {}
        self._slots = {adapter.name: slot for slot, adapter in enumerate(adapters)}

    def _concatenate(self, path: str, adapters: Sequence[AdapterFiles]) -> _Concatenated:
        parts = [(slot, a.pairs[path]) for slot, a in enumerate(adapters) if path in a.pairs]
        return _Concatenated(
            a=torch.cat([pair.a for _, pair in parts]).to(self._device),
            b=torch.cat([pair.b for _, pair in parts], dim=1).to(self._device).contiguous(),
            layout=tuple((slot, pair.rank) for slot, pair in parts),
        )

    def select(self, names: Sequence[str | None]) -> None:
        """Set the adapter of each row of the next forward passes; None is the base model."""
        self._masks = {}
        if all(name is None for name in names):
            return
        slots = [-1 if name is None else self._slots[name] for name in names]
        slots_B1 = torch.tensor(slots, device=self._device).unsqueeze(1)
        for layout in {module.layout for module in self._changed.values()}:
            owners = [slot for slot, rank in layout for _ in range(rank)]
            owners_R = torch.tensor(owners, device=self._device)
            self._masks[layout] = (slots_B1 == owners_R).float().unsqueeze(1)

    def _make_hook(self, path: str) -> Any:
        def add_update(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            changed = self._changed.get(path)
            mask_B1R = self._masks.get(changed.layout) if changed else None
            if changed is None or mask_B1R is None:
                return None
            x_BTI = args[0].to(changed.a.dtype)
            if x_BTI.dim() != 3 or x_BTI.shape[0] != mask_B1R.shape[0]:
                # Rows are told apart by the first dimension; here they are mixed (an expert of a
                # mixture takes tokens of many rows), and a mask by row would be wrong.
                raise ValueError(f"{path} does not take (row, token, feature) inputs")
            hidden_BTR = nn.functional.linear(x_BTI, changed.a) * mask_B1R
            return (output + nn.functional.linear(hidden_BTR, changed.b)).to(output.dtype)

        return add_update
