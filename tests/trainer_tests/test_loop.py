"""The loop: what it does when, what survives an end, and what a bad loss does."""

import logging
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.ranks import Ranks, StopTogetherError
from llm_trainer.train import optimiser
from llm_trainer.train.checkpoint import Checkpoints
from llm_trainer.train.loop import Loop
from llm_trainer.train.plan import Plan
from llm_trainer.train.stop import StoppedError
from llm_trainer.watch.meter import Meter
from llm_trainer.watch.sinks import Sinks
from peftjob.errors import TrainingError
from peftjob.progress import Progress, Result
from peftjob.training import Training


@dataclass
class ToyRows:
    """Row i is a point x with the target 3 x; `bad` ones are NaN."""

    count: int
    bad: tuple[int, ...] = ()

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.arange(self.count) % 5 + 1

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return np.ones(self.count, np.int64)

    def __len__(self) -> int:
        return self.count

    def origin(self, row: int) -> str:
        return f"toy.jsonl row {row + 1}"


@dataclass
class ToyObjective:
    train: ToyRows
    held_out: Rows | None = None
    on_batch: Any = None
    is_language = True

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        if self.on_batch is not None:
            self.on_batch()
        x = torch.linspace(-1, 1, len(rows))[torch.from_numpy(indices)][:, None]
        if rows is self.train:
            bad = torch.from_numpy(np.isin(indices, self.train.bad))
            x = torch.where(bad[:, None], torch.nan, x)
        return {"x": x}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        error = model(batch["x"]) - 3 * batch["x"]
        return Score((error**2).sum(), (error.abs() < 0.1).sum() if accuracy else None)


@dataclass
class Kept:
    """A sink that keeps what it is given."""

    records: list[Progress] = field(default_factory=list)

    def write(self, record: Progress | Result) -> None:
        assert isinstance(record, Progress)
        self.records.append(record)

    def resume_at(self, step: int) -> None:
        self.records = [r for r in self.records if r.step <= step]

    def close(self, *, failed: bool = False) -> None:
        pass


def make(
    folder: Path,
    *,
    objective: ToyObjective | None = None,
    sink: Kept | None = None,
    **settings: Any,
) -> Loop:
    objective = objective or ToyObjective(ToyRows(30), ToyRows(7))
    training = Training(
        **{"learning_rate": 0.1, "logging_steps": 5, "num_train_epochs": 4, **settings}
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(1, 1))
    plan = Plan(rows=objective.train, rows_per_step=8, world_size=1, seed=training.seed)
    total = plan.total_steps(epochs=training.num_train_epochs, max_steps=training.max_steps)
    made = optimiser.make(training, [{"params": list(model.parameters())}])
    device = torch.device("cpu")
    return Loop(
        model=model,
        objective=objective,
        plan=plan,
        training=training,
        ranks=Ranks(rank=0, world_size=1, local_rank=0, device=device),
        optimiser=made,
        schedule=optimiser.schedule(training, made, total_steps=total),
        total_steps=total,
        packed=True,
        micro_batch_tokens=10,
        meter=Meter(device),
        sinks=Sinks([sink or Kept()]),
        checkpoints=Checkpoints.of(folder, {}, keep=2),
    )


def weights(loop: Loop) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in loop.model.parameters())


def resumed(folder: Path, **settings: Any) -> Loop:
    loop = make(folder, **settings)
    state = loop.checkpoints.load()
    assert state is not None
    loop.load_state_dict(state)
    return loop


def test_lines_and_evaluations_come_when_they_are_due(tmp_path: Path) -> None:
    sink = Kept()
    make(tmp_path, sink=sink, eval_steps=6).run()
    assert [r.step for r in sink.records if r.loss is not None] == [5, 6, 10, 12, 15, 16]
    assert [r.step for r in sink.records if r.eval_loss is not None] == [0, 6, 12, 16]
    assert all(r.learning_rate is not None and r.grad_norm for r in sink.records if r.loss)
    assert sink.records[-1].epoch == 4.0


def test_an_evaluation_by_epoch_comes_at_the_end_of_each(tmp_path: Path) -> None:
    sink = Kept()
    make(tmp_path, sink=sink, eval_strategy="epoch").run()
    assert [r.step for r in sink.records if r.eval_loss is not None] == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("at", [1, 5, 6, 7, 15])
