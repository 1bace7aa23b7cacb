"""The lines by which a trainer says how far it is, and how a reader gets them back.

A trainer writes each record as one JSON line to stdout and to progress.jsonl under the output.
The last record of a job is its result; rank 0 also leaves it in the termination log, so that it
can be read from the pod's status when the logs are gone. May import errors and contract.
"""

import json
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError


class Progress(BaseModel):
    """Where the training stands. Losses are means per trained token, in nats."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: Literal["progress"] = "progress"
    step: int
    """Optimiser steps done."""
    total_steps: int
    epoch: float
    loss: float | None = None
    """Of the steps since the last record."""
    eval_loss: float | None = None
    """Of the held-out rows, where this record follows an evaluation."""
    eval_perplexity: float | None = None
    """exp(eval_loss)."""
    eval_accuracy: float | None = None
    """Share of the trained tokens (or of the rows, for a classification) that the model ranks
    first."""
    learning_rate: float | None = None
    """Of the last step."""
    grad_norm: float | None = None
    """Of the last step, before clipping."""
    tokens: int = 0
    """Tokens seen so far, on all ranks, padding not counted."""
    tokens_per_s: float | None = None
    """Tokens a second, on all ranks, since the last record."""
    mfu: float | None = None
    """Model FLOPs a second, as peftjob.estimate counts them, over what the devices can do."""
    eta_s: float | None = None
    memory_mb: float | None = None
    """Peak memory of rank 0: resident on a CPU, allocated on a GPU."""


class Result(BaseModel):
    """What a job ends with."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: Literal["result"] = "result"
    adapter: str
    """Reference of the adapter image, with its digest."""
    uploaded: str | None = None
    """Where the adapter's files are as well: hf://org/name@commit, s3://bucket/prefix/."""
    registered: str | None = None
    """Name and version in the Model Registry that output names; None where it refused."""
    base_model: str
    steps: int
    tokens: int
    tokens_per_s: float
    """Over the whole training, evaluation not counted."""
    train_loss: float | None = None
    eval_loss_before: float | None = None
    """Of the held-out rows; None where there are none."""
    eval_loss_after: float | None = None
    eval_perplexity_before: float | None = None
    eval_perplexity_after: float | None = None
    eval_accuracy_before: float | None = None
    eval_accuracy_after: float | None = None
    seconds: float
    workers: int
    """Processes that trained (torchrun's world size)."""


def latest(records: Iterable[Progress]) -> Progress | None:
    """Where a training stands: the newest record, with the newest known value of what it lacks.

    A line tells the training loss, an evaluation the held-out loss; a reader wants both.
    """
    known: dict[str, object] = {}
    for record in records:
        known |= record.model_dump(exclude_none=True)
    return Progress.model_validate(known) if known else None


def to_line(record: Progress | Result) -> str:
    """The record as one line of JSON, without the fields that are None."""
    return record.model_dump_json(exclude_none=True)


def from_line(line: str) -> Progress | Result | None:
    """The record in a line of a log, or None where the line is something else."""
    line = line.strip()
    if not line.startswith('{"event":'):
        return None
    try:
        data = json.loads(line)
        kinds: dict[object, type[Progress] | type[Result]] = {
            "progress": Progress,
            "result": Result,
        }
        kind = kinds.get(data.get("event"))
        return kind.model_validate(data) if kind else None
    except (json.JSONDecodeError, ValidationError):
        return None
