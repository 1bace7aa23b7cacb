"""LoRA projections that share an input, as one node of the graph.

PEFT computes y = W x + s B (A x) with a float32 copy of x for every projection and keeps what its
four operations need. Here the A's of q, k, v (or gate, up) are one product, B's product is added
into W's in place, x is kept once, and backward computes just what is needed: nothing for W, and
no gradient of x where nobody asks for one.

Which projections share an input is not guessed: modules of one parent that were given the same
tensor in a trial run are a group, and at each call the tensor itself is compared. The first of a
group computes all of it; the others find theirs ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

_NAME = "default"


def applies(module: Any) -> str | None:
    """Why a LoRA layer has to be left to PEFT, or None."""
    if type(module) is not LoraLinear:
        return f"LoRA on {type(module).__name__}"
    base = module.get_base_layer()
    if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
        return f"a base layer of {type(base).__name__}"
    if module.use_dora.get(_NAME) or module.lora_variant:
        return "DoRA or another variant"
    if not isinstance(module.lora_dropout[_NAME], nn.Identity):
        return "dropout"
    if module.lora_bias.get(_NAME) or module.fan_in_fan_out:
        return "a bias of B or a transposed weight"
    if base.weight.requires_grad or list(module.active_adapters) != [_NAME]:
        return "base weights that are trained"
    return None


def install(groups: Sequence[Sequence[LoraLinear]]) -> None:
    """Compute each group as one node; a group may be a single module."""
    for modules in groups:
        group = Group(tuple(modules))
        for i, module in enumerate(modules):
            module.forward = _Member(group, i, module.forward)


def uninstall(model: nn.Module) -> None:
    """Give the modules their own forward back."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Member):
            del module.forward


@dataclass
class Group:
    """Projections of one input."""

    modules: tuple[LoraLinear, ...]
    _input: torch.Tensor | None = None
    _ready: tuple[torch.Tensor | None, ...] = ()

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Of the module at `index`."""
        if self._input is x and self._ready[index] is not None:
            ready = list(self._ready)
            y, ready[index] = ready[index], None
            self._ready = tuple(ready)
            if not any(tensor is not None for tensor in ready):
                self._input = None
            assert y is not None
            return y
        outputs = self._compute(x)
        if len(outputs) > 1:
            self._input = x
            self._ready = tuple(None if i == index else y for i, y in enumerate(outputs))
        return outputs[index]

    def _compute(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        factors: list[torch.Tensor] = []
        for module in self.modules:
            factors += [module.lora_A[_NAME].weight, module.lora_B[_NAME].weight]
        layers = [module.get_base_layer() for module in self.modules]
        frozen = [(layer.weight, layer.bias) for layer in layers]
        scales = [float(module.scaling[_NAME]) for module in self.modules]
        made: tuple[torch.Tensor, ...] = _Projections.apply(  # type: ignore[no-untyped-call]
            x, frozen, scales, *factors
        )
        return made


class _Member:
    """What a module's forward becomes."""

    def __init__(self, group: Group, index: int, own: Any) -> None:
        self._group = group
        self._index = index
        self._own = own

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        module = self._group.modules[self._index]
        if args or kwargs or module.disable_adapters or module.merged:
            # PEFT's way for what is not plain training: adapter names by row, adapters off.
            result: torch.Tensor = self._own(x, *args, **kwargs)
            return result
        return self._group.output(self._index, x)


class _Projections(torch.autograd.Function):
    """x (…, in) → for each projection W x + bias + s B A x, (…, out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        frozen: list[tuple[torch.Tensor, torch.Tensor | None]],
        scales: list[float],
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        dtype = flat.dtype
        a_all = torch.cat([a.to(dtype) for a in factors[0::2]])
        scaled = [(b * s).to(dtype) for b, s in zip(factors[1::2], scales, strict=True)]
        ranks = [len(a) for a in factors[0::2]]
        h_all = flat @ a_all.t()
        outputs = []
        for (weight, bias), b, place in zip(frozen, scaled, _places(ranks), strict=True):
            y = torch.nn.functional.linear(x, weight, bias)
            # In place, through a view: what is returned is no view, and may be changed in place.
            y.view(-1, y.shape[-1]).addmm_(h_all[:, place], b.t())
            outputs.append(y)
        ctx.save_for_backward(flat, h_all, a_all, *scaled, *(weight for weight, _ in frozen))
        ctx.scales, ctx.ranks, ctx.shape = scales, ranks, x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        flat, h_all, a_all, *rest = ctx.saved_tensors
        count = len(ctx.ranks)
        scaled, weights = rest[:count], rest[count:]
        grad_h = torch.zeros_like(h_all)
        grad_x = None
        places = _places(ctx.ranks)
        grad_bs: list[torch.Tensor | None] = []
        for grad, b, weight, place, scale in zip(
            grads, scaled, weights, places, ctx.scales, strict=True
        ):
            if grad is None:
                grad_bs.append(None)
                continue
            dy = grad.reshape(-1, grad.shape[-1])
            grad_h[:, place] = dy @ b
            grad_bs.append((dy.t() @ h_all[:, place]).float().mul_(scale))
            if ctx.needs_input_grad[0]:
                grad_x = dy @ weight if grad_x is None else grad_x.addmm_(dy, weight)
        grad_a_all = (grad_h.t() @ flat).float()
        if ctx.needs_input_grad[0]:
            grad_x = grad_h @ a_all if grad_x is None else grad_x.addmm_(grad_h, a_all)
            grad_x = grad_x.view(ctx.shape)
        factors: list[torch.Tensor | None] = []
        for place, grad_b in zip(places, grad_bs, strict=True):
            factors += [grad_a_all[place], grad_b]
        return grad_x, None, None, *factors


def _places(ranks: Sequence[int]) -> list[slice]:
    """Where each projection's part is, of what is computed for all together."""
    return [slice(end - rank, end) for end, rank in zip(accumulate(ranks), ranks, strict=True)]