def test_resumed_at_any_step_it_ends_where_it_would_have(tmp_path: Path, at: int) -> None:
    whole = make(tmp_path / "whole", eval_steps=6)
    whole.run()
    sink = Kept()
    cut = make(tmp_path / "cut", sink=sink, eval_steps=6, save_steps=1)
    cut.checkpoints.__dict__["keep"] = 100
    cut.run()
    for path in cut.checkpoints.folder.glob("step-*"):
        if int(path.name.removeprefix("step-")) > at:
            path.rename(path.with_name(f"later-{path.name}"))
    again = resumed(tmp_path / "cut", sink=sink, eval_steps=6, save_steps=1)
    assert again.step == at
    again.run()
    assert weights(again) == weights(whole)
    assert again.evaluations.last == whole.evaluations.last
    assert again.evaluations.first == whole.evaluations.first
    assert again.meter.loss == whole.meter.loss
    steps = [r.step for r in sink.records if r.loss is not None]
    assert steps == [5, 6, 10, 12, 15, 16]


def test_sigterm_saves_the_step_that_is_done_and_leaves(tmp_path: Path) -> None:
    batches: list[int] = []

    def on_batch() -> None:
        batches.append(1)
        if len(batches) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    loop = make(tmp_path, objective=ToyObjective(ToyRows(30), on_batch=on_batch))
    with pytest.raises(StopTogetherError, match=r"stopped by SIGTERM after step \d+ of 16") as left:
        loop.run()
    assert left.value.failure.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    again = resumed(tmp_path, objective=ToyObjective(ToyRows(30)))
    assert again.step == loop.step
    again.run()
    whole = make(tmp_path / "whole", objective=ToyObjective(ToyRows(30)))
    whole.run()
    assert weights(again) == weights(whole)


def test_a_step_that_takes_too_long_is_left_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_trainer.train.stop.PATIENCE_S", -1.0)
    batches: list[int] = []

    def on_batch() -> None:
        batches.append(1)
        if len(batches) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    loop = make(tmp_path, objective=ToyObjective(ToyRows(30), on_batch=on_batch))
    with pytest.raises(StoppedError):
        loop.run()
    again = resumed(tmp_path, objective=ToyObjective(ToyRows(30)))
    again.run()
    whole = make(tmp_path / "whole", objective=ToyObjective(ToyRows(30)))
    whole.run()
    assert weights(again) == weights(whole)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rows(tmp_path: Path) -> None:
    loop = make(tmp_path, objective=ToyObjective(ToyRows(30, bad=(4, 21))))
    with pytest.raises(TrainingError) as caught:
        loop.run()
    text = str(caught.value)
    assert "the loss of step 1 is not finite" in text or "of step" in text
    assert "toy.jsonl row 5" in text or "toy.jsonl row 22" in text
    assert "on_non_finite_loss to skip" in text


def test_or_the_step_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Kept()
    objective = ToyObjective(ToyRows(30, bad=(4,)), ToyRows(7))
    loop = make(tmp_path, objective=objective, sink=sink, on_non_finite_loss="skip")
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        loop.run()
    assert loop.skipped == 4  # Once an epoch.
    assert "toy.jsonl row 5): the step is left out, 4 so far" in caplog.text
    assert all(np.isfinite(r.loss) for r in sink.records if r.loss is not None)
    assert loop.evaluations.last is not None
    assert np.isfinite(loop.evaluations.last.loss)


class OfMinusInfinity(ToyObjective):
    """A loss that is infinite for some rows, with a gradient that is not."""

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        much = torch.where(batch["x"] > 0.5, torch.inf, 0.0)
        return Score((model(batch["x"]) + much).sum())


def test_a_loss_that_is_infinite_is_named_though_the_gradient_is_not(tmp_path: Path) -> None:
    loop = make(tmp_path, objective=OfMinusInfinity(ToyRows(30)))
    with pytest.raises(TrainingError, match=r"is not finite \(toy.jsonl row"):
        loop.run()


