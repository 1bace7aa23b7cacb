"""What one rank can't do, all ranks say: the same line, the same code, soon."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
from llm_trainer import alarm, ranks as module
from llm_trainer.failures import describe
from peftjob.errors import DataError
alarm.WAIT_S = 5.0
alarm.LOOK_S = 0.2
alarm.MISSED_S = 5.0
ranks = module.join()

def leave(failure):
    print(failure.line.split(" (run")[0], failure.exit_code, flush=True)
    os._exit(0)

ranks.alarm.listen(leave)
try:
    {body}
except module.StopTogetherError as err:
    leave(err.failure)
except Exception as err:
    leave(ranks.explain(err))
"""


def run_two(free_port: Callable[[], int], body: str) -> list[str]:
    """What each of two ranks says in the end."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    script = SCRIPT.replace("{body}", body.replace("\n", "\n    "))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(out for out, _ in outs), outs
    return [out.strip() for out, _ in outs]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_a_step_of_all_is_raised_on_all(
    free_port: Callable[[], int], failing: int
) -> None:
    body = f"with ranks.together():\n    if ranks.rank == {failing}: raise DataError('bad row')"
    assert run_two(free_port, body) == ["bad row 11"] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_amid_training_reaches_ranks_that_wait_in_a_collective_call(
    free_port: Callable[[], int], failing: int
) -> None:
    body = (
        f"if ranks.rank == {failing}: raise DataError('rank {failing} fell')\n"
        "dist.all_reduce(torch.zeros(1))"
    )
    assert run_two(free_port, body) == [f"rank {failing} fell 11"] * 2


def test_an_error_ends_a_rank_that_hangs(free_port: Callable[[], int]) -> None:
    body = "if ranks.rank == 0: raise DataError('no more')\ntime.sleep(5000)"
    assert run_two(free_port, body) == ["no more 11"] * 2


def test_sums_are_of_all_ranks(free_port: Callable[[], int]) -> None:
    body = "raise DataError(str(ranks.sum([1.5, 2.0 + ranks.rank])))"
    assert run_two(free_port, body)[0] == "[3.0, 5.0] 11"


@pytest.mark.parametrize(
    ("gone", "says"), [(1, "no sign of rank 1"), (0, "the rendezvous store is gone")]
)
def test_a_rank_that_is_killed_is_missed_by_one_that_hangs(
    free_port: Callable[[], int], gone: int, says: str
) -> None:
    body = (
        "dist.barrier()\n"
        f"if ranks.rank == {gone}: print('gone', flush=True); os._exit(9)\n"
        "time.sleep(5000)"
    )
    left = run_two(free_port, body)[1 - gone]
    assert left.startswith(f"rank {1 - gone} lost contact with another rank")
    assert left.endswith(f"({says}) 128")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_before_a_collective_call_of_a_step_ends_all(
    free_port: Callable[[], int], failing: int
) -> None:
    body = (
        "with ranks.together():\n"
        f"    if ranks.rank == {failing}: raise DataError('no model')\n"
        "    ranks.agree()\n"
        "    dist.all_reduce(torch.zeros(1))"
    )
    assert run_two(free_port, body) == ["no model 11"] * 2
