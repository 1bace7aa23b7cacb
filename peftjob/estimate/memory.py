"""The memory that one process needs at its peak, part by part. Pure."""

from dataclasses import dataclass, fields

from peftjob.architecture import Architecture
from peftjob.estimate import adapter
from peftjob.estimate.activations import WIDE, Activations, Batch
from peftjob.estimate.devices import MIB
from peftjob.method import Method, QLora

BLOCK_4BIT = 64
"""Weights of bitsandbytes that share a scale."""
BLOCK_SCALES = 256
"""Scales that share a scale, with double quantisation."""

CONTEXT_BYTES = 700 * MIB
"""Of CUDA on a GPU: its context, kernels, and the workspaces of cuBLAS."""
NCCL_BYTES = 400 * MIB
"""Buffers for several GPUs to speak to each other."""
PROCESS_BYTES = 700 * MIB
"""Of a trainer on a CPU before it loads a model: Python, torch, transformers and PEFT."""

FRAGMENTATION = {"cuda": 0.06, "cpu": 0.38}
"""Memory that allocators hold and can't use, as a share of what comes and goes. The C library's
is wasteful with tensors of a few MiB, but four times as fast as giving them back would be."""

OPTIMISER_BYTES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_bnb_8bit": 2.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "ademamix": 12.0,
    "lion_8bit": 1.0,
    "lion_32bit": 4.0,
    "paged_lion_8bit": 1.0,
    "paged_lion_32bit": 4.0,
    "adafactor": 0.1,
    "sgd": 0.0,
    "adagrad": 4.0,
    "rmsprop": 4.0,
    "rmsprop_bnb_8bit": 1.0,
    "apollo_adamw": 8.0,
}
"""Bytes of state for a parameter; 8 where an optimiser is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a process needs on its device at once."""

    weights: int
    """The frozen base model."""
    adapter: int
    """What is trained, in float32."""
    gradients: int
    optimiser: int
    activations: int
    """Kept for the backward pass, and made in it."""
    loss: int
    """What the loss needs beyond the backward pass, whose room it can use."""
    fragmentation: int
    runtime: int
    """Of the process itself: libraries, and CUDA's context."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a job is run."""

    kind: str
    """cuda or cpu."""
    width: int
    """Bytes of a number of the dtype that is computed in."""
    optim: str = "adamw_torch"
    checkpointing: bool = False
    shards: int = 1
    """Processes that share out the base model's weights (fsdp)."""
    processes: int = 1


def peak_memory(
    architecture: Architecture, method: Method, batch: Batch, setting: Setting
) -> Memory:
    """What a process needs for a step with micro-batches like `batch`."""
    trained = adapter.trained(architecture, method)
    activations = Activations(
        architecture=architecture,
        method=method,
        width=setting.width,
        on_cpu=setting.kind == "cpu",
    )
    kept = activations.kept(batch, checkpointing=setting.checkpointing)
    backward = activations.backward(batch, checkpointing=setting.checkpointing)
    backward += _unpacked(architecture, method, setting.width)
    loss = max(0, activations.loss(batch) - backward)
    moving = kept + backward + loss
    several = setting.processes > 1
    return Memory(
        weights=weights(architecture, method, setting),
        adapter=WIDE * trained,
        gradients=WIDE * trained,
        optimiser=int(OPTIMISER_BYTES.get(setting.optim, 8.0) * trained),
        activations=kept + backward,
        loss=loss,
        fragmentation=int(FRAGMENTATION[setting.kind] * moving),
        runtime=PROCESS_BYTES if setting.kind == "cpu" else CONTEXT_BYTES + NCCL_BYTES * several,
    )


def weights(architecture: Architecture, method: Method, setting: Setting) -> int:
    """Bytes of the base model's weights on one process."""
    whole = _stored(architecture, method, setting.width)
    if setting.shards == 1:
        return whole
    # Gathered whole while they compute: what lies outside of the blocks all the time, and two
    # blocks, one of them ahead of its use.
    outside = (architecture.embeddings + architecture.head) * setting.width
    largest = max(block.parameters for block in architecture.blocks)
    per_weight = whole / max(1, architecture.parameters)
    return int(whole / setting.shards + outside + 2 * largest * per_weight)


def _stored(architecture: Architecture, method: Method, width: int) -> int:
    if not isinstance(method, QLora):
        return architecture.parameters * width
    quantised = architecture.quantised
    rest = (architecture.parameters - quantised) * width
    if method.bits == 8:
        # A float32 scale for each output.
        rows = sum(n * p.outputs for n, p in architecture.projections() if not p.stacked)
        return rest + quantised + WIDE * rows
    scales = quantised / BLOCK_4BIT
    per_scale = 1 + WIDE / BLOCK_SCALES if method.double_quant else WIDE
    return rest + int(quantised / 2 + scales * per_scale)


def _unpacked(architecture: Architecture, method: Method, width: int) -> int:
    """The largest quantised projection, unpacked while it is used."""
    if not isinstance(method, QLora):
        return 0
    return (
        max((p.matrix for _, p in architecture.projections() if not p.stacked), default=0) * width
    )
