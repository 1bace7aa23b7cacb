"""A spec and its base model's architecture → the estimate of a job. Pure."""

import math
from dataclasses import dataclass

from peftjob.architecture import Architecture
from peftjob.estimate import devices, fitting
from peftjob.estimate.adapter import trained
from peftjob.estimate.arithmetic import flops
from peftjob.estimate.devices import Device
from peftjob.estimate.fitting import Choice
from peftjob.spec import PeftJobSpec
from peftjob.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is known of the rows to train on."""

    count: int | None = None
    """Rows, those held out not counted."""
    tokens: int | None = None
    """Of all of them, as they are cut; None takes each to be as long as the longest."""
    targets: int | None = None
    """Tokens that are trained; None is all."""
    longest: int | None = None
    """Tokens of the longest row; None is training.max_length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job needs, and how it is run."""

    architecture: Architecture
    device: Device
    processes: int
    dtype: str
    choice: Choice
    trained: int
    """Parameters that are trained."""
    total_steps: int | None
    """Optimiser steps; None where the number of rows is not known."""
    flops: int | None
    """Model FLOPs of the whole training; None where the number of rows is not known."""


def estimate(
    spec: PeftJobSpec,
    architecture: Architecture,
    *,
    rows: Rows | None = None,
    device: Device | None = None,
    processes: int | None = None,
) -> Estimate:
    """What the job needs at its peak, and how it is best run.

    Args:
        architecture: of the base model, with the spec's task.
        rows: None knows nothing of them: they are as long as training.max_length lets them be.
        device: of each process; None takes what the spec's resources say.
        processes: in all; None takes what the spec says.

    Raises:
        OutOfMemoryError: it can't fit; the message says what would.
        SpecError: the spec's resources make no sense.
    """
    training = spec.training
    local = processes_of_replica(spec)
    processes = processes or local * spec.num_workers
    device = device or devices.of(spec.resources, processes=local)
    dtype = dtype_of(training, device)
    longest = _longest(training, architecture, rows)
    share = 1.0
    if rows is not None and rows.targets is not None and rows.tokens:
        share = rows.targets / rows.tokens
    choice = fitting.choose(
        fitting.Job(
            architecture=architecture,
            method=spec.method,
            training=training,
            device=device,
            width=2 if dtype == "bfloat16" else 4,
            processes=processes,
            longest=longest,
            share=share,
        )
    )
    return Estimate(
        architecture=architecture,
        device=device,
        processes=processes,
        dtype=dtype,
        choice=choice,
        trained=trained(architecture, spec.method),
        total_steps=total_steps(training, rows or Rows(), processes, longest=longest),
        flops=_flops(spec, architecture, rows or Rows(), longest),
    )


def processes_of_replica(spec: PeftJobSpec) -> int:
    """Processes that torchrun starts in each replica."""
    if spec.num_procs_per_worker == "auto":
        return max(1, devices.gpus(spec.resources))
    return spec.num_procs_per_worker


def dtype_of(training: Training, device: Device) -> str:
    """Of the frozen weights. What a CPU multiplies in is known in the pod only."""
    if training.dtype != "auto":
        return training.dtype
    return "bfloat16" if device.kind == "cuda" and device.bfloat16 else "float32"


def total_steps(training: Training, rows: Rows, processes: int, *, longest: int) -> int | None:
    """Optimiser steps: epochs x ceil(samples / (batch x accumulation x processes)).

    None where the rows that it takes to know are not known.
    """
    if training.max_steps > 0:
        return training.max_steps
    if rows.count is None:
        return None
    if training.tokens_per_step is not None:
        tokens = rows.tokens if rows.tokens is not None else rows.count * longest
        steps = max(1, tokens // training.tokens_per_step)
    else:
        rows_per_step = (
            training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
        )
        steps = -(-rows.count // rows_per_step)
    return max(1, math.ceil(training.num_train_epochs * steps))


def _longest(training: Training, architecture: Architecture, rows: Rows | None) -> int:
    if architecture.image_tokens is not None:
        return architecture.image_tokens
    known = (rows and rows.longest, training.max_length, architecture.positions)
    return min(length for length in known if length)


def _flops(spec: PeftJobSpec, architecture: Architecture, rows: Rows, longest: int) -> int | None:
    """With all rows of one length: the sum of squares, and so the attention, is a lower bound."""
    if rows.count is None:
        return None
    tokens = rows.tokens if rows.tokens is not None else rows.count * longest
    targets = rows.targets if rows.targets is not None else tokens
    lengths = [tokens // rows.count] * rows.count
    once = flops(architecture, spec.method, tokens, targets, lengths)
    return int(once * spec.training.num_train_epochs)
