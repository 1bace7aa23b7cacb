"""Trackers: TensorBoard's own files read back; what goes wrong in any never ends a training."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_trainer import options
from llm_trainer.watch import reports, sinks
from llm_trainer.watch.reports import Report
from llm_trainer.watch.trackers import Kept, TensorBoard
from peftjob.errors import SpecError
from peftjob.progress import Progress


def job(root: Path, **training: Any) -> options.Job:
    spec = {
        "name": "toy",
        "base_model": {"source": "hf://org/base"},
        "dataset": {"source": "https://host/a.jsonl"},
        "method": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": training,
    }
    env = {"PEFTJOB_WORKSPACE": str(root), "PEFTJOB_OUTPUT": str(root / "out")}
    return options.read([], {"PEFTJOB_SPEC": json.dumps(spec), **env})


def record(step: int, **fields: float) -> Progress:
    return Progress(step=step, total_steps=9, epoch=1.0, **fields)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


class Tracker:
    """One that keeps what it is told, or fails when it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[object] = []
        self.fails_at = fails_at

    def start(self, *, resumed_at: int | None) -> None:
        self.calls.append(("start", resumed_at))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.calls.append((step, dict(values)))

    def end(self, *, failed: bool) -> None:
        self.calls.append(("end", failed))


def test_a_tracker_gets_every_record_as_metrics_and_how_it_ended() -> None:
    tracker = Tracker()
    report = Report("it", tracker)
    report.resume_at(2)
    report.write(record(4, loss=1.5, learning_rate=2e-4))
    report.write(record(4, eval_loss=1.25))
    report.close(failed=True)
    trained = {"train/loss": 1.5, "train/learning_rate": 2e-4}
    common = {"train/epoch": 1.0, "train/tokens": 0.0}
    assert tracker.calls == [
        ("start", 2),
        (4, trained | common),
        (4, {"eval/loss": 1.25} | common),
        ("end", True),
    ]


def test_one_that_goes_away_is_said_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(fails_at=2)
    report = Report("it", tracker)
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        for step in range(1, 5):
            report.write(record(step, loss=1.5))
        report.close()
    assert [call[0] for call in tracker.calls] == ["start", 1]
    (said,) = caplog.messages
    assert said == (
        "no more is reported to it: ConnectionError: the server is gone; training goes on"
    )


def test_one_that_hangs_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reports, "CLOSE_S", 0.1)
    free = threading.Event()
    tracker = Tracker()
    monkeypatch.setattr(tracker, "log", lambda *_: free.wait())
    report = Report("it", tracker)
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        report.write(record(1, loss=1.5))
        report.close()
    free.set()
    assert caplog.messages[0].startswith("no more is reported to it: it did not take the last")


def test_one_that_falls_behind_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reports, "WAITING", 3)
    free = threading.Event()
    tracker = Tracker()
    monkeypatch.setattr(tracker, "start", lambda **_: free.wait())
    report = Report("it", tracker)
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        for step in range(9):
            report.write(record(step, loss=1.5))
    free.set()
    assert caplog.messages == [
        "no more is reported to it: it is 3 records behind; training goes on"
    ]


SERVERS = {"MLFLOW_TRACKING_URI": "http://mlflow", "WANDB_API_KEY": "key"}


def test_what_is_not_installed_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"mlflow", "wandb"}
    monkeypatch.setattr(reports, "find_spec", lambda name: None if name in missing else object())
    asked = job(tmp_path, report_to=["tensorboard", "wandb", "mlflow"])
    with pytest.raises(
        SpecError, match=r"wandb, mlflow can't .* `pip install wandb mlflow-skinny`"
    ):
        sinks.of(asked, env=SERVERS)


@pytest.mark.parametrize(
    ("tracker", "says"),
    [
        ("mlflow", "set MLFLOW_TRACKING_URI in env"),
        ("wandb", "set WANDB_API_KEY in env from a Sec"),
    ],
)
def test_a_tracker_without_its_server_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, says: str
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda _: object())
    with pytest.raises(SpecError, match=f"training.report_to: {tracker} needs .*{says}"):
        sinks.of(job(tmp_path, report_to=[tracker]), env={})


def test_a_tracker_that_nobody_knows_is_refused_with_those_that_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"report_to.0: .*'tensorboard', 'mlflow' or 'wandb'"):
        job(tmp_path, report_to=["tensorbord"])


def test_settings_are_flat_and_name_the_base_model(tmp_path: Path) -> None:
    made = reports.settings(job(tmp_path, learning_rate=1e-3))
    assert made["base_model"] == "org/base"
    assert made["training.learning_rate"] == 1e-3
    assert made["method.target_modules"] == '["q_proj", "v_proj"]'


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    written = sinks.of(job(tmp_path, report_to=["tensorboard"]))
    with written:
        written.write(record(0, eval_loss=2.5, eval_accuracy=0.5))
        written.write(record(2, loss=2.0))
        written.write(record(4, loss=1.5))
    read = scalars(tmp_path / "out/tensorboard")
    assert read["train/loss"] == [(2, 2.0), (4, 1.5)]
    assert read["eval/loss"] == [(0, 2.5)]
    assert read["eval/accuracy"] == [(0, 0.5)]


def test_tensorboard_drops_what_a_resumed_training_repeats(tmp_path: Path) -> None:
    def track(resumed_at: int | None, points: list[tuple[int, float]]) -> None:
        board = TensorBoard(tmp_path)
        board.start(resumed_at=resumed_at)
        for step, loss in points:
            board.log(step, {"train/loss": loss})
        board.end(failed=False)

    track(None, [(1, 9.0)])
    track(None, [(2, 2.0), (4, 1.75), (6, 1.5)])
    track(3, [(4, 1.0)])
    assert scalars(tmp_path / "tensorboard")["train/loss"] == [(2, 2.0), (4, 1.0)]


def test_the_name_of_a_run_outlives_the_process(tmp_path: Path) -> None:
    assert Kept(tmp_path / "run").read() is None
    Kept(tmp_path / "run").write("abc")
    assert Kept(tmp_path / "run").read() == "abc"
    Kept(tmp_path / "no/such/folder").write("abc")
