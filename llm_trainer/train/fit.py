"""How this job is run on the devices it was given: the estimate, with what is known in the pod.

What is known here and not before: the rows, the dtype that the hardware computes in, and how much
memory there is. The choice is the same on every rank, for the one with the least memory, and goes
by the memory that a device has, not by what of it is free at the moment: a job that comes back on
the same kind of node must compute what it would have computed.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_trainer.objective import Rows
from llm_trainer.ranks import Ranks
from peftjob import base_model, estimate
from peftjob.architecture import Architecture
from peftjob.errors import ModelError, SourceError
from peftjob.estimate import Choice, Device
from peftjob.spec import BaseModelSource, PeftJobSpec

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of version 2 and of version 1."""
UNKNOWN_TOKENS = {"cpu": 1024, "cuda": 4096}
"""At once, for a model of which nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a job is run."""

    micro_batch_tokens: int
    gradient_checkpointing: bool
    parallel: str
    """ddp or fsdp."""
    note: str
    """In one line, for the log."""
    architecture: Architecture | None
    """Of the base model; None where it is not known."""


def choose(
    spec: PeftJobSpec,
    folder: Path,
    *,
    device: Device,
    processes: int,
    rows: Rows,
    dtype: torch.dtype,
    labels: int | None = None,
) -> Fit:
    """The fastest way that fits, as far as the spec leaves it open.

    Args:
        folder: of the base model.
        device: of the rank that has the least memory.
        processes: of the job.
        rows: those that are trained on.
        dtype: of the frozen weights.
        labels: of a classification's head.

    Raises:
        OutOfMemoryError: not even one row fits.
    """
    try:
        architecture = base_model.architecture_of(
            BaseModelSource(source=folder.absolute().as_uri()),
            task=spec.task,
            labels=labels or spec.num_labels or 2,
        )
    except (ModelError, SourceError) as err:
        return _unknown(spec, device, rows, reason=str(err))
    tokens = int(rows.lengths.sum())
    known = estimate.Rows(
        count=len(rows),
        tokens=tokens,
        targets=min(tokens, int(rows.targets.sum())),
        longest=int(rows.lengths.max()),
    )
    precise = spec.model_copy(
        update={
            "training": spec.training.model_copy(
                update={"dtype": str(dtype).removeprefix("torch.")}
            )
        }
    )
    found = estimate.estimate(precise, architecture, rows=known, device=device, processes=processes)
    choice = found.choice
    return Fit(
        micro_batch_tokens=choice.micro_batch_tokens,
        gradient_checkpointing=choice.gradient_checkpointing,
        parallel=choice.parallel,
        note=_note(choice, device),
        architecture=architecture,
    )


def device_of(ranks: Ranks) -> Device:
    """The device of the rank that has the least memory. Called by all ranks together."""
    memory = _memory_bytes(ranks.device)
    least = min(int(text) for text in ranks.gather([str(memory)]))
    kind = ranks.device.type
    name = torch.cuda.get_device_name(ranks.device) if kind == "cuda" else ""
    return Device(kind=kind, memory_bytes=least, name=name)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return host_memory_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def host_memory_bytes(
    limits: tuple[Path, ...] = CGROUP_LIMITS, meminfo: Path = Path("/proc/meminfo")
) -> int:
    """What the pod may use of the machine's memory."""
    found = [1024 * int(meminfo.read_text().split()[1])]
    for path in limits:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        # Version 2 writes "max", version 1 a number beyond any memory.
        if text.isdecimal():
            found.append(int(text))
    return min(found)


def _unknown(spec: PeftJobSpec, device: Device, rows: Rows, *, reason: str) -> Fit:
    training = spec.training
    most = min(
        UNKNOWN_TOKENS[device.kind],
        training.per_device_train_batch_size * int(rows.lengths.max()),
    )
    return Fit(
        micro_batch_tokens=training.micro_batch_tokens or most,
        gradient_checkpointing=bool(training.gradient_checkpointing),
        parallel="fsdp" if training.parallel == "fsdp" else "ddp",
        note=f"memory is not estimated: {reason}",
        architecture=None,
    )


def _note(choice: Choice, device: Device) -> str:
    how = "with" if choice.gradient_checkpointing else "without"
    shared = ", the base model's weights shared out" if choice.parallel == "fsdp" else ""
    return (
        f"up to {choice.micro_batch_tokens} tokens at once {how} gradient checkpointing{shared}: "
        f"about {choice.memory.total / 2**30:.1f} GiB on each {device}"
    )