def test_what_was_trained_before_a_bad_loss_is_gone_on_with(tmp_path: Path) -> None:
    objective = ToyObjective(ToyRows(30, bad=(4,)), ToyRows(7))
    whole = make(tmp_path / "whole", objective=objective, on_non_finite_loss="skip")
    whole.run()
    # No step is due to be saved.
    stopped = make(tmp_path / "cut", objective=objective)
    with pytest.raises(TrainingError):
        stopped.run()
    again = resumed(tmp_path / "cut", objective=objective, on_non_finite_loss="skip")
    assert again.step == stopped.step
    again.run()
    assert weights(again) == weights(whole)
    assert again.skipped == whole.skipped == 4


@pytest.mark.filterwarnings("ignore:Detected call of")  # A launcher leaves it out.
def test_of_steps_that_are_all_left_out_no_loss_is_told(tmp_path: Path) -> None:
    sink = Kept()
    objective = ToyObjective(ToyRows(8, bad=(4,)))
    loop = make(tmp_path, objective=objective, sink=sink, on_non_finite_loss="skip")
    loop.run()
    assert [(r.step, r.loss, r.grad_norm) for r in sink.records] == [(4, None, None)]


def test_sigterm_in_the_evaluation_before_the_first_step_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_trainer.train.stop.PATIENCE_S", -1.0)
    sink = Kept()
    stop = ToyObjective(ToyRows(30), ToyRows(7), lambda: os.kill(os.getpid(), signal.SIGTERM))
    loop = make(tmp_path / "cut", objective=stop, sink=sink, eval_steps=6)
    with pytest.raises(StoppedError, match="after step 0 of 16"):
        loop.run()
    again = resumed(tmp_path / "cut", sink=sink, eval_steps=6)
    again.run()
    assert [r.step for r in sink.records if r.eval_loss is not None] == [0, 6, 12, 16]
    whole = make(tmp_path / "whole", eval_steps=6)
    whole.run()
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("at", [25, 26, 27])
def test_sigterm_amid_an_evaluation_leaves_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("llm_trainer.train.stop.PATIENCE_S", -1.0)
    batches: list[int] = []

    def on_batch() -> None:
        batches.append(1)
        if len(batches) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    sink = Kept()
    objective = ToyObjective(ToyRows(30), ToyRows(7), on_batch)
    with pytest.raises(StoppedError):
        make(tmp_path, objective=objective, sink=sink, eval_steps=6).run()
    resumed(tmp_path, sink=sink, eval_steps=6).run()
    assert [r.step for r in sink.records if r.loss is not None] == [5, 6, 10, 12, 15, 16]
    assert [r.step for r in sink.records if r.eval_loss is not None] == [0, 6, 12, 16]


def test_a_job_whose_checkpoints_are_all_damaged_begins_anew_and_keeps_them(
    tmp_path: Path,
) -> None:
    loop = make(tmp_path, save_steps=1)
    loop.run()
    for path in loop.checkpoints.folder.glob("step-*/state.pt"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert loop.checkpoints.load() is None
    assert len(list(loop.checkpoints.folder.glob("damaged-step-*/state.pt"))) == 2


def test_ranks_that_share_out_the_weights_look_for_bad_rows_equally_often(tmp_path: Path) -> None:
    objective = ToyObjective(ToyRows(30, bad=(4,)))
    loop = make(tmp_path, objective=objective, on_non_finite_loss="skip", num_train_epochs=1)
    counts: list[int] = []
    # Another rank has two more of them.
    loop.rounds = lambda count: counts.append(count) or count + 2  # type: ignore[func-returns-value]
    loop.run()
    assert loop.skipped == len(counts) == 1


def test_it_stops_early_and_publishes_the_best(tmp_path: Path) -> None:
    sink = Kept()
    loop = make(
        tmp_path,
        sink=sink,
        learning_rate=2.0,
        lr_scheduler_type="constant",
        num_train_epochs=100,
        eval_steps=2,
        early_stopping_patience=3,
        load_best_model_at_end=True,
    )
    loop.run()
    losses = {r.step: r.eval_loss for r in sink.records if r.eval_loss is not None and r.step}
    assert loop.step < 400
    assert loop.step == loop.evaluations.best_step + 6
    assert loop.evaluations.last is not None
    assert loop.evaluations.last.loss == min(losses.values()) == losses[loop.evaluations.best_step]
