"""kill -9 of any process of a training at any time: the adapter is the uninterrupted one's.

Thirty seeded kills, at one, two and four processes, ten of them while a checkpoint is being
written; five of them run by default, all of them with `-m kills` (about ten minutes).
"""

import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

KILLS = 30
BY_DEFAULT = {0, 2, 3, 4, 7}
"""Every world size, inside and outside of a save."""
DEADLINE_S = 600.0
STEPS = {1: 80, 2: 40, 4: 24}
"""Of a training, by world size."""


def set_up(workspace: Any, chats: list[Any]) -> Any:
    workspace.write("train.jsonl", chats)
    workspace.spec = {
        "method": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1},
    }
    # Every step is saved, so that a kill falls into a save as often as into a step.
    workspace.training = {"num_train_epochs": 8, "save_steps": 1, "logging_steps": 1}
    return workspace


def adapter(output: Path) -> bytes:
    return (output / "adapter/adapter_model.safetensors").read_bytes()


def processes(launchers: "list[subprocess.Popen[str]]") -> list[psutil.Process]:
    found = []
    for launcher in launchers:
        try:
            top = psutil.Process(launcher.pid)
            found += [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def steps_done(output: Path) -> int:
    path = output / "progress.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def is_saving(output: Path) -> bool:
    return any(output.glob("checkpoints/*/.step-*"))


def wait_until(condition: Any, launchers: "list[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        if launchers[0].poll() is not None:
            return  # It was faster than this process on a loaded machine.
        time.sleep(0.0002)


def end(launchers: "list[subprocess.Popen[str]]") -> list[int]:
    """Wait for all of them; those that miss a peer end by themselves."""
    codes = []
    for launcher in launchers:
        launcher.communicate(timeout=DEADLINE_S)
        codes.append(launcher.returncode)
    return codes


def start(workspace: Any, world: int) -> "list[subprocess.Popen[str]]":
    # Four processes are two replicas of two, as on a machine with two GPUs each.
    launchers: list[subprocess.Popen[str]] = (
        [workspace.start()] if world == 1 else workspace.start_nodes(2, world // 2)
    )
    return launchers


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, make_workspace: Any, chat_rows: list[Any]
) -> Any:
    """World size → the adapter's bytes."""
    made: dict[int, bytes] = {}

    def train(world: int) -> bytes:
        if world not in made:
            workspace = set_up(make_workspace(tmp_path_factory.mktemp(f"w{world}")), chat_rows)
            launchers = start(workspace, world)
            assert end(launchers) == [0] * len(launchers)
            made[world] = adapter(workspace.output)
        return made[world]

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [
        seed if seed in BY_DEFAULT else pytest.param(seed, marks=pytest.mark.kills)
        for seed in range(KILLS)
    ],
)
def test_a_killed_training_ends_with_the_same_adapter(
    workspace: Any, chat_rows: list[Any], uninterrupted: Any, seed: int
) -> None:
    rng = random.Random(seed)
    world, in_save = (1, 2, 4)[seed % 3], seed % 3 == (seed // 3) % 3
    set_up(workspace, chat_rows)
    launchers = start(workspace, world)
    lines = rng.randrange(STEPS[world] * 3 // 4)
    wait_until(lambda: steps_done(workspace.output) >= lines, launchers)
    with suppress(psutil.NoSuchProcess):
        if in_save:
            wait_until(lambda: is_saving(workspace.output), launchers)
            victim: Any = psutil.Process(launchers[0].pid)
            victim = (victim.children() or [victim])[0]
        else:
            time.sleep(rng.random() * 0.05)
            victim = rng.choice(processes(launchers))
        victim.send_signal(signal.SIGKILL)
    codes = end(launchers)
    assert all(code in (0, -9) or code >= 128 for code in codes), codes
    if codes[0] != 0:
        launchers = start(workspace, world)
        assert end(launchers) == [0] * len(launchers)
    assert adapter(workspace.output) == uninterrupted(world)


@pytest.mark.slow
def test_sigterm_to_one_replica_saves_and_ends_all_of_them_retryably(
    workspace: Any, chat_rows: list[Any], uninterrupted: Any
) -> None:
    set_up(workspace, chat_rows)
    launchers = start(workspace, 2)
    wait_until(lambda: steps_done(workspace.output) >= 5, launchers)
    launchers[1].send_signal(signal.SIGTERM)
    assert end(launchers) == [143, 143]
    launchers = start(workspace, 2)
    _, log = launchers[0].communicate(timeout=DEADLINE_S)
    assert end(launchers[1:]) == [0]
    assert "rank 0: resumed at step" in log
    assert adapter(workspace.output) == uninterrupted(2)
