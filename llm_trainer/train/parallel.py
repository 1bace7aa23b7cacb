"""The base model's weights shared out among the ranks, for models that don't fit one device.

FSDP2 shards what is frozen; the adapter stays whole on every rank, so that gradients, optimiser,
checkpoints and publication are those of the unsharded training. Each block's weights are gathered
while it computes, forward and backward, and let go again. Every rank must therefore run the model
as often as every other: `rounds` says how often.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from llm_trainer.ranks import Ranks
from peftjob.errors import SpecError


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Share out the frozen weights of `model` (a PEFT model on the CPU), in place.

    What is trained and every buffer move to the device whole. All ranks are here, or none.

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
    ranks.agree()
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    if hasattr(model, "generate"):
        # It goes around the forward whose hooks gather the embeddings and the head.
        register_fsdp_forward_method(model, "generate")
    for parameter in whole:
        parameter.data = parameter.data.to(ranks.device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(ranks.device))


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
