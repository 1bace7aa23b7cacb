"""Runs that get no further are counted, and end."""

import json
from typing import Any

import pytest

from llm_trainer import options, restarts
from llm_trainer.failures import Failure
from peftjob.contract import OUTPUT_ENV, SPEC_ENV, WORKSPACE_ENV
from peftjob.errors import JobError
from tests.sdk_tests.conftest import make_spec

FAILED = Failure(line="a worker was ended by SIGKILL", exit_code=137)


@pytest.fixture
def job(tmp_path: Any) -> options.Job:
    spec = make_spec(run_policy={"backoff_limit": 2})
    env = {SPEC_ENV: spec.to_json(), OUTPUT_ENV: str(tmp_path), WORKSPACE_ENV: str(tmp_path)}
    return options.read([], env)


def _run(job: options.Job, failure: Failure | None = FAILED, *, was_stopped: bool = False) -> None:
    restarts.begin(job)
    restarts.end(job, failure, was_stopped=was_stopped)


def _counted(job: options.Job) -> int:
    runs: int = json.loads((job.output_dir / restarts.FILE).read_text())["runs"]
    return runs


def test_a_job_gives_up_after_its_limit_with_the_last_cause(job: options.Job) -> None:
    for _ in range(3):
        _run(job)
    with pytest.raises(JobError, match=r"after 3 runs .*step 0 .*backoff_limit 2.*by SIGKILL"):
        restarts.begin(job)


def test_a_run_that_nobody_saw_end_counts(job: options.Job) -> None:
    for _ in range(3):
        restarts.begin(job)
    with pytest.raises(JobError, match="out of memory"):
        restarts.begin(job)


def test_a_checkpoint_is_progress(job: options.Job) -> None:
    for step in range(1, 9):
        _run(job)
        (job.output_dir / f"checkpoints/a/step-{step:08d}").mkdir(parents=True)
    for _ in range(3):
        _run(job)
    with pytest.raises(JobError, match="no further than step 8"):
        restarts.begin(job)


def test_a_run_that_was_asked_to_leave_does_not_count(job: options.Job) -> None:
    for _ in range(9):
        _run(job, was_stopped=True)
    assert _counted(job) == 0


def test_success_forgets(job: options.Job) -> None:
    _run(job, failure=None)
    assert list(job.output_dir.iterdir()) == []


@pytest.mark.parametrize("policy", [{"backoff_limit": None}, {"restart_policy": "OnFailure"}])
def test_nothing_is_counted_where_there_is_no_limit_or_the_operator_counts(
    tmp_path: Any, policy: dict[str, Any]
) -> None:
    spec = make_spec(run_policy=policy)
    job = options.read([], {SPEC_ENV: spec.to_json(), OUTPUT_ENV: str(tmp_path)})
    for _ in range(9):
        _run(job)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_nothing_is_a_beginning(job: options.Job) -> None:
    (job.output_dir / restarts.FILE).write_text("{")
    _run(job)
    assert _counted(job) == 1
