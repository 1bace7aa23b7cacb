"""The base model's weights shared out among the ranks, for models that don't fit one device.

FSDP2 shards what is frozen; the adapter stays whole on every rank, so that gradients, optimiser,
checkpoints and publication are those of the unsharded training. Each block's weights are gathered
while it computes, forward and backward, and let go again. Every rank must therefore run the model
as often as every other: `rounds` says how often.
"""

import os
from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from llm_trainer.ranks import Ranks
from peftjob.errors import SpecError


class Shards:
    """The sharing out, begun before the model is loaded.

    A process has the whole model in the machine's memory until its weights are shared out, so the
    processes of a machine do this one after the other: begin waits for this one's turn, apply ends
    it. All ranks are here, or one has failed and all raise its error.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._turns = 0
        self._mesh: Any = None

    @classmethod
    def begin(cls, ranks: Ranks) -> Self:
        """Returns when it is this process's turn to load the model."""
        made = cls(ranks)
        ranks.agree()
        made._mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        made._turns = max(map(int, ranks.gather([os.environ.get("LOCAL_WORLD_SIZE", "1")])))
        for _ in range(ranks.local_rank):
            ranks.agree()
        return made

    def apply(self, model: nn.Module) -> None:
        """Share out the frozen weights of `model` (a PEFT model on the CPU), in place.

        What is trained and every buffer move to the device whole.

        Raises:
            SpecError: as `check`.
        """
        check(model)
        whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
        for block in _blocks(model):
            fully_shard(block, mesh=self._mesh, ignored_params=whole)
        fully_shard(model, mesh=self._mesh, ignored_params=whole)
        if hasattr(model, "generate"):
            # It goes around the forward whose hooks gather the embeddings and the head.
            register_fsdp_forward_method(model, "generate")
        device = self._ranks.device
        for parameter in whole:
            parameter.data = parameter.data.to(device)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        for _ in range(self._turns - self._ranks.local_rank):
            self._ranks.agree()


def check(model: nn.Module) -> None:
    """Refuse what can't be shared out.

    Raises:
        SpecError: weights of 8 bits, whose scales bitsandbytes keeps where FSDP loses them.
    """
    # By name: most jobs do without bitsandbytes.
    if any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters()):
        raise SpecError(
            [
                "method.bits: weights of 8 bits can't be shared out among processes (training."
                "parallel: fsdp); take 4 bits, or training.parallel: ddp where the model fits"
            ]
        )


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists that have weights of their own to share out."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not (inside and name.startswith(inside)):
            inside = (*inside, f"{name}.")
            yield from module


def rounds(ranks: Ranks, count: int) -> int:
    """The largest `count` of all ranks."""
    if ranks.world_size == 1:
        return count
    largest = torch.tensor(count, device=ranks.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)
