"""The launcher: what it starts, and how a replica's end is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_trainer import launch
from llm_trainer.failures import Failure, describe, first_cause, write
from peftjob.cgroup import usable_cpus
from peftjob.errors import DataError, UsageError
from tests.until import until


def commands(**env: str) -> list[launch.Command]:
    return launch._commands(["--x"], env, Path("errors"))


OPERATOR = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_NPROC_PER_NODE": "2",
    "PET_MASTER_ADDR": "job-master-0",
    "PET_MASTER_PORT": "23456",
    "RANK": "1",
    "WORLD_SIZE": "2",
}


def test_ranks_of_processes_follow_from_the_operators_ranks_of_pods() -> None:
    made = [env for _, env in commands(**OPERATOR)]
    assert [env["RANK"] for env in made] == ["2", "3"]
    assert [env["LOCAL_RANK"] for env in made] == ["0", "1"]
    assert {env["WORLD_SIZE"] for env in made} == {"4"}
    assert {env["MASTER_ADDR"] + ":" + env["MASTER_PORT"] for env in made} == {"job-master-0:23456"}


def test_a_single_process_is_not_made_to_meet_anyone() -> None:
    ((_, env),) = commands(RANK="0", WORLD_SIZE="1", PET_NNODES="1", PET_NODE_RANK="0")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(env)
    assert env["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    "env", [{"PET_NNODES": "1:3"}, {"PET_NNODES": "2", "PET_RDZV_BACKEND": "c10d"}]
)
def test_an_elastic_replica_is_given_to_torchrun(env: dict[str, str]) -> None:
    ((args, made),) = commands(**env)
    assert args == [sys.executable, "-m", "llm_trainer.elastic", "--x"]
    assert made["PET_NNODES"] == env["PET_NNODES"]


def test_threads_are_those_given_or_this_containers_share() -> None:
    assert commands(OMP_NUM_THREADS="3")[0][1]["OMP_NUM_THREADS"] == "3"
    share = max(1, usable_cpus() // 2)
    assert commands(PET_NPROC_PER_NODE="2")[0][1]["OMP_NUM_THREADS"] == str(share)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PET_NPROC_PER_NODE": "many"}, "PET_NPROC_PER_NODE=many is not a number, auto"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "2"}, "PET_NODE_RANK=2 and PET_NNODES=2 don't fit"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "1"}, "needs PET_MASTER_ADDR"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(env: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        commands(**env)


def test_the_first_root_cause_is_shown_and_not_what_followed_from_it(tmp_path: Path) -> None:
    write(tmp_path, 0, Failure(line="lost contact", exit_code=128, root=False, time=1))
    write(tmp_path, 1, Failure(line="later", exit_code=3, time=3))
    write(tmp_path, 2, Failure(line="the cause", exit_code=11, details=("a", "b"), time=2))
    cause = first_cause(tmp_path)
    assert cause is not None
    assert (cause.line, cause.details) == ("the cause", ("a", "b"))


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (DataError("no rows"), "no rows", 11),
        (MemoryError("x"), "out of memory: lower training.per_device_train_batch_size", 1),
        (OSError(28, "No space", "f"), "no space left for f", 1),
        (ZeroDivisionError("a\nb"), "ZeroDivisionError: a b (run again with --debug", 1),
    ],
)
def test_any_exception_is_one_line_and_a_code(error: Exception, line: str, code: int) -> None:
    failure = describe(error)
    assert failure.line.startswith(line)
    assert failure.exit_code == code


SLEEP = "import time; time.sleep(600)"


def supervise(tmp_path: Path, *codes: str) -> Failure | None:
    failure, was_stopped = launch._supervise(
        [([sys.executable, "-c", code], dict(os.environ)) for code in codes], tmp_path
    )
    assert not was_stopped
    return failure


def test_a_worker_killed_from_outside_is_named_and_retryable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "FOLLOW_S", 0.2)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    failure = supervise(tmp_path, SLEEP, kill)
    assert failure is not None
    assert failure.exit_code == 137
    assert failure.line.startswith("a worker was ended by SIGKILL; out of memory?")


def test_all_workers_end_well_or_the_replica_fails(tmp_path: Path) -> None:
    assert supervise(tmp_path, "pass", "pass") is None
    failure = supervise(tmp_path, "pass", "raise SystemExit(7)")
    assert failure is not None
    assert failure.exit_code == 7


def test_sigterm_ends_the_workers_and_says_so(workspace: Any) -> None:
    workspace.write("a.jsonl", [{"text": "red blue"}] * 50)
    workspace.training = {"num_train_epochs": 10_000, "logging_steps": 1}
    process: subprocess.Popen[str] = workspace.start()
    assert process.stdout is not None
    assert process.stdout.readline().startswith('{"event":"progress"')
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 143
    assert err.splitlines()[-1] == "error: stopped by SIGTERM"
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.slow
def test_workers_do_not_outlive_a_launcher_that_is_killed(workspace: Any) -> None:
    workspace.write("a.jsonl", [{"text": "red blue"}] * 50)
    workspace.training = {"num_train_epochs": 10_000, "logging_steps": 1}
    process: subprocess.Popen[str] = workspace.start()
    assert process.stdout is not None
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    process.kill()
    process.communicate(timeout=120)

    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
