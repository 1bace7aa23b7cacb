"""The gradients of a step: what they add up to, and running out of memory on the way."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.train.gradients import Gradients
from llm_trainer.train.plan import Plan
from llm_trainer.train.step import Accumulator
from peftjob.errors import OutOfMemoryError


@dataclass
class ToyRows:
    """Row i is the number i, `lengths[i]` times."""

    lengths: npt.NDArray[np.int64]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def origin(self, row: int) -> str:
        return f"toy.jsonl row {row + 1}"


@dataclass
class ToyObjective:
    """Squared error of a linear model; memory is out above `limit` tokens a batch."""

    train: ToyRows
    limit: int = 10**9
    error: type[Exception] = torch.OutOfMemoryError
    held_out: Rows | None = None
    sizes: list[int] = field(default_factory=list)
    is_language = True

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        values = np.repeat(indices, rows.lengths[indices])
        return {"x": torch.tensor(values, dtype=torch.float32)[:, None]}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        self.sizes.append(len(batch["x"]))
        loss = ((model(batch["x"]) - 1) ** 2).sum()
        if len(batch["x"]) > self.limit:
            # After a forward and a part of the backward pass, as it happens.
            loss.backward()
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to …")
        return Score(loss)


def make(objective: ToyObjective, tokens: int) -> tuple[nn.Module, Accumulator]:
    torch.manual_seed(0)
    model = nn.Linear(1, 2)
    plan = Plan(rows=objective.train, rows_per_step=16, world_size=1, seed=0)
    accumulator = Accumulator(
        model=model,
        objective=objective,
        plan=plan,
        gradients=Gradients(list(model.parameters()), world_size=1, flags=0),
        device=torch.device("cpu"),
        packed=True,
        tokens=tokens,
    )
    return model, accumulator


def rows(*lengths: int) -> ToyRows:
    return ToyRows(np.array(lengths, np.int64))


def gradient(model: nn.Module) -> Any:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_small_micro_batches_add_up_to_a_large_one() -> None:
    data = rows(3, 1, 4, 1, 5, 9, 2, 6)
    share = np.arange(8)
    one_model, one = make(ToyObjective(data), tokens=100)
    many_model, many = make(ToyObjective(data), tokens=9)
    assert len(one.run(0, share, 31)) == 1
    assert len(many.run(0, share, 31)) > 3
    torch.testing.assert_close(gradient(one_model), gradient(many_model))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    data = rows(3, 1, 4, 1, 5, 9, 2, 6)
    plenty_model, plenty = make(ToyObjective(data), tokens=31)
    plenty.run(0, np.arange(8), 31)
    scarce = ToyObjective(data, limit=10, error=error)
    model, accumulator = make(scarce, tokens=31)
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        accumulator.run(0, np.arange(8), 31)
    torch.testing.assert_close(gradient(model), gradient(plenty_model))
    assert accumulator.tokens <= 15
    assert "out of memory at step 0: micro-batches of at most" in caplog.text


def test_what_did_not_fit_once_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    objective = ToyObjective(rows(*[4] * 8), limit=9)
    _, accumulator = make(objective, tokens=32)
    accumulator.run(0, np.arange(8), 32)
    objective.sizes.clear()
    accumulator.run(1, np.arange(8), 32)
    assert max(objective.sizes) <= 9


def test_a_single_row_that_does_not_fit_is_named_with_what_to_do() -> None:
    _, accumulator = make(ToyObjective(rows(4, 50, 4), limit=20), tokens=100)
    with pytest.raises(OutOfMemoryError) as caught:
        accumulator.run(7, np.arange(3), 58)
    assert "at step 7 with one row at a time (toy.jsonl row 2, 50 tokens)" in str(caught.value)
    assert "lower training.max_length" in str(caught.value)


def test_other_errors_are_not_taken_for_it() -> None:
    objective = ToyObjective(rows(4, 4), limit=1, error=KeyError)
    _, accumulator = make(objective, tokens=100)
    with pytest.raises(KeyError):
        accumulator.run(0, np.arange(2), 8)
    assert len(objective.sizes) == 1


def test_a_rank_without_rows_adds_nothing() -> None:
    model, accumulator = make(ToyObjective(rows(4, 4)), tokens=100)
    assert accumulator.run(0, np.array([], np.int64), 8) == []
    assert float(gradient(model).abs().sum()) == 0.0
