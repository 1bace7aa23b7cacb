"""The adapter's gradients as one flat tensor: summed over ranks, measured and cleared in one call.

An adapter is small, so its gradients are exchanged once a step, after the last micro-batch, rather
than bucket by bucket during the backward pass as DDP does. Ranks may then take different numbers
of micro-batches (none, or twice as many after running out of memory), a parameter that a
micro-batch does not use is simply not added to, and what every rank must know about the step
(stop? any loss that is not finite?) travels in the same call.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


class Gradients:
    """The gradients of `parameters`, all float32 and on one device, as views of one tensor.

    Args:
        parameters: what is trained, in an order that is the same on every rank.
        world_size: how many ranks add theirs up.
        flags: how many numbers travel along.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, world_size: int, flags: int) -> None:
        self._parameters = list(parameters)
        self._world_size = world_size
        count = sum(parameter.numel() for parameter in self._parameters)
        device = self._parameters[0].device
        self._all = torch.zeros(count + flags, dtype=torch.float32, device=device)
        self._flat, self._flags = self._all[:count], self._all[count:]
        self.attach()

    def attach(self) -> None:
        """Point every parameter's grad at its place, to which backward adds."""
        start = 0
        for parameter in self._parameters:
            end = start + parameter.numel()
            parameter.grad = self._flat[start:end].view_as(parameter)
            start = end

    def clear(self) -> None:
        """Set to zero, for the next step."""
        self._all.zero_()

    def reduce(self, flags: Sequence[float]) -> list[float]:
        """Sum over all ranks, in place, together with `flags`; the sums of those."""
        if self._world_size == 1:
            return list(flags)
        self._flags.copy_(torch.tensor(flags, dtype=torch.float32))
        dist.all_reduce(self._all)
        sums: list[float] = self._flags.tolist()
        return sums

    def norm(self) -> float:
        """The Euclidean norm of all of them; not finite where any of them is not."""
        return float(torch.linalg.vector_norm(self._flat, dtype=torch.float64))

    def clip(self, norm: float, limit: float) -> None:
        """Scale down to `limit`, if `norm` is above it."""
        if norm > limit > 0:
            self._flat.mul_(limit / norm)
