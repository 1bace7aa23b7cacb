"""Checkpoints: whole, verified, kept, and never in the way."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_trainer import options
from llm_trainer.train import setup
from llm_trainer.train.checkpoint import Checkpoints


def checkpoints(folder: Path, keep: int = 2, **identity: Any) -> Checkpoints:
    return Checkpoints.of(folder, {"seed": 1, **identity}, keep=keep)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"a": torch.full((4, 3), float(step))}, "names": ["x", None]}


def steps(store: Checkpoints) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    assert store.load() is None
    assert store.save(7, state(7))
    loaded = store.load()
    assert loaded is not None
    assert loaded["names"] == ["x", None]
    assert torch.equal(loaded["weights"]["a"], state(7)["weights"]["a"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = checkpoints(tmp_path, keep=2)
    for step in (9, 10, 100):
        store.save(step, state(step))
    assert steps(store) == ["step-00000010", "step-00000100"]


def test_another_specification_finds_checkpoints_of_its_own_only(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(3, state(3))
    assert checkpoints(tmp_path, seed=2).load() is None
    assert checkpoints(tmp_path).load() is not None


def identity(folder: Path, **training: Any) -> Any:
    spec = {
        "name": "toy",
        "base_model": {"source": "hf://org/base"},
        "dataset": {"source": "https://host/a.jsonl"},
        "training": training,
    }
    env = {"PEFTJOB_SPEC": json.dumps(spec), "PEFTJOB_WORKSPACE": str(folder)}
    return setup.identity(options.read([], env | {"PEFTJOB_OUTPUT": str(folder)}))


@pytest.mark.parametrize(
    ("field", "value", "goes_on"),
    [
        ("learning_rate", 1e-3, False),
        ("eval_steps", 3, False),
        # What the errors of a training that has failed say to change.
        ("micro_batch_tokens", 64, True),
        ("gradient_checkpointing", True, True),
        ("on_non_finite_loss", "skip", True),
        ("save_steps", 5, True),
    ],
)
def test_a_training_goes_on_with_another_way_to_run_it(
    tmp_path: Path, field: str, value: Any, goes_on: bool
) -> None:
    assert (identity(tmp_path) == identity(tmp_path, **{field: value})) is goes_on


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "empty"])
def test_a_damaged_one_is_passed_over_and_kept_for_inspection(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = checkpoints(tmp_path)
    store.save(1, state(1))
    store.save(2, state(2))
    folder = store.folder / "step-00000002"
    data = bytearray((folder / "state.pt").read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        (folder / "state.pt").write_bytes(data)
    elif damage == "truncate":
        (folder / "state.pt").write_bytes(data[:-10])
    elif damage == "empty":
        (folder / "manifest.json").write_bytes(b"")
    else:
        (folder / ("state.pt" if damage == "remove" else "manifest.json")).unlink()
    with caplog.at_level(logging.ERROR, "llm_trainer"):
        loaded = store.load()
    assert loaded is not None
    assert loaded["step"] == 1
    assert "step-00000002 is damaged" in caplog.text
    assert steps(store) == ["damaged-step-00000002", "step-00000001"]


def test_a_full_volume_leaves_the_old_checkpoint_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = checkpoints(tmp_path)
    store.save(1, state(1))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.ERROR, "llm_trainer"):
        assert not store.save(2, state(2))
    assert steps(store) == ["step-00000001"]
    assert len(caplog.records) == 1
    assert "No space left on device; training goes on" in caplog.text
    assert "begin at step-00000001" in caplog.text


def test_a_volume_that_fills_amid_a_write_is_said_in_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, torch, pathlib, logging\n"
        "logging.basicConfig(format='%(message)s')\n"
        "from llm_trainer.train.checkpoint import Checkpoints\n"
        "store = Checkpoints.of(pathlib.Path(sys.argv[1]), {}, keep=2)\n"
        "print(store.save(1, {'step': 1}))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "print(store.save(2, {'step': 2, 'weights': torch.ones(10**6)}))\n"
        "print(store.load()['step'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "1"]
    assert len(done.stderr.splitlines()) == 1
    assert "File too large; training goes on" in done.stderr


def test_one_that_is_killed_amid_a_save_leaves_the_older_whole(tmp_path: Path) -> None:
    code = (
        "import sys, torch, pathlib\n"
        "from llm_trainer.train.checkpoint import Checkpoints\n"
        "store = Checkpoints.of(pathlib.Path(sys.argv[1]), {'seed': 1}, keep=2)\n"
        "for step in range(1, 10**6):\n"
        "    store.save(step, {'step': step, 'weights': torch.full((10**6,), float(step))})\n"
        "    print(step, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    last = [int(child.stdout.readline()) for _ in range(5)][-1]
    child.send_signal(signal.SIGKILL)
    rest = child.communicate()[0].split()
    loaded = checkpoints(tmp_path).load()
    assert loaded is not None
    assert loaded["step"] >= int((rest or [last])[-1])
    assert (loaded["weights"] == float(loaded["step"])).all()
    store = checkpoints(tmp_path)
    store.save(10**6, state(10**6))
    assert not list(store.folder.glob(".step-*"))
