"""A training whose number of processes changes: what it trains does not."""

import subprocess
import time
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from peftjob.progress import Progress, Result, from_line

pytestmark = pytest.mark.slow
DEADLINE_S = 600.0
STEPS = 120


def set_up(workspace: Any, rows: list[Any]) -> Any:
    workspace.write("train.jsonl", rows)
    workspace.training = {
        "num_train_epochs": 24,
        "per_device_train_batch_size": 8,
        "save_steps": 1,
        "logging_steps": 1,
        "dtype": "float32",
    }
    return workspace


def records(workspace: Any) -> list[Any]:
    path = workspace.output / "progress.jsonl"
    found = path.read_text().splitlines() if path.is_file() else []
    return [record for record in map(from_line, found) if record is not None]


def last_step(workspace: Any) -> int:
    return max((r.step for r in records(workspace) if isinstance(r, Progress)), default=0)


def wait_for_step(workspace: Any, step: int, replicas: "list[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while last_step(workspace) < step:
        assert replicas[0].poll() is None, replicas[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def end(replicas: "list[subprocess.Popen[str]]") -> list[tuple[int, str]]:
    ends = []
    for replica in replicas:
        _, err = replica.communicate(timeout=DEADLINE_S)
        ends.append((replica.returncode, err))
    return ends


def assert_trained_alike(workspace: Any, other: Any) -> None:
    """The same steps, each once, with the same losses; the same adapter but for rounding."""
    found, wanted = ([r for r in records(w) if isinstance(r, Progress)] for w in (workspace, other))
    assert [r.step for r in found] == [r.step for r in wanted] == list(range(1, STEPS + 1))
    assert [r.tokens for r in found] == [r.tokens for r in wanted]
    assert [r.loss for r in found] == pytest.approx([r.loss for r in wanted], rel=1e-3)
    one, two = (
        load_file(w.output / "adapter/adapter_model.safetensors") for w in (workspace, other)
    )
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-3


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, make_workspace: Any, chat_rows: list[Any]
) -> Any:
    """Of one process, uninterrupted."""
    workspace = set_up(make_workspace(tmp_path_factory.mktemp("whole")), chat_rows)
    assert end([workspace.start()])[0][0] == 0
    return workspace


def test_a_job_comes_back_with_more_and_with_fewer_processes(
    workspace: Any, chat_rows: list[Any], whole: Any
) -> None:
    set_up(workspace, chat_rows)
    for nodes, nproc in ((1, 1), (2, 2)):
        # Of this round: a fast machine trains on for a while after it was told to stop.
        until = last_step(workspace) + 8
        replicas = workspace.start_nodes(nodes, nproc)
        wait_for_step(workspace, until, replicas)
        replicas[-1].terminate()
        ends = end(replicas)
        assert [code for code, _ in ends] == [143] * nodes, ends
    ends = end(workspace.start_nodes(2))
    assert [code for code, _ in ends] == [0, 0], ends
    assert f"{STEPS} steps of 8 rows on 2 processes" in ends[0][1]
    assert_trained_alike(workspace, whole)


def start_elastic(workspace: Any, port: int) -> "subprocess.Popen[str]":
    replica: subprocess.Popen[str] = workspace.start(
        PET_NNODES="1:2",
        PET_NPROC_PER_NODE="1",
        PET_RDZV_BACKEND="c10d",
        PET_RDZV_ENDPOINT=f"localhost:{port}",
        PET_RDZV_CONF="last_call_timeout=1",
        PET_MAX_RESTARTS="3",
        TMPDIR=str(workspace.root),
    )
    return replica


def test_a_replica_that_joins_later_takes_its_share(
    workspace: Any, chat_rows: list[Any], free_port: Any
) -> None:
    set_up(workspace, chat_rows)
    workspace.training |= {"num_train_epochs": 200, "save_steps": 50}
    port = free_port()
    replicas = [start_elastic(workspace, port)]
    wait_for_step(workspace, 1, replicas)
    # On a busy machine it would be done before the other one has started.
    for process in psutil.Process(replicas[0].pid).children(recursive=True):
        if not process.children():
            process.nice(process.nice() + 5)
    replicas.append(start_elastic(workspace, port))
    ends = end(replicas)
    assert [code for code, _ in ends] == [0, 0], ends
    steps = [r for r in records(workspace) if isinstance(r, Progress)]
    assert [r.step for r in steps] == list(range(1, 1001))
    assert steps[-1].tokens == 40 * steps[24].tokens
    (result,) = [r for r in records(workspace) if isinstance(r, Result)]
    assert result.workers == 2
    left = [path.name for path in workspace.root.iterdir()]
    assert not [name for name in left if name.startswith(("torchelastic", "llm-trainer"))]
