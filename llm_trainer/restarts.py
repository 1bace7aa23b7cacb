"""How often a job has begun anew without getting further, counted on the output volume.

With restartPolicy ExitCode the operator makes a failed pod anew and counts nothing: its
backoffLimit looks at restarts in place. A worker that runs out of memory at the same step each
time would hold its GPUs for good. So the launcher counts: a run that ends by itself, or by a kill
that nobody announced, without a checkpoint that no run before it had. No torch here.
"""

import json
import os
from pathlib import Path
from typing import Any

from llm_trainer.failures import Failure
from llm_trainer.options import Job
from peftjob.errors import JobError

FILE = ".peftjob-runs.json"
CHECKPOINTS = "checkpoints/*/step-*"


def begin(job: Job) -> None:
    """Count a run that begins now.

    Raises:
        JobError: there have been run_policy.backoff_limit restarts already.
    """
    limit = job.spec.run_policy.backoff_limit
    if limit is None or job.spec.run_policy.restart_policy != "ExitCode":
        return
    before = _read(job)
    step = _newest_step(job)
    runs = before.get("runs", 0) if step == before.get("step") else 0
    if runs > limit:
        cause = before.get("cause") or "it was killed (out of memory?)"
        raise JobError(
            f"gave up after {runs} runs that got no further than step {step} "
            f"(run_policy.backoff_limit {limit}); how the last one ended: {cause}"
        )
    _write(job, {"runs": runs + 1, "step": step})


def end(job: Job, failure: Failure | None, *, was_stopped: bool) -> None:
    """Note how a run ended. One that was asked to leave its node does not count."""
    record = _read(job)
    if not record:
        return
    if failure is None:
        (job.output_dir / FILE).unlink(missing_ok=True)
    elif was_stopped:
        _write(job, {**record, "runs": record["runs"] - 1})
    else:
        _write(job, {**record, "cause": failure.line})


def _newest_step(job: Job) -> int:
    names = [path.name for path in job.output_dir.glob(CHECKPOINTS)]
    steps = [int(name.removeprefix("step-")) for name in names if name[5:].isdecimal()]
    return max(steps, default=0)


def _read(job: Job) -> dict[str, Any]:
    try:
        found = json.loads((job.output_dir / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(job: Job, record: dict[str, Any]) -> None:
    """Whole or not at all; a volume that takes nothing is the training's to complain of."""
    path = job.output_dir / FILE
    beside = Path(f"{path}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(record) + "\n")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
